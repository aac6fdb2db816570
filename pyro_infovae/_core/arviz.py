# SPDX-License-Identifier: MIT
"""ArviZ's object from draws, before ArviZ 1.0 and since."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from types import ModuleType
from typing import Any

from pyro_infovae._core.draws import Axes, Draws

OWN_DIMS = ("chain", "draw")

TO_INFERENCE_DATA = r"""
============================ ===================================================================
group                        holds, for S draws
============================ ===================================================================
``posterior``                the latents that the guide draws, and deterministic sites
``posterior_predictive``     the observed sites drawn afresh, and latents that only the model
                             draws
``log_likelihood``           :math:`\log p(x_i \mid z_s)` in nats, per row i of each observed
                             site: without scales and subsampling factors, without factors
``prior``                    what ``posterior`` holds, drawn from the model alone
``prior_predictive``         what ``posterior_predictive`` holds, likewise
``observed_data``            the data
============================ ===================================================================

A site has the dims (chain, draw, \*plates, \*event): plates by their names, with the indices of
a minibatch as coordinates, and event dims, or dims in no plate, as ``z_dim_0``, ``z_dim_1``.
There is one chain.

Rows of an observed site that are masked are left out, for :func:`arviz.loo` would count them;
where there are any, the rest of ``x`` has a single dim ``x_row`` in place of its plates, whose
coordinates are the positions in the full data, counted along the plates in row-major order. A
minibatch is drawn once;
$choose_rows.

Args:
    args: positional arguments of both. The data may be among them: predictions are drawn
        where the model observes.
    num_samples: the number S of draws. Each holds a prediction of every datum.
    chunk_size: $chunk_size
    refine: draws from ``refine.refine(model, guide)`` in the guide's place.
    objective: the objective that the guide was trained under, to be named in the attributes.

Returns:
    An ``arviz.InferenceData``, or from ArviZ 1.0 on an ``xarray.DataTree``. Its ``attrs`` name
    ``objective`` and ``refine``, where given, and have under ``objective_settings`` and
    ``refine_settings`` such of their arguments as JSON can hold.

Raises:
    ModuleNotFoundError: where ArviZ is not installed.
    ValueError: naming the site: for draws or log likelihoods that are nan, a latent that only
        the guide draws or that the model sums out, or a name that ArviZ uses itself; for a
        model without data, or a number out of range.

References:
    Kumar, Carroll, Hartikainen, Martin, *ArviZ: a unified library for exploratory analysis of
    Bayesian models in Python*, Journal of Open Source Software 4(33), 1143.
"""


def check_draws(num_samples: int, chunk_size: int | None) -> None:
    """Refuse numbers out of range."""
    if num_samples < 1:
        raise ValueError(f"Expected num_samples >= 1; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")


def check_sites(
    sites: Iterable[str],
    *,
    unknown: Iterable[str],
    summed_out: Iterable[str],
    data: Collection[str],
) -> None:
    """Refuse programs of which ArviZ would not have all.

    Args:
        sites: the names of the model's sites.
        unknown: of the latents that the guide draws for none of the model's.
        summed_out: of those that the model sums out.
        data: of the observed sites.

    Raises:
        ValueError: naming the site.
    """
    for name in sorted(unknown):
        raise ValueError(
            f"to_inference_data: the guide draws '{name}', which is no latent of the model: leave "
            "it out, or mark it infer={'is_auxiliary': True} if other latents are computed from it"
        )
    for name in summed_out:
        raise ValueError(
            f"to_inference_data: site '{name}' is summed out in the model, so that it has no "
            "draws from the posterior: draw it in the guide"
        )
    if not data:
        raise ValueError(
            f"to_inference_data: the model observes nothing, only draws {list(sites)}: give a site "
            "its data by obs="
        )


def sites_of_groups(
    sites: Iterable[str], parameters: Collection[str], data: list[str]
) -> dict[str, list[str]]:
    """The sites of each of ArviZ's groups.

    Args:
        sites: all sites of the model, in their order.
        parameters: latents that the guide draws, and deterministic sites.
        data: the observed sites.
    """
    own = [name for name in sites if name in parameters]
    predictions = [name for name in sites if name not in parameters]
    return {
        "posterior": own,
        "posterior_predictive": predictions,
        "log_likelihood": data,
        "prior": own,
        "prior_predictive": predictions,
    }


def load_arviz(caller: str) -> ModuleType:
    """ArviZ, which is imported only where it is needed.

    Args:
        caller: what needs it, for messages.

    Raises:
        ModuleNotFoundError: where it is not installed.
    """
    try:
        # ArviZ comes with warnings about itself.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("arviz")
    except ModuleNotFoundError as error:
        if error.name != "arviz":
            raise
        raise ModuleNotFoundError(
            f"{caller} needs ArviZ: pip install pyro-infovae[arviz]", name="arviz"
        ) from error


def check_names(axes: Mapping[str, Axes]) -> None:
    """Refuse names that ArviZ would take for those of dims.

    Raises:
        ValueError: naming the site, or the plate.
    """
    sites_of_dims = {dim: site for site, own_axes in axes.items() for dim in own_axes.names}
    for dim in OWN_DIMS:
        if dim in sites_of_dims:
            raise ValueError(
                f"to_inference_data: plate '{dim}' has the name of a dim of ArviZ's own: rename it"
            )
    for name in axes:
        if name in OWN_DIMS or name in sites_of_dims:
            owner = f"site '{sites_of_dims[name]}'" if name in sites_of_dims else "ArviZ's own"
            raise ValueError(
                f"to_inference_data: site '{name}' has the name of a dim of {owner}: rename it"
            )


def build(arviz: ModuleType, draws: Draws, attrs: Mapping[str, str]) -> Any:
    """An ``InferenceData``, or a ``DataTree`` where ArviZ has none any more."""
    groups = {
        group: {name: value[None] for name, value in values.items()}  # as the only chain
        for group, values in draws.groups.items()
        if values
    }
    groups["observed_data"] = draws.observed
    dims = {name: axes.names for name, axes in draws.axes.items()}
    if "posterior" in inspect.signature(arviz.from_dict).parameters:
        return arviz.from_dict(**groups, dims=dims, coords=draws.indices, attrs=dict(attrs))
    return arviz.from_dict(groups, dims=dims, coords=draws.indices, attrs={"/": dict(attrs)})


def describe(library: str, **objectives: object) -> dict[str, str]:
    """The attributes: the library, and each objective with such of its arguments as JSON can hold.

    Args:
        library: the name of the library that has drawn.
        **objectives: the objectives by their roles, or None.
    """
    attrs = {"inference_library": library}
    for role, objective in objectives.items():
        if objective is not None:
            attrs |= {role: type(objective).__name__, f"{role}_settings": _settings(objective)}
    return attrs


def _settings(objective: object) -> str:
    settings = {}
    for name in inspect.signature(type(objective)).parameters:
        for owner in (objective, getattr(objective, "flow", None)):
            value: Any = getattr(owner, name, None)
            value = value.tolist() if hasattr(value, "tolist") else value
            if isinstance(value, bool | int | float | str | list) and value != math.inf:
                settings[name] = value
    return json.dumps(settings)
