"""log_evidence of NumPyro's own guides and transforms, in chunks, of the parameters given."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoNormal

from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from tests.halves import Case
from tests.numpyro_backend import programs
from tests.questions.asking import HALVES, data
from tests.questions.evidence import (
    NOISE,
    POSTERIOR,
    WEIGHT,
    assert_exact,
    exact_evidence,
    linear_gaussian,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_double_precision")
HALF = HALVES["numpyro"]


class Doubling(dist.transforms.Transform):
    """x ↦ 2x, of which no inverse is known."""

    domain = codomain = constraints.real

    def __call__(self, x: Array) -> Array:
        return 2 * x

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return jnp.full_like(x, math.log(2))

    def tree_flatten(self) -> Any:
        return (), ((), {})


@pytest.mark.filterwarnings("ignore:log_evidence")
@pytest.mark.slow
def test_the_parameters_of_the_flow_are_used() -> None:
    """Steps of size 0 leave the draws where they are."""
    case = linear_gaussian(HALF)
    elbo = TraceHamiltonian_ELBO(3, 0.3, tempering="none", path="posterior")
    plain = run(HALF, case).effective_sample_size
    none = {"hamiltonian.step_size": 1e-9}
    still = run(HALF, case, elbo=elbo, params=none).effective_sample_size
    np.testing.assert_allclose(still, plain, rtol=1e-6)
    moved = run(HALF, case, elbo=elbo)
    assert (moved.effective_sample_size > 1.03 * plain).all()
    assert_exact(moved, exact_evidence())


@pytest.mark.filterwarnings("ignore:log_evidence")
def test_equals_a_loop_over_draws() -> None:
    """The same draws, their weights written out."""
    case, x = linear_gaussian(HALF, num=3), data(3)
    result = run(HALF, case, num_samples=20)
    draws: list[Array] = []
    _, draws_key = jax.random.split(jax.random.key(0))
    loc = x @ WEIGHT @ POSTERIOR / NOISE**2
    scale = 1.3 * np.sqrt(np.diagonal(POSTERIOR))
    for key in jax.random.split(draws_key, 20):
        _, guide_key = jax.random.split(key)
        z = handlers.trace(handlers.seed(case.guide, guide_key)).get_trace()["z"]["value"]
        log_prior, log_q = (
            (-0.5 * ((z - m) / s) ** 2 - np.log(s)).sum(-1) for m, s in ((0, 1), (loc, scale))
        )
        log_likelihood = (
            -0.5 * ((x - z @ WEIGHT.T) / NOISE) ** 2 - np.log(NOISE * math.sqrt(2 * math.pi))
        ).sum(-1)
        draws.append(log_likelihood + log_prior - log_q)
    np.testing.assert_allclose(result.log_weights, np.stack(draws), rtol=1e-10)
    mean = np.log(np.exp(np.stack(draws)).mean(0))
    np.testing.assert_allclose(result.log_evidence, mean, rtol=1e-10)


def test_a_flow_without_an_inverse() -> None:
    """Its density is known only for what it has drawn."""
    mean = data(8) @ WEIGHT @ POSTERIOR / NOISE**2
    scale = 0.65 * np.sqrt(np.diagonal(POSTERIOR))

    def guide() -> None:
        with numpyro.plate("data", 8):
            doubled = dist.TransformedDistribution(dist.Normal(mean / 2, scale), Doubling())
            numpyro.sample("z", doubled.to_event(1))

    case = linear_gaussian(HALF)._replace(guide=guide)
    assert_exact(run(HALF, case), exact_evidence())


@pytest.mark.slow
def test_a_global_latent_gives_one_evidence_of_the_data_set() -> None:
    case = programs.hierarchical(num=3)
    x = case.args[0]
    block = np.kron(np.ones((3, 3)) + np.eye(3), np.ones((3, 3)))
    exact = dist.MultivariateNormal(np.zeros(9), block + np.eye(9)).log_prob(x.reshape(-1))
    guide = AutoNormal(case.model, init_scale=0.6)
    params = {"theta_auto_loc": 0.0, "z_auto_loc": np.zeros(3)}
    asked = Case(case.model, guide), x
    result = HALF.ask("log_evidence", *asked, params=params, num_samples=40_000)
    assert result.log_evidence.shape == ()
    assert_exact(result, exact)
    assert result.total == result.log_evidence
    start = handlers.seed(guide, 0)(x)["z"]
    assert np.isfinite(np.asarray(start)).all(), "the guide has kept no tracer"


def test_a_guide_that_is_not_factorised_gives_one_evidence() -> None:
    mean = data(2) @ WEIGHT @ POSTERIOR / NOISE**2

    def guide() -> None:
        joint = dist.MultivariateNormal(mean.reshape(-1), 0.36 * np.eye(4))
        flat = numpyro.sample("flat", joint, infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(flat.reshape(2, 2), event_dim=1))

    case = linear_gaussian(HALF, num=2)._replace(guide=guide)
    result = run(HALF, case, num_samples=10_000)
    assert result.log_evidence.shape == ()
    assert_exact(result, exact_evidence(2).sum())


@pytest.mark.filterwarnings("ignore:log_evidence")
@pytest.mark.parametrize(
    ("features", "num_samples", "chunk_size", "expected"),
    [
        (1, 8, 4, {4}),
        pytest.param(1, 9, 4, {3}, marks=pytest.mark.slow),
        pytest.param(1, 9, None, {9}, marks=pytest.mark.slow),
        (1, 9, 1, set()),
        (10**5, 6, None, {3}),
    ],
)
def test_memory_is_bounded(
    features: int, num_samples: int, chunk_size: int | None, expected: set[int]
) -> None:
    """At 20 · 10⁵ numbers a draw, 2²³ numbers hold 4 draws."""
    draws = set()

    @jax.custom_batching.custom_vmap
    def note(z: Array) -> Array:
        return z

    @note.def_vmap
    def _(axis_size: int, _: Any, z: Array) -> tuple[Array, bool]:
        draws.add(axis_size)
        return z, True

    def model() -> None:
        with numpyro.plate("data", 20):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            loc = jnp.broadcast_to(note(z)[:, None], (20, features)) / features
            numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=0.0)

    def guide() -> None:
        with numpyro.plate("data", 20):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    case = Case(model, guide)
    result = run(HALF, case, num_samples=num_samples, chunk_size=chunk_size).log_weights
    assert result.shape == (num_samples, 20)
    assert draws == expected


def test_a_program_that_cannot_be_vectorised() -> None:
    @jax.custom_batching.custom_vmap
    def decode(z: Array) -> Array:
        return z @ WEIGHT.T

    def model() -> None:
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(decode(z), NOISE).to_event(1), obs=data(2))

    @decode.def_vmap
    def _(*_: Any) -> Any:
        raise NotImplementedError("one code at a time")

    unvectorised = linear_gaussian(HALF, num=2)._replace(model=model)
    with pytest.raises(NotImplementedError, match="one code at a time") as error:
        run(HALF, unvectorised, num_samples=100)
    assert any("chunk_size=1" in note for note in error.value.__notes__)
    result = run(HALF, unvectorised, num_samples=1000, chunk_size=1)
    assert_exact(result, exact_evidence(2))


def test_the_parameters_given_are_used() -> None:
    """A guide that is exact where its parameter is, and far off where it starts."""
    x = jnp.array([0.5, -1.0, 2.0])

    def model() -> None:
        scale = numpyro.param("noise", 5.0, constraint=constraints.positive)
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide() -> None:
        slope = numpyro.param("slope", -3.0)
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(slope * x, math.sqrt(0.5)))

    params = {"noise": 1.0, "slope": 0.5}
    result = run(HALF, Case(model, guide), params=params, num_samples=20)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    np.testing.assert_allclose(result.log_evidence, exact, rtol=1e-9)


def test_refuses_a_point_mass_of_all() -> None:
    def guide(x: Array) -> None:
        joint = dist.Delta(jnp.zeros(24), event_dim=1)
        z = numpyro.sample("all", joint, infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(z.reshape(12, 2), jnp.zeros(12), event_dim=1))

    model, _, (x,) = programs.vae()
    with pytest.raises(ValueError, match=r"'all' is a point mass.*AutoNormal"):
        run(HALF, Case(partial(model, x), partial(guide, x)))
