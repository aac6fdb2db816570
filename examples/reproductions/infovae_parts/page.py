"""The page: what it says is taken from the tables."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from demo.pictures import Pictures
from infovae_parts.figures import NAMES, codes_figure, sizes_figure, two_points_figure
from reproduction.comparing import in_words, order
from reproduction.options import Options
from reproduction.page import mean_and_spread, write_page

TWO_POINTS = ("loc_plus", "scale_plus", "evidence", "elbo", "gap", "marginal_kl")
SIZES = ("log_det", "log_det_held_out", "log_prob", "unreliable")
TWO_POINTS_COLUMNS = {name: ".2f" for name in (*TWO_POINTS, "marginal_kl_sd", "gap_sd")}
SIZES_COLUMNS = {
    "log_det": ".2f",
    "log_det_sd": ".2f",
    "log_det_held_out": ".2f",
    "log_prob": ".2f",
    "log_prob_sd": ".2f",
    "unreliable": ".0%",
}

REPORTED = """
*InfoVAE: Balancing Learning and Inference in Variational Autoencoders* ([arXiv
1706.02262](https://arxiv.org/abs/1706.02262)) reports that the ELBO prefers fitting the data to
inferring well:

- on a data set of the two points -1 and +1, with a decoder whose variance may vanish, maximising
  the ELBO pushes q(z|x) of the two points apart and away from the prior, while MMD keeps q(z) like
  the prior;
- trained on few images, the ELBO's q(z) departs from the prior, as the log determinant of its
  covariance tells, which is 0 for the prior, while under MMD it stays near 0; with few images the
  held-out likelihood suffers.

The authors'
[tutorial](https://ermongroup.github.io/blog/a-tutorial-on-mmd-variational-autoencoders/) shows 2-D
codes of digits under the ELBO and under MMD, and the post [Representation learning with
MMD-VAE](https://blogs.rstudio.com/ai/posts/2018-10-22-mmd-vae/) trains an MMD-VAE whose encoder is
deterministic: samples, codes by class and a grid over the codes.
"""

REASONS = """
The networks are small (two hidden layers of 128 units; for the two points, of 64), and with
`--quick` the images are the 8 × 8 digits of scikit-learn, binarised for the training-set sizes; the
source has other networks, and MNIST. Directions can be compared, figures cannot.

On two points the ELBO grows without bound only in the limit: a draw that falls on the other point's
side costs (2/σ)²/2 nats, so the smaller the decoder's σ the further apart the posteriors have to
be, and the distance grows with the square root of a logarithm: how far they get within some steps
is a matter of optimisation. `gap` is KL(q(z|x) ‖ p(z|x)), from the exact evidence by quadrature.
The MMD concerns q(z) alone, so it does not have to make that small: no normal has the shape of half
a prior, and with the q(z) that MMD asks for the two posteriors overlap.

log p(x) is an importance-weighted estimate with 500 draws from the guide, in expectation below the
true one; `unreliable` is the share of images whose Pareto k̂ is above 0.7. Every training takes the
same number of steps, and none is stopped early, so those on few images overfit: how much depends on
how long one trains.
"""


def write(
    options: Options,
    two_points: pd.DataFrame,
    sizes: pd.DataFrame,
    pictures: Mapping[str, Pictures],
    codes: pd.DataFrame,
) -> Path:
    """Write the page, and return where it is."""
    by_step = mean_and_spread(two_points, ["objective", "step"], TWO_POINTS)
    by_size = mean_and_spread(sizes, ["objective", "size"], SIZES)
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 9}):
        figures = {
            "two_points": (
                two_points_figure(two_points),
                "q(z|x) of the two points -1 (green) and +1 (red), and the prior (dashed); seed 0",
            ),
            "sizes": (
                sizes_figure(sizes),
                "Departure of q(z) from the prior, and fit to held-out images; every dot is a seed",
            ),
            "codes": (
                codes_figure(pictures),
                "2-D codes of held-out images by class, with circles that hold 50%, 90% and 99% of "
                "the prior; images decoded from the prior; a grid of codes, decoded; seed 0",
            ),
        }
    return write_page(
        "infovae",
        options,
        title="InfoVAE: MMD in the place of the ELBO's KL",
        reported=REPORTED,
        found="\n\n".join([two_points_text(by_step), sizes_text(by_size), codes_text(codes)]),
        reasons=REASONS,
        tables={
            "two_points": (
                by_step,
                {"objective": "", "step": ",", **TWO_POINTS_COLUMNS, "seeds": ""},
            ),
            "sizes": (
                by_size,
                {"objective": "", "size": ",", **SIZES_COLUMNS, "seeds": ""},
            ),
            "codes": (
                codes,
                {
                    "objective": "",
                    "reconstruction": ".1f",
                    "log_det": ".2f",
                    "mmd_squared": ".4f",
                    "knn_accuracy": ".1%",
                },
            ),
        },
        figures=figures,
        also_used=("scikit-learn",),
    )


def two_points_text(by_step: pd.DataFrame) -> str:
    """What became of the two posteriors."""
    last = by_step[by_step.step == by_step.step.max()].set_index("objective")
    elbo, mmd = last.loc["elbo"], last.loc["mmd"]
    shape = {
        1: "the ELBO's q(z) is further from the prior",
        0: "the two cannot be told apart",
        -1: "the ELBO's q(z) is nearer to the prior",
    }[order(elbo, mmd, "marginal_kl")]
    inference = {
        1: "the guide is nearer to the true posterior under MMD",
        0: "the two cannot be told apart",
        -1: "the guide is nearer to the true posterior under the ELBO",
    }[order(elbo, mmd, "gap")]
    return (
        f"Two points, after {int(elbo.step):,} steps: q(z|x=+1) has mean {elbo.loc_plus:.2f} and "
        f"standard deviation {elbo.scale_plus:.2f} under the ELBO, {mmd.loc_plus:.2f} and "
        f"{mmd.scale_plus:.2f} under MMD.\n\n"
        f"- KL(q(z) ‖ p(z)) is {in_words(elbo, 'marginal_kl')} nats under the ELBO and "
        f"{in_words(mmd, 'marginal_kl')} under MMD: {shape}.\n"
        f"- KL(q(z|x) ‖ p(z|x)) is {in_words(elbo, 'gap')} and {in_words(mmd, 'gap')}: "
        f"{inference}.\n"
        f"- log p(x) is {in_words(elbo, 'evidence')} and {in_words(mmd, 'evidence')}."
    )


def sizes_text(by_size: pd.DataFrame) -> str:
    """How q(z) and the fit depend on the number of training images."""
    smallest, largest = by_size["size"].min(), by_size["size"].max()
    few, many = (
        by_size[by_size["size"] == size].set_index("objective") for size in (smallest, largest)
    )
    lines = [
        f"- {NAMES[name]}: log det {in_words(few.loc[name], 'log_det')} on {smallest:,} images and "
        f"{in_words(many.loc[name], 'log_det')} on {largest:,}; held-out log p(x) "
        f"{in_words(few.loc[name], 'log_prob')} and {in_words(many.loc[name], 'log_prob')}."
        for name in few.index
    ]
    departure = {
        1: "further from 0 than that of MMD's",
        0: "as far from 0, within the spread of the seeds, as that of MMD's",
        -1: "nearer to 0 than that of MMD's",
    }[order(few.loc["elbo"].abs(), few.loc["mmd"].abs(), "log_det")]
    found: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for size, part in by_size.groupby("size"):
        by_objective = part.set_index("objective")
        side = order(by_objective.loc["mmd"], by_objective.loc["elbo"], "log_prob")
        found[side].append(f"{size:,}")
    sides = {1: "above the ELBO's", 0: "within the spread of the ELBO's", -1: "below the ELBO's"}
    held_out = "; ".join(
        f"{sides[side]} with {', '.join(sizes)} images" for side, sizes in found.items() if sizes
    )
    doubtful = by_size.loc[by_size.unreliable.idxmax()]
    return "\n".join(
        [
            "By number of training images:",
            "",
            *lines,
            "",
            f"On {smallest:,} images the log determinant of the ELBO's q(z) is {departure}. MMD's "
            f"held-out log p(x) is {held_out}. The estimate is least to be believed under "
            f"{NAMES[doubtful.objective]} on {doubtful['size']:,} images: for "
            f"{doubtful.unreliable:.0%} of the held-out ones Pareto k̂ is above 0.7.",
        ]
    )


def codes_text(codes: pd.DataFrame) -> str:
    """What the 2-D codes are worth."""
    by_objective = codes.set_index("objective")
    return (
        "In 2-D codes of one seed, q(z) is nearest to the prior, by MMD² on held-out images, under "
        f"{NAMES[by_objective.mmd_squared.idxmin()]}; a nearest-neighbour classifier of the codes "
        f"is best under {NAMES[by_objective.knn_accuracy.idxmax()]}, and the reconstruction under "
        f"{NAMES[by_objective.reconstruction.idxmin()]}."
    )
