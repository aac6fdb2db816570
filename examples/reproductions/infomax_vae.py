"""InfoMax-VAE: what the weight of the mutual information does to code and model.

Rezaabad, Vishwanath, "Learning Representations by Maximizing Mutual Information in Variational
Autoencoders", arXiv 1912.13361. From the repository's root:

    python examples/reproductions/infomax_vae.py --quick
    python examples/reproductions/infomax_vae.py --quick --backend numpyro
    python examples/reproductions/infomax_vae.py --full --data-dir path/to/mnist --device cuda
"""

import sys
from collections.abc import Sequence
from itertools import product

from info_vaes.images import DATA_DIR_HELP, DataError, folder, load_images
from infomax_parts.figures import sweep_figure
from infomax_parts.measuring import DECODERS, MEASURES, measure
from reproduction.options import Options, parse
from reproduction.results import Results, mean_and_spread
from reproduction.runs import Value, measure_all

NAME = "infomax_vae"


def main(argv: Sequence[str] | None = None) -> int:
    """Train with a decoder that needs the code, and with one that does not; by alpha."""
    options = parse(NAME, __doc__, argv, data_dir=DATA_DIR_HELP)
    try:
        load_images(folder(options), seed=0)
    except DataError as error:
        print(f"{NAME}.py: error: {error}", file=sys.stderr)
        return 2
    results = Results(NAME, options, ["scikit-learn"])
    runs = measure_all(measure, settings(options), options)
    table = results.table("alphas", mean_and_spread(runs, ["decoder", "alpha"], MEASURES))
    results.figure("alphas", sweep_figure(table))
    print(f"Saved {results.folder}")
    return 0


def settings(options: Options) -> list[dict[str, Value]]:
    """The trainings."""
    alphas = options.pick(
        check=(0.0, 4.0),
        quick=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        full=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    )
    decoders = options.pick(check=DECODERS[-1:], quick=DECODERS, full=DECODERS)
    seeds = range(options.pick(check=1, quick=3, full=5))
    return [
        {
            "backend": options.backend,
            "device": options.device,
            "data_dir": folder(options),
            "decoder": decoder,
            "alpha": alpha,
            "latent_dim": options.pick(check=2, quick=8, full=16),
            "steps": options.pick(check=5, quick=1000, full=50_000),
            "seed": seed,
        }
        for seed, decoder, alpha in product(seeds, decoders, alphas)
    ]


if __name__ == "__main__":
    sys.exit(main())
