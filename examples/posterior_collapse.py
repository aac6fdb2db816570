"""A decoder that can do without the code: the ELBO lets it, TraceInfoMax_ELBO does not.

The decoder of these 8 x 8 digits is autoregressive: it sees all pixels before the one that it
predicts, and the code only through weights that start small. Under the ELBO the posterior falls
back to the prior. With a mutual information term the code tells the digits apart; what that costs
in the ELBO is in the table.

From the repository's root, after `pip install -e .[demo]`:

    python examples/posterior_collapse.py
    python examples/posterior_collapse.py --help
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl
import pyro
import torch
from autoregressive import AutoregressiveVAE
from matplotlib import pyplot as plt
from pyro.infer import ELBO, SVI, TraceMeanField_ELBO
from pyro.optim import Adam
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.distributions import kl_divergence
from tqdm import tqdm

from demo.cli import Parser, integer
from demo.data import ImageData, load
from demo.training import minibatches
from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO
from pyro_infovae.diagnostics import aggregated_posterior

LATENT_DIM = 8
BATCH_SIZE = 128
ALPHAS = (1.0, 2.0, 4.0)
# The decoder learns fastest: it has long learned to do without the code when the encoder is ready.
LEARNING_RATES = {"decoder": 1e-2, "encoder": 2e-3, "critic": 2e-3}
ACTIVE = 0.01
NEIGHBOURS = 5
DRAWS = 10

mpl.use("agg")


@dataclass(frozen=True)
class Result:
    """What one training gave; on held-out images but for `active_units`, in nats per image.

    Attributes:
        objective: Its name.
        seed: What it was trained with.
        active_units: Dimensions of the code whose posterior mean varies over the training images.
        information: I(x; z), at most the log of the number of images.
        kl: KL(q(z|x) ‖ p(z)).
        elbo: The bound on log p(x).
        knn: The accuracy of a nearest-neighbour classifier on draws of the code, in percent.
        linear: The accuracy of a linear classifier on them, in percent.
        seconds: How long the training took.
    """

    objective: str
    seed: int
    active_units: int
    information: float
    kl: float
    elbo: float
    knn: float
    linear: float
    seconds: float


HEADINGS = {
    "active_units": ("active", "{:.1f}"),
    "information": ("I(x; z)", "{:.1f}"),
    "kl": ("KL", "{:.1f}"),
    "elbo": ("ELBO", "{:.1f}"),
    "knn": (f"{NEIGHBOURS}-NN %", "{:.0f}"),
    "linear": ("linear %", "{:.0f}"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train under every objective and seed; the exit status is 0."""
    options = parse(argv)
    runs = [(alpha, seed) for alpha in (None, *options.alphas) for seed in range(options.seeds)]
    bar = tqdm(runs, disable=options.quiet or None, unit="training")
    results = [run(alpha, seed=seed, epochs=options.epochs) for alpha, seed in bar]

    Console().print(table(results))
    write(results, options.out / "posterior_collapse.csv")
    draw(results, options.out / "posterior_collapse.png")
    print(f"Saved posterior_collapse.csv and posterior_collapse.png in {options.out}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options, and make the folder."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=integer(at_least=1), default=3, help="default: 3")
    parser.add_argument("--epochs", type=integer(at_least=1), default=60, help="default: 60")
    parser.add_argument(
        "--alphas",
        type=weight,
        nargs="+",
        default=list(ALPHAS),
        help=f"weights of the mutual information (default: {' '.join(map(str, ALPHAS))})",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"Cannot write to {options.out}: {error.strerror}")
    return options


def weight(text: str) -> float:
    """A converter of options to numbers that are not negative."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"Expected a number of at least 0; got {text!r}")
    return number


def run(alpha: float | None, *, seed: int, epochs: int) -> Result:
    """Train under the ELBO, or with a weight of the mutual information, and measure the code."""
    data = binarised(load("digits", data_dir=None, seed=seed))
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = AutoregressiveVAE(pixels=data.pixels, latent_dim=LATENT_DIM)
    start = time.perf_counter()
    train(vae, objective(alpha, data.pixels), data.train_images, epochs=epochs, seed=seed)
    seconds = time.perf_counter() - start
    name = "ELBO" if alpha is None else f"InfoMax α={alpha:g}"
    return Result(name, seed, **measure(vae, data), seconds=seconds)


def objective(alpha: float | None, pixels: int) -> ELBO:
    """The stock ELBO, or the one with mutual information."""
    if alpha is None:
        return TraceMeanField_ELBO()
    return TraceInfoMax_ELBO(ConcatCritic(pixels, LATENT_DIM, (128, 128)), alpha)


def train(
    vae: AutoregressiveVAE, objective: ELBO, images: Tensor, *, epochs: int, seed: int
) -> None:
    """Stock SVI; the critic, if there is one, learns along."""

    def settings(name: str) -> dict[str, float]:
        return {"lr": LEARNING_RATES[name.split(".")[0]]}

    svi = SVI(vae.model, vae.guide, Adam(settings), loss=objective)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in minibatches(len(images), BATCH_SIZE, generator=order):
            svi.step(images, rows)


@torch.no_grad()
def measure(vae: AutoregressiveVAE, data: ImageData) -> dict[str, float]:
    """Everything of `Result` that is measured after training."""
    images = data.test_images
    posterior = vae.posterior(images)
    kl = kl_divergence(posterior, vae.prior(images)).mean().item()
    repeated = images.expand(DRAWS, -1, -1)
    log_likelihood = vae.likelihood(repeated, posterior.sample((DRAWS,))).log_prob(repeated)
    # What the decoder is given is a draw: where the posterior is the prior, it tells nothing.
    codes = vae.posterior(data.train_images).sample(), data.train_labels
    held_out = posterior.sample(), data.test_labels
    rows = torch.arange(len(images))
    return {
        "active_units": int((vae.posterior(data.train_images).mean.var(0) > ACTIVE).sum()),
        "information": aggregated_posterior(vae.model, vae.guide, images, rows).mutual_information,
        "kl": kl,
        "elbo": log_likelihood.mean().item() - kl,
        "knn": 100 * KNeighborsClassifier(NEIGHBOURS).fit(*codes).score(*held_out),
        "linear": 100 * LogisticRegression(max_iter=1000).fit(*codes).score(*held_out),
    }


def binarised(data: ImageData) -> ImageData:
    """Pixels that are inked by half or more, and the others."""
    train, test = (
        (images >= data.levels / 2).to(images) for images in (data.train_images, data.test_images)
    )
    return ImageData(train, data.train_labels, test, data.test_labels, data.image_shape, levels=1)


def grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each objective."""
    names = dict.fromkeys(result.objective for result in results)
    return {name: [r for r in results if r.objective == name] for name in names}


def table(results: Sequence[Result]) -> Table:
    """The means over the seeds, and how far they vary."""
    table = Table(
        title=f"Digits, mean ± standard deviation, seeds: {len({r.seed for r in results})}",
        caption="On held-out images, nats per image. active: of the "
        f"{LATENT_DIM} dimensions of the code, those whose posterior mean has a variance above "
        f"{ACTIVE}; {NEIGHBOURS}-NN and linear: accuracy of classifiers on draws of the code "
        "(chance is 10).",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("objective", no_wrap=True)
    for heading, _ in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, group in grouped(results).items():
        cells = []
        for column, (_, form) in HEADINGS.items():
            values = [getattr(result, column) for result in group]
            cells.append(form.format(mean(values)))
            if len(values) > 1:
                cells[-1] += f" ± {form.format(stdev(values))}"
        table.add_row(name, *cells)
    return table


def write(results: Sequence[Result], path: Path) -> None:
    """Save a row per training."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(vars(result) for result in results)


def draw(results: Sequence[Result], path: Path) -> None:
    """Save a panel per measure: a dot per seed, a line at the mean."""
    panels = {
        "active_units": f"active units of {LATENT_DIM}",
        "information": "I(x; z), nats",
        "knn": f"{NEIGHBOURS}-NN accuracy of the code, %",
        "elbo": "ELBO, nats per image",
    }
    groups = grouped(results)
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.2), layout="constrained")
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for position, group in enumerate(groups.values()):
            values = [getattr(result, column) for result in group]
            axis.plot([position] * len(values), values, "o", color="tab:blue", alpha=0.6)
            axis.hlines(mean(values), position - 0.3, position + 0.3, color="tab:blue")
        labels = [name.replace("InfoMax ", "") for name in groups]
        axis.set(title=title, xticks=range(len(groups)), xticklabels=labels)
        axis.spines[["top", "right"]].set_visible(False)
    axes[2].axhline(10, color="0.5", ls="--", lw=1)
    axes[2].annotate("chance", (0, 10), textcoords="offset points", xytext=(8, 4), color="0.4")
    figure.suptitle("Posterior collapse under the ELBO, and under InfoMax by α")
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
