"""Single steps of an objective: its loss, its gradients and its penalty, on the programs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam

from numpyro_backend import TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

Params = dict[str, Any]

# The stock ELBOs beside the default one, on which tests/elbo_suite.py tries the objectives.
BASES: dict[str, Callable[..., ELBO]] = {
    "trace": Trace_ELBO,
    "graph": TraceGraph_ELBO,
    "renyi": lambda **kw: RenyiELBO(alpha=0.3, num_particles=kw.get("num_particles", 2)),
}
CASES = {
    "plain": programs.vae(),
    "subsampled": programs.vae(num=20, batch=7),
    "masked": programs.masked_vae(),
}
PARTICLES: dict[str, dict[str, Any]] = {
    "one": {},
    "vectorised": {"num_particles": 3},
    "mapped": {"num_particles": 3, "vectorize_particles": False},
}


def wrapped(objective: Any, case: Programs) -> Programs:
    """The programs with the objective's own parameters declared."""
    return case._replace(model=objective.wrap_model(case.model))


def initial(case: Programs) -> Params:
    """The parameters that model and guide start from."""
    if isinstance(case.guide, AutoGuide):
        handlers.seed(case.guide, 0)(*case.args)  # It keeps what it finds out when first called.

    def start() -> Params:
        guide = handlers.trace(handlers.seed(case.guide, 0)).get_trace(*case.args)
        model = handlers.replay(handlers.seed(case.model, 0), guide)
        sites = {**handlers.trace(model).get_trace(*case.args), **guide}
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    return jax.tree.map(lambda value: jnp.asarray(value, float), jax.jit(start)())


def seeded(*objectives: ELBO, case: Programs, seed: int = 3) -> list[tuple[float, Params]]:
    """Loss and gradients of one step, for each of some objectives."""

    @jax.jit
    def steps(params: Params) -> list[tuple[Array, Params]]:
        return [
            jax.value_and_grad(
                lambda params, objective=objective: objective.loss(
                    jax.random.key(seed), params, case.model, case.guide, *case.args
                )
            )(params)
            for objective in objectives
        ]

    return [(float(loss), grads) for loss, grads in steps(initial(case))]


def losses(*objectives: ELBO, case: Programs, seed: int = 3) -> list[float]:
    """The losses of :func:`seeded`, which take half as long without the gradients."""

    @jax.jit
    def evaluate(params: Params) -> list[Array]:
        run = jax.random.key(seed), params, case.model, case.guide, *case.args
        return [objective.loss(*run) for objective in objectives]

    return [float(loss) for loss in evaluate(initial(case))]


def evaluate_shapes(objective: ELBO, case: Programs) -> None:
    """One evaluation by shapes alone, from whatever parameters the programs start with."""
    jax.eval_shape(
        lambda key: objective.loss(key, {}, case.model, case.guide, *case.args), jax.random.key(0)
    )


def penalties(objective: Any, case: Programs, count: int) -> np.ndarray:
    """The penalty alone, for several keys: the loss without what the base says of the draws."""
    keys = jax.random.split(jax.random.key(5), count)
    compiled = compiled_penalty(objective, case.model, case.guide)
    return np.asarray(compiled(keys, initial(case), case.args))


@functools.cache
def compiled_penalty(objective: Any, model: Any, guide: Any) -> Callable[..., Array]:
    def penalty(key: Array, params: Params, args: tuple[Any, ...]) -> Array:
        run = key, params, model, guide, *args
        return objective.loss(*run) - objective.base.loss(*run)

    return jax.jit(jax.vmap(penalty, in_axes=(0, None, None)))


def penalty(objective: Any, case: Programs) -> float:
    return float(penalties(objective, case, 1)[0])


def averages_to(samples: np.ndarray, expected: float) -> bool:
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    return abs(float(samples.mean()) - expected) < 4 * float(error)


def neutral(**settings: Any) -> TraceMMD_ELBO:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        return TraceMMD_ELBO(alpha=0.0, lambd=1.0, **settings)


def assert_same_step(ours: ELBO, stock: ELBO, case: Programs) -> None:
    (loss, grads), (expected, expected_grads) = seeded(ours, stock, case=case)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert grads.keys() == expected_grads.keys()
    assert grads
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-12, atol=1e-14)


def trained(svi: Any, *args: Any, steps: int) -> Any:
    """The result of ``svi.run``, whose first state one program makes, not one per operation."""
    key = jax.random.key(0)
    state = jax.jit(svi.init)(key, *args)
    return svi.run(key, steps, *args, init_state=state, progress_bar=False)


class WithParameter(Trace_ELBO):
    """An objective with a parameter of its own, which it draws to 3."""

    def wrap_model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            numpyro.param("own", 0.0)
            return model(*args, **kwargs)

        return wrapped

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: Params, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        result = super().loss_with_mutable_state(rng_key, param_map, *args, **kwargs)
        return {**result, "loss": result["loss"] + (param_map["own"] - 3.0) ** 2}


def assert_update_compiled_once(num: int, svi_class: type[SVI], loss: ELBO) -> None:
    """The programs run in Python for the first update only, and in the compiled one ever after."""
    (model, guide, args), calls = programs.counting(num)
    svi = svi_class(model, guide, Adam(1e-2), loss=loss)
    state = svi.init(jax.random.key(0), *args)
    update = jax.jit(svi.update)
    state, _ = update(state, *args)
    traced = len(calls)
    for _ in range(3):
        state, _ = update(state, *args)
    assert len(calls) == traced
    assert state.mutable_state["state"]["runs"] == 1 + 4
