"""What the examples on several devices share: the autoencoder of the digits, and their options."""

from collections.abc import Collection
from pathlib import Path

from demo.backend import Setting
from demo.cli import integer
from demo.parser import Parser

PIXELS, LEVELS, LATENT_DIM = 64, 16, 2
BATCH_SIZE = 128


def digits_setting(seed: int) -> Setting:
    """What a training on the digits has to know."""
    return Setting(PIXELS, LEVELS, LATENT_DIM, learning_rate=1e-3, seed=seed)


def training_parser(
    description: str | None, objectives: Collection[str], *, checkpoint: Path | None = None
) -> Parser:
    """Declare the options of a training, and those of its checkpoint where it has one."""
    parser = Parser(description=description)
    parser.add_argument("--objective", choices=objectives, default="mmd", help="default: mmd")
    parser.add_argument("--epochs", type=integer(at_least=1), default=20, help="default: 20")
    parser.add_argument("--seed", type=integer(at_least=0), default=0)
    if checkpoint is not None:
        parser.add_argument(
            "--checkpoint",
            type=Path,
            default=checkpoint,
            help="written by the first process after every epoch (default: %(default)s)",
        )
        parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    return parser
