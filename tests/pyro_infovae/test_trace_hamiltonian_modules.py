"""TraceHamiltonian_ELBO on modules: parameters, dropout, and the objective as one."""

from __future__ import annotations

import gc
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_infovae import TraceHamiltonian_ELBO
from tests.data_programs import encoded
from tests.halves import Case
from tests.objectives import flows
from tests.objectives.flows import assert_gradients
from tests.pyro_infovae import programs
from tests.pyro_infovae.half import PYRO
from tests.pyro_infovae.training import Decoder, Encoder, losses_of_module


def flow() -> TraceHamiltonian_ELBO:
    return flows.flow(PYRO, beta_0=0.7)


@pytest.mark.parametrize("local", [False, True])
def test_gradients_of_constrained_parameters(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        case = Case(Decoder(), Encoder(), (programs.data(4),))
        elbo = flow()
        parameters = dict(elbo(case.model, case.guide).named_parameters())
        slopes = PYRO.slopes(elbo, case, parameters=parameters)
        assert slopes.keys() == parameters.keys()
        for name, (gradient, slope) in slopes.items():
            assert gradient == pytest.approx(slope, rel=1e-6, abs=1e-6), name


def test_a_bayesian_network() -> None:
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
    assert_gradients(PYRO, Case(model, guide, (x, x.sum(-1))))


@pytest.mark.parametrize("train", [True, False])
def test_dropout_draws_the_same_in_backward(train: bool) -> None:
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train(train)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoded(PYRO, x))

    assert_gradients(PYRO, Case(model, guide, (programs.data(4),)))


@pytest.mark.slow
def test_a_module_has_the_flow_as_parameters() -> None:
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
        learned = {"increment_logits_unconstrained", "persistence_unconstrained"}
        learned |= {"step_size_z_unconstrained_unconstrained"}
        assert {f"flow.{name}" for name in learned} < names
        losses = losses_of_module(module, x, steps=100)
        assert sum(losses[-20:]) < sum(losses[:20])


def loop(module: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        module(programs.data(8)).backward()
        optimiser.step()


def step_sizes(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.named_parameters() if "step_size" in k}


def test_step_sizes_of_an_annealed_flow_are_loaded_and_found() -> None:
    module = TraceHamiltonian_ELBO()(Decoder(), Encoder())
    loop(module, torch.optim.Adam(Encoder().parameters()), 1)
    other = TraceHamiltonian_ELBO()(Decoder(), Encoder())
    assert step_sizes(other) == {}
    state = {key: value + 0.1 for key, value in module.state_dict().items()}
    other.load_state_dict(state)
    ((key, loaded),) = step_sizes(other).items()
    assert torch.equal(loaded, state[key])
    loop(other, torch.optim.Adam(other.parameters()), 1)
    assert not torch.equal(step_sizes(other)[key], loaded)


@pytest.mark.slow
def test_step_sizes_that_no_optimiser_has_are_told_of_once() -> None:
    message = "no optimiser has moved the step sizes of 'hamiltonian' in 50 runs.*call it once"
    module = TraceHamiltonian_ELBO()(Decoder(), Encoder())
    optimiser = torch.optim.Adam(module.parameters())
    with pytest.warns(UserWarning, match=message) as told:
        loop(module, optimiser, 110)
    assert len(told) == 1
    module = TraceHamiltonian_ELBO()(Decoder(), Encoder())
    with torch.no_grad():
        module(programs.data(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(module, torch.optim.Adam(module.parameters()), 60)


def test_minibatches_of_a_data_loader() -> None:
    loader = torch.utils.data.DataLoader(programs.data(64), batch_size=13)
    svi = SVI(Decoder(), Encoder(), pyro.optim.Adam({"lr": 0.01}), loss=flow())
    losses = [sum(svi.step(batch) for batch in loader) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_many_steps_hold_no_memory() -> None:
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
        for _ in range(60):
            svi.step(x)
        # Without the collector, so that cycles that keep a step's graph alive would show.
        assert tensors() < before + 15
    finally:
        gc.enable()
