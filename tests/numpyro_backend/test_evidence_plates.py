"""log_evidence: which plates become rows, and what is summed out or joined."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal

from tests.numpyro_backend import programs
from tests.numpyro_backend.evidence_programs import (
    NOISE,
    POSTERIOR,
    WEIGHT,
    assert_exact,
    linear_gaussian,
    run,
)
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestPlates:
    def test_inner_plates_are_summed_out(self) -> None:
        """Groups of items: outer_g ~ N(0, 1), z_ig ~ N(outer_g, 1), x_ig ~ N(z_ig, 1)."""
        items, groups = 3, 4
        x = programs.data(items, groups)

        def model() -> None:
            with numpyro.plate("groups", groups, dim=-1):
                outer = numpyro.sample("outer", dist.Normal(0.0, 1.0))
                with numpyro.plate("items", items, dim=-2):
                    z = numpyro.sample("z", dist.Normal(outer, 1.0))
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with numpyro.plate("groups", groups, dim=-1):
                outer = numpyro.sample("outer", dist.Normal(x.sum(0) / 5, 0.8))
                with numpyro.plate("items", items, dim=-2):
                    numpyro.sample("z", dist.Normal((x + outer) / 2, 0.8))

        covariance = np.ones((items, items)) + 2 * np.eye(items)
        exact = dist.MultivariateNormal(np.zeros(items), covariance).log_prob(x.T)
        assert_exact(run(Programs(model, guide, ()), num_samples=10_000), exact)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_rows_in_two_plates_keep_their_shape(self) -> None:
        result = run(programs.sequences(), num_samples=100)
        assert result.log_evidence.shape == (5, 4)
        padding = np.asarray(result.log_evidence == 0)
        np.testing.assert_array_equal(padding, np.arange(5)[:, None] >= np.array([5, 3, 1, 4]))

    def test_a_global_latent_gives_one_evidence_of_the_data_set(self) -> None:
        case = programs.hierarchical(num=3)
        x = case.args[0]
        block = np.kron(np.ones((3, 3)) + np.eye(3), np.ones((3, 3)))
        exact = dist.MultivariateNormal(np.zeros(9), block + np.eye(9)).log_prob(x.reshape(-1))
        guide = AutoNormal(case.model, init_scale=0.6)
        params = {"theta_auto_loc": 0.0, "z_auto_loc": np.zeros(3)}
        result = run(Programs(case.model, guide, (x,)), params=params, num_samples=40_000)
        assert result.log_evidence.shape == ()
        assert_exact(result, exact)
        assert result.total == result.log_evidence
        start = handlers.seed(guide, 0)(x)["z"]
        assert np.isfinite(np.asarray(start)).all(), "the guide has kept no tracer"

    def test_a_guide_that_is_not_factorised_gives_one_evidence(self) -> None:
        case, exact = linear_gaussian(num=2)
        mean = case.args[0] @ WEIGHT @ POSTERIOR / NOISE**2

        def guide(x: Array) -> None:
            joint = dist.MultivariateNormal(mean.reshape(-1), 0.36 * np.eye(4))
            flat = numpyro.sample("flat", joint, infer={"is_auxiliary": True})
            numpyro.sample("z", dist.Delta(flat.reshape(2, 2), event_dim=1))

        result = run(Programs(case.model, guide, case.args), num_samples=10_000)
        assert result.log_evidence.shape == ()
        assert_exact(result, exact.sum())

    def test_sites_without_a_density_are_no_rows_fault(self) -> None:
        case, exact = linear_gaussian()

        def model(x: Array) -> None:
            numpyro.deterministic("answer", jnp.array(42.0))
            case.model(x)

        assert_exact(run(Programs(model, case.guide, case.args)), exact)

        def with_factor(x: Array) -> None:
            case.model(x)
            with numpyro.plate("again", len(x)):
                numpyro.factor("bonus", jnp.zeros(len(x)))

        result = run(Programs(with_factor, case.guide, case.args))
        assert result.log_evidence.shape == (), "the factor is in another plate"
        assert_exact(result, exact.sum())

    def test_discrete_latents(self) -> None:
        x = jnp.array([0.1, 1.2, 2.2])
        prior = jnp.array([0.2, 0.3, 0.5])

        def model() -> None:
            with numpyro.plate("data", 3):
                y = numpyro.sample("y", dist.Categorical(prior))
                numpyro.sample("x", dist.Normal(y, 0.7), obs=x)

        def guide() -> None:
            with numpyro.plate("data", 3):
                numpyro.sample("y", dist.Categorical(jnp.array([0.3, 0.4, 0.3])))

        components = dist.Normal(jnp.arange(3.0), 0.7).log_prob(x[:, None])
        exact = jnp.log((jnp.exp(components) * prior).sum(-1))
        assert_exact(run(Programs(model, guide, ())), exact)
