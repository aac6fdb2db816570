"""Bounds on mutual information, as it climbs from 2 to 10 nats (arXiv 1905.06922, 1910.06222).

Critics are trained on pairs of correlated normals, as they are or cubed, whose mutual information
is known.

    python examples/reproductions/mutual_information_bounds.py --quick
    python examples/reproductions/mutual_information_bounds.py --quick --backend numpyro
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from information_stairs import figures, page
from information_stairs.errors import by_stair, errors, windows
from information_stairs.problem import NEGATIVES, PAIRS, STAIRS, Climb, Plan
from reproduction.options import Options, parse
from reproduction.page import write_page
from reproduction.runs import Row, Value, measure_all

NAME = "mutual_information_bounds"
CHECK = Plan(iterations=20, hidden=(8,), learning_rate=1e-3)
QUICK = Plan(iterations=1200, hidden=(128, 128), learning_rate=1e-3)
FULL = Plan(iterations=4000, hidden=(256, 256, 256), learning_rate=5e-4)

# The longest first. The exact ratio is the same for cubed pairs.
ALL = [
    *(Climb(p, c, n) for c in ("joint", "separable") for n in NEGATIVES for p in PAIRS),
    *(Climb("normal", "exact", negatives) for negatives in NEGATIVES),
]
CHECKED = [
    Climb("normal", "joint", "all"),
    Climb("cubic", "separable", "shift"),
    Climb("normal", "exact", "all"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Train every critic, and write the page."""
    options = parse(NAME, __doc__, argv)
    plan = options.pick(check=CHECK, quick=QUICK, full=FULL)
    climbs = options.pick(check=CHECKED, quick=ALL, full=ALL)
    seeds = options.pick(check=1, quick=1, full=5)
    climb_once = partial(measure, backend=options.backend, device=options.device, plan=plan)
    settings = [{**asdict(climb), "seed": seed} for climb in climbs for seed in range(seeds)]
    print(write(measure_all(climb_once, settings, options), plan, options))
    return 0


def measure(*, backend: str, device: str, plan: Plan, **climb: Value) -> Iterator[Row]:
    """Climb once."""
    programs = importlib.import_module(f"information_stairs.with_{backend}")
    return windows(programs.estimates(Climb(**climb), plan, device))


def write(frame: pd.DataFrame, plan: Plan, options: Options) -> Path:
    """Tables, figures and page."""
    table = errors(frame)
    wide = by_stair(table)
    shown = {"pairs": "", "critic": "", "bound": ""}
    shown |= {f"{error} {stair:g}": ".2f" for error in ("bias", "sd") for stair in STAIRS}
    return write_page(
        NAME,
        options,
        title="Bounds on mutual information",
        reported=page.REPORTED,
        found=page.found(table),
        reasons=page.reasons(plan),
        tables={
            negatives: (wide[wide["negatives"] == negatives], shown)
            for negatives in ("all", "shift")
        },
        figures={
            "climbs": (
                figures.climbs(frame),
                "Estimates of critics trained on through the stairs, with all other rows as "
                "negatives: the mean and the central half of the estimates, by twentieths of a "
                "stair. The lower panels are of cubed pairs.",
            ),
            "spreads": (
                figures.spreads(table),
                "Bias and standard deviation of a minibatch's estimate, with the best critic of "
                "each bound, and with trained ones.",
            ),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
