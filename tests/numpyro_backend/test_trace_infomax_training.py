"""Training with TraceInfoMax_ELBO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.distributions import constraints
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend.critics import score_all_pairs
from numpyro_backend.mutual_information import nwj
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import CRITIC, concat
from tests.numpyro_backend.steps import (
    Params,
    assert_update_compiled_once,
    seeded,
    trained,
    wrapped,
)

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


@dataclass(frozen=True)
class Quadratic:
    """The log density ratio of two jointly normal numbers, up to its coefficients."""

    params: Any = None

    def init(self, rng_key: Array) -> Array:
        return jnp.zeros(4)

    def bind(self, params: Array) -> Quadratic:
        return Quadratic(params)

    def __call__(self, x: Array, z: Array) -> Array:
        return self.polynomial(x, z[:, 0])

    def all_pairs(self, x: Array, z: Array) -> Array:
        return self.polynomial(x[:, None], z[:, 0])

    def polynomial(self, x: Array, z: Array) -> Array:
        a, b, c, d = self.params
        return a + b * x * x + c * x * z + d * z * z


def linear_gaussian(x: np.ndarray, batch: int) -> Programs:
    """z ~ N(0, 1), x | z ~ N(z / 2, 1), and the guide N(a x, s²) with a and s to learn."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x), subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(0.5 * z, 1.0), obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        slope = numpyro.param("slope", 0.2)
        scale = numpyro.param("scale", 0.8, constraint=constraints.positive)
        with numpyro.plate("data", len(x), subsample_size=batch) as index:
            numpyro.sample("z", dist.Normal(slope * jnp.asarray(x)[index], scale))

    return Programs(model, guide, (x,))


def information(slope: Any, scale: Any) -> Any:
    return 0.5 * np.log1p((slope / scale) ** 2)


def best_information(alpha: float) -> float:
    """I at the minimum of the objective itself, whose terms are all known, by a grid search."""
    slope, scale = np.meshgrid(np.linspace(0.0, 2.0, 801), np.linspace(0.02, 1.2, 801))
    reconstruction = 0.5 * ((1 - 0.5 * slope) ** 2 + 0.25 * scale**2)
    kl = 0.5 * (scale**2 + slope**2 - 1) - np.log(scale)
    loss = reconstruction + kl - alpha * information(slope, scale)
    return float(information(slope, scale).flat[loss.argmin()])


def test_alpha_raises_the_true_information_to_where_the_objective_is_best() -> None:
    """Standard normal data, so that I = ½ log(1 + a²/s²), which the critic comes to know."""
    x = programs.data(4000, 1)[:, 0]
    x = (x - x.mean()) / x.std()
    case = linear_gaussian(x, batch=200)
    reached = []

    @jax.jit
    def estimated(params: Params, z: Array) -> Array:
        critic = TraceInfoMax_ELBO(Quadratic()).bind_critic(params)
        scores = score_all_pairs(critic, x[:1000], z[:1000, None])
        return nwj(jnp.diagonal(scores), scores[~np.eye(1000, dtype=bool)]).estimate

    for alpha in (0.0, 0.5):
        objective = TraceInfoMax_ELBO(Quadratic(), alpha, negatives="all")
        optim = Adam(lambda step: 4e-2 * 0.994**step)
        svi = numpyro_backend.SVI(case.model, case.guide, optim, loss=objective)
        params = trained(svi, *case.args, steps=600).params
        true = float(information(params["slope"], params["scale"]))
        assert true == pytest.approx(best_information(alpha), rel=0.05)
        reached.append(true)

        noise = np.random.default_rng(3).normal(size=len(x))
        z = params["slope"] * x + params["scale"] * noise
        assert float(estimated(params, z)) == pytest.approx(true, abs=0.05)
    assert reached[0] < reached[1]


@pytest.mark.parametrize("base", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_the_state_of_the_model_is_that_of_the_first_particle(base: Callable[..., Any]) -> None:
    (model, guide, args), _ = programs.counting(4)
    critic, key = concat(1, 1), jax.random.key(0)

    @jax.jit
    def states() -> tuple[Any, Any]:
        params = {"loc": 0.5, "state": {"runs": jnp.asarray(6.0), "z": jnp.zeros(4)}}
        ours = TraceInfoMax_ELBO(critic, base=base(num_particles=3))
        run = {**params, CRITIC: critic.init(key)}, ours.wrap_model(model), guide, *args
        state = ours.loss_with_mutable_state(key, *run)["mutable_state"]
        first = jax.random.split(key, 3)[0]
        stock = Trace_ELBO().loss_with_mutable_state(first, params, model, guide, *args)
        return state["state"], stock["mutable_state"]["state"]

    ours, stock = states()
    assert ours["runs"] == stock["runs"] == 7
    np.testing.assert_allclose(ours["z"], stock["z"])


def test_update_is_compiled_once() -> None:
    assert_update_compiled_once(64, numpyro_backend.SVI, TraceInfoMax_ELBO(concat(1, 1)))


def test_a_point_mass_guide_without_kl() -> None:
    """A deterministic encoder: β=0 removes the KL, which has no value."""
    model, _, (x,) = programs.vae(num=64)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = x @ numpyro.param("encoder", jnp.full((3, 2), 0.1))
            numpyro.sample("z", dist.Delta(z, event_dim=1))

    objectives = [
        TraceInfoMax_ELBO(concat(), 1.0, 0.0, base=base)
        for base in (None, Trace_ELBO(), TraceGraph_ELBO())
    ]
    case = wrapped(objectives[0], Programs(model, guide, (x,)))
    (expected, _), *others = seeded(*objectives, case=case)
    assert math.isfinite(expected)
    for loss, grads in others:
        assert loss == pytest.approx(expected)
        assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))
