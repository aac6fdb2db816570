"""TraceHamiltonian_ELBO on the programs people write: bounds, gradients, training, resumption."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae._diagnostics.evidence import log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

# Guides here are hardly trained; the standard error tells what is known.
pytestmark = pytest.mark.filterwarnings("ignore:log_evidence")


def flow(**settings: Any) -> TraceHamiltonian_ELBO:
    return TraceHamiltonian_ELBO(3, **{"step_size": 0.1, "beta_0": 0.7, **settings})


def assert_bound(
    case: Programs, exact: Tensor | float, *, largest_error: float = 0.1, **settings: Any
) -> None:
    """E[w] is the evidence, within 4 standard errors."""
    elbo = settings.pop("elbo", flow(learn=False))
    result = log_evidence(*case[:2], *case.args, elbo=elbo, **{"num_samples": 10_000, **settings})
    deviation = (result.log_evidence - exact).abs() / result.standard_error
    assert (deviation < 4).all(), deviation
    assert (result.standard_error < largest_error).all(), "too few draws to tell"


def assert_gradients(
    case: Programs,
    *,
    elbo: TraceHamiltonian_ELBO | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> None:
    """The gradient in every parameter is that of finite differences."""
    elbo = elbo or flow()
    elbo.loss(*case[:2], *case.args)
    leaves = parameters or dict(pyro.get_param_store()._params)
    pyro.set_rng_seed(3)
    elbo.loss_and_grads(*case[:2], *case.args)
    assert len(leaves) >= 2
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        direction = torch.linspace(1.0, 2.0, leaf.numel()).reshape(leaf.shape)
        losses = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                leaf += shift * direction
            pyro.set_rng_seed(3)
            losses.append(elbo.loss(*case[:2], *case.args))
            with torch.no_grad():
                leaf -= shift * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert (leaf.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-6)


def trained(case: Programs, elbo: Any, *, steps: int = 80) -> Any:
    svi = SVI(*case[:2], pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    for _ in range(steps):
        svi.step(*case.args)
    return elbo


X = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)


def normal_hierarchy() -> tuple[Callable[[], None], Tensor]:
    """θ ~ N(0, 1), z_i ~ N(θ, 1), x_i ~ N(z_i, 1), and log p(x)."""

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    covariance = torch.ones(3, 3) + 2 * torch.eye(3)
    return model, dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(X)


class TestPrograms:
    def test_a_support_that_depends_on_another_latent(self) -> None:
        """b ~ Uniform(0, a): the transform of b moves with a, at every step of the flow."""
        x = torch.tensor([0.5, 1.2])

        def model() -> None:
            with pyro.plate("data", 2):
                a = pyro.sample("a", dist.Gamma(2.0, 1.0))
                b = pyro.sample("b", dist.Uniform(0.0, a))
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

        def guide() -> None:
            loc = pyro.param("loc", torch.tensor(0.1))
            shape = pyro.param("shape", torch.tensor(1.2), constraint=constraints.positive)
            with pyro.plate("data", 2):
                a = pyro.sample("a", dist.LogNormal(loc, 0.9))
                stretch = torch.distributions.AffineTransform(0.0, a)
                fraction = dist.Kumaraswamy(shape, shape)
                pyro.sample("b", dist.TransformedDistribution(fraction, [stretch]))

        case = Programs(model, guide, ())
        a = torch.linspace(0.0, 25.0, 5001)[1:, None, None]
        fractions = ((torch.arange(200) + 0.5) / 200)[:, None]
        joint = dist.Gamma(2.0, 1.0).log_prob(a) + dist.Normal(a * (1 + fractions), 1.0).log_prob(x)
        assert_bound(case, (joint.exp().mean(1).sum(0) * 0.005).log())
        assert_gradients(case)

    def test_event_dims_of_the_guides_own(self) -> None:
        """A vector in the model, two scalars in the guide: each Jacobian counts once."""
        x = torch.tensor([0.5, -1.0])

        def model() -> None:
            z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.log(), 1.0).to_event(1), obs=x)

        def guide() -> None:
            pyro.sample("z", dist.LogNormal(torch.tensor([0.3, -0.4]), 0.9))

        pyro.enable_validation(False)  # which asks for a plate around the guide's scalars
        exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum()
        assert_bound(Programs(model, guide, ()), exact, num_samples=600, chunk_size=1)

    def test_a_sequential_plate_and_a_global_latent(self) -> None:
        _, exact = normal_hierarchy()

        def model() -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            for i in pyro.plate("data", 3):
                z = pyro.sample(f"z_{i}", dist.Normal(theta, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=X[i])

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(3))
            theta = pyro.sample("theta", dist.Normal(0.0, 0.8))
            for i in pyro.plate("data", 3):
                pyro.sample(f"z_{i}", dist.Normal(loc[i] + theta / 2, 0.9))

        case = Programs(model, guide, ())
        assert_bound(case, exact)
        assert_gradients(case)

    def test_a_subsampled_sequential_plate(self) -> None:
        def model() -> None:
            for i in pyro.plate("data", 6, subsample_size=2):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=torch.tensor(0.1 * i))

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(6))
            for i in pyro.plate("data", 6, subsample_size=2):
                pyro.sample(f"z_{i}", dist.Normal(loc[i], 0.8))

        assert_gradients(Programs(model, guide, ()))

    def test_a_recurrent_guide(self) -> None:
        x = torch.tensor([0.3, -0.4, 1.0, 0.2])
        cell, head = nn.GRUCell(1, 3), nn.Linear(4, 1)

        def model() -> None:
            z = torch.zeros(())
            for t in pyro.markov(range(4)):
                z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

        def guide() -> None:
            pyro.module("cell", cell)
            pyro.module("head", head)
            hidden, z = torch.zeros(1, 3), torch.zeros(())
            for t in range(4):
                hidden = cell(x[t].reshape(1, 1), hidden)
                features = torch.cat([hidden[0].expand(*z.shape, 3), z.unsqueeze(-1)], -1)
                loc = head(features).squeeze(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, 0.9))

        case = Programs(model, guide, ())
        steps = torch.arange(4.0)
        weights = (0.9 ** (steps[:, None] - steps)).tril()
        covariance = weights @ weights.T + torch.eye(4)
        exact = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
        assert_bound(case, exact)
        assert_gradients(case)

    def test_latents_in_another_order(self) -> None:
        def model() -> None:
            with pyro.plate("data", 3):
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=X)

        def guide() -> None:
            slope = pyro.param("slope", torch.tensor(0.5))
            with pyro.plate("data", 3):
                b = pyro.sample("b", dist.Normal(slope * X, 1.0))
                pyro.sample("a", dist.Normal(slope * b, 0.8))

        case = Programs(model, guide, ())
        assert_bound(case, dist.Normal(0.0, math.sqrt(3)).log_prob(X))
        assert_gradients(case)

    def test_crossed_plates(self) -> None:
        x = programs.data(3, 2)

        def model() -> None:
            rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
            with rows:
                u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with columns:
                v = pyro.sample("v", dist.Normal(0.0, 1.0))
            with rows, columns:
                pyro.sample("x", dist.Normal(u + v, 1.0), obs=x)

        case = Programs(model, AutoNormal(model, init_scale=0.6), ())
        case.guide()
        row, column = torch.arange(6) // 2, torch.arange(6) % 2
        same = (row[:, None] == row).double() + (column[:, None] == column).double()
        covariance = same + torch.eye(6)
        exact = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(x.reshape(-1))
        elbo = trained(case, flow())
        assert_bound(case, exact, elbo=elbo, num_samples=30_000)
        assert_gradients(case)

    @pytest.mark.parametrize("vectorize", [False, True])
    def test_particles_of_nested_plates(self, vectorize: bool) -> None:
        elbo = flow(num_particles=3, vectorize_particles=vectorize)
        assert_gradients(programs.nested(), elbo=elbo)

    def test_factors_and_deterministic_sites(self) -> None:
        def model() -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.deterministic("twice", 2 * z)
                pyro.deterministic("pair", torch.stack([z, z], -1), event_dim=1)
                pyro.factor("x", dist.Normal(z, 1.0).log_prob(X))

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(3))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(loc, 0.9))

        case = Programs(model, guide, ())
        assert_bound(case, dist.Normal(0.0, math.sqrt(2)).log_prob(X))
        assert_gradients(case)
        refined = flow().refine(model, guide)
        draws = Predictive(model, guide=refined, num_samples=5, parallel=True)()
        torch.testing.assert_close(draws["twice"], 2 * draws["z"])

    def test_a_partly_observed_site(self) -> None:
        mask = torch.tensor([True, False, True])

        def model() -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 3):
                pyro.sample("x", dist.Normal(theta, 1.0), obs=X, obs_mask=mask)

        def guide() -> None:
            theta = pyro.sample("theta", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.7))
            with pyro.plate("data", 3), poutine.mask(mask=~mask):
                pyro.sample("x_unobserved", dist.Normal(theta, 1.1))

        case = Programs(model, guide, ())
        covariance = torch.ones(2, 2) + torch.eye(2)
        exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(X[mask])
        assert_bound(case, exact)
        assert_gradients(case)

    def test_effect_handlers_around_the_model(self) -> None:
        model, exact = normal_hierarchy()

        def unconditioned() -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(theta, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0))

        for program in (
            poutine.condition(unconditioned, data={"x": X}),
            poutine.reparam(model, config={"z": LocScaleReparam(0.0)}),
        ):
            pyro.clear_param_store()
            guide = AutoNormal(program, init_scale=0.8)
            guide()
            assert_bound(Programs(program, guide, ()), exact, num_samples=40_000)
            assert_gradients(Programs(program, guide, ()))

    def test_a_scale_of_the_users(self) -> None:
        """Annealing of the KL: at a step of 0 the stock ELBO's loss, beyond it its own gradient."""

        def model(x: Tensor) -> None:
            with pyro.plate("data", 10, subsample=torch.arange(3)):
                with poutine.scale(scale=0.3):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        def guide(x: Tensor) -> None:
            loc = pyro.param("loc", torch.zeros(3))
            with pyro.plate("data", 10, subsample=torch.arange(3)), poutine.scale(scale=0.3):
                pyro.sample("z", dist.Normal(loc, 0.8))

        case = Programs(model, guide, (X,))
        still = flow(step_size=0.0, tempering="none", learn=False)
        losses = []
        for objective in (Trace_ELBO(), still):
            pyro.set_rng_seed(0)
            losses.append(objective.loss(model, guide, X))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        assert_gradients(case)

    def test_two_plates_subsampled_apart(self) -> None:
        """Labelled and unlabelled rows: neither latent depends on the other's minibatch."""

        def model() -> None:
            weight = pyro.param("weight", torch.tensor(1.0))
            for name, size in (("labelled", 10), ("unlabelled", 20)):
                with pyro.plate(name, size, subsample_size=5) as index:
                    z = pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
                    x = torch.linspace(-1.0, 2.0, size)[index]
                    pyro.sample(f"x_{name}", dist.Normal(weight * z, 0.5), obs=x)
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.tensor(0.3))

        def guide() -> None:
            slope = pyro.param("slope", torch.tensor(0.5))
            for name, size in (("labelled", 10), ("unlabelled", 20)):
                with pyro.plate(name, size, subsample_size=5) as index:
                    x = torch.linspace(-1.0, 2.0, size)[index]
                    pyro.sample(f"z_{name}", dist.Normal(slope * x, 0.5))
            pyro.sample("theta", dist.Normal(slope, 1.0))

        assert_gradients(Programs(model, guide, ()))

        def tied() -> None:
            model()
            theta = pyro.sample("theta_2", dist.Normal(0.0, 1.0))
            with pyro.plate("labelled", 10, subsample_size=5):
                pyro.factor("tie", theta * torch.ones(5))

        def tied_guide() -> None:
            guide()
            pyro.sample("theta_2", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="'theta_2' is outside plate 'labelled'"):
            flow().loss(tied, tied_guide)


class TestGuides:
    @pytest.mark.parametrize(
        "auto",
        [
            AutoIAFNormal,
            AutoLowRankMultivariateNormal,
            lambda model: AutoStructured(
                model, conditionals={"theta": "normal", "z": "normal"}, dependencies={"z": {}}
            ),
        ],
        ids=["iaf", "low rank", "structured"],
    )
    def test_automatic_guides(self, auto: Callable[..., Any]) -> None:
        model, exact = normal_hierarchy()
        case = Programs(model, auto(model), ())
        case.guide()
        assert_gradients(case, elbo=flow(learn=False))
        elbo = trained(case, flow(), steps=60)
        assert_bound(case, exact, elbo=elbo, largest_error=0.2)

    def test_a_list_of_guides_in_which_one_latent_stays(self) -> None:
        model, _ = normal_hierarchy()
        guide = AutoGuideList(model)
        guide.append(AutoDelta(poutine.block(model, expose=["theta"])))
        guide.append(AutoNormal(poutine.block(model, expose=["z"])))
        guide()
        assert_gradients(Programs(model, guide, ()), elbo=flow(sites=["z"]))

    def test_an_auxiliary_latent_of_the_users(self) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

        def guide() -> None:
            w = pyro.sample("w", dist.Normal(0.0, 0.6), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * w, log_density=torch.tensor(-math.log(2))))

        assert_bound(Programs(model, guide, ()), dist.Normal(0.0, math.sqrt(2)).log_prob(X[0]))

    def test_prefactors_leave_the_refined_guide_alone(self) -> None:
        """They weight the objective; the refined guide's density is that of its draws."""
        model, exact = normal_hierarchy()
        guide = AutoNormal(model, init_scale=0.8)
        guide()
        elbo = flow(learn=False, logp_prefactor=(1.0, 2.0, 2.0), logq_prefactor=(0.5, 1.0, 1.0))
        assert_bound(Programs(model, guide, ()), exact, elbo=elbo, num_samples=40_000)

    def test_refusals(self) -> None:
        model, _ = normal_hierarchy()

        def guide() -> None:
            pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("w", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match=r"'w', which is no latent of the model.*auxiliary"):
            flow().loss(model, guide)
        with pytest.warns(UserWarning, match="non-auxiliary vars in guide but not model"):
            flow(sites=["theta", "z"]).loss(model, guide)
        with pytest.raises(ValueError, match="draws no latent that could flow"):
            flow(sites=[]).loss(model, guide)
        conditioned = poutine.condition(model, data={"theta": torch.tensor(0.1)})
        with pytest.raises(ValueError, match="'theta', which is no latent of the model"):
            flow().loss(conditioned, AutoNormal(model))
        messenger = AutoHierarchicalNormalMessenger(model)
        with pytest.raises(NotImplementedError, match=r"the guide observes 'x'.*AutoGuide"):
            flow().loss(model, messenger)

    def test_prediction_without_data_says_how(self) -> None:
        def model(x: Tensor, y: Tensor | None = None) -> None:
            weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(weight * x, 0.5), obs=y)

        guide = AutoNormal(model)
        guide(X, 2 * X)
        refined = flow().refine(model, guide)
        with pytest.raises(ValueError, match=r"'y' is a latent of the model.*posterior_samples"):
            Predictive(model, guide=refined, num_samples=3)(X)
        draws = Predictive(model, guide=refined, num_samples=3)(X, 2 * X)
        weights = {"weight": draws["weight"]}
        predicted = Predictive(model, posterior_samples=weights)(torch.zeros(7))
        assert predicted["y"].shape == (3, 7)


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroParam(torch.tensor([0.5, 0.3]))
        self.scale = PyroParam(torch.tensor(0.6), constraints.positive)
        self.linear = PyroModule[nn.Linear](2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.tanh(self.linear(z * self.weight))
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3, 2)
        self.spread = PyroParam(torch.full((2,), 0.4), constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.code(x), self.spread).to_event(1))


class TestModules:
    @pytest.mark.parametrize("local", [False, True])
    def test_gradients_of_constrained_parameters(self, local: bool) -> None:
        with pyro.settings.context(module_local_params=local):
            case = Programs(Decoder(), Encoder(), (programs.data(4),))
            elbo = flow()
            module = elbo(case.model, case.guide)
            assert_gradients(case, elbo=elbo, parameters=dict(module.named_parameters()))

    def test_a_bayesian_network(self) -> None:
        class Regression(PyroModule):
            def __init__(self) -> None:
                super().__init__()
                self.linear = PyroModule[nn.Linear](2, 1)
                prior = dist.Normal(0.0, 1.0)
                self.linear.weight = PyroSample(prior.expand([1, 2]).to_event(2))
                self.linear.bias = PyroSample(prior.expand([1]).to_event(1))

            def forward(self, x: Tensor, y: Tensor) -> None:
                loc = self.linear(x).squeeze(-1)
                with pyro.plate("data", len(x)):
                    pyro.sample("y", dist.Normal(loc, 0.5), obs=y)

        model, x = Regression(), programs.data(6, 2)
        guide = AutoNormal(model, init_scale=0.3)
        assert_gradients(Programs(model, guide, (x, x.sum(-1))))

    @pytest.mark.parametrize("train", [True, False])
    def test_dropout_draws_the_same_in_backward(self, train: bool) -> None:
        decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train(train)

        def model(x: Tensor) -> None:
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc, scale = programs._encoder(x, 2)
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        assert_gradients(Programs(model, guide, (programs.data(4),)))

    def test_what_reaches_the_programs_from_outside_has_gradients(self) -> None:
        """Weights computed before the objective, and an encoding that the guide hands over."""
        x, box = programs.data(3), {}

        def model(weight: Tensor) -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(box["code"], 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ weight, 0.5).to_event(1), obs=x)

        def guide(weight: Tensor) -> None:
            box["code"] = x @ weight.T
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(box["code"], 0.5).to_event(1))

        elbo = flow(learn=False)

        def loss(weight: Tensor) -> Tensor:
            pyro.set_rng_seed(0)
            return elbo.differentiable_loss(model, guide, weight.tanh())

        weight = programs.data(2, 3, seed=2).requires_grad_()
        assert torch.autograd.gradcheck(loss, (weight,), check_undefined_grad=False)

    def test_a_discrete_latent_that_stays_has_the_score_function_gradient(self) -> None:
        def model() -> None:
            y = pyro.sample("y", dist.Bernoulli(0.4))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

        def guide() -> None:
            y = pyro.sample("y", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))
            pyro.sample("z", dist.Normal(0.5 * y, 0.7))

        particles = {"num_particles": 20_000, "vectorize_particles": True, "max_plate_nesting": 0}
        elbo = flow(sites="z", learn=False, **particles)
        elbo.loss_and_grads(model, guide)
        gradient = pyro.get_param_store()._params["logit"].grad.item()
        losses = []
        for y in (0.0, 1.0):
            known = poutine.condition(model, data={"y": torch.tensor(y)})
            draw = poutine.block(poutine.condition(guide, data={"y": torch.tensor(y)}), hide=["y"])
            losses.append(flow(learn=False, **particles).loss(known, draw))
        q = torch.sigmoid(torch.tensor(0.2)).item()
        exact = q * (1 - q) * (losses[1] - losses[0] + math.log(q / (1 - q)))
        assert gradient == pytest.approx(exact, abs=0.03)


class TestTraining:
    def test_minibatches_of_a_data_loader(self) -> None:
        loader = torch.utils.data.DataLoader(programs.data(64), batch_size=13)
        svi = SVI(Decoder(), Encoder(), pyro.optim.Adam({"lr": 0.01}), loss=flow())
        losses = [sum(svi.step(batch) for batch in loader) for _ in range(10)]
        assert losses[-1] < losses[0]

    @pytest.mark.parametrize("default", [torch.float32, torch.float64])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_programs_dtype_is_kept(self, dtype: torch.dtype, default: torch.dtype) -> None:
        """Of a latent without dims too, which a 0-dim number of another dtype would change."""
        torch.set_default_dtype(default)
        x, one, seen = X.to(dtype), torch.ones((), dtype=dtype), set()

        def model() -> None:
            theta = pyro.sample("theta", dist.Normal(0 * one, one))
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(theta, one))
                pyro.sample("x", dist.Normal(z, one), obs=x)
            seen.update((theta.dtype, z.dtype))

        def guide() -> None:
            theta = pyro.sample("theta", dist.Normal(pyro.param("loc", 0 * one), one))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(theta, one))

        loss = flow().differentiable_loss(model, guide)
        loss.backward()
        assert seen == {dtype}
        assert loss.dtype == dtype

    @pytest.mark.parametrize("penalised", [False, True])
    def test_a_gradient_that_is_not_finite_is_left_out(self, penalised: bool) -> None:
        """The square root's slope at 0 is infinite; the loss is finite."""

        def model() -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=X)

        def guide() -> None:
            loc, scale = (
                pyro.param("loc", torch.tensor(0.0)),
                pyro.param("scale", torch.tensor(1.0)),
            )
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(loc + 0.0 * loc.sqrt(), scale))

        objective = TraceMMD_ELBO(lambd=1.5, base=flow()) if penalised else flow()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=objective)
        pyro.enable_validation(False)
        with pytest.warns(UserWarning, match=r"the loss is \d.*gradient is not finite.*step_size"):
            assert math.isfinite(svi.step())
        for value in pyro.get_param_store().values():
            assert torch.isfinite(value).all()
        assert pyro.param("scale").item() == 1.0

    def test_200_steps_hold_no_memory(self) -> None:
        svi = SVI(Decoder(), Encoder(), pyro.optim.Adam({"lr": 1e-3}), loss=flow())
        x = programs.data(16)

        def tensors() -> int:
            return sum(type(item) in (Tensor, nn.Parameter) for item in gc.get_objects())

        for _ in range(5):
            svi.step(x)
        gc.collect()
        before = tensors()
        gc.disable()
        try:
            for _ in range(200):
                svi.step(x)
            # Without the collector, so that cycles that keep a step's graph alive would show.
            assert tensors() < before + 50
        finally:
            gc.enable()

    def test_training_resumes_from_a_saved_param_store(self, tmp_path: Path) -> None:
        def start() -> tuple[SVI, pyro.optim.PyroOptim]:
            pyro.clear_param_store()
            elbo = flow(per_step=True, tempering="free", max_step_size=0.7)
            model, _ = normal_hierarchy()
            optimiser = pyro.optim.Adam({"lr": 0.02})
            return SVI(model, AutoNormal(model), optimiser, loss=elbo), optimiser

        svi, optimiser = start()
        for _ in range(10):
            svi.step()
        pyro.get_param_store().save(tmp_path / "params")
        optimiser.save(tmp_path / "optimiser")
        pyro.set_rng_seed(1)
        expected = [svi.step() for _ in range(3)]
        parameters = {name: value.clone() for name, value in pyro.get_param_store().items()}

        svi, optimiser = start()
        pyro.get_param_store().load(tmp_path / "params")
        optimiser.load(tmp_path / "optimiser")
        svi.guide()
        pyro.set_rng_seed(1)
        assert [svi.step() for _ in range(3)] == pytest.approx(expected, rel=1e-12)
        for name, value in pyro.get_param_store().items():
            torch.testing.assert_close(value, parameters[name])

    @pytest.mark.parametrize(
        ("first", "second", "match"),
        [
            ({}, {"per_step": True}, r"'hamiltonian.step_size' of shape \(3,\).*shape \(\)"),
            ({"tempering": "free"}, {"num_steps": 5}, r"tempering_factors' of shape \(5,\)"),
        ],
    )
    def test_two_objectives_of_one_name(self, first: dict, second: dict, match: str) -> None:
        """The param store keeps the first one's values: 3 learned factors are no 5 steps."""
        model, _ = normal_hierarchy()
        guide = AutoNormal(model)
        TraceHamiltonian_ELBO(**first).loss(model, guide)
        settings = {**first, **second}
        with pytest.raises(ValueError, match=f"{match}.*another name, or clear the param store"):
            TraceHamiltonian_ELBO(**settings).loss(model, guide)
        TraceHamiltonian_ELBO(**settings, name="other").loss(model, guide)

    def test_a_penalised_objective_leaves_a_divergence_out_too(self) -> None:
        def model() -> None:
            with pyro.plate("data", 16):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal((3 * z).exp(), 1e-3), obs=torch.ones(16))

        def guide() -> None:
            loc = pyro.param("loc", torch.tensor(0.3))
            with pyro.plate("data", 16):
                pyro.sample("z", dist.Normal(loc, 1.0))

        base = TraceHamiltonian_ELBO(10, 0.4, max_step_size=5.0)
        objective = TraceMMD_ELBO(base=base)
        pyro.enable_validation(False)
        with pytest.warns(UserWarning, match="step_size"):
            SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=objective).step()
        for value in pyro.get_param_store().values():
            assert torch.isfinite(value).all()

    def test_other_parameters_in_backward_than_in_forward(self) -> None:
        """They would be differentiated in place of those that made the loss."""
        model, _ = normal_hierarchy()

        def guide() -> None:
            scale = pyro.param("scale", torch.tensor(0.7))
            pyro.sample("theta", dist.Normal(0.0, scale))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(0.0, scale))

        def weighted() -> None:
            pyro.factor("bonus", pyro.param("weight", torch.tensor(0.5)) * X.sum())
            model()

        with pyro.get_param_store().scope():
            loss = flow().differentiable_loss(weighted, guide)
        with pytest.raises(RuntimeError, match="parameters of forward"):
            loss.backward()
