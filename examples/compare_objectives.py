"""Train one model and guide under several objectives, and compare what comes of it.

From the repository's root, after `pip install -e .[demo]`:

    python examples/compare_objectives.py
    python examples/compare_objectives.py --data mnist --data-dir path/to/idx/files
    python examples/compare_objectives.py --help
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile

import pyro
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from rich.console import Console
from tqdm import tqdm

from demo.cli import EPOCHS, build_parser
from demo.data import DataError, ImageData, load
from demo.evaluation import evaluate, fit
from demo.figures import draw_all
from demo.pictures import take_pictures
from demo.report import Result, table, write_tables
from demo.training import train
from demo.vae import VAE
from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO


@dataclass(frozen=True)
class Setting:
    """What an objective with parts of its own (a critic, say) has to know.

    Attributes:
        pixels: Number of pixels of an image.
        latent_dim: Number of dimensions of the code.
        device: Where model and guide live.
    """

    pixels: int
    latent_dim: int
    device: torch.device


# Another objective is one more entry. The weight of `mmd` makes the MMD² of 0.03 that `elbo` leaves
# on the digits cost 3 nats per image.
OBJECTIVES: dict[str, Callable[[Setting], ELBO]] = {
    "elbo": lambda setting: TraceMeanField_ELBO(),
    "mmd": lambda setting: TraceMMD_ELBO(alpha=0.0, lambd=100.0),
    "infomax": lambda setting: TraceInfoMax_ELBO(
        ConcatCritic(setting.pixels, setting.latent_dim, hidden=(64,)).to(setting.device),
        alpha=1.0,
    ),
    "hamiltonian": lambda setting: TraceHamiltonian_ELBO(num_steps=2, step_size=0.05),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the objectives; the exit status is 0, or 130 when interrupted."""
    parser = build_parser(OBJECTIVES, description=__doc__)
    options = parser.parse_args(argv)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=options.out):
            data = load(options.data, data_dir=options.data_dir, seed=options.seed)
    except (DataError, OSError) as error:
        parser.error(str(error))

    console = Console()
    results: list[Result] = []
    status = 0
    try:
        for name in dict.fromkeys(options.objectives):
            results.append(train_and_evaluate(name, data.to(options.device), options))
    except KeyboardInterrupt:
        console.print(f"Interrupted: the finished trainings are kept ({len(results)}).")
        status = 130
    if results:
        files = write_tables(results, options.out)
        files += draw_all(results, options.out, latent_dim=options.latent_dim)
        title = f"{options.data}, {options.latent_dim}-D code, {len(results[0].epochs)} epochs"
        console.print(table(results, title=title, levels=data.levels))
        console.print("Saved", *files, sep="\n  ")
    return status


def train_and_evaluate(name: str, data: ImageData, options: Namespace) -> Result:
    """Train under one objective; weights and minibatches start as under any other."""
    pyro.set_rng_seed(options.seed)
    vae = VAE(pixels=data.pixels, levels=data.levels, latent_dim=options.latent_dim)
    vae.to(options.device)
    objective = OBJECTIVES[name](Setting(data.pixels, options.latent_dim, options.device))

    total = options.epochs or EPOCHS[options.data]
    training = train(vae, objective, data.train_images, epochs=total, seed=options.seed)
    # Where there is no terminal, `disable=None` hides the bar.
    bar = tqdm(training, desc=name, total=total, disable=options.quiet or None, unit="epoch")
    epochs, fits = [], []
    for epoch in bar:
        epochs.append(epoch)
        fits.append(fit(vae, data.test_images))
        bar.set_postfix(loss=f"{epoch.loss:.1f}")
    return Result(
        objective=name,
        epochs=epochs,
        fits=fits,
        scores=evaluate(vae, objective, data),
        pictures=take_pictures(vae, data),
    )


if __name__ == "__main__":
    sys.exit(main())
