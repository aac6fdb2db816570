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

from information_stairs import figures
from information_stairs.errors import by_stair, errors, windows
from information_stairs.problem import NEGATIVES, PAIRS, Climb, Plan
from reproduction.options import parse
from reproduction.results import Results
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
    """Train every critic, and write tables and figures."""
    options = parse(NAME, __doc__, argv)
    plan = options.pick(check=CHECK, quick=QUICK, full=FULL)
    climbs = options.pick(check=CHECKED, quick=ALL, full=ALL)
    seeds = options.pick(check=1, quick=1, full=5)
    climb_once = partial(measure, backend=options.backend, device=options.device, plan=plan)
    settings = [{**asdict(climb), "seed": seed} for climb in climbs for seed in range(seeds)]
    frame = measure_all(climb_once, settings, options)
    results = Results(NAME, options)
    tables = {n: results.table(n, part) for n, part in by_stair(errors(frame)).items()}
    results.figure("spreads", figures.spreads(tables))
    results.figure(f"climbs_{options.backend}", figures.climbs(frame))
    print(f"Saved {results.folder}")
    return 0


def measure(*, backend: str, device: str, plan: Plan, **climb: Value) -> Iterator[Row]:
    """Climb once."""
    programs = importlib.import_module(f"information_stairs.with_{backend}")
    return windows(programs.estimates(Climb(**climb), plan, device))


if __name__ == "__main__":
    sys.exit(main())
