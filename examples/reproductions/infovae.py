"""InfoVAE: when the ELBO gives up inference, and what MMD does about it.

Zhao, Song, Ermon, "InfoVAE: Balancing Learning and Inference in Variational Autoencoders",
arXiv 1706.02262; the authors' tutorial on MMD variational autoencoders; and the post
"Representation learning with MMD-VAE" of the RStudio AI blog. From the repository's root:

    python examples/reproductions/infovae.py --quick
    python examples/reproductions/infovae.py --quick --backend numpyro
    python examples/reproductions/infovae.py --full --data-dir path/to/mnist --device cuda
"""

import sys
from collections.abc import Sequence
from itertools import product

import pandas as pd
from joblib import Parallel, delayed

from info_vaes.images import DATA_DIR_HELP, DataError, folder, load_images
from infovae_parts import measuring
from infovae_parts.figures import codes_figure, sizes_figure, two_points_figure
from infovae_parts.measuring import Pictures
from infovae_parts.two_points import OBJECTIVES
from reproduction.options import Options, parse
from reproduction.results import Results, cell, mean_and_spread
from reproduction.runs import Value, measure_all

NAME = "infovae"


def main(argv: Sequence[str] | None = None) -> int:
    """Train on two points, on few and more images, and for pictures; the exit status is 0."""
    options = parse(NAME, __doc__, argv, data_dir=DATA_DIR_HELP)
    try:
        available = len(load_images(folder(options), seed=0).train_images)
        if available < max(training_sizes(options)):
            raise DataError(
                f"Expected at least {max(training_sizes(options))} training images; got {available}"
            )
    except DataError as error:
        print(f"{NAME}.py: error: {error}", file=sys.stderr)
        return 2
    results = Results(NAME, options, ["scikit-learn"])
    points = mean_and_spread(two_points(options), ["objective", "step"], measuring.TWO_POINTS)
    results.figure("two_points", two_points_figure(results.table("two_points", points)))
    by_size = mean_and_spread(sizes(options), ["objective", "size"], measuring.SIZES)
    results.figure("sizes", sizes_figure(results.table("sizes", by_size)))
    taken, codes = pictures(options)
    results.table("codes", codes.set_index("objective").map(cell))
    results.figure(f"codes_{options.backend}", codes_figure(taken))
    print(f"Saved {results.folder}")
    return 0


def two_points(options: Options) -> pd.DataFrame:
    """The trainings on two points."""
    steps = options.pick(check="0 20", quick="0 100 1000 5000", full="0 100 1000 10000 100000")
    settings = [
        {**_where(options), "objective": objective, "seed": seed, "steps": steps}
        for seed, objective in product(range(options.pick(check=1, quick=3, full=5)), OBJECTIVES)
    ]
    return measure_all(measuring.measure_two_points, settings, options)


def sizes(options: Options) -> pd.DataFrame:
    """The trainings on few and on more images."""
    every = tuple(measuring.SIZES_OBJECTIVES)
    objectives = options.pick(check=("elbo", "mmd"), quick=every, full=every)
    settings = [
        {
            **_where(options),
            "data_dir": folder(options),
            "objective": objective,
            "size": size,
            "steps": options.pick(check=5, quick=1000, full=50_000),
            "latent_dim": options.pick(check=2, quick=8, full=10),
            "seed": seed,
        }
        for seed, size, objective in product(
            range(options.pick(check=1, quick=3, full=5)), training_sizes(options), objectives
        )
    ]
    return measure_all(measuring.measure_size, settings, options)


def training_sizes(options: Options) -> tuple[int, ...]:
    """Numbers of training images."""
    return options.pick(
        check=(200,),
        quick=(100, 200, 400, 800, 1400),
        full=(500, 1000, 2000, 5000, 10_000, 20_000, 50_000),
    )


def pictures(options: Options) -> tuple[dict[str, Pictures], pd.DataFrame]:
    """The 2-D codes, which are not kept, and what they are worth."""
    every = tuple(measuring.PICTURES_OBJECTIVES)
    objectives = options.pick(check=every[-1:], quick=every, full=every)
    steps = options.pick(check=5, quick=2000, full=50_000)
    found: list[tuple[Pictures, dict[str, Value]]] = Parallel(n_jobs=options.jobs)(
        delayed(measuring.picture)(
            objective, **_where(options), data_dir=folder(options), steps=steps, seed=0
        )
        for objective in objectives
    )
    taken, measured = zip(*found, strict=True)
    return dict(zip(objectives, taken, strict=True)), pd.DataFrame(measured)


def _where(options: Options) -> dict[str, Value]:
    return {"backend": options.backend, "device": options.device}


if __name__ == "__main__":
    sys.exit(main())
