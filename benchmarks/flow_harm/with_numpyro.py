"""Training in NumPyro, and the bounds that it ends with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpyro
import numpyro.infer.autoguide
from jax import Array
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO

from benchmarks.flow_harm.program import Case, Program, Training
from numpyro_backend import SVI, TraceHamiltonian_ELBO


class WithNumPyro:
    """All steps of all seeds in one scan, float32."""

    name = "NumPyro"
    ppl: ModuleType = numpyro
    xp: ModuleType = jnp

    def trained(
        self,
        program: Program,
        settings: dict[str, Any] | None,
        *,
        seeds: Sequence[int],
        steps: int,
        draws: int,
    ) -> list[Training]:
        """Train a program from its start by Adam, all seeds together, and estimate its bounds."""
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        case, stock = program.make(self), Trace_ELBO()
        elbo: ELBO = stock if settings is None else TraceHamiltonian_ELBO(**settings)
        optim = numpyro.optim.Adam(lambda i: program.lr * program.decay ** (i / steps))
        svi = SVI(case.model, case.guide, optim, elbo)
        svi.init(jax.random.key(0), *case.args)  # in which automatic guides are made

        def step(state: Any, _: None) -> tuple[Any, Array]:
            state, _ = svi.update(state, *case.args)
            kept = state.mutable_state
            return state, kept["hamiltonian.monitor"]["state"][1:] if kept else jnp.ones(2)

        def train(seed: Array) -> tuple[dict[str, Any], Array]:
            state = svi.init(jax.random.key(seed), *case.args)
            state, scales = jax.lax.scan(step, state, length=steps)
            return {**svi.get_params(state), **(state.mutable_state or {})}, scales

        compiled = jax.jit(jax.vmap(train)).lower(jnp.array(seeds)).compile()
        start = time.perf_counter()
        params, scales = jax.block_until_ready(compiled(jnp.array(seeds)))
        seconds = (time.perf_counter() - start) / steps / len(seeds)
        unflowed = _bounds(stock, params, case, draws)
        bounds = unflowed if settings is None else _bounds(elbo, params, case, draws)
        jax.config.update("jax_disable_most_optimizations", before)
        return [
            Training(
                float(bounds[i]),
                float(unflowed[i]),
                seconds,
                _first(scales[i].prod(-1) < 1),
                _first(scales[i, :, 0] < 1),
            )
            for i in range(len(seeds))
        ]


def _first(is_true: Array) -> int:
    """The first step, from 1, of which something is true; 0 if there is none."""
    return int(is_true.argmax()) + 1 if is_true.any() else 0


def _bounds(elbo: ELBO, params: dict[str, Any], case: Case, draws: int) -> Array:
    """The bound at each seed's parameters."""

    def bound(params: dict[str, Any]) -> Array:
        def loss(key: Array) -> Array:
            return elbo.loss(key, params, case.model, case.guide, *case.args)

        return -jax.lax.map(loss, jax.random.split(jax.random.key(99), draws)).mean()

    return cast(Array, jax.jit(jax.vmap(bound))(params))
