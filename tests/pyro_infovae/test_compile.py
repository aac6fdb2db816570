"""CompiledSVI takes the steps of SVI, number by number, without running model and guide."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae import (
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from pyro_infovae.compile import MAX_CAPTURES, CompiledSVI
from tests.pyro_infovae.programs import Programs, covariate_prior, data, hierarchical, vae

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


class Net(nn.Module):
    """A VAE as a module, that counts the runs of its guide."""

    def __init__(self, *layers: nn.Module, beta: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder = nn.Sequential(nn.Linear(3, 4), *layers, nn.Tanh(), nn.Linear(4, 2))
        self.decoder = nn.Linear(2, 3)
        self.prior_loc = nn.Linear(1, 2)
        self.beta = beta
        self.runs: list[int] = []

    def model(self, x: Tensor, *, noise: float | Tensor = 0.7) -> None:
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]):
            loc = self.prior_loc(x.new_ones(1))
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x: Tensor, *, noise: float | Tensor = 0.7) -> None:
        self.runs.append(x.shape[0])
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def critic() -> SeparableCritic:
    torch.manual_seed(1)
    return SeparableCritic(x_dim=3, z_dim=2, hidden=(5,), embed_dim=3)


def learned_prior() -> Programs:
    """A learned prior and a constrained parameter, on a random subsample of the data."""

    def model(x: Tensor) -> None:
        loc = pyro.param("prior", torch.tensor([0.3, -0.2]))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            weight = pyro.param("decoder", torch.linspace(0.7, -0.4, 6).reshape(2, 3))
            pyro.sample("x", dist.Normal(torch.tanh(z) @ weight, 0.7).to_event(1), obs=x[index])

    return Programs(model, vae(batch=5).guide, (data(),))


OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "Trace": Trace_ELBO,
    "TraceMeanField": TraceMeanField_ELBO,
    "looped": partial(Trace_ELBO, num_particles=3),
    "vectorised": partial(
        TraceMeanField_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "unbiased": partial(TraceMMD_ELBO, 0.3, 20.0),
    "biased": partial(TraceMMD_ELBO, 1.0, 20.0, estimator="biased", num_particles=2),
    "closed form": partial(TraceMMD_ELBO, 0.3, 20.0, estimator="closed_form"),
    "pooled": partial(TraceMMD_ELBO, 0.3, 20.0, num_particles=2, vectorize_particles=True),
    "InfoMax": lambda: TraceInfoMax_ELBO(critic(), 0.7, 0.5),
    "all negatives": lambda: TraceInfoMax_ELBO(critic(), bound="smile", negatives="all"),
    "Hamiltonian": partial(TraceHamiltonian_ELBO, 2, 0.05),
    "MMD of Hamiltonian": lambda: TraceMMD_ELBO(0.0, 20.0, base=TraceHamiltonian_ELBO(1)),
}


def same_as_svi(run: Callable[[type], Any], *, tolerance: float = 1e-6) -> Any:
    """Check that a run gives the same with either class, parameters included, and return it."""
    results = []
    for svi in (SVI, CompiledSVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        result = run(svi)
        parameters = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
        results.append((result, parameters))
    expected, ours = results
    assert expected[1]
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    return ours[0]


def adam() -> Any:
    return pyro.optim.Adam({"lr": 1e-2})


def no_runs(net: Net, step: Callable[[], float]) -> float:
    """A step in which the guide does not run."""
    before = len(net.runs)
    loss = step()
    assert len(net.runs) == before
    return loss


@pytest.mark.parametrize("program", [vae, covariate_prior, hierarchical])
def test_every_program(program: Callable[[], Programs]) -> None:
    model, guide, args = program()

    def run(svi: type) -> list[float]:
        steps = svi(model, guide, adam(), TraceMMD_ELBO())
        return [steps.step(*args) for _ in range(20)]

    assert len(set(same_as_svi(run))) == 20


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective: str) -> None:
    model, guide, args = learned_prior()

    def run(svi: type) -> list[float]:
        steps = svi(model, guide, adam(), OBJECTIVES[objective]())
        return [steps.step(*args) for _ in range(20)]

    assert len(set(same_as_svi(run))) == 20


@pytest.mark.parametrize("objective", ["TraceMeanField", "unbiased", "Hamiltonian"])
def test_gradients_reach_hooks_as_they_do_in_backward(objective: str) -> None:
    model, guide, args = learned_prior()

    def run(svi: type) -> list[Any]:
        steps = svi(model, guide, adam(), OBJECTIVES[objective]())
        steps.step(*args)
        seen: list[Tensor] = []
        leaves = pyro.get_param_store()._params
        for leaf in leaves.values():
            leaf.register_hook(lambda gradient: seen.append(gradient.clone()))
        leaves["prior"].register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        leaves["prior"].register_post_accumulate_grad_hook(
            lambda leaf: seen.append(leaf.grad.clone())
        )
        for _ in range(4):
            steps.step(*args)
        assert len(seen) == 4 * (len(leaves) + 1)
        return sorted(seen, key=lambda gradient: gradient.sum().item())

    same_as_svi(run)


def test_model_and_guide_do_not_run_once_captured() -> None:
    x, net = data(8), Net()
    svi = CompiledSVI(net.model, net.guide, adam(), TraceMMD_ELBO())
    for _ in range(2):
        svi.step(x)
    for _ in range(3):
        no_runs(net, partial(svi.step, x))


def test_a_minibatch_of_any_size_takes_two_captures() -> None:
    x = data(20)

    def run(svi: type) -> list[float]:
        net = Net()
        steps = svi(net.model, net.guide, adam(), Trace_ELBO())
        losses = [steps.step(x[:n]) for n in (8, 8, 8, 5, 5, 8)]
        few = len(net.runs)
        losses += [steps.step(x[:n]) for n in (2, 19, 5, 8, 7)]
        if svi is CompiledSVI:
            assert len(net.runs) == few
        return losses

    same_as_svi(run)


def test_a_program_that_counts_its_rows_is_captured_for_every_count() -> None:
    x = data(20)

    def run(svi: type) -> list[float]:
        model, guide, _ = vae()
        steps = svi(model, guide, adam(), TraceMMD_ELBO())
        return [steps.step(x[:n]) for n in (8, 8, 5, 8, 5, 8)]

    same_as_svi(run)


def test_buffers_are_updated_once_a_step_and_follow_train_and_eval() -> None:
    x = data(8)

    def run(svi: type) -> Any:
        net = Net(nn.BatchNorm1d(4), nn.Dropout(0.3))
        steps = svi(net.model, net.guide, adam(), TraceMMD_ELBO())
        losses = [steps.step(x) for _ in range(5)]
        statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
        net.eval()
        losses += [steps.step(x) for _ in range(3)]
        net.train()
        losses += [steps.step(x) for _ in range(2)]
        return losses, statistics, dict(net.named_buffers())

    _, statistics, buffers = same_as_svi(run)
    assert statistics["encoder.1.num_batches_tracked"] == 5
    assert buffers["encoder.1.num_batches_tracked"] == 7


def test_a_flow_that_draws_random_numbers() -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        net = Net()
        net.decoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
        steps = svi(net.model, net.guide, adam(), TraceHamiltonian_ELBO(2, 0.05))
        return [steps.step(x) for _ in range(4)]

    same_as_svi(run)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_weight_that_is_a_tensor_is_annealed_without_a_new_capture(replaced: bool) -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        net, is_compiled = Net(), svi is CompiledSVI
        elbo = TraceMMD_ELBO(torch.tensor(0.0) if is_compiled else 0.0, 20.0)
        steps = svi(net.model, net.guide, adam(), elbo)
        losses = [steps.step(x) for _ in range(2)]
        for weight in (0.2, 0.5, 1.0):
            if not is_compiled:
                elbo.alpha = weight
                losses.append(steps.step(x))
            else:
                assert isinstance(elbo.alpha, Tensor)
                elbo.alpha = torch.tensor(weight) if replaced else elbo.alpha.fill_(weight)
                losses.append(no_runs(net, partial(steps.step, x)))
        return losses

    same_as_svi(run)


def test_tensor_weights_of_every_objective_mean_what_numbers_do() -> None:
    model, guide, args = vae()
    for make in (
        lambda weight: TraceMMD_ELBO(weight, 20 * weight + 1),
        lambda weight: TraceInfoMax_ELBO(critic(), weight, weight),
        lambda weight: TraceMMD_ELBO(
            regularizer=lambda rows: rows.values.sum(), regularizer_weight=weight
        ),
    ):
        losses = []
        for weight in (0.6, torch.tensor(0.6)):
            pyro.set_rng_seed(3)
            losses.append(make(weight).differentiable_loss(model, guide, *args))
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("what", ["objective", "module", "argument"])
def test_a_number_that_changes_is_followed(what: str) -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        net, elbo = Net(), TraceMMD_ELBO(0.0, 20.0)
        steps = svi(net.model, net.guide, adam(), elbo)
        losses = []
        for number in (0.5, 0.5, 0.6, 0.6, 0.5):
            if what == "objective":
                elbo.alpha = number
            elif what == "module":
                net.beta = number
            losses.append(steps.step(x, noise=number if what == "argument" else 0.7))
        return losses

    same_as_svi(run)


def test_tensors_from_elsewhere_are_read_in_every_step() -> None:
    x, shift = data(8), torch.zeros(2)

    def run(svi: type) -> list[float]:
        net = Net()
        shift.zero_()

        def guide(x: Tensor) -> None:
            net.runs.append(len(x))
            pyro.module("net", net)
            with pyro.plate("data", 8):
                pyro.sample("z", dist.Normal(net.encoder(x) + shift, 0.5).to_event(1))

        steps = svi(net.model, guide, adam(), Trace_ELBO())
        losses = [steps.step(x) for _ in range(2)]
        for _ in range(3):
            shift.add_(0.3)
            step = partial(steps.step, x)
            losses.append(no_runs(net, step) if svi is CompiledSVI else step())
        return losses

    same_as_svi(run)


def test_parameters_may_be_frozen_and_freed() -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        net = Net()
        steps = svi(net.model, net.guide, adam(), Trace_ELBO())
        losses = []
        for requires_grad in (True, False, True):
            net.decoder.weight.requires_grad_(requires_grad)
            losses += [steps.step(x) for _ in range(3)]
        return losses

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "decoder.weight was not registered")
        same_as_svi(run)


def test_parameters_may_be_replaced() -> None:
    model, guide, args = vae()

    def run(svi: type) -> list[float]:
        steps = svi(model, guide, adam(), Trace_ELBO())
        losses = [steps.step(*args) for _ in range(3)]
        pyro.get_param_store()["scale"] = torch.tensor([0.2, 3.0])
        losses += [steps.step(*args) for _ in range(3)]
        pyro.clear_param_store()
        return losses + [steps.step(*args) for _ in range(3)]

    same_as_svi(run)


class Scaled:
    """A model with a number of its own."""

    factor = 1.0

    def model(self) -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), self.factor), obs=ONE)


ONE = torch.tensor(1.0)


def test_many_captures_are_warned_of_and_forgotten() -> None:
    scaled = Scaled()
    svi = CompiledSVI(scaled.model, lambda: None, adam(), Trace_ELBO())
    for factor in range(1, MAX_CAPTURES + 2):
        scaled.factor = factor
        svi.step()
    scaled.factor += 1
    with pytest.warns(UserWarning, match=r"9th time, now since Scaled.factor was 9 and is 10: "):
        svi.step()
    assert len(svi._captured) == MAX_CAPTURES


@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "encoder" in name else 0.01}),
        lambda: pyro.optim.Adam({"lr": 0.01}, clip_args={"clip_norm": 0.5}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}),
        lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.9}
        ),
    ],
    ids=["per parameter", "clipped norm", "clipped", "scheduled"],
)
def test_optimisers_of_pyro(optim: Callable[[], Any]) -> None:
    x = data(8)

    def run(svi: type) -> Any:
        net, optimiser = Net(), optim()
        steps = svi(net.model, net.guide, optimiser, TraceMMD_ELBO(1.0, 20.0))
        losses = []
        for _ in range(6):
            losses.append(steps.step(x))
            if isinstance(optimiser, pyro.optim.PyroLRScheduler):
                optimiser.step()
        return losses

    same_as_svi(run)


def test_one_fused_optimiser_of_torch_steps_as_many_of_pyro_do() -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        net, fused = Net(), partial(torch.optim.Adam, fused=True, **{"lr": 1e-2})
        optim = fused if svi is CompiledSVI else adam()
        steps = svi(net.model, net.guide, optim, TraceMMD_ELBO())
        return [steps.step(x) for _ in range(10)]

    same_as_svi(run)


def test_an_optimiser_of_torch_takes_up_new_parameters() -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        sgd = partial(torch.optim.SGD, lr=1e-3)
        optim = sgd if svi is CompiledSVI else pyro.optim.SGD({"lr": 1e-3})
        model, guide, _ = vae()

        def extended(x: Tensor, is_shifted: bool) -> None:
            shift = pyro.param("shift", torch.zeros(3)) if is_shifted else 0.0
            guide(x + shift)

        steps = svi(lambda x, is_shifted: model(x), extended, optim, Trace_ELBO())
        return [steps.step(x, i > 3) for i in range(8)]

    same_as_svi(run)


def test_gradients_that_were_there_before_are_added_to() -> None:
    x = data(8)

    def run(svi: type) -> list[float]:
        net = Net()
        steps = svi(net.model, net.guide, adam(), Trace_ELBO())
        losses = []
        for _ in range(4):
            (net.decoder.weight**2).sum().backward()
            losses.append(steps.step(x))
        return losses

    same_as_svi(run)


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
def test_guides_that_make_themselves(guide: type) -> None:
    x = data(8)

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def run(svi: type) -> list[float]:
        steps = svi(model, guide(model), adam(), Trace_ELBO(num_particles=2))
        return [steps.step(x) for _ in range(6)]

    same_as_svi(run)


def test_parameters_may_be_local_to_their_modules() -> None:
    x = data(8)

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def trained(svi: type) -> tuple[list[float], dict[str, Tensor]]:
        pyro.set_rng_seed(3)
        guide = AutoNormal(model)
        steps = svi(model, guide, adam(), Trace_ELBO())
        return [steps.step(x) for _ in range(6)], dict(guide.named_parameters())

    with pyro.settings.context(module_local_params=True):
        expected, ours = trained(SVI), trained(CompiledSVI)
    assert not pyro.get_param_store()
    torch.testing.assert_close(ours, expected)


def test_latents_without_rsample() -> None:
    x = data(8)[:, 0]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=pyro.param("w", torch.tensor(0.4)) * x))

    def run(svi: type) -> list[float]:
        steps = svi(model, guide, adam(), Trace_ELBO())
        return [steps.step(x) for _ in range(6)]

    same_as_svi(run)


def test_a_loss_that_is_not_finite_is_left_to_pyro() -> None:
    x = data(8)
    broken = x.clone()
    broken[3] = float("nan")

    def run(svi: type) -> list[float]:
        net = Net()
        steps = svi(net.model, net.guide, adam(), TraceHamiltonian_ELBO(1))
        losses = [steps.step(x) for _ in range(3)]
        with pyro.validation_enabled(False), pytest.warns(UserWarning, match="gradient is left"):
            steps.step(broken)
        return losses + [steps.step(x) for _ in range(3)]

    same_as_svi(run)


def test_evaluate_loss_is_that_of_svi() -> None:
    model, guide, args = vae()

    def run(svi: type) -> list[float]:
        steps = svi(model, guide, adam(), TraceMMD_ELBO())
        steps.step(*args)
        return [steps.evaluate_loss(*args)]

    same_as_svi(run)


def test_replayed_steps_leave_nothing_behind() -> None:
    x, net = data(8), Net(nn.BatchNorm1d(4))
    svi = CompiledSVI(net.model, net.guide, adam(), TraceMMD_ELBO())

    def held(steps: int) -> tuple[int, int]:
        for _ in range(steps):
            svi.step(x)
        gc.collect()
        objects = gc.get_objects()
        return sum(issubclass(type(thing), Tensor) for thing in objects), len(objects)

    tensors, objects = held(10)
    after_tensors, after_objects = held(300)
    assert after_tensors == tensors
    assert after_objects < objects + 300


# Of torch's own making, in its compiler.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_inductor_computes_the_same() -> None:
    torch.set_default_dtype(torch.float32)
    x = data(8).float()

    def run(svi: type) -> list[float]:
        net = Net()
        backend = {"backend": "inductor"} if svi is CompiledSVI else {}
        steps = svi(net.model, net.guide, adam(), TraceMMD_ELBO(1.0, 20.0), **backend)
        return [steps.step(x) for _ in range(10)]

    same_as_svi(run, tolerance=1e-5)
