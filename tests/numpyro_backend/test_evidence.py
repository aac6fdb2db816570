"""log_evidence: exact evidence where it is known, and warnings where it must not be believed."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
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

from numpyro_backend._diagnostics.evidence import Evidence, log_evidence
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

WEIGHT = np.array([[1.0, 0.8], [-0.5, 1.2], [0.9, 0.7]])
NOISE = 0.4
POSTERIOR = np.linalg.inv(np.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2)


def linear_gaussian(
    *,
    num: int = 8,
    total: int | None = None,
    batch: int | None = None,
    mask: Any = True,
    guide_scale: float = 1.3,
) -> tuple[Programs, np.ndarray]:
    """x_i ~ N(W z_i, 0.4²), z_i ~ N(0, I): programs, and log p(x_i) of every row.

    The posterior is correlated, and the guide has its mean and, enlarged, its marginal scales.
    """
    x = programs.data(num)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * np.eye(3)
    exact = np.asarray(dist.MultivariateNormal(np.zeros(3), covariance).log_prob(x))

    def plate() -> Any:
        return numpyro.plate("data", total or num, subsample_size=batch)

    def model(x: Array) -> None:
        with plate() as index, handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            rows = jnp.asarray(x)[index]
            numpyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=rows)

    def guide(x: Array) -> None:
        with plate() as index, handlers.mask(mask=mask):
            loc = jnp.asarray(x)[index] @ WEIGHT @ POSTERIOR / NOISE**2
            scale = guide_scale * np.sqrt(np.diagonal(POSTERIOR))
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,)), exact


def run(case: Programs, *, params: dict[str, Any] | None = None, **settings: Any) -> Evidence:
    settings = {"num_samples": 4000, **settings}
    key = jax.random.key(0)
    return log_evidence(key, params or {}, case.model, case.guide, *case.args, **settings)


def assert_exact(result: Evidence, exact: Any, *, largest_error: float = 0.1) -> None:
    assert result.log_evidence.shape == np.shape(exact)
    assert (result.standard_error < largest_error).all(), "too few draws to tell"
    deviation = abs(result.log_evidence - exact) / result.standard_error
    assert (deviation < 4).all(), deviation


class Doubling(dist.transforms.Transform):
    """x ↦ 2x, of which no inverse is known."""

    domain = codomain = constraints.real

    def __call__(self, x: Array) -> Array:
        return 2 * x

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return jnp.full_like(x, math.log(2))

    def tree_flatten(self) -> Any:
        return (), ((), {})


FLOW = {"num_steps": 5, "step_size": 0.15, "beta_0": 0.7, "learn": False}


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


class TestChunks:
    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_chunks_change_nothing(self) -> None:
        case, _ = linear_gaussian(num=8)
        results = [
            run(case, num_samples=50, chunk_size=chunk_size).log_weights
            for chunk_size in (None, 16, 1)
        ]
        assert len(np.unique(results[0], axis=0)) == 50
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], rtol=1e-10)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    @pytest.mark.parametrize(
        ("features", "num_samples", "chunk_size", "expected"),
        [
            (1, 8, 4, {4}),
            (1, 9, 4, {3}),
            (1, 9, None, {9}),
            (1, 9, 1, set()),
            (10**5, 6, None, {3}),
        ],
    )
    def test_memory_is_bounded(
        self, features: int, num_samples: int, chunk_size: int | None, expected: set[int]
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

        result = run(
            Programs(model, guide, ()), num_samples=num_samples, chunk_size=chunk_size
        ).log_weights
        assert result.shape == (num_samples, 20)
        assert draws == expected

    def test_a_program_that_cannot_be_vectorised(self) -> None:
        case, exact = linear_gaussian(num=2)

        @jax.custom_batching.custom_vmap
        def decode(z: Array) -> Array:
            return z @ WEIGHT.T

        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(decode(z), NOISE).to_event(1), obs=x)

        @decode.def_vmap
        def _(*_: Any) -> Any:
            raise NotImplementedError("one code at a time")

        unvectorised = Programs(model, case.guide, case.args)
        with pytest.raises(NotImplementedError, match="one code at a time") as error:
            run(unvectorised, num_samples=100)
        assert any("chunk_size=1" in note for note in error.value.__notes__)
        assert_exact(run(unvectorised, num_samples=1000, chunk_size=1), exact)


@pytest.fixture
def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", exc_type=ImportError)


class TestReliability:
    @pytest.mark.usefixtures("arviz")
    def test_a_bad_guide_is_told(self) -> None:
        """A guide of a third of the posterior's scale: its weights have no variance."""
        case, _ = linear_gaussian(guide_scale=0.3)
        with pytest.warns(UserWarning, match=r"k > 0\.7 in \d of 8 rows.*do not believe") as record:
            result = run(case)
        assert len(record) == 1
        assert record[0].filename == __file__, "it points at the caller"
        assert (result.pareto_k > 0.7).any()

    @pytest.mark.usefixtures("arviz")
    def test_a_good_guide_is_not(self) -> None:
        case, _ = linear_gaussian(guide_scale=1.6)
        assert (run(case).pareto_k < 0.5).all()

    def test_without_arviz_there_is_no_telling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "arviz", None)
        case, _ = linear_gaussian(guide_scale=0.3)
        result = run(case, num_samples=50)
        with pytest.raises(ImportError, match=r"pareto_k needs ArviZ.*pyro-infovae\[arviz\]"):
            _ = result.pareto_k

    def test_an_exact_guide(self) -> None:
        """Equal weights have no tail: the evidence of a single draw is exact."""
        x = jnp.array([0.5, -1.0])

        def model() -> None:
            with numpyro.plate("data", 2):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with numpyro.plate("data", 2):
                numpyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

        result = run(Programs(model, guide, ()), num_samples=100)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        np.testing.assert_allclose(result.log_evidence, exact, rtol=1e-9)
        np.testing.assert_allclose(result.effective_sample_size, 100.0)
        np.testing.assert_allclose(result.standard_error, 0, atol=1e-8)
        assert (result.pareto_k == 0).all()

    def test_weights_that_are_all_zero_or_nan(self) -> None:
        log_weights = np.random.default_rng(0).normal(size=(100, 3))
        log_weights[:, 0] = -math.inf
        log_weights[7, 1] = math.nan
        result = Evidence(log_weights)
        assert result.log_evidence[0] == -math.inf
        assert result.pareto_k[0] == math.inf
        assert np.isnan(result.log_evidence[1])
        assert np.isnan(result.pareto_k[1])
        assert np.isfinite(result.log_evidence[2])
        assert np.isfinite(result.pareto_k[2])

    def test_a_flow_that_diverges_is_told(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(jnp.exp(3 * z), 1e-3), obs=jnp.ones(3))

        def guide() -> None:
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))

        elbo = TraceHamiltonian_ELBO(10, 0.4, learn=False)
        with pytest.warns(UserWarning, match=r"nan in 3 of 3 rows.*step_size"):
            result = run(Programs(model, guide, ()), num_samples=50, elbo=elbo)
        assert np.isnan(result.log_evidence).all()

    @pytest.mark.parametrize("num_samples", [30, 1000])
    def test_pareto_k_is_arvizs(self, num_samples: int, arviz: Any) -> None:
        rng = np.random.default_rng(0)
        log_weights = rng.normal(size=(num_samples, 6)) * np.linspace(0.2, 4.0, 6)
        _, expected = arviz.psislw(log_weights.T)
        result = Evidence(log_weights.reshape(num_samples, 2, 3))
        np.testing.assert_allclose(result.pareto_k, expected.reshape(2, 3), rtol=1e-12)

    def test_pareto_k_is_that_of_arviz_since_1_0(
        self, arviz: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its function has moved, and takes what loo has: negative log weights."""

        def psislw(log_likelihoods: np.ndarray) -> Any:
            largest = np.sort(-log_likelihoods)[-len(log_likelihoods) // 5 :]
            if len(largest) < 5 or np.ptp(largest) == 0:
                raise ValueError("no tail")
            return arviz.psislw(-log_likelihoods)

        log_weights = np.random.default_rng(0).normal(size=(100, 3)) * np.array([0.5, 1.0, 3.0])
        expected = Evidence(log_weights).pareto_k
        equal = np.repeat([[-3.0], [0.0]], [80, 20], axis=0)
        base = SimpleNamespace(array_stats=SimpleNamespace(psislw=psislw))
        monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "arviz_stats", SimpleNamespace(base=base))
        monkeypatch.setitem(sys.modules, "arviz_stats.base", base)
        np.testing.assert_array_equal(Evidence(log_weights).pareto_k, expected)
        assert Evidence(equal).pareto_k == 0
        assert (Evidence(log_weights[:20]).pareto_k == math.inf).all()

    def test_the_moments_of_the_weights(self) -> None:
        """Against the definitions: ESS = (Σw)² / Σw², SE of log mean = sd(w) / (√S mean(w))."""
        log_weights = np.random.default_rng(0).normal(size=(200, 4))
        result = Evidence(log_weights - 1000.0)
        weights = np.exp(log_weights)
        size = weights.sum(0) ** 2 / (weights**2).sum(0)
        np.testing.assert_allclose(result.effective_sample_size, size)
        error = weights.std(0, ddof=1) / (math.sqrt(200) * weights.mean(0))
        np.testing.assert_allclose(result.standard_error, error)
        np.testing.assert_allclose(result.log_evidence, np.log(weights.mean(0)) - 1000.0)


class TestPrograms:
    def test_the_parameters_given_are_used(self) -> None:
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

        result = run(
            Programs(model, guide, ()), params={"noise": 1.0, "slope": 0.5}, num_samples=20
        )
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        np.testing.assert_allclose(result.log_evidence, exact, rtol=1e-9)

    def test_keyword_arguments_reach_the_programs(self) -> None:
        case, exact = linear_gaussian()
        model: Callable[..., None] = lambda *, rows: case.model(rows)  # noqa: E731
        guide: Callable[..., None] = lambda *, rows: case.guide(rows)  # noqa: E731
        key = jax.random.key(0)
        result = log_evidence(key, {}, model, guide, rows=case.args[0], num_samples=2000)
        assert_exact(result, exact)


def _global_latent() -> Programs:
    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 12, subsample_size=4) as index:
            numpyro.sample("x", dist.Normal(theta, 1.0), obs=jnp.asarray(x)[index, 0])

    def guide(x: Array) -> None:
        numpyro.sample("theta", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def _point_mass(x: Array) -> None:
    with numpyro.plate("data", 12):
        numpyro.sample("z", dist.Delta(numpyro.param("loc", jnp.zeros((12, 2)))).to_event(1))


def _laplace(x: Array) -> None:
    joint = dist.Delta(jnp.zeros(24), event_dim=1)
    z = numpyro.sample("all", joint, infer={"is_auxiliary": True})
    numpyro.sample("z", dist.Delta(z.reshape(12, 2), jnp.zeros(12), event_dim=1))


def _guided_by(guide: Callable[..., None]) -> Programs:
    case = programs.vae()

    def both(x: Array) -> None:
        case.guide(x)
        guide(x)

    return Programs(case.model, both, case.args)


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "one draw": (programs.vae(), {"num_samples": 1}, "num_samples >= 2; got 1"),
    "no chunk": (programs.vae(), {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "global latent": (
        _global_latent(),
        {},
        "plate 'data' is subsampled, but site 'theta' is outside of it.*whole plate",
    ),
    "point mass": (
        programs.vae()._replace(guide=_point_mass),
        {},
        "'z' is a point mass.*AutoNormal",
    ),
    "point mass of all": (
        programs.vae()._replace(guide=_laplace),
        {},
        "'all' is a point mass.*AutoNormal",
    ),
    "not drawn": (
        programs.vae()._replace(guide=lambda x: None),
        {},
        "'z' is a latent of the model that the guide does not draw",
    ),
    "no latent": (
        _guided_by(lambda x: numpyro.sample("w", dist.Normal(0.0, 1.0))),
        {},
        "the guide draws 'w', which is no latent of the model",
    ),
    "observing guide": (
        _guided_by(lambda x: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)),
        {},
        "guide observes 'x'.*AutoGuide",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_log_evidence_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(case, **settings)
