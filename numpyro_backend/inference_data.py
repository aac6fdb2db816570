# SPDX-License-Identifier: MIT
"""From a model and its guide to ArviZ: posterior, predictions, log likelihoods and prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jaxtyping import Bool, Float, Key, Shaped
from numpyro import handlers
from numpyro.distributions import Unit
from numpyro.infer.elbo import ELBO

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._traces.importance_weights import in_chunks
from numpyro_backend._traces.recording import Message, joint_mask, undecorated
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from pyro_infovae._core.arviz import (
    TO_INFERENCE_DATA,
    build,
    check_draws,
    check_names,
    check_sites,
    describe,
    load_arviz,
    sites_of_groups,
)
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.draws import Axes, Draws, num_event_dims
from pyro_infovae._core.programs import Program

__all__ = ["to_inference_data"]

Messages: TypeAlias = Mapping[str, Message]
_Arrays: TypeAlias = tuple[dict[str, dict[str, Array]], dict[str, Array]]


@documented(TO_INFERENCE_DATA)
def to_inference_data(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    refine: TraceHamiltonian_ELBO | None = None,
    objective: ELBO | None = None,
    **kwargs: Any,
) -> Any:
    """Draw from a guide and a model, for ArviZ to summarise, plot, compare and save.

    Example:
        $programs
        >>> x = jnp.array([0.5, -1.0, 2.0])
        >>> data = to_inference_data(key, {}, model, guide, x, num_samples=100)
        >>> data.log_likelihood["x"].dims
        ('chain', 'draw', 'data')
    """
    arviz = load_arviz("to_inference_data")
    check_draws(num_samples, chunk_size)
    attrs = describe("numpyro", objective=objective, refine=refine)
    if refine is not None:
        guide = refine.refine(model, guide)
    site_key, draw_key = jax.random.split(rng_key)
    with numpyro.validation_enabled(False):
        sampler = _Sampler.of(site_key, params, model, guide, args, kwargs)
        check_names(sampler.axes)
        keys = jax.random.split(draw_key, num_samples)
        draws = sampler.draw(keys, chunk_size).without_masked_rows()
    draws.check(sampler.latents)
    return build(arviz, draws, attrs)


@dataclass(frozen=True)
class _Sampler:
    """Draws from guide and prior, with the predictions and densities that follow from them.

    Attributes:
        params: the values of parameters and mutable sites, by name.
        model: the model.
        guide: the guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        plates: the plates of both by name, with the choice of rows in each.
        sites: the model's sites in a run of its own, by name, but no factors.
        latents: the names of the model's latents that the guide draws.
    """

    params: Mapping[str, Any]
    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plates: Messages
    sites: Messages
    latents: frozenset[str]

    @classmethod
    def of(
        cls,
        rng_key: Key[Array, ""],
        params: Mapping[str, Any],
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _Sampler:
        """Find out about sites and plates by a run of guide and model.

        Raises:
            ValueError: for a model without data, a latent of the guide's that the model does not
                have, or one that the model sums out.
        """
        guide_key, model_key = jax.random.split(rng_key)
        guide_trace = _run(guide, guide_key, params, args, kwargs)
        drawn = _only(_is_latent, guide_trace)
        given = {n: site["value"] for n, site in {**drawn, **_only(_is_plate, guide_trace)}.items()}
        model_trace = _run(model, model_key, {**params, **given}, args, kwargs)
        sites = {
            name: site
            for name, site in model_trace.items()
            if _is_latent(site) or _is_data(site) or _is_deterministic(site)
        }
        check_sites(
            sites,
            unknown=drawn.keys() - sites.keys() - _only(_is_auxiliary, drawn).keys(),
            summed_out=[
                name
                for name, site in sites.items()
                if name not in drawn and _is_latent(site) and "enumerate" in site["infer"]
            ],
            data=[name for name, site in sites.items() if _is_data(site)],
        )
        return cls(
            params,
            model,
            guide,
            args,
            kwargs,
            plates=_only(_is_plate, guide_trace, model_trace),
            sites=sites,
            latents=frozenset(drawn.keys() & sites.keys()),
        )

    @property
    def axes(self) -> dict[str, Axes]:
        """The axes of every site."""
        return {name: _axes(site) for name, site in self.sites.items()}

    @property
    def draw_size(self) -> int:
        """The numbers in the largest site of a draw."""
        return max(jnp.size(site["value"]) for site in self.sites.values())

    def draw(self, rng_keys: Key[Array, " draws"], chunk_size: int | None) -> Draws:
        """A draw for every key, in runs as :func:`in_chunks` has them."""
        filled = in_chunks(rng_keys, chunk_size, self.draw_size)
        size = filled.shape[1]
        run = shared_jit(self._draw if size == 1 else jax.vmap(self._draw, in_axes=(0, None)))
        given = {**self.params, **self._minibatch}
        try:
            parts = [jax.device_get(run(keys[0] if size == 1 else keys, given)) for keys in filled]
        except Exception as error:
            if size > 1:
                error.add_note(
                    f"to_inference_data ran the programs with {size} draws at once, under "
                    "jax.vmap; chunk_size=1 runs them draw by draw"
                )
            raise
        join = np.stack if size == 1 else np.concatenate
        groups, counted = jax.tree.map(lambda *values: join(values)[: len(rng_keys)], *parts)
        axes = self.axes
        return Draws(
            # JAX has sorted the names; here they are in the order of the program.
            groups={
                group: {name: groups[group][name] for name in names}
                for group, names in self._groups.items()
            },
            counted={name: counted[name] for name in self._data},
            observed={name: axes[name].arrange(_data(self.sites[name])) for name in self._data},
            axes=axes,
            indices={name: np.asarray(plate["value"]) for name, plate in self.plates.items()},
            full_sizes={name: plate["args"][0] for name, plate in self.plates.items()},
        )

    @property
    def _minibatch(self) -> dict[str, Array]:
        return {
            name: plate["value"]
            for name, plate in self.plates.items()
            if len(plate["value"]) != plate["args"][0]
        }

    @property
    def _data(self) -> list[str]:
        return [name for name, site in self.sites.items() if _is_data(site)]

    @property
    def _groups(self) -> dict[str, list[str]]:
        deterministic = [name for name, site in self.sites.items() if _is_deterministic(site)]
        return sites_of_groups(self.sites, self.latents.union(deterministic), self._data)

    def _draw(self, rng_key: Key[Array, ""], given: Mapping[str, Any]) -> _Arrays:
        """One draw of every group, and which rows of the data are not masked."""

        def run(program: Program, rng_key: Key[Array, ""], given: Mapping[str, Any]) -> Messages:
            return _run(program, rng_key, given, self.args, self.kwargs)

        guide_key, model_key, predictive_key, prior_key = jax.random.split(rng_key, 4)
        drawn = run(self.guide, guide_key, given)
        latents = {name: drawn[name]["value"] for name in self.latents}
        predict = handlers.uncondition(self.model)
        replayed = run(self.model, model_key, {**given, **latents})
        predicted = run(predict, predictive_key, {**given, **latents})
        prior = run(predict, prior_key, given)
        axes, names = self.axes, self._groups

        def values(sites: Messages, group: str) -> dict[str, Array]:
            return {
                name: jnp.reshape(sites[name]["value"], axes[name].shape) for name in names[group]
            }

        def per_row(of: Callable[[Message], Array]) -> dict[str, Array]:
            return {
                name: jnp.reshape(of(replayed[name]), axes[name].rows.shape) for name in self._data
            }

        return {
            "posterior": values(replayed, "posterior"),
            "posterior_predictive": values(predicted, "posterior_predictive"),
            "log_likelihood": per_row(_log_prob),
            "prior": values(prior, "prior"),
            "prior_predictive": values(prior, "prior_predictive"),
        }, per_row(_counted)


def _run(
    program: Program,
    rng_key: Key[Array, ""],
    given: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Messages:
    with handlers.seed(rng_seed=rng_key), handlers.substitute(data=dict(given)):
        return handlers.trace(program).get_trace(*args, **kwargs)


def _only(wanted: Callable[[Message], bool], *traces: Messages) -> Messages:
    return {
        name: site for trace in reversed(traces) for name, site in trace.items() if wanted(site)
    }


def _is_plate(site: Message) -> bool:
    return site["type"] == "plate"


def _is_auxiliary(site: Message) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _is_deterministic(site: Message) -> bool:
    return site["type"] == "deterministic"


def _is_latent(site: Message) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _is_data(site: Message) -> bool:
    is_observed = site["type"] == "sample" and site["is_observed"]
    return is_observed and not isinstance(undecorated(site["fn"]), Unit)


def _axes(site: Message) -> Axes:
    frames = site["cond_indep_stack"]
    if _is_deterministic(site):
        shape = jnp.shape(site["value"])
        event_dim = num_event_dims(shape, {frame.dim: frame.size for frame in frames})
        batch_shape, event_shape = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
    else:
        batch_shape, event_shape = site["fn"].batch_shape, site["fn"].event_shape
    plates = {frame.dim: frame.name for frame in frames}
    return Axes.of(site["name"], batch_shape, event_shape, plates)


def _data(site: Message) -> Shaped[np.ndarray, ...]:
    return np.broadcast_to(site["value"], site["fn"].shape())


def _log_prob(site: Message) -> Float[Array, " *batch"]:
    """The log density of a site without its scale, 0 where it is masked."""
    fn = site["fn"]
    log_prob = jnp.broadcast_to(fn.log_prob(site["value"]), fn.batch_shape)
    return jnp.where(_counted(site), log_prob, 0.0)


def _counted(site: Message) -> Bool[Array, " *batch"]:
    """Whether a row of a site is not masked."""
    mask = joint_mask(site["fn"])
    return jnp.broadcast_to(True if mask is None else mask, site["fn"].batch_shape)
