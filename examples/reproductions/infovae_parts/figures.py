"""The three figures."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import norm

from demo.figures import CLASS_COLOURS, INK, draw_prior, tile
from demo.pictures import GRID_LIMIT, Pictures
from infovae_parts.two_points import OBJECTIVES
from reproduction.figures import STYLE, by_backend

NAMES = {
    "elbo": "ELBO",
    "beta-vae": "β-VAE, β = 4",
    "mmd": "MMD",
    "mmd, deterministic": "MMD, deterministic",
}
COLOURS = {"elbo": "tab:blue", "beta-vae": "tab:green", "mmd": "tab:orange"}
CODES_SHOWN = 1000


def two_points_figure(table: pd.DataFrame) -> Figure:
    """The posteriors of the two points at some steps, by the means over the seeds."""
    z = np.linspace(-4, 4, 801)

    def draw(panels: np.ndarray, table: pd.DataFrame) -> None:
        rows = table.sort_values("objective", key=lambda names: names.map(OBJECTIVES.index))
        for panel, run in zip(panels, rows.itertuples(), strict=True):
            panel.plot(z, norm.pdf(z), color="0.4", ls="--", lw=1, label="p(z)")
            for name, loc, scale, colour in (
                ("q(z|x=-1)", run.loc_minus, run.scale_minus, "tab:green"),
                ("q(z|x=+1)", run.loc_plus, run.scale_plus, "tab:red"),
            ):
                panel.plot(z, norm.pdf(z, loc, scale), color=colour, lw=1.4, label=name)
            panel.set(title=f"{NAMES[run.objective]}, {run.step:,} steps", yticks=[], xlabel="z")

    panels = len(table[["objective", "step"]].drop_duplicates())
    return by_backend(table, draw, panels=panels, size=(1.8 * panels, 1.9), sharex=True)


def sizes_figure(table: pd.DataFrame) -> Figure:
    """Log determinant and held-out log p(x) by training-set size: means and deviations."""
    titles = {
        "log_det": "log det of q(z)'s covariance, training images",
        "log_prob": "log p(x) of held-out images, nats",
    }

    def draw(panels: np.ndarray, table: pd.DataFrame) -> None:
        for panel, (column, title) in zip(panels, titles.items(), strict=True):
            for objective, part in table.groupby("objective", sort=False):
                style = {"color": COLOURS[objective], "label": NAMES[objective]}
                panel.errorbar(part["size"], part[column], part.get(f"{column}_sd"), **style)
            panel.set(title=title, xlabel="training images", xscale="log")
            panel.set_xticks(sorted(table["size"].unique()), minor=False)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_locator(NullLocator())
            panel.grid(alpha=0.3)
        panels[0].axhline(0, color="0.4", ls="--", lw=1, label="the prior's")

    return by_backend(table, draw, panels=2, size=(8.4, 2.8), sharey="col")


def codes_figure(pictures: Mapping[str, Pictures]) -> Figure:
    """A column per objective: the codes by class, draws from the prior, a grid of codes."""
    names = ("codes by class", "draws from the prior", f"z from -{GRID_LIMIT:g} to {GRID_LIMIT:g}")
    with plt.rc_context({**STYLE, "axes.spines.right": True, "axes.spines.top": True}):
        size = (2.1 * len(pictures), 6.3)
        figure, grid = plt.subplots(3, len(pictures), figsize=size, squeeze=False)
        for column, (objective, picture) in zip(grid.T, pictures.items(), strict=True):
            codes, *images = column
            _draw_codes(codes, picture)
            codes.set(title=NAMES[objective])
            shown = picture.samples[:6, :6], picture.manifold[::2, ::2]
            for panel, some in zip(images, shown, strict=True):
                panel.imshow(tile(some), cmap=INK, vmin=0, vmax=1, interpolation="nearest")
                panel.set(xticks=[], yticks=[])
        for panel, name in zip(grid[:, 0], names, strict=True):
            panel.set(ylabel=name)
    return figure


def _draw_codes(panel: Axes, picture: Pictures) -> None:
    codes, labels = picture.codes[:CODES_SHOWN], picture.labels[:CODES_SHOWN]
    for label, colour in enumerate(CLASS_COLOURS):
        panel.scatter(*codes[labels == label].T, s=5, color=colour, linewidths=0)
    draw_prior(panel, colour="0.5")
    panel.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), aspect="equal", xticks=[-3, 0, 3], yticks=[])
