"""A guide, the same guide after a Hamiltonian flow, and a chain of NUTS, side by side in ArviZ.

The eight schools (Rubin, 1981), not centred: tau and eta multiply to the effects, so that their
posterior is not normal, and an independent normal per latent is a poor guide.

From the repository's root, after `pip install -e .[arviz,demo,numpyro]`:

    python examples/eight_schools.py
    python examples/eight_schools.py --backend numpyro --quick
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from demo.cli import Parser, integer
from schools.settings import Settings

QUICK = Settings(steps=150, warmup=150, draws=250)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the three posteriors."""
    parser = _parser()
    options = parser.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    settings = replace(settings, seed=options.seed, quiet=options.quiet or not sys.stderr.isatty())
    console = Console()
    with warnings.catch_warnings():
        # ArviZ warns of itself, of matplotlib, and of what the table of k̂ tells.
        warnings.simplefilter("ignore")
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            half = importlib.import_module(f"halves.with_{options.backend}")
            programs = importlib.import_module("schools.programs")
            report = importlib.import_module("schools.report")
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            parser.error(f"needs {missing}: pip install 'pyro-infovae[arviz,demo,numpyro]'")
        except OSError as error:
            parser.error(f"Cannot write to {options.out}: {error.strerror}")
        posteriors = {
            "AutoNormal": programs.guide_alone(half, settings),
            "with flow": programs.guide_with_flow(half, settings),
            report.TRUTH: programs.chain(half, settings),
        }
        marginals, loo = report.marginals(posteriors), report.leave_one_out(posteriors)
        console.print(report.marginals_table(marginals), report.leave_one_out_table(loo), sep="\n")
        tables = {"marginals": marginals, "leave_one_out": loo}
        files = report.save(posteriors, tables, options.out)
    console.print("Saved", *files, sep="\n  ")
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--backend", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--quick", action="store_true", help="a rough answer within a minute")
    parser.add_argument(
        "--seed", type=integer(at_least=0), default=0, help="of all randomness (default: 0)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/eight_schools"),
        help="where to save (default: outputs/eight_schools)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
