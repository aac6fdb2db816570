"""The options of `compare_objectives.py`, each checked where it is read."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

import torch

from demo import data

EPOCHS = {"digits": 150, "mnist": 30, "fashion-mnist": 30}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and leaves the usage to `--help`."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser(objectives: Collection[str], *, description: str | None) -> Parser:
    """Declare the options."""
    default_epochs = ", ".join(f"{epochs} for {name}" for name, epochs in EPOCHS.items())
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        default=2,
        metavar="D",
        help="dimensions of the code (default: 2)",
    )
    parser.add_argument(
        "--epochs",
        type=integer(at_least=1),
        metavar="E",
        help=f"passes over the training images (default: {default_epochs})",
    )
    parser.add_argument(
        "--seed",
        type=integer(at_least=0),
        default=0,
        metavar="S",
        help="fixes split, initial weights, order of minibatches and noise (default: 0)",
    )
    parser.add_argument(
        "--device",
        type=device,
        default=torch.device("cpu"),
        help="cpu (default), cuda, cuda:1, mps, ...",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for tables and figures (default: outputs)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


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


def device(text: str) -> torch.device:
    """A converter of options to devices that tensors can be made on and read from."""
    try:
        probe = torch.zeros(1, device=text)
        probe.cpu()
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(
            f"Expected a device that this build of PyTorch can use; got {text!r}"
        ) from error
    return probe.device
