"""Climb the stairs with the array functions of `pyro_infovae`."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from information_stairs import problem
from information_stairs.problem import DIMS, STAIRS, TRAINED_AS, Climb, Plan, correlation
from pyro_infovae._arrays.negatives import SCORERS, bound_information
from pyro_infovae.critics import ConcatCritic, SeparableCritic
from pyro_infovae.mutual_information import BOUNDS, MutualInformationEstimate

CRITICS = {"joint": ConcatCritic, "separable": SeparableCritic}

Critic = Callable[[Tensor, Tensor], Tensor]


def estimates(climb: Climb, plan: Plan, device: str) -> dict[str, np.ndarray]:
    """Every step's estimate by each bound, in nats.

    A minibatch is new, so its estimate is that of held-out data.
    """
    torch.manual_seed(climb.seed)
    take_step = _at_the_ratio if climb.critic == "exact" else _trained(climb, plan, device)
    steps = []
    for information in STAIRS:
        for _ in range(plan.iterations):
            pairs = correlated_normals(problem.BATCH, information, device=device)
            found = take_step(climb, information, *pairs)
            steps.append(torch.stack([found[bound].estimate.detach() for bound in TRAINED_AS]))
    return dict(zip(TRAINED_AS, torch.stack(steps).cpu().numpy().T, strict=True))


def correlated_normals(rows: int, information: float, *, device: str) -> tuple[Tensor, Tensor]:
    """Draw (x, z) whose mutual information is as many nats."""
    rho = correlation(information)
    x, noise = torch.randn(2, rows, DIMS, device=device)
    return x, rho * x + (1 - rho**2) ** 0.5 * noise


Found = dict[str, MutualInformationEstimate]


def _trained(
    climb: Climb, plan: Plan, device: str
) -> Callable[[Climb, float, Tensor, Tensor], Found]:
    """Steps of critics that no parameter is common to, so that one optimiser trains them all."""
    surrogates = dict.fromkeys(TRAINED_AS.values())
    critics = nn.ModuleDict(
        {name: CRITICS[climb.critic](DIMS, DIMS, plan.hidden) for name in surrogates}
    ).to(device)
    optimiser = torch.optim.Adam(critics.parameters(), plan.learning_rate)

    def take_step(climb: Climb, information: float, x: Tensor, z: Tensor) -> Found:
        found = _read(climb, critics, x, z**3 if climb.pairs == "cubic" else z)
        optimiser.zero_grad()
        sum(-found[name].surrogate for name in surrogates).backward()
        optimiser.step()
        return found

    return take_step


def _at_the_ratio(climb: Climb, information: float, x: Tensor, z: Tensor) -> Found:
    return _read(climb, problem.best_critics(information, correlation(information)), x, z)


def _read(climb: Climb, critics: Mapping[str, Critic], x: Tensor, z: Tensor) -> Found:
    score = SCORERS[climb.negatives]
    scores = {name: score(critic, x[None], z[None, None]) for name, critic in critics.items()}
    return {
        name: bound_information(BOUNDS[name], scores[trained_as])
        for name, trained_as in TRAINED_AS.items()
    }
