"""HVAE's Gaussian model: a latent for a whole data set, in up to hundreds of dimensions.

From the repository's root, after `pip install -e .[demo,numpyro]`:

    python examples/reproductions/hvae_gaussian.py --quick
    python examples/reproductions/hvae_gaussian.py --check --backend numpyro

Table and figure are written to the folder `--out`.
"""

import sys
from collections.abc import Sequence
from functools import partial

from hvae_gaussian_parts.figures import errors_and_gaps
from hvae_gaussian_parts.measure import measure, tabulate
from hvae_gaussian_parts.methods import METHODS
from reproduction.options import parse
from reproduction.results import Results
from reproduction.runs import measure_all

NAME = "hvae_gaussian"


def main(argv: Sequence[str] | None = None) -> int:
    """Train every method in every dimension, and write table and figure."""
    options = parse(NAME, __doc__, argv)
    size = options.pick(check=500, quick=10_000, full=10_000)
    run = partial(
        measure,
        backend=options.backend,
        device=options.device,
        size=size,
        seeds=range(options.pick(check=2, quick=3, full=10)),
        budgets=options.pick(
            check=(66,), quick=(3_300, 11_000, 33_000), full=(33_000, 110_000, 330_000)
        ),
        learning_rate=options.pick(check=0.005, quick=0.005, full=0.001),
        draws=options.pick(check=50, quick=1000, full=1000),
    )
    dims = options.pick(
        check=(2,), quick=(1, 11, 101), full=(1, 2, 3, 5, 11, 25, 51, 101, 201, 301)
    )
    settings = [{"dim": dim, "method": method} for dim in dims for method in METHODS]
    results = Results(NAME, options)
    table = results.table("table", tabulate(measure_all(run, settings, options), size))
    results.figure("errors_and_gaps", errors_and_gaps(table))
    print(f"Saved {results.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
