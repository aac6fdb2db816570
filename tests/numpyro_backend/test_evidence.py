"""log_evidence: the evidence of every row, where it is known."""

from __future__ import annotations

import math
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

from numpyro_backend._diagnostics.evidence import log_evidence
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from tests.numpyro_backend.evidence_programs import (
    FLOW,
    NOISE,
    POSTERIOR,
    WEIGHT,
    assert_exact,
    linear_gaussian,
    run,
)
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class Doubling(dist.transforms.Transform):
    """x ↦ 2x, of which no inverse is known."""

    domain = codomain = constraints.real

    def __call__(self, x: Array) -> Array:
        return 2 * x

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return jnp.full_like(x, math.log(2))

    def tree_flatten(self) -> Any:
        return (), ((), {})


class TestRows:
    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_every_row_has_its_evidence(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        case, exact = linear_gaussian()
        result = run(case, elbo=elbo)
        assert_exact(result, exact)
        assert result.total == pytest.approx(float(result.log_evidence.sum()))

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_the_parameters_of_the_flow_are_used(self) -> None:
        """Steps of size 0 leave the draws where they are."""
        case, exact = linear_gaussian()
        elbo = TraceHamiltonian_ELBO(3, 0.3, tempering="none")
        plain = run(case).effective_sample_size
        none = {"hamiltonian.step_size": 1e-9}
        still = run(case, elbo=elbo, params=none).effective_sample_size
        np.testing.assert_allclose(still, plain, rtol=1e-6)
        moved = run(case, elbo=elbo)
        assert (moved.effective_sample_size > 1.03 * plain).all()
        assert_exact(moved, exact)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_equals_a_loop_over_draws(self) -> None:
        """The same draws, their weights written out."""
        case, _ = linear_gaussian(num=3)
        result = run(case, num_samples=20)
        (x,) = case.args
        draws: list[Array] = []
        _, draws_key = jax.random.split(jax.random.key(0))
        loc = x @ WEIGHT @ POSTERIOR / NOISE**2
        scale = 1.3 * np.sqrt(np.diagonal(POSTERIOR))
        for key in jax.random.split(draws_key, 20):
            _, guide_key = jax.random.split(key)
            z = handlers.trace(handlers.seed(case.guide, guide_key)).get_trace(x)["z"]["value"]
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

    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_masked_rows_are_0(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        mask = np.arange(8) % 3 != 0
        case, exact = linear_gaussian(mask=mask)
        result = run(case, elbo=elbo)
        np.testing.assert_allclose(result.log_evidence[~mask], 0, atol=1e-12)
        np.testing.assert_allclose(result.standard_error[~mask], 0, atol=1e-6)
        np.testing.assert_array_equal(result.pareto_k[~mask], 0)
        np.testing.assert_allclose(result.effective_sample_size[~mask], 4000)
        deviation = abs(result.log_evidence - exact) / result.standard_error
        assert (deviation[mask] < 4).all()

    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_a_minibatch_has_the_evidence_of_its_rows(
        self, elbo: TraceHamiltonian_ELBO | None
    ) -> None:
        case, exact = linear_gaussian(num=16, total=1000, batch=5)
        rows = {"data": jnp.array([3, 0, 14, 7, 8])}
        chosen = Programs(
            handlers.substitute(case.model, data=rows),
            handlers.substitute(case.guide, data=rows),
            case.args,
        )
        assert_exact(run(chosen, elbo=elbo), exact[rows["data"]])

    def test_a_random_minibatch_is_drawn_once(self) -> None:
        """Else each draw would be of other rows."""
        x = jnp.linspace(-3.0, 3.0, 20)

        def model(x: Array) -> None:
            with numpyro.plate("data", 20, subsample_size=4) as index:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        def guide(x: Array) -> None:
            with numpyro.plate("data", 20, subsample_size=4) as index:
                numpyro.sample("z", dist.Normal(x[index] / 2, math.sqrt(0.5)))

        rows = []
        for seed in range(3):
            key = jax.random.key(seed)
            result = log_evidence(key, {}, model, guide, x, num_samples=60, chunk_size=10)
            np.testing.assert_allclose(
                result.log_weights, np.broadcast_to(result.log_evidence, (60, 4)), rtol=1e-9
            )
            rows.append(np.sort(result.log_evidence))
            exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
            assert np.isclose(exact[:, None], rows[-1]).any(0).all()
        assert len(np.unique(np.stack(rows), axis=0)) > 1, "the key chooses it"

    def test_a_users_scale_is_left_out(self) -> None:
        case, exact = linear_gaussian()
        model, guide = (handlers.scale(program, scale=0.2) for program in case[:2])
        assert_exact(run(Programs(model, guide, case.args)), exact)

    def test_single_precision(self) -> None:
        with jax.enable_x64(False):
            case, exact = linear_gaussian()
            result = run(case, num_samples=1000)
            assert result.log_weights.dtype == result.pareto_k.dtype == jnp.float32
            assert_exact(result, exact)

    def test_a_flow_without_an_inverse(self) -> None:
        """Its density is known only for what it has drawn."""
        case, exact = linear_gaussian()
        mean = case.args[0] @ WEIGHT @ POSTERIOR / NOISE**2
        scale = 0.65 * np.sqrt(np.diagonal(POSTERIOR))

        def guide(x: Array) -> None:
            with numpyro.plate("data", 8):
                doubled = dist.TransformedDistribution(dist.Normal(mean / 2, scale), Doubling())
                numpyro.sample("z", doubled.to_event(1))

        assert_exact(run(Programs(case.model, guide, case.args)), exact)
