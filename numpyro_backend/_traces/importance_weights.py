# SPDX-License-Identifier: MIT
"""Importance weights of a guide's draws under a model, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key
from numpyro.distributions import Delta, Distribution, Unit
from numpyro.primitives import CondIndepStackFrame
from numpyro.util import not_jax_tracer

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._traces.fresh_draws import Trace, draw_traces, log_prob
from numpyro_backend._traces.recording import Message, undecorated
from pyro_infovae._core.programs import Program

NUMBERS_PER_RUN = 2**23
"""What no site of a run should hold more of."""


def in_chunks(
    rng_keys: Key[Array, " samples"], chunk_size: int | None, draw_size: int
) -> Key[Array, "chunks size"]:
    """The keys of each run, filled up from the start: chunks of one size are compiled once.

    Args:
        rng_keys: a key for every draw.
        chunk_size: draws per run at most, or None for so many that no site holds more than 2²³
            numbers.
        draw_size: the numbers in the largest site of a draw.

    Example:
        >>> import jax
        >>> in_chunks(jax.random.split(jax.random.key(0), 10), 4, 1).shape
        (3, 4)
    """
    num_samples = len(rng_keys)
    chunk_size = chunk_size or max(1, NUMBERS_PER_RUN // draw_size)
    num_chunks = math.ceil(num_samples / chunk_size)
    size = math.ceil(num_samples / num_chunks)
    return rng_keys[jnp.arange(num_chunks * size).reshape(num_chunks, size) % num_samples]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """What a run of guide and model tells of their plates.

    Attributes:
        minibatch: the choice of rows in subsampled plates, by plate.
        rows: the plates that all sites are in, left to right.
        draw_size: the numbers in the largest site of a draw.
    """

    minibatch: dict[str, Array]
    rows: tuple[CondIndepStackFrame, ...] = field(metadata={"static": True})
    draw_size: int = field(metadata={"static": True})


@dataclass(frozen=True)
class ImportanceSampler:
    r"""Draws from a guide, weighted under a model.

    .. math:: \log w_{s,i} = \log p(x_i, z_{s,i}) - \log q(z_{s,i})

    in nats for every row i: an index of the plates that all sites of model and guide are in.
    Plates within are summed over; masked sites count for nothing; scales are left out.

    Attributes:
        params: the values of parameters and mutable sites, by name.
        model: the model.
        guide: the guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """

    params: Mapping[str, Any]
    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def layout(self, rng_key: Key[Array, ""]) -> Layout:
        """Choose a minibatch, and find out about the plates.

        Raises:
            ValueError: naming the site: for a latent that only one of model and guide draws, a
                point mass in the guide, or a site outside of a subsampled plate.
        """
        return shared_jit(self._layout)(rng_key, self.params)

    def log_weights(
        self, rng_keys: Key[Array, " samples"], layout: Layout, chunk_size: int | None
    ) -> Float[Array, "samples ..."]:
        """The log weights of a draw for every key, in runs as :func:`in_chunks` has them."""
        filled = in_chunks(rng_keys, chunk_size, layout.draw_size)
        size = filled.shape[1]

        @shared_jit
        def run(
            rng_keys: Key[Array, "chunks size"], given: Mapping[str, Any]
        ) -> Float[Array, "chunks size ..."]:
            def log_weight(rng_key: Key[Array, ""]) -> Float[Array, "*rows"]:
                guide, model = self._traces(rng_key, given)
                return _sum_per_row(model, layout.rows) - _sum_per_row(guide, layout.rows)

            if size == 1:
                return jax.lax.map(log_weight, rng_keys[:, 0])[:, None]
            return jax.lax.map(jax.vmap(log_weight), rng_keys)

        try:
            chunks = run(filled, {**self.params, **layout.minibatch})
        except Exception as error:
            if size > 1:
                error.add_note(
                    f"log_evidence ran the programs with {size} draws at once, under jax.vmap; "
                    "chunk_size=1 runs them draw by draw"
                )
            raise
        return chunks.reshape(-1, *chunks.shape[2:])[: len(rng_keys)]

    def _layout(self, rng_key: Key[Array, ""], params: Mapping[str, Any]) -> Layout:
        guide, model = self._traces(rng_key, params)
        _check_latents(guide, model)
        sites = [*_sites(guide), *_sites(model)]
        frames = [frozenset(site["cond_indep_stack"]) for site in sites]
        rows = frozenset.intersection(*frames) if frames else frozenset()
        plates = {**_plates(guide), **_plates(model)}
        _check_subsampling(sites, plates, rows)
        return Layout(
            {name: plate["value"] for name, plate in plates.items() if _is_subsampled(plate)},
            rows=tuple(sorted(rows, key=lambda frame: frame.dim)),
            draw_size=max([1, *(math.prod(site["fn"].shape()) for site in sites)]),
        )

    def _traces(self, rng_key: Key[Array, ""], given: Mapping[str, Any]) -> tuple[Trace, Trace]:
        return draw_traces(rng_key, given, self.model, self.guide, self.args, self.kwargs)


def _sites(trace: Trace) -> Iterator[Message]:
    return (site for site in trace.values() if site["type"] == "sample")


def _plates(trace: Trace) -> dict[str, Message]:
    return {name: msg for name, msg in trace.items() if msg["type"] == "plate"}


def _is_subsampled(plate: Message) -> bool:
    full_size, _ = plate["args"]
    return len(plate["value"]) != full_size


def _sum_per_row(trace: Trace, rows: tuple[CondIndepStackFrame, ...]) -> Float[Array, "*rows"]:
    """The log density of a run without its scale, summed over all dims but those of the rows."""
    kept = {frame.dim for frame in rows}
    total: Any = 0.0
    for site in _sites(trace):
        terms = log_prob(site)
        total = total + terms.sum([dim for dim in range(-terms.ndim, 0) if dim not in kept])
    return jnp.broadcast_to(total, [frame.size for frame in rows])


def _check_latents(guide: Trace, model: Trace) -> None:
    drawn = {site["name"]: site for site in _sites(guide) if not site["is_observed"]}
    auxiliary = {name for name, site in drawn.items() if site["infer"].get("is_auxiliary")}
    latents = {site["name"] for site in _sites(model) if not site["is_observed"]}
    for name in sorted(latents - drawn.keys()):
        raise ValueError(
            f"log_evidence: site '{name}' is a latent of the model that the guide does not draw: "
            "draw it in the guide"
        )
    for name in sorted(drawn.keys() - latents - auxiliary):
        raise ValueError(
            f"log_evidence: the guide draws '{name}', which is no latent of the model: leave it "
            "out, or mark it infer={'is_auxiliary': True} if other latents are computed from it"
        )
    for site in _sites(guide):
        if site["is_observed"] and not isinstance(undecorated(site["fn"]), Unit):
            raise ValueError(
                f"log_evidence: the guide observes '{site['name']}', which no weight can count: "
                f"hide it by handlers.block(guide, hide=['{site['name']}'])"
            )
    # The density of latents that are computed from others is theirs.
    for name in sorted(auxiliary or latents):
        if _is_point_mass(drawn[name]["fn"]):
            raise ValueError(
                f"log_evidence: site '{name}' is a point mass in the guide, which has no density "
                "to weight by; give it one, as AutoNormal does"
            )


def _is_point_mass(fn: Distribution) -> bool:
    """Whether it is a Delta whose density is not given; one that is computed is traced."""
    fn = undecorated(fn)
    return isinstance(fn, Delta) and not_jax_tracer(fn.log_density) and not np.any(fn.log_density)


def _check_subsampling(
    sites: Iterable[Message], plates: Mapping[str, Message], rows: frozenset[CondIndepStackFrame]
) -> None:
    frames = {frame for site in sites for frame in site["cond_indep_stack"]}
    for frame in frames - rows:
        if not _is_subsampled(plates[frame.name]):
            continue
        outside = [site["name"] for site in sites if frame not in site["cond_indep_stack"]]
        raise ValueError(
            f"log_evidence: plate '{frame.name}' is subsampled, but site '{outside[0]}' is outside "
            "of it, so that its rows cannot be told apart: run the whole plate"
        )
