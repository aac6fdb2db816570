"""HVAE on images: does the flow better the likelihood of a variational autoencoder?

From the repository's root, after `pip install -e .[demo,numpyro]`:

    python examples/reproductions/hvae_images.py --quick --data-dir path/to/mnist
    python examples/reproductions/hvae_images.py --check --backend numpyro
    python examples/reproductions/hvae_images.py --full --data-dir path/to/mnist --device cuda

Without `--data-dir` the images are scikit-learn's digits. What the paper reports and what is found
are written to `README.md` in the folder `--out`.
"""

import sys
from collections.abc import Sequence
from functools import partial

from hvae_images_parts.data import DataError, Images, load
from hvae_images_parts.figures import comparison
from hvae_images_parts.measure import measure, tabulate
from hvae_images_parts.methods import BATCH, METHODS, VAE, Net, Setting
from hvae_images_parts.texts import REPORTED, found, reasons
from reproduction.options import parse
from reproduction.page import write_page
from reproduction.runs import measure_all

NAME = "hvae_images"
CAPTION = (
    "Left: NLL of test images by optimisation steps; every HVAE has the gradients of the VAE's "
    "last point, whose NLL is dotted. Right: what the bound has beyond the NLL. Bars are standard "
    "deviations over seeds."
)
COLUMNS = {
    "method": "",
    "gradients": ",d",
    "steps": ",d",
    "nll": ".2f",
    "nll_sd": ".2f",
    "nll_own": ".2f",
    "nll_encoder": ".2f",
    "bound": ".2f",
    "gap": ".2f",
    "step_size": ".3f",
    "beta_0": ".3f",
    "seeds": "d",
}
DENSE = Net(latent_dim=16, hidden=128)
CHECKED = (VAE, "HVAE K=5, free")
CONVOLUTIONAL = Net(latent_dim=64, hidden=450, channels=(16, 32, 32))


def main(argv: Sequence[str] | None = None) -> int:
    """Train every method from every seed, and write the page."""
    options = parse(NAME, __doc__, argv, data_dir="folder with MNIST's IDX files, gzipped or not")
    every = tuple(METHODS)
    setting = Setting(
        data_dir=options.data_dir,
        pooled=options.pick(check=4, quick=2, full=1),
        num_test=options.pick(check=20, quick=300, full=10_000),
        net=options.pick(check=Net(2, 4), quick=DENSE, full=CONVOLUTIONAL),
        methods=options.pick(check=CHECKED, quick=every, full=every),
        gradients=options.pick(check=132, quick=13_200, full=2_750_000),
        learning_rate=options.pick(check=2e-3, quick=2e-3, full=5e-4),
        draws=options.pick(check=10, quick=200, full=1000),
        backend=options.backend,
        device=options.device,
    )
    try:
        images = load(setting.data_dir, pooled=setting.pooled, num_test=setting.num_test)
    except DataError as error:
        print(f"{NAME}.py: error: {error}", file=sys.stderr)
        return 2
    kind = "digits" if options.data_dir is None else "scans"
    runs = [
        {"images": kind, "seed": seed, "method": method}
        for seed in range(options.pick(check=2, quick=3, full=3))
        for method in setting.methods
    ]
    table = tabulate(measure_all(partial(measure, setting=setting), runs, options))
    page = write_page(
        NAME,
        options,
        title="HVAE on images: does the flow better the likelihood?",
        reported=REPORTED,
        found=found(table),
        reasons=reasons(describe(images, setting)),
        tables={"table": (table, COLUMNS)},
        figures={"nll": (comparison(table), CAPTION)},
        also_used=("scikit-learn",),
    )
    print(f"Saved {page}")
    return 0


def describe(images: Images, setting: Setting) -> str:
    """The run in words, for the page."""
    net = setting.net
    layers = f"convolutions of {net.channels} channels, 5 × 5, stride 2, and " * bool(net.channels)
    epochs = setting.gradients * BATCH / len(images.train)
    return (
        f"{images.source}: {len(images.train):,} to train on and {len(images.test):,} to test. "
        f"The encoder has {layers}one dense layer of {net.hidden}, the code "
        f"{net.latent_dim} dimensions; the decoder mirrors it. Adamax has the learning rate "
        f"{setting.learning_rate:g}; the NLL is by {setting.draws:,} draws. The budget is "
        f"{setting.gradients:,} gradients, {epochs:,.0f} epochs for the VAE."
    )


if __name__ == "__main__":
    sys.exit(main())
