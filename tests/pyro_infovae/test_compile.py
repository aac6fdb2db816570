"""CompiledSVI takes the steps of SVI, number by number: every objective, program and loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae import SeparableCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from tests.pyro_infovae.compiled_steps import Net, adam, like_svi
from tests.pyro_infovae.programs import Programs, covariate_prior, data, hierarchical, mixture, vae

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def critic(x_dim: int = 3, z_dim: int = 2) -> SeparableCritic:
    torch.manual_seed(1)
    return SeparableCritic(x_dim=x_dim, z_dim=z_dim, hidden=(5,), embed_dim=3)


def learned_prior() -> Programs:
    """A learned prior and a constrained parameter, on a random subsample of the data."""

    def model(x: Tensor) -> None:
        loc = pyro.param("prior", torch.tensor([0.3, -0.2]))
        with pyro.plate("data", len(x), subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            weight = pyro.param("decoder", torch.linspace(0.7, -0.4, 6).reshape(2, 3))
            pyro.sample("x", dist.Normal(torch.tanh(z) @ weight, 0.7).to_event(1), obs=x[index])

    return Programs(model, vae(batch=5).guide, (data(),))


def in_guide() -> Programs:
    model, guide, args = mixture(learned_prior=True)
    return Programs(model, config_enumerate(guide, "parallel"), args)


def in_model() -> Programs:
    return mixture(learned_prior=True, enumerate_in_model=True)


def impossible_values() -> Programs:
    """A guide that gives the value 2 no probability."""
    model, _, args = mixture(learned_prior=True)

    @config_enumerate
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            weight = pyro.param("weight", torch.tensor(0.8))
            impossible = torch.full_like(x[:, 0], -torch.inf)
            logits = torch.stack([weight * x[:, 0], 0 * x[:, 0], impossible], -1)
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(weight * x[:, 0] + y - 1, 0.4))

    return Programs(model, guide, args)


ENUMERATED = partial(TraceEnum_ELBO, max_plate_nesting=1)
PARTICLES = partial(ENUMERATED, num_particles=3, vectorize_particles=True)
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
    "features": partial(TraceMMD_ELBO, 0.3, 20.0, estimator="features", num_features=40),
    "pooled": partial(TraceMMD_ELBO, 0.3, 20.0, num_particles=2, vectorize_particles=True),
    "InfoMax": lambda: TraceInfoMax_ELBO(critic(), 0.7, 0.5),
    "all negatives": lambda: TraceInfoMax_ELBO(critic(), bound="smile", negatives="all"),
    "Hamiltonian": partial(TraceHamiltonian_ELBO, 2, 0.05),
    "MMD of Hamiltonian": lambda: TraceMMD_ELBO(0.0, 20.0, base=TraceHamiltonian_ELBO(1)),
}
OBJECTIVES_OF_ENUMERATED: dict[str, Callable[[], ELBO]] = {
    "alone": ENUMERATED,
    "several particles": PARTICLES,
    "MMD": lambda: TraceMMD_ELBO(0.0, 20.0, base=ENUMERATED()),
    "MMD of several particles": lambda: TraceMMD_ELBO(0.0, 20.0, base=PARTICLES()),
    "InfoMax of enumerated": lambda: TraceInfoMax_ELBO(critic(1, 1), 0.7, base=ENUMERATED()),
}

TRIALS = [
    *((program, "unbiased") for program in (vae, covariate_prior, hierarchical)),
    *((program, "features") for program in (vae, covariate_prior)),
    *itertools.product([learned_prior], OBJECTIVES),
    *itertools.product([in_guide, in_model], OBJECTIVES_OF_ENUMERATED),
    (impossible_values, "alone"),
]
QUICK = [
    (hierarchical, "unbiased"),
    (learned_prior, "Trace"),
    (learned_prior, "vectorised"),
    (learned_prior, "unbiased"),
    (learned_prior, "features"),
    (learned_prior, "InfoMax"),
    (learned_prior, "MMD of Hamiltonian"),
    (in_guide, "InfoMax of enumerated"),
    (in_model, "several particles"),
    (impossible_values, "alone"),
]


@pytest.mark.parametrize(
    ("program", "objective"),
    [pytest.param(*trial, marks=[] if trial in QUICK else [pytest.mark.slow]) for trial in TRIALS],
)
@like_svi
def test_every_program_and_objective(
    svi: type, program: Callable[[], Programs], objective: str
) -> Any:
    model, guide, (x,) = program()
    runs: list[int] = []

    def counted(x: Tensor) -> None:
        runs.append(1)
        guide(x)

    steps = svi(model, counted, adam(), {**OBJECTIVES, **OBJECTIVES_OF_ENUMERATED}[objective]())
    losses = [steps.step(x) for _ in range(2)]
    before = len(runs)
    losses += [steps.step(x) for _ in range(5)]
    assert (len(runs) == before) == (svi is CompiledSVI)
    assert torch.tensor(losses).isfinite().all()
    assert len(set(losses)) == len(losses)
    return losses


@pytest.mark.parametrize(
    "objective",
    ["TraceMeanField", "unbiased", pytest.param("Hamiltonian", marks=pytest.mark.slow)],
)
@like_svi
def test_gradients_reach_hooks_as_they_do_in_backward(svi: type, objective: str) -> Any:
    model, guide, args = learned_prior()
    steps = svi(model, guide, adam(), OBJECTIVES[objective]())
    steps.step(*args)
    seen: list[Tensor] = []
    leaves = pyro.get_param_store()._params
    for leaf in leaves.values():
        leaf.register_hook(lambda gradient: seen.append(gradient.clone()))
    leaves["prior"].register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    leaves["prior"].register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.clone()))
    for _ in range(4):
        steps.step(*args)
    assert len(seen) == 4 * (len(leaves) + 1)
    return sorted(seen, key=lambda gradient: gradient.sum().item())


@like_svi
@pytest.mark.slow
def test_a_flow_that_draws_random_numbers(svi: type) -> Any:
    net = Net()
    net.decoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    steps = svi(net.model, net.guide, adam(), TraceHamiltonian_ELBO(2, 0.05))
    return [steps.step(data(8)) for _ in range(4)]


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


@pytest.mark.parametrize(
    "guide", [AutoNormal, pytest.param(AutoMultivariateNormal, marks=pytest.mark.slow)]
)
@like_svi
def test_guides_that_make_themselves(svi: type, guide: type) -> Any:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    steps = svi(model, guide(model), adam(), Trace_ELBO(num_particles=2))
    return [steps.step(data(8)) for _ in range(6)]


@like_svi
def test_latents_without_rsample(svi: type) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=pyro.param("w", torch.tensor(0.4)) * x))

    steps = svi(model, guide, adam(), Trace_ELBO())
    return [steps.step(data(8)[:, 0]) for _ in range(6)]


@like_svi
def test_a_loss_that_is_not_finite_is_left_to_pyro(svi: type) -> Any:
    x = data(8)
    broken = x.clone()
    broken[3] = float("nan")
    net = Net()
    steps = svi(net.model, net.guide, adam(), TraceHamiltonian_ELBO(1))
    losses = [steps.step(x) for _ in range(3)]
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="gradient is left"):
        steps.step(broken)
    return losses + [steps.step(x) for _ in range(3)]


@like_svi
def test_evaluate_loss_is_that_of_svi(svi: type) -> Any:
    model, guide, args = vae()
    steps = svi(model, guide, adam(), TraceMMD_ELBO())
    steps.step(*args)
    return steps.evaluate_loss(*args)


@pytest.mark.slow
# Of torch's own making, in its compiler.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@partial(like_svi, tolerance=1e-5)
def test_inductor_computes_the_same(svi: type) -> Any:
    torch.set_default_dtype(torch.float32)
    net = Net()
    backend = {"backend": "inductor"} if svi is CompiledSVI else {}
    steps = svi(net.model, net.guide, adam(), TraceMMD_ELBO(1.0, 20.0), **backend)
    return [steps.step(data(8).float()) for _ in range(10)]
