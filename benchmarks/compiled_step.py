"""Time of a training step: by hand, by pythae, by Pyro's SVI, and by CompiledSVI."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import pyro
import torch
from pyro.contrib.gp.kernels import RBF
from pyro.infer import SVI, Trace_MMD, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from benchmarks.by_hand import step_by_hand
from benchmarks.measuring import Call, Step, interleaved, ratios
from benchmarks.networks import VAE, Size, binary_images
from benchmarks.report import Report, Row
from pyro_infovae import (
    IMQ,
    ConcatCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from pyro_infovae.compile import CompiledSVI

SIZES = (Size(64, 128, 8), Size(784, 400, 20))
OBJECTIVES = ("MMD", "MMD of seven IMQ kernels", "InfoMax", "Hamiltonian")
BATCH, LAMBDA, NUM_STEPS, PARTICLES = 128, 1000.0, 3, 10
ROUNDS, STEPS, WARMUP = 20, 5, 5
INDUCTOR = "CompiledSVI, fused Adam, inductor"

MakeStep = Callable[[Size, Tensor], Step]


def measure(
    call: Call,
    *,
    sizes: Sequence[Size] = SIZES,
    objectives: Sequence[str] = OBJECTIVES,
    rounds: int = ROUNDS,
    inductor: bool = True,
) -> Report:
    """A table by objective, of the time of a step against that of the first row."""
    return Report(
        title="Training steps",
        method=(
            f"VAEs of these widths on minibatches of {BATCH} binary images, float32: the median of"
            f" {STEPS} steps in each of {rounds} rounds. *By hand* is a loop in PyTorch alone with"
            " the same networks, the KL in closed form and the same penalty, the MMD by one matrix"
            " product. `SVI` and the first `CompiledSVI` use Pyro's Adam, which steps every"
            f" parameter by itself. `TraceHamiltonian_ELBO` and HVAE take {NUM_STEPS} leapfrog"
            " steps; HVAE's are not differentiated. Networks and optimiser of pythae's methods are"
            " those of the loop by hand. Its InfoVAE_MMD has the RBF kernel of `TraceMMD_ELBO` in"
            " the first table; in the second both have pythae's default kernel, `IMQ.wae()`."
            f" `Trace_MMD` is Pyro's own, with the {PARTICLES} particles of its default."
        ),
        packages=["pyro-infovae", "torch", "pyro-ppl", *(["pythae"] if _has_pythae() else [])],
        tables=[
            [row for size in sizes for row in call(rows, objective, size, rounds, inductor)]
            for objective in objectives
        ],
    )


def rows(objective: str, size: Size, rounds: int, inductor: bool) -> list[Row]:
    """The times of an objective for one size of the networks."""
    torch.manual_seed(0)
    x = binary_images(BATCH, size)
    steps = {
        name: make(size, x)
        for name, make in contenders(objective).items()
        if inductor or name != INDUCTOR
    }
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    times = interleaved(steps, rounds=rounds, steps=STEPS)
    reference = next(iter(times))
    return [
        {
            objective: name,
            "widths": str(size),
            "ms": statistics.median(values),
            f"against {reference}": ratios(values, times[reference]),
        }
        for name, values in times.items()
    ]


def contenders(objective: str) -> dict[str, MakeStep]:
    """The ways to take a step, the first of which is the measure of the others."""
    ours = {
        "SVI": by_svi(SVI, adam, objective),
        "CompiledSVI": by_svi(CompiledSVI, adam, objective),
        "CompiledSVI, fused Adam": by_svi(CompiledSVI, fused, objective),
        INDUCTOR: by_svi(partial(CompiledSVI, backend="inductor"), fused, objective),
    }
    if objective == "Hamiltonian":
        return {**ours, **by_pythae(objective)}
    if objective == "MMD of seven IMQ kernels":
        return {**by_pythae(objective), **ours}
    hand = {
        "by hand": partial(step_by_hand, objective, optim=torch_adam, lambd=LAMBDA),
        "by hand, fused Adam": partial(step_by_hand, objective, optim=fused, lambd=LAMBDA),
        "SVI, stock TraceMeanField_ELBO": by_svi(SVI, adam, "ELBO"),
    }
    if objective == "InfoMax":
        return {**hand, **ours}
    rival = {f"SVI, stock Trace_MMD, {PARTICLES} particles": by_svi(SVI, adam, "Trace_MMD")}
    return {**hand, **rival, **by_pythae(objective), **ours}


def by_pythae(objective: str) -> dict[str, MakeStep]:
    """The steps of pythae's methods, where it is installed."""
    if not _has_pythae():
        return {}
    from benchmarks.with_pythae import METHODS, step_by_pythae

    return {
        f"pythae {method}": partial(step_by_pythae, method, lambd=LAMBDA, num_steps=NUM_STEPS)
        for method in METHODS[objective]
    }


def by_svi(svi: Callable[..., Any], optim: Any, objective: str) -> MakeStep:
    """Steps of Pyro's or of the compiled SVI on an autoencoder of its own."""

    def make(size: Size, x: Tensor) -> Step:
        vae = VAE(size)
        chosen = optim() if optim is adam else optim
        loss = objective_of(objective, size, owner=str(id(vae)))
        return partial(svi(vae.model, vae.guide, chosen, loss).step, x)

    return make


def objective_of(name: str, size: Size, *, owner: str) -> ELBO:
    """An objective, its parameters named after an owner."""
    if name == "ELBO":
        return TraceMeanField_ELBO()
    if name == "Trace_MMD":
        kernel = RBF(size.latent, lengthscale=torch.tensor(size.latent**0.5))
        return Trace_MMD(kernel, LAMBDA, num_particles=PARTICLES, max_plate_nesting=1)
    if name == "MMD":
        return TraceMMD_ELBO(lambd=LAMBDA)
    if name == "MMD of seven IMQ kernels":
        return TraceMMD_ELBO(lambd=LAMBDA, kernel=IMQ.wae())
    if name == "Hamiltonian":
        return TraceHamiltonian_ELBO(NUM_STEPS, 0.05, path="posterior", name=f"hamiltonian_{owner}")
    critic = ConcatCritic(size.pixels, size.latent, hidden=(size.hidden,))
    return TraceInfoMax_ELBO(critic, name=f"critic_{owner}")


def adam() -> Any:
    """Pyro's Adam: one optimiser of torch per parameter."""
    return pyro.optim.Adam({"lr": 1e-3})


torch_adam = partial(torch.optim.Adam, lr=1e-3)
fused = partial(torch.optim.Adam, lr=1e-3, fused=True)


def _has_pythae() -> bool:
    return find_spec("pythae") is not None
