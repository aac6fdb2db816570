"""How near trained critics come to a known mutual information.

Pairs of correlated normals, d = 20, as they are or with z cubed (which leaves I as it is). Run as
`python benchmarks/mutual_information.py`; it writes benchmarks/mutual_information.md.
"""

import math
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from pyro_infovae.critics import SeparableCritic
from pyro_infovae.mutual_information import BOUNDS

DIMS = 20
TRUTHS = (2.0, 4.0, 6.0)
SEEDS = range(5)
# smile trains its critic as js does.
SURROGATES = {"nwj": "nwj", "dv": "dv", "infonce": "infonce", "js": "js", "smile": "js"}
TRAIN_ROWS, STEPS, LEARNING_RATE = 256, 500, 6e-3
FRESH_ROWS, FRESH_BATCHES = 1024, 16


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


def train_critic(surrogate: str, information: float, *, cubic: bool, seed: int) -> SeparableCritic:
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
        optimiser, LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    for _ in range(STEPS):
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


def measure() -> dict[tuple[str, bool, float], list[float]]:
    """Bias of each bound, kind of pair and truth, over the seeds."""
    biases: dict[tuple[str, bool, float], list[float]] = {}
    for cubic in (False, True):
        for truth in TRUTHS:
            for seed in SEEDS:
                critics = {
                    surrogate: train_critic(surrogate, truth, cubic=cubic, seed=seed)
                    for surrogate in set(SURROGATES.values())
                }
                for bound, surrogate in SURROGATES.items():
                    mean, _ = fresh_estimate(bound, critics[surrogate], truth, cubic=cubic)
                    biases.setdefault((bound, cubic, truth), []).append(mean - truth)
    return biases


def table(biases: dict[tuple[str, bool, float], list[float]]) -> str:
    """Write bias ± standard deviation as a Markdown table."""
    kinds = [(cubic, truth) for cubic in (False, True) for truth in TRUTHS]
    lines = [
        "| bound | "
        + " | ".join(f"{'cubic' if cubic else 'normal'}, I = {truth:g}" for cubic, truth in kinds)
        + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for bound in SURROGATES:
        cells = [
            f"{statistics.mean(values):+.2f} ± {statistics.stdev(values):.2f}"
            for values in (biases[bound, cubic, truth] for cubic, truth in kinds)
        ]
        lines.append(f"| `{bound}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_name() -> str:
    """Name the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure and write the page."""
    start = time.perf_counter()
    biases = measure()
    minutes = (time.perf_counter() - start) / 60
    page = f"""# Mutual information: bias of trained critics

Mean of (estimate - truth) ± standard deviation over {len(SEEDS)} seeds, in nats.
Pairs: correlated normals, d = {DIMS}, as they are or with z cubed.
Critic: a `SeparableCritic` with one hidden layer of 256 (asinh of the cubed z before it).
Training: {STEPS} Adam steps on fresh batches of {TRAIN_ROWS} rows, all pairs as negatives,
gradient norm clipped at 1.
Estimates: {FRESH_BATCHES} fresh batches of {FRESH_ROWS} rows. `infonce` can reach log {FRESH_ROWS},
{math.log(FRESH_ROWS):.2f} nats; `smile` (clip 5) is no bound and may exceed the truth.

{table(biases)}

Written by `python benchmarks/mutual_information.py` in {minutes:.1f} minutes on {cpu_name()},
{torch.get_num_threads()} thread(s), Python {platform.python_version()}, torch {torch.__version__},
{datetime.now(UTC):%Y-%m-%d}.
"""
    Path(__file__).with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
