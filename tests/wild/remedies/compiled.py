"""What ``CompiledSVI`` and flows say while they train; in Pyro alone."""

from __future__ import annotations

import math
import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae.compile import MAX_CAPTURES, CompiledSVI
from tests.questions.asking import Asking
from tests.shared_programs import vae
from tests.wild.remedies.following import Action, follows
from tests.wild.test_start_of_the_flow import X as FEW
from tests.wild.test_start_of_the_flow import normal

X = torch.linspace(-1.0, 1.0, 6)
Likelihood = Callable[[Tensor], Any]


def _guide(x: Any, *_: Any, **__: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))


def steps(locate: Likelihood, *, x: Any = X, svi: Any = CompiledSVI) -> None:
    """A few steps of a model of one global location, which shifts its data."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(locate(z), 1.0), obs=x)

    trained = svi(model, _guide, Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        assert math.isfinite(trained.step(x))


# --- CompiledSVI: its arguments -------------------------------------------------------------------


def _made(**settings: Any) -> Action:
    given = {"optim": Adam({"lr": 0.01}), "loss": Trace_ELBO()} | settings
    return lambda: CompiledSVI(lambda: None, lambda: None, **given)


@follows("Expected optim to be a PyroOptim", only="pyro")
def optimiser(half: Asking) -> Sequence[Action]:
    built = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    function = partial(torch.optim.Adam, lr=1e-3)
    return _made(optim=built), _made(optim=Adam({"lr": 1e-3})), _made(optim=function)


def _trained(half: Asking, svi: Any, loss: Any) -> Action:
    case = vae(half)
    return lambda: svi(case.model, case.guide, Adam({"lr": 0.01}), loss).step(*case.args)


@follows("Expected a loss that has a differentiable_loss", only="pyro")
def loss_without_a_tensor(half: Asking) -> Sequence[Action]:
    return (
        _trained(half, CompiledSVI, TraceGraph_ELBO()),
        _trained(half, SVI, TraceGraph_ELBO()),
        _trained(half, SVI, TraceMMD_ELBO(base=RenyiELBO(num_particles=2))),
        _trained(half, CompiledSVI, Trace_ELBO()),
    )


@follows("Expected a loss of one process", only="pyro")
def loss_of_several_processes(half: Asking) -> Sequence[Action]:
    gathering = TraceMMD_ELBO(gather=True)
    return (
        _trained(half, CompiledSVI, gathering),
        _trained(half, SVI, gathering),
        _trained(half, CompiledSVI, TraceMMD_ELBO()),
    )


@follows("Expected backend to be None or 'inductor'", only="pyro")
def backend(half: Asking) -> Sequence[Action]:
    return tuple(_made(backend=name) for name in ("jit", None, "inductor"))


@follows("whose content may change: pass torch.as_tensor of it", only="pyro")
def array_as_argument(half: Asking) -> Sequence[Action]:
    x = np.linspace(-1.0, 1.0, 6)
    return tuple(partial(steps, lambda z: z, x=data) for data in (x, torch.as_tensor(x)))


@follows("pass what model and guide need of it, in a dict say", only="pyro")
def namespace_as_argument(half: Asking) -> Sequence[Action]:
    def model(x: Tensor, args: Any) -> None:
        scale = args["scale"] if isinstance(args, dict) else args.scale
        z = pyro.sample("z", dist.Normal(0.0, scale))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def given(args: Any) -> Action:
        def run() -> None:
            svi = CompiledSVI(model, _guide, Adam({"lr": 0.01}), Trace_ELBO())
            for _ in range(3):
                svi.step(X, args=args)

        return run

    args = Namespace(scale=2.0)
    return given(args), given(vars(args))


@follows("got a tensor of shape … that does: declare it with pyro.param, or detach it", only="pyro")
def argument_with_a_gradient(half: Asking) -> Sequence[Action]:
    x = X.clone().requires_grad_()
    declared = partial(steps, lambda z: z + pyro.param("shift", x.detach().clone()))
    return (
        partial(steps, lambda z: z, x=x),
        declared,
        partial(steps, lambda z: z, x=x.detach()),
    )


@follows("captures its step for the …th time", only="pyro", quick=())
def annealed_number(half: Asking) -> Sequence[Action]:
    def annealed(as_argument: Callable[[float], Any]) -> Action:
        def model(x: Tensor, scale: Any) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 6), pyro.poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def run() -> None:
            svi = CompiledSVI(model, _guide, Adam({"lr": 0.01}), Trace_ELBO())
            for step in range(1, MAX_CAPTURES + 3):
                svi.step(X, as_argument(0.1 * step))

        return run

    return annealed(lambda scale: scale), annealed(torch.tensor)


@follows("Expected a step whose course does not depend on the numbers", only="pyro")
def course_by_numbers(half: Asking) -> Sequence[Action]:
    def branching(z: Tensor) -> Tensor:
        return z if z > 0 else -z

    return (
        partial(steps, branching),
        partial(steps, lambda z: torch.where(z > 0, z, -z)),
        partial(steps, branching, svi=SVI),
    )


@follows("register it as a buffer of a module whose forward writes into it", only="pyro")
def running_total(half: Asking) -> Sequence[Action]:
    def case(*, is_buffer: bool) -> Action:
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                if is_buffer:
                    self.register_buffer("total", torch.zeros(()))
                self.held = [torch.zeros(())]

            def forward(self, z: Tensor) -> Tensor:
                total = self.total if is_buffer else self.held[0]
                return z + total.add_(1.0).detach() * 0

        return lambda: steps(Counting())

    return case(is_buffer=False), case(is_buffer=True)


class Varying(nn.Module):
    """What is another value in every run, or the same by torch's own numbers."""

    def __init__(self, what: str) -> None:
        super().__init__()
        random.seed(0)
        self.what, self.run = what, iter(range(100))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        if self.what == "gradient":
            return z * random.random()
        if self.what == "loss":
            return z.detach() * 0 + next(self.run)
        if self.what == "parameter":
            shift = pyro.param("shift", torch.tensor(0.1))
            return z + (shift if next(self.run) < 2 else shift.detach())
        self.mean = self.mean + random.random()
        return z


def _varying(what: str) -> Sequence[Action]:
    return (lambda: steps(Varying(what)), lambda: steps(Varying(what), svi=SVI))


@follows("Expected a gradient of parameter '…' in the captured step", only="pyro")
def parameter_that_comes_and_goes(half: Asking) -> Sequence[Action]:
    return _varying("parameter")


@follows("got another value of the loss", only="pyro")
def loss_that_varies(half: Asking) -> Sequence[Action]:
    return _varying("loss")


@follows("got another value of the gradient of '…'", only="pyro")
def gradient_that_varies(half: Asking) -> Sequence[Action]:
    return _varying("gradient")


@follows("got another value of buffer …", only="pyro")
def buffer_that_varies(half: Asking) -> Sequence[Action]:
    return _varying("buffer")


@follows("Raised where the step was captured as a graph", only="pyro")
def what_no_graph_can_hold(half: Asking) -> Sequence[Action]:
    def in_numpy(z: Tensor) -> Tensor:
        return torch.as_tensor(z.detach().numpy())

    return partial(steps, in_numpy), partial(steps, in_numpy, svi=SVI)


# --- the flow: what is warned of ------------------------------------------------------------------


def flow(model: Any, guide: Any, *, count: int = 1, **settings: Any) -> Action:
    """Steps of the loss, whose values may be outside of their supports."""

    def run() -> None:
        with pyro.validation_enabled(False):
            elbo = TraceHamiltonian_ELBO(**settings)
            for _ in range(count):
                assert math.isfinite(elbo.loss_and_grads(model, guide))

    return run


@follows("for which the step size is too large", only="pyro")
def diverged(half: Asking) -> Sequence[Action]:
    def model() -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(torch.exp(3 * z), 0.1), obs=torch.tensor(FEW))

    guide = normal(torch.tensor(FEW))[1]
    posterior = {"num_steps": 5, "path": "posterior"}
    return (
        flow(model, guide, step_size=0.45, **posterior),
        flow(model, guide, step_size=1e-4, **posterior),
        flow(model, guide, step_size=1e-4, max_step_size=1e-3, **posterior),
    )


@follows("more than a nat per row below that of the guide's own draws", only="pyro")
def flow_that_does_harm(half: Asking) -> Sequence[Action]:
    def draw(scale: float) -> Any:
        def run() -> None:
            with pyro.plate("data", 4):
                pyro.sample("z", dist.Normal(torch.zeros(()), scale))

        return run

    narrow = draw(0.01)
    return (
        flow(narrow, draw(1.0), step_size=0.5, count=2),
        flow(narrow, draw(1.0), step_size=1e-3, count=2),
        flow(narrow, draw(0.01), step_size=0.5, count=2),
    )


@follows("on the edge of its support", only="pyro")
def edge_of_the_support(half: Asking) -> Sequence[Action]:
    def draw(loc: float, *, double: bool) -> Action:
        def model() -> None:
            x = torch.tensor([0.0, 3.0])
            with pyro.plate("data", 2):
                z = pyro.sample("z", dist.Gamma(0.5, torch.ones(2)))
                pyro.sample("x", dist.Poisson(z), obs=x)

        def guide() -> None:
            locs = pyro.param("locs", torch.tensor([loc, 0.5]))
            with pyro.plate("data", 2):
                pyro.sample("z", dist.LogNormal(locs, 0.5))

        def run() -> None:
            with half.precision(double=double):
                flow(model, guide, num_steps=3, step_size=0.01)()

        return run

    return draw(-60.0, double=False), draw(-60.0, double=True), draw(-1.0, double=False)


@follows("observes nan or infinity in … values", only="pyro")
def data_that_are_nan(half: Asking) -> Sequence[Action]:
    x = torch.tensor(FEW).index_fill(0, torch.tensor([2]), math.nan)
    mask = ~x.isnan()
    return flow(*normal(x, mask=mask)), flow(*normal(torch.nan_to_num(x), mask=mask))


@follows("is not finite in … rows, whatever the step size", only="pyro")
def density_that_is_not_finite(half: Asking) -> Sequence[Action]:
    def model(scale: float) -> Any:
        def run() -> None:
            with pyro.plate("data", 4):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                scales = torch.tensor([1.0, scale, 1.0, 1.0])
                fn = dist.Normal(z, scales, validate_args=False)
                pyro.sample("x", fn, obs=torch.tensor(FEW))

        return run

    guide = normal(torch.tensor(FEW))[1]
    return flow(model(math.nan), guide), flow(model(1.0), guide)


@follows("has no finite gradient in '…' where the guide draws it", only="pyro")
def infinite_slope_in_the_model(half: Asking) -> Sequence[Action]:
    def model(below_the_root: float) -> Any:
        def run() -> None:
            with pyro.plate("data", 4):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                loc = z + (0 * z + below_the_root).sqrt()
                pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(FEW))

        return run

    guide = normal(torch.tensor(FEW))[1]
    return flow(model(0.0), guide), flow(model(1e-6), guide)


@follows("TraceHamiltonian_ELBO: the loss is …, and its gradient is not finite", only="pyro")
def infinite_slope_in_the_guide(half: Asking) -> Sequence[Action]:
    model = normal(torch.tensor(FEW))[0]

    def guide(below_the_root: float) -> Any:
        def run() -> None:
            scale = (pyro.param("squared", torch.tensor(0.0)) + below_the_root).sqrt() + 0.5
            with pyro.plate("data", 4):
                pyro.sample("z", dist.Normal(torch.zeros(()), scale))

        return run

    return flow(model, guide(0.0)), flow(model, guide(1e-6))
