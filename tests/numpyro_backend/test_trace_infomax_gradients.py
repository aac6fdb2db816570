"""The two gradients of TraceInfoMax_ELBO: the critic's, and the model's and guide's."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

from numpyro_backend.mutual_information import MutualInformationEstimate, nwj
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.recording import CRITIC, Recording, concat
from tests.numpyro_backend.steps import CASES, PARTICLES, Params, initial, seeded, wrapped

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


@pytest.mark.parametrize(
    ("case", "particles", "settings"),
    [
        ("plain", "one", {}),
        ("subsampled", "vectorised", {"negatives": "all"}),
        ("masked", "mapped", {"bound": "dv"}),
        ("masked", "one", {"bound": "infonce", "negatives": "all"}),
    ],
    ids=["nwj", "nwj all", "dv", "infonce all"],
)
def test_equal_finite_differences(case: str, particles: str, settings: dict) -> None:
    """Those of the whole loss for model and guide; over N alpha for the critic."""
    program = CASES[case]
    objective = TraceInfoMax_ELBO(
        concat(), 0.6, 0.8, base=Trace_ELBO(**PARTICLES[particles]), **settings
    )
    params = initial(wrapped(objective, program))
    rng = np.random.default_rng(0)
    directions = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    def loss(params: Params) -> Array:
        run = jax.random.key(3), params, program.model, program.guide, *program.args
        return objective.loss(*run)

    def along(steps: Params) -> Array:
        moved = {
            name: jax.tree.map(lambda v, d, h=steps[name]: v + h * d, value, directions[name])
            for name, value in params.items()
        }
        return loss(moved)

    units = {name: 1e-5 * row for name, row in zip(params, np.eye(len(params)), strict=True)}
    both_ways = {name: np.concatenate([row, -row]) for name, row in units.items()}
    losses, grads = jax.jit(lambda: (jax.vmap(along)(both_ways), jax.grad(loss)(params)))()
    slopes = (losses[: len(params)] - losses[len(params) :]) / 2e-5
    for name, slope in zip(params, slopes, strict=True):
        products = jax.tree.map(lambda g, d: (g * d).sum(), grads[name], directions[name])
        factor = 0.6 * len(program.args[0]) if name == CRITIC else 1.0
        gradient = float(sum(jax.tree.leaves(products))) * factor
        assert gradient == pytest.approx(float(slope), rel=1e-5), name


@pytest.mark.parametrize(("alpha", "num"), [(0.0, 12), (0.5, 600), (300.0, 12)])
def test_the_critic_ascends_the_estimate_itself(alpha: float, num: int) -> None:
    critic, case = Recording(concat()), programs.vae(num=num, batch=12)
    objective = TraceInfoMax_ELBO(critic, alpha)
    params = initial(wrapped(objective, case))

    @jax.jit
    def step(params: Params) -> tuple[Params, list[tuple[Array, Array]]]:
        def loss(params: Params) -> tuple[Array, list[tuple[Array, Array]]]:
            run = jax.random.key(3), params, case.model, case.guide, *case.args
            return objective.loss(*run), critic.calls

        return jax.grad(loss, has_aux=True)(params)

    grads, ((x, z), (same_x, other)) = step(params)
    np.testing.assert_array_equal(x, same_x)
    assert sum(bool(np.array_equal(other, np.roll(z, s, 0))) for s in range(1, 12)) == 1

    def descended(params: Any) -> Array:
        marginal = critic.critic.apply(params, x, other)
        return jnp.exp(marginal - 1).mean() - critic.critic.apply(params, x, z).mean()

    expected = jax.jit(jax.grad(descended))(params[CRITIC])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), grads[CRITIC], expected)


def test_the_guide_feels_the_surrogate_and_the_loss_the_estimate() -> None:
    def bound(joint: Array, marginal: Array, **weights: Any) -> MutualInformationEstimate:
        return MutualInformationEstimate(jnp.asarray(5.0), nwj(joint, marginal).surrogate)

    plain, ours = (TraceInfoMax_ELBO(concat(), 0.5, bound=b) for b in ("nwj", bound))
    stock = TraceMeanField_ELBO()
    steps = seeded(stock, plain, ours, case=wrapped(plain, CASES["plain"]))
    (base, _), (_, expected), (loss, grads) = steps
    assert loss - base == pytest.approx(-12 * 0.5 * 5.0)
    jax.tree.map(np.testing.assert_allclose, grads, expected)
