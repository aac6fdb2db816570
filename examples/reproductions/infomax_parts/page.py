"""The page: what it says is taken from the table."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd

from infomax_parts.figures import NAMES, sweep_figure
from reproduction.comparing import in_words, order
from reproduction.options import Options
from reproduction.page import mean_and_spread, write_page

MEASURES = (
    "information",
    "critic_bound",
    "active_units",
    "accuracy",
    "log_prob",
    "unreliable",
    "kl",
    "mmd_squared",
)
COLUMNS = {
    "decoder": "",
    "alpha": "g",
    "information": ".2f",
    "information_sd": ".2f",
    "critic_bound": ".2f",
    "active_units": ".1f",
    "accuracy": ".1%",
    "accuracy_sd": ".1%",
    "log_prob": ".2f",
    "log_prob_sd": ".2f",
    "unreliable": ".0%",
    "kl": ".2f",
    "mmd_squared": ".4f",
    "seeds": "",
}

REPORTED = """
*Learning Representations by Maximizing Mutual Information in Variational Autoencoders* ([arXiv
1912.13361](https://arxiv.org/abs/1912.13361)) adds the mutual information of data and code,
estimated by a critic and weighted by α, to the ELBO. It reports codes that carry more information,
with more active units, and that serve classification better than those of contemporary variational
autoencoders, Info-VAE and β-VAE among them; and that a decoder as powerful as PixelCNN, under which
the ELBO's code collapses, keeps its code.
"""

REASONS = """
The networks are small (two hidden layers of 128 units; the powerful decoder is a masked autoencoder
of 64 units, which sees the pixels before the one that it predicts), and with `--quick` the images
are the 8 × 8 digits of scikit-learn, binarised; the source's networks and images are larger. The
critic is trained with the Jensen-Shannon bound, whose gradient has a lighter tail than that of the
source's bound, and read out by the source's (NWJ). α = 0 is the ELBO.

`information` does not rely on the critic that was trained: it is I(x; z) of the guide's own
densities with q(z) in full, over at most 2,000 training images, and at most the log of their
number. `critic_bound` is what the trained critic makes of held-out images, at most 1,000, by all
their pairs: in expectation a lower bound on the information about data like these, whose error
explodes where the critic is overconfident. `accuracy` is that of a logistic regression on posterior
means. log p(x) is an importance-weighted estimate with 500 draws, in expectation below the true
one; `unreliable` is the share of images whose Pareto k̂ is above 0.7. α pays for information
whatever it is about: a code that tells images apart need not tell classes apart.
"""


def write(options: Options, runs: pd.DataFrame) -> Path:
    """Write the page, and return where it is."""
    table = mean_and_spread(runs, ["decoder", "alpha"], MEASURES)
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure = sweep_figure(runs)
    return write_page(
        "infomax_vae",
        options,
        title="InfoMax-VAE: more information in the code",
        reported=REPORTED,
        found="\n\n".join(
            text(NAMES[name], part) for name, part in table.groupby("decoder", sort=False)
        ),
        reasons=REASONS,
        tables={"alphas": (table, COLUMNS)},
        figures={
            "alphas": (
                figure,
                "By the weight α of the mutual information: every dot is a seed. Left, dotted: the "
                "trained critic's bound on held-out images; dashed: the most that I(x; z) can be",
            )
        },
        also_used=("scikit-learn",),
    )


def text(name: str, table: pd.DataFrame) -> str:
    """What alpha does to a model with this decoder."""
    rows = table.set_index("alpha", drop=False)
    elbo, most = rows.loc[rows.alpha.min()], rows.loc[rows.alpha.max()]
    lines = [
        f"With the {name}, under the ELBO (α = 0): I(x; z) is {in_words(elbo, 'information')} "
        f"nats, {in_words(elbo, 'active_units', '.1f')} units are active, the linear accuracy is "
        f"{in_words(elbo, 'accuracy', '.1%')} and log p(x) is {in_words(elbo, 'log_prob')}.",
        "",
    ]
    for column, noun, form in (
        ("information", "I(x; z)", ".2f"),
        ("active_units", "the number of active units", ".1f"),
        ("accuracy", "the linear accuracy", ".1%"),
    ):
        best, enough = rows.loc[rows[column].idxmax()], smallest_as_good_as_best(rows, column)
        if order(best, elbo, column) <= 0:
            lines.append(f"- No α raises {noun} by more than the spread of the seeds.")
        else:
            cost = order(enough, elbo, "log_prob")
            price = {1: "is higher than", 0: "is, within the spread, as", -1: "is lower than"}[cost]
            reached = (
                "any smaller α gives less"
                if enough.alpha == best.alpha
                else f"α = {enough.alpha:g} ({in_words(enough, column, form)}) does as well, "
                "within the spread of the seeds, and no smaller one"
            )
            lines.append(
                f"- {noun[0].upper()}{noun[1:]} is highest at α = {best.alpha:g} "
                f"({in_words(best, column, form)}); {reached}. There log p(x), "
                f"{in_words(enough, 'log_prob')}, {price} under the ELBO."
            )
    lost = order(most, elbo, "log_prob")
    verb = {1: "above", 0: "within the spread of", -1: "below"}[lost]
    lines.append(
        f"- At α = {most.alpha:g} log p(x) is {in_words(most, 'log_prob')}, {verb} the ELBO's, and "
        f"its estimate is not to be believed for {most.unreliable:.0%} of the images."
    )
    return "\n".join(lines)


def smallest_as_good_as_best(rows: pd.DataFrame, column: str) -> pd.Series:
    """The row of the smallest alpha from which the best cannot be told apart."""
    best = rows.loc[rows[column].idxmax()]
    return next(row for _, row in rows.sort_index().iterrows() if order(best, row, column) <= 0)
