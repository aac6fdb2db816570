"""How near trained critics come to a known mutual information.

Pairs of correlated normals, d = 20, as they are or with z cubed (which leaves I as it is).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.measuring import Call, Estimate
from benchmarks.report import Report, Row
from pyro_infovae.critics import SeparableCritic
from pyro_infovae.mutual_information import BOUNDS

DIMS = 20
TRUTHS = (2.0, 4.0, 6.0)
SEEDS = range(3)
# smile trains its critic as js does.
SURROGATES = {"nwj": "nwj", "dv": "dv", "infonce": "infonce", "js": "js", "smile": "js"}
TRAIN_ROWS, STEPS, LEARNING_RATE = 256, 500, 6e-3
FRESH_ROWS, FRESH_BATCHES = 1024, 16


def measure(
    call: Call,
    *,
    truths: Sequence[float] = TRUTHS,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
) -> Report:
    """A table of all bounds and truths."""
    return Report(
        title="Mutual information: bias of trained critics",
        method=(
            "Mean of (estimate - truth) ± standard deviation over"
            f" {len(seeds)} seeds, in nats. Pairs: correlated normals, d = {DIMS}, as they are or"
            " with z cubed. Critic: a `SeparableCritic` with one hidden layer of 256 (asinh of the"
            f" cubed z before it). Training: {steps} Adam steps on fresh batches of {TRAIN_ROWS}"
            " rows, all pairs as negatives, gradient norm clipped at 1. Estimates:"
            f" {FRESH_BATCHES} fresh batches of {FRESH_ROWS} rows. `infonce` can reach"
            f" log {FRESH_ROWS}, {math.log(FRESH_ROWS):.2f} nats; `smile` (clip 5) is no bound and"
            " may exceed the truth."
        ),
        packages=["pyro-infovae", "torch"],
        tables=[call(rows, truths, seeds, steps)],
    )


def rows(truths: Sequence[float], seeds: Sequence[int], steps: int) -> list[Row]:
    """The bias of each bound, a column by kind of pairs and truth."""
    table: dict[str, Row] = {bound: {"bound": f"`{bound}`"} for bound in SURROGATES}
    for cubic in (False, True):
        for truth in truths:
            column = f"{'cubic' if cubic else 'normal'}, I = {truth:g}"
            for bound, found in biases(truth, seeds, steps, cubic=cubic).items():
                table[bound][column] = Estimate(statistics.mean(found), statistics.stdev(found))
    return list(table.values())


def biases(
    truth: float, seeds: Sequence[int], steps: int, *, cubic: bool
) -> dict[str, list[float]]:
    """The bias of each bound, seed by seed."""
    found: dict[str, list[float]] = {bound: [] for bound in SURROGATES}
    for seed in seeds:
        critics = {
            surrogate: train_critic(surrogate, truth, cubic=cubic, seed=seed, steps=steps)
            for surrogate in set(SURROGATES.values())
        }
        for bound, surrogate in SURROGATES.items():
            mean, _ = fresh_estimate(bound, critics[surrogate], truth, cubic=cubic)
            found[bound].append(mean - truth)
    return found


class Asinh(torch.nn.Module):
    """Tames the tails of a cubed normal."""

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise and invertible, so it keeps the information."""
        return (3 * z).asinh()


def correlated_normals(rows: int, information: float, *, cubic: bool) -> tuple[Tensor, Tensor]:
    """Draw (x, z) with I(x; z) = -(d/2) log(1 - ρ²) = `information` nats."""
    rho = math.sqrt(1 - math.exp(-2 * information / DIMS))
    x, noise = torch.randn(2, rows, DIMS, dtype=torch.float32)
    z = rho * x + math.sqrt(1 - rho**2) * noise
    return x, z**3 if cubic else z


def pair_scores(critic: SeparableCritic, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Score the joint rows (n,), and all other pairs (n, n - 1)."""
    scores = critic.all_pairs(x, z)
    n = scores.shape[0]
    others = scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
    return scores.diagonal(), others


def train_critic(
    surrogate: str, information: float, *, cubic: bool, seed: int, steps: int = STEPS
) -> SeparableCritic:
    """Maximise a surrogate on fresh minibatches."""
    torch.manual_seed(seed)
    critic = SeparableCritic(
        DIMS,
        DIMS,
        hidden=(256,),
        activation=torch.nn.SiLU,
        z_encoder=Asinh() if cubic else None,
    ).float()
    optimiser = torch.optim.Adam(critic.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        x, z = correlated_normals(TRAIN_ROWS, information, cubic=cubic)
        loss = -BOUNDS[surrogate](*pair_scores(critic, x, z)).surrogate
        optimiser.zero_grad()
        loss.backward()
        # Without it one early e^T can throw an nwj critic too far to come back.
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return critic


@torch.no_grad()
def fresh_estimate(
    bound: str, critic: SeparableCritic, information: float, *, cubic: bool
) -> tuple[float, float]:
    """Mean and standard error of the estimate over fresh batches."""
    estimates = [
        BOUNDS[bound](
            *pair_scores(critic, *correlated_normals(FRESH_ROWS, information, cubic=cubic))
        ).estimate.item()
        for _ in range(FRESH_BATCHES)
    ]
    return statistics.mean(estimates), statistics.stdev(estimates) / math.sqrt(FRESH_BATCHES)
