"""The options of `compare_objectives.py`, each checked where it is read."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from demo import backend, data
from demo.parser import Parser

EPOCHS = {"digits": 100, "mnist": 30, "fashion-mnist": 30}
EPOCHS_TO_COLLAPSE = 60


def build_parser(objectives: Collection[str], *, description: str | None) -> Parser:
    """Declare the options."""
    default_epochs = ", ".join(f"{epochs} for {name}" for name, epochs in EPOCHS.items())
    parser = Parser(description=description)
    parser.add_argument(
        "--backend", choices=backend.NAMES, default="pyro", help="pyro (default) or numpyro"
    )
    parser.add_argument("--data", choices=data.NAMES, default="digits")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder with the IDX files of mnist or fashion-mnist, gzipped or not; "
        "without it they are downloaded from openml.org",
    )
    parser.add_argument(
        "--objectives",
        nargs="+",
        choices=objectives,
        default=list(objectives),
        metavar="NAME",
        help=f"any of {', '.join(objectives)} (default: all)",
    )
    parser.add_argument(
        "--latent-dim",
        type=integer(at_least=2),
        metavar="D",
        help="dimensions of the code (default: 2, with --collapse 8)",
    )
    parser.add_argument(
        "--collapse",
        action="store_true",
        help="an autoregressive decoder that can do without the code, on binary images",
    )
    parser.add_argument(
        "--epochs",
        type=integer(at_least=1),
        metavar="E",
        help=f"passes over the training images (default: {default_epochs}; with --collapse at "
        f"most {EPOCHS_TO_COLLAPSE})",
    )
    parser.add_argument(
        "--seed",
        type=integer(at_least=0),
        default=0,
        metavar="S",
        help="fixes split, initial weights, order of minibatches and noise (default: 0)",
    )
    parser.add_argument(
        "--seeds",
        type=integer(at_least=1),
        default=1,
        metavar="N",
        help="trainings per objective, with the seeds S, S + 1, ... (default: 1)",
    )
    parser.add_argument("--device", help="cpu (default), cuda, cuda:1, mps, ...; with pyro only")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for report, tables, figures and finished trainings, which a second run with "
        "the same settings does not repeat (default: outputs)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def fill_in(options: argparse.Namespace) -> None:
    """Set the defaults that depend on other options."""
    if options.epochs is None:
        usual = EPOCHS[options.data]
        options.epochs = min(usual, EPOCHS_TO_COLLAPSE) if options.collapse else usual
    if options.latent_dim is None:
        options.latent_dim = 8 if options.collapse else 2


def integer(*, at_least: int) -> Callable[[str], int]:
    """A converter of options to integers with a lower bound and room in 32 bits."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if not at_least <= number < 2**32:
            raise argparse.ArgumentTypeError(
                f"Expected an integer of at least {at_least}; got {text!r}"
            )
        return number

    return convert
