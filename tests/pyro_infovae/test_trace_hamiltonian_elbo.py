"""TraceHamiltonian_ELBO: gradients, plates, refusals, training and composition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from pyro.nn import PyroParam
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae.rows import Rows
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.test_trace_mmd_elbo import PARTICLES, seeded


def warm(beta_0: Tensor, k: int, num_steps: int) -> Tensor:
    """A schedule of the user's that does not end at 1."""
    return beta_0 + (0.9 - beta_0) * k / num_steps


class TestIdentity:
    # Particles in a loop draw their momenta in between, so the stock ELBO draws others.
    @pytest.mark.parametrize("particles", [PARTICLES["one"], PARTICLES["vectorised"]])
    def test_a_step_of_zero_is_the_stock_elbo(self, particles: dict) -> None:
        case = programs.two_latents()
        ours = TraceHamiltonian_ELBO(3, 0.0, tempering="none", learn=False, **particles)
        expected, expected_grads = seeded(Trace_ELBO(**particles), case)
        loss, grads = seeded(ours, case)
        assert loss == pytest.approx(expected, rel=1e-6)
        for key, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[key], rtol=1e-6, atol=1e-9)


class TestGradients:
    @pytest.mark.parametrize("per_step", [False, True])
    @pytest.mark.parametrize("tempering", ["quadratic", "free", "constant", warm])
    def test_equal_finite_differences(self, tempering: Any, per_step: bool) -> None:
        case = programs.vae(num=6)
        objective = TraceHamiltonian_ELBO(
            3,
            torch.tensor([[0.1, 0.2]] * 3 if per_step else 0.1),
            per_step=per_step,
            tempering=tempering,
        )
        _, grads = seeded(objective, case)
        temperature = {"free": "hamiltonian.tempering_factors"}.get(
            str(tempering), "hamiltonian.beta_0"
        )
        assert grads.keys() == {"encoder", "scale", "decoder", "hamiltonian.step_size", temperature}
        store = pyro.get_param_store()
        for name, grad in grads.items():
            parameter = store._params[name]
            direction = torch.ones_like(parameter) + torch.arange(parameter.numel()).reshape(
                parameter.shape
            )
            losses = []
            for shift in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter += shift * direction
                pyro.set_rng_seed(3)
                losses.append(objective.loss(case.model, case.guide, *case.args))
                with torch.no_grad():
                    parameter -= shift * direction
            slope = (losses[0] - losses[1]) / 2e-5
            assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-6)

    def test_reach_a_latent_that_stays(self) -> None:
        """θ is drawn by the guide and conditions the flow of z: its gradient runs through both."""
        case = programs.hierarchical(num=4)
        objective = TraceHamiltonian_ELBO(3, 0.2, sites="z", learn=False)
        _, grads = seeded(objective, case)
        store = pyro.get_param_store()
        losses = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                store._params["theta_loc"] += shift
            pyro.set_rng_seed(3)
            losses.append(objective.loss(case.model, case.guide, *case.args))
            with torch.no_grad():
                store._params["theta_loc"] -= shift
        assert grads["theta_loc"].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


class TestPlates:
    """Draws are made equal by noise that depends on the row alone."""

    @pytest.fixture(autouse=True)
    def equal_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def noise(shape: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
            size = torch.Size(shape)
            return torch.sin(1.7 * torch.arange(size.numel(), dtype=dtype) ** 1.3).reshape(size)

        monkeypatch.setattr("torch.distributions.normal._standard_normal", noise)
        monkeypatch.setattr(
            "pyro_infovae._traces.refined_guide.torch.randn_like",
            lambda u: 0.8 * noise(u.shape).flip(-1),
        )

    def rows(self, batch: int, total: int, *, mask: Tensor | None = None) -> tuple[Tensor, float]:
        """Log weight per row, without the scale N / B, and the loss per datum."""
        x = programs.data(64)
        pyro.clear_param_store()
        kept = torch.ones(batch, dtype=torch.bool) if mask is None else mask

        def model(x: Tensor) -> None:
            plate = pyro.plate("data", total, subsample=torch.arange(batch))
            with plate as index, poutine.mask(mask=kept):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                loc = programs._decode(z, 3)
                pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x[index])

        def guide(x: Tensor) -> None:
            plate = pyro.plate("data", total, subsample=torch.arange(batch))
            with plate as index, poutine.mask(mask=kept):
                loc, sd = programs._encoder(x[index], 2)
                pyro.sample("z", dist.Normal(loc, sd).to_event(1))

        objective = TraceHamiltonian_ELBO(5, 0.15, learn=False)
        loss = objective.loss(model, guide, x)
        guide_trace = poutine.trace(objective.refine(model, guide)).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        row = sum(model_trace.nodes[name]["log_prob"] for name in ("z", "x"))
        return (row - guide_trace.nodes["z"]["log_prob"]).detach() * batch / total, loss / total

    def test_the_bound_per_datum_ignores_the_data_size(self) -> None:
        expected, loss = self.rows(32, 32)
        for total in (64, 6400):
            rows, per_datum = self.rows(32, total)
            torch.testing.assert_close(rows, expected)
            assert per_datum == pytest.approx(loss)

    def test_the_bound_per_datum_ignores_the_batch_size(self) -> None:
        expected, _ = self.rows(32, 6400)
        rows, _ = self.rows(8, 6400)
        # The momentum's noise is flipped within a row, so that it depends on the row alone too.
        torch.testing.assert_close(rows, expected[:8])

    def test_masked_rows_contribute_nothing(self) -> None:
        full, _ = self.rows(12, 12)
        mask = torch.arange(12) % 3 != 0
        rows, _ = self.rows(12, 12, mask=mask)
        torch.testing.assert_close(rows, torch.where(mask, full, 0.0))

    def test_a_scale_of_the_users_on_a_latent_keeps_the_time_scale(self) -> None:
        """The dynamics see ℓ = log p(x | z) + c log p(z): c does not slow or hasten the rest."""
        x = programs.data(8)
        pyro.clear_param_store()
        ends = {}
        for scale in (1.0, 1e-9):

            def model(x: Tensor, scale: float = scale) -> None:
                with pyro.plate("data", 100, subsample=torch.arange(8)) as index:
                    with poutine.scale(scale=scale):
                        z = pyro.sample("z", dist.Normal(0.0, 1e6))
                    pyro.sample("x", dist.Normal(z, 0.5), obs=x[index, 0])

            def guide(x: Tensor, scale: float = scale) -> None:
                with pyro.plate("data", 100, subsample=torch.arange(8)), poutine.scale(scale=scale):
                    pyro.sample("z", dist.Normal(torch.zeros(8), 1.0))

            objective = TraceHamiltonian_ELBO(5, 0.15, learn=False)
            ends[scale] = objective.refine(model, guide)(x)["z"].detach()
        torch.testing.assert_close(ends[1.0], ends[1e-9])


class TestRefusals:
    def refused(self, case: Programs, match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            TraceHamiltonian_ELBO(**settings).loss_and_grads(case.model, case.guide, *case.args)

    def test_a_global_latent_under_a_subsampled_plate(self) -> None:
        def model(x: Tensor) -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 12, subsample_size=4) as index:
                z = pyro.sample("z", dist.Normal(theta, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index, 0])

        def guide(x: Tensor) -> None:
            pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 12, subsample_size=4):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, (programs.data(),))
        self.refused(case, "'theta' is outside plate 'data', which is subsampled.*out of sites")
        assert math.isfinite(TraceHamiltonian_ELBO(sites=["z"]).loss(*case[:2], *case.args))

    def test_an_automatic_point_mass(self) -> None:
        model, _, args = programs.vae()
        for guide in (AutoDelta(model), AutoLaplaceApproximation(model)):
            self.refused(Programs(model, guide, args), "'z' is a point mass in the guide")


class TestUsable:
    def test_trains_with_svi_and_evaluates(self) -> None:
        case = programs.vae(num=40, batch=10)
        objective = TraceHamiltonian_ELBO(3, 0.1, per_step=True, tempering="free")
        svi = SVI(case.model, case.guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
        before = svi.evaluate_loss(*case.args)
        names = set(pyro.get_param_store().keys())
        assert {"hamiltonian.step_size", "hamiltonian.tempering_factors"} < names
        start = pyro.param("hamiltonian.step_size").detach().clone()
        for _ in range(100):
            svi.step(*case.args)
        assert svi.evaluate_loss(*case.args) < before
        assert not torch.allclose(start, pyro.param("hamiltonian.step_size"))
        assert (pyro.param("hamiltonian.step_size") < 0.5).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        objective = TraceHamiltonian_ELBO(2, torch.tensor([0.1, 0.2]))
        torch.set_default_dtype(dtype)
        model, guide, (x,) = programs.vae()
        assert objective.differentiable_loss(model, guide, x.to(dtype)).dtype == dtype

    def test_a_module_has_the_flow_as_parameters(self) -> None:
        class Model(pyro.nn.PyroModule):
            def forward(self, x: Tensor) -> None:
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                    pyro.sample("x", dist.Normal(z, 0.3), obs=x)

        with pyro.settings.context(module_local_params=True):
            model = Model()
            module = TraceHamiltonian_ELBO(3)(model, AutoNormal(model))
            x = torch.randn(10)
            module(x)
            names = {name for name, _ in module.named_parameters()}
            assert {"flow.step_size_unconstrained", "flow.beta_0_unconstrained"} < names
            optimiser = torch.optim.Adam(module.parameters(), 1e-2)
            losses = []
            for _ in range(100):
                optimiser.zero_grad()
                loss = module(x)
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            assert sum(losses[-20:]) < sum(losses[:20])

    def test_too_large_a_step_warns_and_training_goes_on(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal((3 * z).exp(), 1e-3), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

        x = torch.ones(16)
        objective = TraceHamiltonian_ELBO(10, 0.4, max_step_size=5.0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
        pyro.enable_validation(False)
        with pytest.warns(UserWarning, match=r"non-finite log density per site \{.*'z': \d+.*step"):
            loss = svi.step(x)
        assert not math.isfinite(loss)
        for value in pyro.get_param_store().values():
            assert torch.isfinite(value).all()
        objective = TraceHamiltonian_ELBO(2, 1e-5, name="small")
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
        assert math.isfinite(svi.step(x))

    def test_prefactors_weight_the_terms(self) -> None:
        """The loss is linear in each prefactor, and the slopes add up to it."""
        case = programs.vae(num=5)
        ones = (1.0, 1.0, 1.0)

        def loss(logp: Any = ones, logq: Any = ones) -> float:
            objective = TraceHamiltonian_ELBO(
                3, 0.1, learn=False, logp_prefactor=logp, logq_prefactor=logq
            )
            return seeded(objective, case)[0]

        slopes = []
        for i in range(6):
            doubled = [1.0] * 6
            doubled[i] = 2.0
            slopes.append(loss(tuple(doubled[:3]), tuple(doubled[3:])) - loss())
        assert sum(slopes) == pytest.approx(loss(), rel=1e-9)
        without = loss((0.0, 1.0, 1.0))
        assert without == pytest.approx(loss() - slopes[0], rel=1e-9)
        # At a step of 0 without tempering the terms are the guide's and the model's own.
        d, n = 2, 5
        assert slopes[5] == pytest.approx(-n * d / 2 * math.log(0.5), rel=1e-9)

    def test_predictive_moments_are_nearer_to_the_posterior(self) -> None:
        """A correlated posterior under AutoNormal: the refined guide's covariance is nearer."""
        x = torch.tensor([1.0, 2.0, 0.5])

        def model() -> None:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            loc = (a + b).unsqueeze(-1) * torch.ones(3)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

        precision = torch.eye(2) + 12 * torch.ones(2, 2)
        truth = precision.inverse()
        guide = AutoNormal(model)
        objective = TraceHamiltonian_ELBO(
            8, 0.1, num_particles=32, vectorize_particles=True, max_plate_nesting=0
        )
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), loss=objective)
        for _ in range(150):
            svi.step()
        errors = []
        for posterior in (guide, objective.refine(model, guide)):
            for parallel in (False, True):
                num = 4000 if parallel else 300
                draws = Predictive(model, guide=posterior, num_samples=num, parallel=parallel)()
                sample = torch.stack([draws["a"].reshape(-1), draws["b"].reshape(-1)])
                assert sample.shape == (2, num)
            errors.append(float((sample.cov() - truth).norm() / truth.norm()))
        assert errors[1] < 0.5 * errors[0]


class _Correlated(pyro.nn.PyroModule):
    def forward(self) -> None:
        covariance = torch.tensor([[1.0, 0.27], [0.27, 0.09]])
        tril = torch.linalg.cholesky(covariance)
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))


class _Diagonal(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(2))
        self.scale = PyroParam(torch.tensor([0.44, 0.12]), constraints.positive)

    def forward(self) -> None:
        pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))


class TestTightening:
    def test_more_steps_close_the_gap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A normal with correlation 0.9 under a diagonal guide, whose own gap is 0.83 nats.

        The log weight is quadratic in the four standard normals of a draw, so that eight points
        with their second moments give its expectation exactly: no noise hides a gap.
        """
        points = 2 * torch.cat([torch.eye(4), -torch.eye(4)])
        monkeypatch.setattr(
            "torch.distributions.normal._standard_normal", lambda *_, **__: points[:, :2]
        )
        monkeypatch.setattr(
            "pyro_infovae._traces.refined_guide.torch.randn_like", lambda _: points[:, 2:]
        )
        particles = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 0}
        plain = -0.5 * math.log(1 - 0.9**2)
        gaps = [plain]
        with pyro.settings.context(module_local_params=True):
            model, guide = _Correlated(), _Diagonal()
            stock = Trace_ELBO(**particles)(model, guide)
            _minimise(stock)
            assert stock().item() == pytest.approx(plain, rel=1e-6)
            steps, factors = torch.empty(0, 2), torch.empty(0)
            for num_steps in (1, 3, 5, 10):
                more = num_steps - len(steps)
                objective = TraceHamiltonian_ELBO(
                    num_steps,
                    torch.cat([steps, torch.full((more, 2), 0.3)]),
                    per_step=True,
                    tempering="free",
                    max_step_size=2.0,
                    **particles,
                )
                start = torch.cat([factors, torch.full((more,), 0.99)])
                objective.flow.tempering_factors = PyroParam(start, constraints.unit_interval)
                module = objective(model, guide)
                _minimise(module)
                gaps.append(module().item())
                steps = objective.flow.step_size.detach()
                factors = objective.flow.tempering_factors.detach()
        assert all(after < before for before, after in itertools.pairwise(gaps))
        assert gaps[-1] < 0.05 * plain
        assert gaps[-1] > -1e-9, "a gap below 0 would be no bound"


def _minimise(module: torch.nn.Module) -> None:
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = module()
        loss.backward()
        return loss

    optimiser.step(closure)


class TestComposition:
    def test_alpha_leaves_the_trajectory_unchanged(self) -> None:
        """The flow follows the true posterior, whatever the penalised objective weights."""
        case = programs.vae(num=20)
        ends, losses = [], []
        for alpha in (0.0, 0.9):
            base = TraceHamiltonian_ELBO(4, 0.2)
            seen: list[Tensor] = []

            def watch(x: Tensor, seen: list[Tensor] = seen) -> None:
                case.model(x)
                seen.append(x)

            objective = TraceMMD_ELBO(
                alpha,
                5.0,
                base=base,
                regularizer=lambda rows: ends.append(rows.values) or rows.values.sum() * 0,
            )
            losses.append(seeded(objective, Programs(watch, case.guide, case.args))[0])
        assert torch.equal(ends[0], ends[1])
        assert losses[0] != losses[1]

    @pytest.mark.parametrize("auto", [False, True])
    def test_penalties_see_the_refined_latents(self, auto: bool) -> None:
        case = programs.vae(num=20)
        guide = AutoNormal(case.model) if auto else case.guide
        case = Programs(case.model, guide, case.args)
        guide(*case.args)
        base = TraceHamiltonian_ELBO(4, 0.2, learn=False)
        rows: list[Tensor] = []

        def keep(group: Rows) -> Tensor:
            rows.append(group.latents["z"])
            return group.values.sum() * 0

        for estimator in ("unbiased", "closed_form"):
            objective = TraceMMD_ELBO(0.0, 5.0, estimator=estimator, base=base, regularizer=keep)
            loss, _ = seeded(objective, case)
            assert math.isfinite(loss)
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        torch.testing.assert_close(rows[0], base.refine(case.model, guide)(*case.args)["z"])
        assert torch.equal(rows[0], rows[1])

    def test_zero_weight_over_the_hamiltonian_base(self) -> None:
        case = programs.vae(num=20, batch=6)
        base = TraceHamiltonian_ELBO(3, 0.1)
        expected, expected_grads = seeded(base, case)
        with pytest.warns(UserWarning, match="weight"):
            loss, grads = seeded(TraceMMD_ELBO(0.0, 1.0, base=TraceHamiltonian_ELBO(3, 0.1)), case)
        assert loss == pytest.approx(expected, rel=1e-9)
        assert grads.keys() == expected_grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[name])
