"""Under autocast and in half precision, what is small against its parts keeps its digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae import IMQ, RBF, TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae._arrays.checkpointing import checkpointed_gradient, graphs_kept
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.kernels import squared_distances
from pyro_infovae.mmd import mmd_squared, mmd_squared_normal
from pyro_infovae.mutual_information import BOUNDS
from tests.pyro_infovae.networks import BFLOAT16, OBJECTIVES, Guide, Model, build, data, take_step


@pytest.fixture(autouse=True)
def single_precision(clean_pyro: None) -> None:
    """Autocast leaves float64 alone."""
    torch.set_default_dtype(torch.float32)


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """A kernel of the user's, of one matrix product."""
    products = x @ y.T
    return (products - 0.5 * ((x * x).sum(1)[:, None] + (y * y).sum(1))).exp()


def closed_form(x: Tensor, y: Tensor) -> Tensor:
    return mmd_squared_normal(x, 0.1 * x.abs(), y, 0.1 * y.abs(), RBF())


MMD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unbiased": lambda x, y: mmd_squared(x, y, RBF()),
    "biased": lambda x, y: mmd_squared(x, y, RBF() + IMQ(), estimator="biased"),
    "callable": lambda x, y: mmd_squared(x, y, gaussian),
    "closed form": closed_form,
    "distances": lambda x, y: squared_distances(x, y).sum(),
}


class TestMMD:
    @pytest.mark.parametrize("estimate", MMD.values(), ids=MMD)
    def test_is_that_of_full_precision(self, estimate: Callable[..., Tensor]) -> None:
        x, y = torch.randn(2, 64, 3).unbind()
        x.requires_grad_()
        expected = estimate(x, y)
        (slope,) = torch.autograd.grad(expected, x)
        with autocast():
            value = estimate(x, y)
        (gradient,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
        torch.testing.assert_close(gradient, slope, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("estimate", MMD.values(), ids=MMD)
    def test_of_half_precision_is_that_of_the_same_rows_raised(
        self, estimate: Callable[..., Tensor], dtype: torch.dtype
    ) -> None:
        x, y = torch.randn(2, 64, 3).to(dtype).unbind()
        x.requires_grad_()
        raised = x.detach().float().requires_grad_()
        value, expected = estimate(x, y), estimate(raised, y.float())
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(value, x)
        (slope,) = torch.autograd.grad(expected, raised)
        torch.testing.assert_close(gradient, slope.to(dtype), rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_bound_is_that_of_the_same_scores_raised(bound: str, dtype: torch.dtype) -> None:
    # exp(15) is beyond float16.
    joint, marginal = torch.randn(64).to(dtype) + 15, 15 - torch.rand(64).to(dtype)
    weights = (torch.arange(64) % 3 > 0).to(dtype)
    for given in (None, weights):
        weighted = {"joint_weights": given, "marginal_weights": given}
        actual = BOUNDS[bound](joint, marginal, **weighted)
        expected = BOUNDS[bound](joint.float(), marginal.float(), **weighted)
        assert actual.estimate.isfinite()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("under", [True, False], ids=["under autocast", "not"])
def test_a_checkpointed_gradient_is_recomputed_as_it_was_computed(under: bool) -> None:
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(16, 4)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=under):
            (gradient,), _ = checkpointed_gradient(lambda x: network(x).float().sum(), (x,))
        return gradient.square().sum()

    def weight_gradient(loss: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not under):
            return torch.autograd.grad(loss, network[0].weight)[0]

    with graphs_kept():
        kept = loss()
    expected = torch.autograd.grad(kept, network[0].weight)[0]
    torch.testing.assert_close(weight_gradient(loss()), expected, rtol=1e-6, atol=1e-6)


def test_a_checkpointed_gradient_keeps_no_graph_under_autocast() -> None:
    network = nn.Linear(4, 1)
    x = torch.randn(16, 4)
    with autocast():
        network(x)  # its cast weight is in the cache, with its graph
        (gradient,), _ = checkpointed_gradient(lambda x: network(x).square().sum(), (x,))
    assert "Recomputed" in type(gradient.grad_fn).__name__


@pytest.mark.parametrize("raised", [True, False], ids=["raised", "as they are"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_under_autocast(name: str, raised: bool) -> None:
    expected = take_step(build(name), data())
    step = take_step(build(name, raised=raised), data(), autocast=torch.bfloat16)
    assert step.loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in step.gradients.values())
    assert 0 < step.distance(expected) < BFLOAT16


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_parameters_in_bfloat16(name: str) -> None:
    expected = take_step(build(name), data())
    step = take_step(build(name).to(torch.bfloat16), data().to(torch.bfloat16))
    assert all(gradient.dtype == torch.bfloat16 for gradient in step.gradients.values())
    assert 0 < step.distance(expected) < BFLOAT16


def test_a_flow_takes_steps_that_are_small_beside_its_positions() -> None:
    """From 100, towards 103, along a cosine of frequency 10; numbers in bfloat16 are 0.5 apart."""
    x = torch.full((8,), 103.0, dtype=torch.bfloat16)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_full((), 100.0), 100.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_full((), 100.0), 0.001))

    flow = TraceHamiltonian_ELBO(20, 0.005, tempering="none", learn=False, path="posterior")
    end = flow.refine(model, guide)(x)["z"]
    assert end.dtype == torch.bfloat16
    # The momentum adds a tenth; its steps are of 0.15 at most.
    torch.testing.assert_close(
        end.float(), torch.full((8,), 103 - 3 * math.cos(1)), atol=0.7, rtol=0
    )


class TestCompiledSVI:
    def losses(
        self, svi: type, objective: Callable[[], ELBO], modes: Sequence[torch.dtype | None]
    ) -> list[float]:
        pyro.clear_param_store()
        model, guide = Model(raised=True), Guide(raised=True)
        pyro.set_rng_seed(3)
        svi = svi(model, guide, pyro.optim.Adam({"lr": 1e-2}), objective())
        losses = []
        for mode in modes:
            with torch.autocast("cpu", mode, enabled=mode is not None):
                losses.append(svi.step(data()))
        return losses

    @pytest.mark.parametrize(
        "name",
        [
            "unbiased",
            *(
                pytest.param(name, marks=pytest.mark.slow)
                for name in ("closed form", "InfoMax", "MMD of Hamiltonian")
            ),
        ],
    )
    def test_takes_the_steps_of_svi_under_autocast(self, name: str) -> None:
        modes = [torch.bfloat16] * 4
        expected = self.losses(SVI, OBJECTIVES[name], modes)
        compiled = self.losses(CompiledSVI, OBJECTIVES[name], modes)
        assert compiled == pytest.approx(expected, rel=1e-4)
        assert self.losses(SVI, OBJECTIVES[name], [None] * 4) != pytest.approx(expected, rel=1e-4)

    def test_captures_again_for_another_autocast(self) -> None:
        modes = [torch.bfloat16] * 3 + [None] * 2 + [torch.float16] * 2
        expected = self.losses(SVI, TraceMMD_ELBO, modes)
        assert self.losses(CompiledSVI, TraceMMD_ELBO, modes) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.slow
    def test_adds_up_the_gradients_of_several_runs_in_full_precision(self) -> None:
        """Where autocast keeps the cast of a weight, SVI adds up its gradients in bfloat16."""
        objective = partial(TraceMMD_ELBO, num_particles=3)
        modes = [torch.bfloat16] * 4
        expected = self.losses(SVI, objective, modes)
        assert self.losses(CompiledSVI, objective, modes) == pytest.approx(expected, rel=1e-3)
