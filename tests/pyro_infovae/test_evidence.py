"""log_evidence: exact evidence where it is known, and warnings where it must not be believed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    init_to_value,
)
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.evidence import Evidence, log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

WEIGHT = torch.tensor([[1.0, 0.8], [-0.5, 1.2], [0.9, 0.7]], dtype=torch.float64)
NOISE = 0.4


def linear_gaussian(
    *,
    num: int = 8,
    total: int | None = None,
    batch: int | None = None,
    mask: Tensor | None = None,
    guide_scale: float = 1.3,
) -> tuple[Programs, Tensor]:
    """x_i ~ N(W z_i, 0.4²), z_i ~ N(0, I): programs, and log p(x_i) of every row.

    The posterior is correlated, and the guide has its mean and, enlarged, its marginal scales.
    """
    x = programs.data(num)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    posterior = (torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2).inverse()
    kept = torch.ones(batch or num, dtype=torch.bool) if mask is None else mask

    def plate() -> Any:
        rows = torch.arange(batch) if batch else None
        return pyro.plate("data", total or num, subsample=rows)

    def model(x: Tensor) -> None:
        with plate() as index, poutine.mask(mask=kept):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        with plate() as index, poutine.mask(mask=kept):
            loc = x[index] @ WEIGHT @ posterior / NOISE**2
            scale = guide_scale * posterior.diagonal().sqrt()
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,)), exact


def run(case: Programs, **settings: Any) -> Evidence:
    settings = {"num_samples": 4000, **settings}
    return log_evidence(case.model, case.guide, *case.args, **settings)


def assert_exact(result: Evidence, exact: Tensor, *, largest_error: float = 0.1) -> None:
    assert result.log_evidence.shape == exact.shape
    assert (result.standard_error < largest_error).all(), "too few draws to tell"
    deviation = (result.log_evidence - exact).abs() / result.standard_error
    assert (deviation < 4).all(), deviation


FLOW = {"num_steps": 5, "step_size": 0.15, "beta_0": 0.7, "learn": False}


class TestRows:
    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_every_row_has_its_evidence(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        case, exact = linear_gaussian()
        result = run(case, elbo=elbo)
        assert_exact(result, exact)
        assert result.total.item() == pytest.approx(result.log_evidence.sum().item())

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_the_refined_guide_has_the_better_weights(self) -> None:
        """A correlated posterior: the best diagonal guide against one trained with its flow."""
        x, direction, noise = programs.data(40)[:, 0], torch.tensor([1.0, 0.9]), 0.5
        precision = torch.eye(2) + torch.outer(direction, direction) / noise**2

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ direction, noise), obs=x)

        def guide(x: Tensor) -> None:
            slope = torch.linalg.solve(precision, direction) / noise**2
            best = precision.diagonal().rsqrt()
            scale = pyro.param("scale", best, constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, None] * slope, scale).to_event(1))

        plain = log_evidence(model, guide, x, num_samples=5000)
        particles = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 1}
        elbo = TraceHamiltonian_ELBO(3, 0.5, tempering="none", max_step_size=1.0, **particles)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
        for _ in range(60):
            svi.step(x)
        refined = log_evidence(model, guide, x, num_samples=5000, elbo=elbo)
        exact = dist.Normal(0.0, (direction @ direction + noise**2).sqrt()).log_prob(x)
        assert_exact(refined, exact, largest_error=0.2)
        assert refined.effective_sample_size.mean() > 1.5 * plain.effective_sample_size.mean()
        assert refined.pareto_k.mean() < plain.pareto_k.mean() - 0.05

    def test_equals_a_loop_over_draws(self) -> None:
        """The same draws, their weights written out."""
        case, _ = linear_gaussian(num=3)
        result = run(case, num_samples=50, chunk_size=1)
        pyro.set_rng_seed(0)
        poutine.trace(case.guide).get_trace(*case.args)  # the run that looks at the plates
        standard = dist.Normal(0.0, 1.0)
        for weights in result.log_weights:
            trace = poutine.trace(case.guide).get_trace(*case.args)
            z, q = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
            log_prior, log_q = standard.log_prob(z).sum(-1), q.log_prob(z)
            log_likelihood = dist.Normal(z @ WEIGHT.T, NOISE).log_prob(case.args[0]).sum(-1)
            torch.testing.assert_close(weights, log_likelihood + log_prior - log_q)
        mean = result.log_weights.exp().mean(0).log()
        torch.testing.assert_close(result.log_evidence, mean)

    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_masked_rows_are_0(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        mask = torch.arange(8) % 3 != 0
        case, exact = linear_gaussian(mask=mask)
        result = run(case, elbo=elbo)
        torch.testing.assert_close(result.log_evidence[~mask], torch.zeros(3))
        assert (result.standard_error[~mask] == 0).all()
        assert (result.pareto_k[~mask] == 0).all()
        torch.testing.assert_close(result.effective_sample_size[~mask], torch.full((3,), 4000.0))
        deviation = (result.log_evidence - exact).abs() / result.standard_error
        assert (deviation[mask] < 4).all()

    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_a_minibatch_has_the_evidence_of_its_rows(
        self, elbo: TraceHamiltonian_ELBO | None
    ) -> None:
        case, exact = linear_gaussian(num=16, total=1000, batch=5)
        assert_exact(run(case, elbo=elbo), exact[:5])

    def test_a_random_minibatch_is_drawn_once(self) -> None:
        """Else each chunk would average over other rows."""
        x = torch.linspace(-3.0, 3.0, 20)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 20, subsample_size=4) as index:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 20, subsample_size=4) as index:
                pyro.sample("z", dist.Normal(x[index] / 2, math.sqrt(0.5)))

        result = log_evidence(model, guide, x, num_samples=60, chunk_size=10)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        assert torch.allclose(result.log_weights, result.log_evidence), "weights of an exact guide"
        for row in result.log_evidence:
            assert torch.isclose(exact, row).any()

    def test_a_users_scale_is_left_out(self) -> None:
        case, exact = linear_gaussian()
        model, guide = (poutine.scale(program, scale=0.2) for program in case[:2])
        assert_exact(run(Programs(model, guide, case.args)), exact)

    def test_float32(self) -> None:
        torch.set_default_dtype(torch.float32)
        case, exact = linear_gaussian()
        result = log_evidence(case.model, case.guide, case.args[0], num_samples=1000)
        assert_exact(result, exact)


class TestPlates:
    def test_inner_plates_are_summed_out(self) -> None:
        """Groups of items: outer_g ~ N(0, 1), z_ig ~ N(outer_g, 1), x_ig ~ N(z_ig, 1)."""
        items, groups = 3, 4
        x = programs.data(items, groups)

        def model() -> None:
            with pyro.plate("groups", groups, dim=-1):
                outer = pyro.sample("outer", dist.Normal(0.0, 1.0))
                with pyro.plate("items", items, dim=-2):
                    z = pyro.sample("z", dist.Normal(outer, 1.0))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with pyro.plate("groups", groups, dim=-1):
                outer = pyro.sample("outer", dist.Normal(x.sum(0) / 5, 0.8))
                with pyro.plate("items", items, dim=-2):
                    pyro.sample("z", dist.Normal((x + outer) / 2, 0.8))

        covariance = torch.ones(items, items) + 2 * torch.eye(items)
        exact = dist.MultivariateNormal(torch.zeros(items), covariance).log_prob(x.T)
        assert_exact(log_evidence(model, guide, num_samples=10_000), exact)
        elbo = TraceHamiltonian_ELBO(3, 0.1, beta_0=0.8, learn=False)
        assert_exact(log_evidence(model, guide, num_samples=10_000, elbo=elbo), exact)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_rows_in_two_plates_keep_their_shape(self) -> None:
        case = programs.sequences()
        result = run(case, num_samples=100)
        assert result.log_evidence.shape == (5, 4)
        padding = result.log_evidence == 0
        assert padding.sum() == 7
        assert padding[3, 1]
        assert not padding[2, 1]

    def test_a_global_latent_gives_one_evidence_of_the_data_set(self) -> None:
        case = programs.hierarchical(num=3)
        x = case.args[0]
        block = (torch.ones(3, 3) + torch.eye(3)).repeat_interleave(3, 0).repeat_interleave(3, 1)
        exact = dist.MultivariateNormal(torch.zeros(9), block + torch.eye(9)).log_prob(
            x.reshape(-1)
        )
        guide = AutoNormal(case.model, init_scale=0.6)
        guide(x)
        # Its locations start at the prior's median; the posterior's are not far.
        result = log_evidence(case.model, guide, x, num_samples=40_000)
        assert result.log_evidence.shape == ()
        assert_exact(result, exact)
        assert result.total == result.log_evidence
        elbo = TraceHamiltonian_ELBO(3, 0.15, learn=False)
        assert_exact(log_evidence(case.model, guide, x, num_samples=20_000, elbo=elbo), exact)

    def test_a_guide_that_is_not_factorised_gives_one_evidence(self) -> None:
        case, exact = linear_gaussian(num=2)
        posterior = (torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2).inverse()
        mean = case.args[0] @ WEIGHT @ posterior / NOISE**2
        start = init_to_value(values={"z": mean})
        guide = AutoMultivariateNormal(case.model, init_loc_fn=start, init_scale=0.6)
        result = log_evidence(case.model, guide, *case.args, num_samples=10_000)
        assert result.log_evidence.shape == ()
        assert_exact(result, exact.sum())

    def test_a_sequential_plate(self) -> None:
        x = torch.tensor([0.3, -1.0, 0.8])

        def model() -> None:
            for i in pyro.plate("data", 3):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

        def guide() -> None:
            for i in pyro.plate("data", 3):
                pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 0.8))

        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum()
        assert_exact(log_evidence(model, guide, num_samples=2000), exact)

    def test_sites_without_a_density_are_no_rows_fault(self) -> None:
        case, exact = linear_gaussian()

        def model(x: Tensor) -> None:
            pyro.deterministic("answer", torch.tensor(42.0))
            case.model(x)
            with pyro.plate("again", len(x)):
                pyro.factor("bonus", torch.zeros(len(x)))

        result = run(Programs(model, case.guide, case.args))
        assert result.log_evidence.shape == (), "the factor is in another plate"
        assert_exact(result, exact.sum())

        def without_factor(x: Tensor) -> None:
            pyro.deterministic("answer", torch.tensor(42.0))
            case.model(x)

        assert_exact(run(Programs(without_factor, case.guide, case.args)), exact)

    def test_discrete_latents(self) -> None:
        x = torch.tensor([0.1, 1.2, 2.2])
        prior = torch.tensor([0.2, 0.3, 0.5])

        def model() -> None:
            with pyro.plate("data", 3):
                y = pyro.sample("y", dist.Categorical(prior))
                pyro.sample("x", dist.Normal(y.to(x), 0.7), obs=x)

        def guide() -> None:
            with pyro.plate("data", 3):
                pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.4, 0.3])))

        components = dist.Normal(torch.arange(3.0), 0.7).log_prob(x[:, None])
        exact = (components.exp() * prior).sum(-1).log()
        result = log_evidence(model, guide, num_samples=4000)
        assert_exact(result, exact)


class TestChunks:
    def test_the_same_draws_give_the_same_result(self) -> None:
        """Multiples of 16 numbers come from the generator alike in one chunk and in several."""
        case, _ = linear_gaussian(num=8)
        results = []
        for chunk_size in (None, 64, 100, 1):
            pyro.set_rng_seed(2)
            results.append(run(case, num_samples=128, chunk_size=chunk_size).log_weights)
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])

    @pytest.mark.filterwarnings("ignore:log_evidence")
    @pytest.mark.parametrize(
        ("features", "chunk_size", "runs"),
        [(1, 100, 4), (1, 390, 2), (1, None, 1), (10**5, None, 2)],
    )
    def test_memory_is_bounded(self, features: int, chunk_size: int | None, runs: int) -> None:
        """At 20 · 10⁵ numbers a draw, 2²³ numbers hold 4 draws."""
        calls = []
        x = torch.zeros(20, features)
        num = 6 if features > 1 else 400

        def model() -> None:
            with pyro.plate("data", 20):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                loc = z.unsqueeze(-1).expand(*z.shape, features) / features
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        def guide() -> None:
            calls.append(1)
            with pyro.plate("data", 20):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        result = log_evidence(model, guide, num_samples=num, chunk_size=chunk_size)
        assert result.log_weights.shape == (num, 20)
        assert len(calls) == 1 + runs, "one run looks at the plates"

    def test_a_program_that_cannot_be_vectorised(self) -> None:
        case, exact = linear_gaussian(num=2)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                loc = torch.stack([WEIGHT @ row for row in z.reshape(2, 2)])
                pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)

        with pytest.raises(RuntimeError) as error:
            log_evidence(model, case.guide, *case.args, num_samples=100)
        assert "chunk_size=1" in error.value.__notes__[0]
        result = log_evidence(model, case.guide, *case.args, num_samples=1000, chunk_size=1)
        assert_exact(result, exact)


class TestReliability:
    def test_a_bad_guide_is_told(self) -> None:
        """A guide of a third of the posterior's scale: its weights have no variance."""
        case, _ = linear_gaussian(guide_scale=0.3)
        with pytest.warns(UserWarning, match=r"k > 0\.7 in \d of 8 rows.*do not believe") as record:
            result = run(case)
        assert len(record) == 1
        assert (result.pareto_k > 0.7).any()

    def test_a_good_guide_is_not(self) -> None:
        case, _ = linear_gaussian(guide_scale=1.6)
        assert (run(case).pareto_k < 0.5).all()

    def test_an_exact_guide(self) -> None:
        """Equal weights have no tail: the evidence of a single draw is exact."""
        x = torch.tensor([0.5, -1.0])

        def model() -> None:
            with pyro.plate("data", 2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with pyro.plate("data", 2):
                pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

        result = log_evidence(model, guide, num_samples=100)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        torch.testing.assert_close(result.log_evidence, exact)
        torch.testing.assert_close(result.effective_sample_size, torch.full((2,), 100.0))
        torch.testing.assert_close(result.standard_error, torch.zeros(2), rtol=0, atol=1e-8)
        assert (result.pareto_k == 0).all()

    def test_weights_that_are_all_zero_or_nan(self) -> None:
        log_weights = torch.randn(100, 3)
        log_weights[:, 0] = -math.inf
        log_weights[7, 1] = math.nan
        result = Evidence(log_weights)
        assert result.log_evidence[0] == -math.inf
        assert result.pareto_k[0] == math.inf
        assert result.log_evidence[1].isnan()
        assert result.pareto_k[1].isnan()
        assert result.log_evidence[2].isfinite()

    def test_a_flow_that_diverges_is_told(self) -> None:
        def model() -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal((3 * z).exp(), 1e-3), obs=torch.ones(3))

        def guide() -> None:
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

        elbo = TraceHamiltonian_ELBO(10, 0.4, learn=False)
        with pytest.warns(UserWarning, match=r"nan in 3 of 3 rows.*step_size"):
            result = log_evidence(model, guide, num_samples=50, elbo=elbo)
        assert result.log_evidence.isnan().all()

    @pytest.mark.parametrize("num_samples", [30, 1000])
    def test_pareto_k_is_arvizs(self, num_samples: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arviz = pytest.importorskip("arviz", exc_type=ImportError)
            log_weights = torch.randn(num_samples, 6) * torch.linspace(0.2, 4.0, 6)
            _, expected = arviz.psislw(log_weights.T.numpy())
        result = Evidence(log_weights)
        torch.testing.assert_close(result.pareto_k, torch.as_tensor(expected))

    def test_the_moments_of_the_weights(self) -> None:
        """Against the definitions: ESS = (Σw)² / Σw², SE of log mean = sd(w) / (√S mean(w))."""
        result = Evidence(torch.randn(200, 4) - 1000.0)
        weights = (result.log_weights + 1000.0).exp()
        size = weights.sum(0) ** 2 / (weights**2).sum(0)
        torch.testing.assert_close(result.effective_sample_size, size)
        error = weights.std(0) / (math.sqrt(200) * weights.mean(0))
        torch.testing.assert_close(result.standard_error, error)
        torch.testing.assert_close(result.log_evidence, weights.mean(0).log() - 1000.0)


@pytest.mark.filterwarnings("ignore:log_evidence")
class TestSideEffects:
    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(2, 0.1)])
    def test_the_param_store_is_untouched(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        case = programs.vae()
        log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo)
        assert not list(pyro.get_param_store().keys())
        case.guide(*case.args)
        case.model(*case.args)
        before = {name: value.clone() for name, value in pyro.get_param_store().items()}
        leaves = dict(pyro.get_param_store()._params)
        log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo)
        after = dict(pyro.get_param_store().items())
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name])
            assert pyro.get_param_store()._params[name] is leaves[name]
            assert leaves[name].grad is None

    def test_the_result_has_no_graph(self) -> None:
        case = programs.vae()
        elbo = TraceHamiltonian_ELBO(2, 0.1)
        result = log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo)
        assert not result.log_weights.requires_grad

    def test_keyword_arguments_reach_the_programs(self) -> None:
        case, exact = linear_gaussian()
        x = case.args[0]
        model: Callable[..., None] = lambda *, rows: case.model(rows)  # noqa: E731
        guide: Callable[..., None] = lambda *, rows: case.guide(rows)  # noqa: E731
        assert_exact(log_evidence(model, guide, rows=x, num_samples=2000), exact)


class TestRefusals:
    def refused(self, case: Programs, match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            log_evidence(case.model, case.guide, *case.args, **settings)

    def test_settings(self) -> None:
        case, _ = linear_gaussian()
        self.refused(case, "num_samples >= 2; got 1", num_samples=1)
        self.refused(case, "chunk_size >= 1; got 0", chunk_size=0)

    def test_a_subsampled_plate_below_a_global_latent(self) -> None:
        def model(x: Tensor) -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 12, subsample_size=4) as index:
                pyro.sample("x", dist.Normal(theta, 1.0), obs=x[index, 0])

        def guide(x: Tensor) -> None:
            pyro.sample("theta", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, (programs.data(),))
        self.refused(case, "plate 'data' is subsampled, but site 'theta' is outside.*whole plate")

    def test_a_sequential_minibatch(self) -> None:
        def model() -> None:
            for i in pyro.plate("data", 12, subsample_size=1):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

        def guide() -> None:
            for i in pyro.plate("data", 12, subsample_size=1):
                pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

        self.refused(Programs(model, guide, ()), "plate 'data' is subsampled, but it is sequential")

    def test_programs_without_importance_weights(self) -> None:
        case = programs.vae()
        self.refused(
            Programs(case.model, AutoDelta(case.model), case.args),
            "'z' is a point mass.*AutoNormal",
        )
        mixture = programs.mixture(enumerate_in_model=True)
        mixture = Programs(config_enumerate(mixture.model), mixture.guide, mixture.args)
        self.refused(mixture, "'y' is a latent of the model that the guide does not draw")

        def guide(x: Tensor) -> None:
            case.guide(x)
            pyro.sample("w", dist.Normal(0.0, 1.0))

        self.refused(Programs(case.model, guide, case.args), "'w', which is no latent of the model")
        messenger = AutoNormalMessenger(case.model)
        messenger(*case.args)
        self.refused(Programs(case.model, messenger, case.args), r"guide observes 'x'.*AutoGuide")
