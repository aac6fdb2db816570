"""A model that is no autoencoder: Poisson regression with an effect per site, under each objective.

Counts at 400 sites, five visits each. A site has an effect of its own, whose prior depends on what
is known of the site; the sites are subsampled. Model and guide are written once, and only the
objective changes. The data are simulated, so the table can say how far off each answer is.

From the repository's root, after `pip install -e .[demo]`:

    python examples/user_model.py
    python examples/user_model.py --help
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import trange

from demo.cli import Parser, integer
from demo.tables import text_table
from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO

SITES, VISITS, MINIBATCH = 400, 5, 64
BETA = torch.tensor([0.5, -0.3])
GAMMA = torch.tensor([0.8, -0.4, 0.2])
TAU = 0.5
DRAWS = 500

# The flow is for the effects alone: the rest is outside the subsampled plate.
OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "elbo": lambda: TraceMeanField_ELBO(),
    "mmd": lambda: TraceMMD_ELBO(alpha=0.0, lambd=10.0),
    "infomax": lambda: TraceInfoMax_ELBO(ConcatCritic(VISITS, 1, hidden=(32,)), alpha=0.1),
    "hamiltonian": lambda: TraceHamiltonian_ELBO(num_steps=3, step_size=0.1, sites="effect"),
}


@dataclass(frozen=True)
class Counts:
    """What was seen.

    Attributes:
        counts: Of shape (sites, visits).
        visits: Covariates of each visit, of shape (sites, visits, 2).
        sites: Covariates of each site, of shape (sites, 3).
    """

    counts: Tensor
    visits: Tensor
    sites: Tensor


def simulate(seed: int) -> tuple[Counts, Tensor]:
    """Draw the data, and the effects behind them."""
    pyro.set_rng_seed(seed)
    visits, sites = torch.randn(SITES, VISITS, len(BETA)), torch.randn(SITES, len(GAMMA))
    effect = sites @ GAMMA + TAU * torch.randn(SITES)
    counts = torch.poisson((visits @ BETA + effect[:, None]).exp())
    return Counts(counts, visits, sites), effect


def model(data: Counts, size: int) -> None:
    """Counts per visit, given an effect per site; the plate draws `size` of the sites."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(len(BETA)), 1.0).to_event(1))
    gamma = pyro.sample("gamma", dist.Normal(torch.zeros(len(GAMMA)), 1.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("site", SITES, subsample_size=size) as i:
        effect = pyro.sample("effect", dist.Normal(data.sites[i] @ gamma, tau))
        rate = (data.visits[i] @ beta + effect[:, None]).exp()
        pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=data.counts[i])


class Guide(nn.Module):
    """Independent normals for what all sites share, and a network for the effect of each."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(VISITS * (1 + len(BETA)) + len(GAMMA), 32), nn.SiLU(), nn.Linear(32, 2)
        )

    def forward(self, data: Counts, size: int) -> None:
        """Draw everything that `model` draws."""
        pyro.module("guide", self)
        for name, truth in (("beta", BETA), ("gamma", GAMMA)):
            loc = pyro.param(f"{name}_loc", torch.zeros(len(truth)))
            scale = pyro.param(
                f"{name}_scale", torch.full((len(truth),), 0.1), dist.constraints.positive
            )
            pyro.sample(name, dist.Normal(loc, scale).to_event(1))
        tau_loc = pyro.param("tau_loc", torch.tensor(-1.0))
        tau_scale = pyro.param("tau_scale", torch.tensor(0.1), dist.constraints.positive)
        pyro.sample("tau", dist.LogNormal(tau_loc, tau_scale))
        with pyro.plate("site", SITES, subsample_size=size) as i:
            parts = data.counts[i].log1p(), data.visits[i].flatten(1), data.sites[i]
            loc, log_scale = self.network(torch.cat(parts, 1)).unbind(1)
            pyro.sample("effect", dist.Normal(loc, log_scale.exp()))


@dataclass(frozen=True)
class Answer:
    """What one training gave.

    Attributes:
        objective: Its name.
        elbo: The stock bound on log p(counts) in nats, whatever the training's objective.
        beta_error: Distance of the posterior mean of beta from the truth.
        gamma_error: The same for gamma.
        tau: The posterior mean of tau, which is 0.5.
        effect_error: Root mean squared error of the effects' posterior means.
        coverage: Share of the effects within their central 90 % interval.
    """

    objective: str
    elbo: float
    beta_error: float
    gamma_error: float
    tau: float
    effect_error: float
    coverage: float


def answer(name: str, data: Counts, effect: Tensor, *, steps: int, quiet: bool) -> Answer:
    """Train under one objective, and compare with the truth."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide, objective = Guide(), OBJECTIVES[name]()
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-2, "lrd": 0.1 ** (1 / steps)}), loss=objective)
    # Where there is no terminal, `disable=None` hides the bar.
    for _ in trange(steps, desc=name, disable=quiet or None, unit="step"):
        svi.step(data, MINIBATCH)

    best = guide
    if isinstance(objective, TraceHamiltonian_ELBO):
        best = objective.refine(model, guide)
    with torch.no_grad():
        draws = [pyro.poutine.trace(best).get_trace(data, SITES) for _ in range(DRAWS)]
        elbo = -Trace_ELBO(num_particles=20).loss(model, best, data, SITES)
    drawn = {
        site: torch.stack([draw.nodes[site]["value"] for draw in draws])
        for site in ("beta", "gamma", "tau", "effect")
    }
    low, high = drawn["effect"].quantile(torch.tensor([0.05, 0.95]), 0)
    return Answer(
        objective=name,
        elbo=elbo,
        beta_error=(drawn["beta"].mean(0) - BETA).norm().item(),
        gamma_error=(drawn["gamma"].mean(0) - GAMMA).norm().item(),
        tau=drawn["tau"].mean().item(),
        effect_error=(drawn["effect"].mean(0) - effect).square().mean().sqrt().item(),
        coverage=((low < effect) & (effect < high)).float().mean().item(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train under every objective; the exit status is 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("--steps", type=integer(at_least=1), default=1500, help="default: 1500")
    parser.add_argument("--seed", type=integer(at_least=0), default=0, help="of the data")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"Cannot write to {options.out}: {error.strerror}")

    data, effect = simulate(options.seed)
    answers = [
        answer(name, data, effect, steps=options.steps, quiet=options.quiet) for name in OBJECTIVES
    ]
    Console().print(table(answers))
    path = options.out / "user_model.csv"
    pd.DataFrame(answers).to_csv(path, index=False)
    print(f"Saved {path}")
    return 0


def table(answers: Sequence[Answer]) -> Table:
    """The answers as a table for the terminal."""
    headings = ("objective", "ELBO", "|β - β̂|", "|γ - γ̂|", "τ̂", "effects, RMSE", "in 90 %")
    rows = [
        [name, f"{elbo:.1f}", *(f"{e:.3f}" for e in errors), f"{coverage:.1%}"]
        for name, elbo, *errors, coverage in (vars(found).values() for found in answers)
    ]
    title = f"{SITES} sites, {VISITS} visits; tau is {TAU}"
    return text_table(title, headings, rows, pad_edge=False)


if __name__ == "__main__":
    sys.exit(main())
