"""HVAE on images: does the flow better the likelihood of a variational autoencoder?

From the repository's root, after `pip install -e .[demo,numpyro]`:

    python examples/reproductions/hvae_images.py --quick --data-dir path/to/mnist
    python examples/reproductions/hvae_images.py --check --backend numpyro
    python examples/reproductions/hvae_images.py --full --data-dir path/to/mnist --device cuda

Without `--data-dir` the images are scikit-learn's digits. Table and figure are written to the
folder `--out`.
"""

import sys
from collections.abc import Sequence
from functools import partial

from hvae_images_parts.data import DataError, load
from hvae_images_parts.figures import comparison
from hvae_images_parts.measure import MEASURES, measure
from hvae_images_parts.methods import METHODS, VAE, Net
from reproduction.options import parse
from reproduction.results import Results, mean_and_spread
from reproduction.runs import measure_all

NAME = "hvae_images"
DENSE = Net(latent_dim=16, hidden=128)
CHECKED = (VAE, "HVAE K=5, free")
CONVOLUTIONAL = Net(latent_dim=64, hidden=450, channels=(16, 32, 32))


def main(argv: Sequence[str] | None = None) -> int:
    """Train every method from every seed, and write table and figure."""
    options = parse(NAME, __doc__, argv, data_dir="folder with MNIST's IDX files, gzipped or not")
    every = tuple(METHODS)
    methods = options.pick(check=CHECKED, quick=every, full=every)
    images = partial(
        load,
        options.data_dir,
        pooled=options.pick(check=4, quick=2, full=1),
        num_test=options.pick(check=20, quick=300, full=10_000),
    )
    run = partial(
        measure,
        load=images,
        methods=methods,
        net=options.pick(check=Net(2, 4), quick=DENSE, full=CONVOLUTIONAL),
        gradients=options.pick(check=132, quick=13_200, full=2_750_000),
        learning_rate=options.pick(check=2e-3, quick=2e-3, full=5e-4),
        draws=options.pick(check=10, quick=200, full=1000),
        backend=options.backend,
        device=options.device,
    )
    try:
        images()
    except DataError as error:
        print(f"{NAME}.py: error: {error}", file=sys.stderr)
        return 2
    kind = "digits" if options.data_dir is None else "scans"
    runs = [
        {"images": kind, "seed": seed, "method": method}
        for seed in range(options.pick(check=2, quick=3, full=3))
        for method in methods
    ]
    results = Results(NAME, options, ["scikit-learn"])
    by = ["method", "gradients", "steps"]
    found = mean_and_spread(measure_all(run, runs, options), by, MEASURES)
    table = results.table("table", found)
    results.figure("nll", comparison(table))
    print(f"Saved {results.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
