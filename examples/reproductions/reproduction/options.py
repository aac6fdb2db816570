"""The options that every reproduction takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from demo.parser import Parser

T = TypeVar("T")

BACKENDS = ("pyro", "numpyro")


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        effort: `check` (a few steps of everything, whose figures mean nothing), `quick` or `full`.
        backend: `pyro` or `numpyro`.
        out: Folder for table, figure and page.
        jobs: Processes that share the work.
        device: Where to compute, with Pyro.
        data_dir: Folder with data of one's own, where the reproduction takes some.
    """

    effort: str
    backend: str
    out: Path
    jobs: int
    device: str
    data_dir: Path | None = None

    def pick(self, *, check: T, quick: T, full: T) -> T:
        """The value of a setting for the effort that was asked for."""
        return {"check": check, "quick": quick, "full": full}[self.effort]


def parse(
    name: str,
    description: str | None,
    argv: Sequence[str] | None = None,
    *,
    data_dir: str | None = None,
) -> Options:
    """Read the options of the reproduction of a name.

    Args:
        name: The script's, without its ending.
        description: The script's docstring.
        argv: The arguments; those of the process by default.
        data_dir: Help for `--data-dir`, which is only declared where there is one.
    """
    parser = Parser(description=description)
    effort = parser.add_mutually_exclusive_group()
    for choice, meaning in (
        ("check", "a few steps of everything, to see that it runs; its figures mean nothing"),
        ("quick", "minutes on two cores (default)"),
        ("full", "the setting of the source"),
    ):
        effort.add_argument(
            f"--{choice}", dest="effort", action="store_const", const=choice, help=meaning
        )
    parser.add_argument("--backend", choices=BACKENDS, default="pyro")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/reproductions") / name,
        metavar="DIR",
        help="folder for table, figure, page and finished runs, which a second run with the same "
        "settings does not repeat (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that share the work (default: one per core)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...; with pyro only")
    if data_dir is not None:
        parser.add_argument("--data-dir", type=Path, metavar="DIR", help=data_dir)
    parser.set_defaults(effort="quick")
    options = Options(**vars(parser.parse_args(argv)))
    if options.jobs < 1:
        parser.error(f"argument --jobs: Expected at least 1; got {options.jobs}")
    if options.backend == "numpyro" and options.device != "cpu":
        parser.error("argument --device: with numpyro, set JAX_PLATFORMS instead")
    return options
