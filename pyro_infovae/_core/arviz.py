# SPDX-License-Identifier: MIT
"""ArviZ's object from draws, before ArviZ 1.0 and since."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pyro_infovae._core.axes import Axes
from pyro_infovae._core.draws import Draws

OWN_DIMS = ("chain", "draw")


def load_arviz(asker: str) -> ModuleType:
    """ArviZ, which is imported only where it is needed.

    Args:
        asker: what needs it, for messages.

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
            f"{asker} needs ArviZ: pip install pyro-infovae[arviz]", name="arviz"
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


def describe(role: str, objective: object) -> dict[str, str]:
    """The name of an objective's class, and such of its arguments as JSON can hold."""
    settings = {}
    for name in inspect.signature(type(objective)).parameters:
        for owner in (objective, getattr(objective, "flow", None)):
            value: Any = getattr(owner, name, None)
            value = value.tolist() if hasattr(value, "tolist") else value
            if isinstance(value, bool | int | float | str | list) and value != math.inf:
                settings[name] = value
    return {role: type(objective).__name__, f"{role}_settings": json.dumps(settings)}
