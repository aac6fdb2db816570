"""The three figures."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from demo.pictures import GRID_LIMIT, Pictures
from infovae_parts.two_points import log_normal

mpl.use("agg")

NAMES = {
    "elbo": "ELBO",
    "beta-vae": "β-VAE, β = 4",
    "mmd": "MMD",
    "mmd, deterministic": "MMD, deterministic",
}
COLOURS = {"elbo": "tab:blue", "beta-vae": "tab:green", "mmd": "tab:orange"}
CLASS_COLOURS = mpl.color_sequences["tab10"]
INK = "gray_r"
PRIOR_MASSES = (0.5, 0.9, 0.99)
CODES_SHOWN = 1000


def two_points_figure(runs: pd.DataFrame) -> Figure:
    """The posteriors of the two points at some steps, a row per objective; the first seed."""
    runs = runs[runs.seed == runs.seed.min()]
    steps, objectives = runs.step.unique(), runs.objective.unique()
    figure, grid = _panels(len(objectives), len(steps), width=2.2, height=1.7, share=True)
    z = np.linspace(-4, 4, 801)
    for row, objective in zip(grid, objectives, strict=True):
        for panel, step in zip(row, steps, strict=True):
            (run,) = runs[(runs.objective == objective) & (runs.step == step)].itertuples()
            panel.plot(z, np.exp(log_normal(z)), color="0.4", ls="--", lw=1, label="p(z)")
            for name, loc, scale, colour in (
                ("q(z|x=-1)", run.loc_minus, run.scale_minus, "tab:green"),
                ("q(z|x=+1)", run.loc_plus, run.scale_plus, "tab:red"),
            ):
                panel.plot(z, np.exp(log_normal(z, loc, scale)), color=colour, lw=1.4, label=name)
            panel.set(title=f"{NAMES[objective]}, {step:,} steps", yticks=[])
    for panel in grid[-1]:
        panel.set(xlabel="z")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def sizes_figure(runs: pd.DataFrame) -> Figure:
    """Log determinant and held-out log p(x) by training-set size; all seeds, and their mean."""
    figure, grid = _panels(1, 2, width=4.2, height=3.2)
    for panel, column, title in zip(
        grid[0],
        ("log_det", "log_prob"),
        ("log det of q(z)'s covariance, training images", "log p(x) of held-out images, nats"),
        strict=True,
    ):
        for objective, part in runs.groupby("objective", sort=False):
            mean = part.groupby("size")[column].mean()
            colour = COLOURS[objective]
            panel.plot(mean.index, mean, color=colour, label=NAMES[objective])
            panel.plot(part["size"], part[column], ".", ms=4, color=colour, alpha=0.6)
        panel.set(title=title, xlabel="training images", xscale="log")
        panel.set_xticks(sorted(runs["size"].unique()), minor=False)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        panel.grid(alpha=0.3)
    grid[0, 0].axhline(0, color="0.4", ls="--", lw=1, label="the prior's")
    grid[0, 0].legend(frameon=False)
    return figure


def codes_figure(pictures: Mapping[str, Pictures]) -> Figure:
    """A column per objective: the codes by class, draws from the prior, a grid of codes."""
    figure, grid = _panels(3, len(pictures), width=2.1, height=2.0)
    for column, (objective, picture) in zip(grid.T, pictures.items(), strict=True):
        codes, samples, morphing = column
        _draw_codes(codes, picture)
        codes.set(title=NAMES[objective])
        for panel, images in (
            (samples, picture.samples[:6, :6]),
            (morphing, picture.manifold[::2, ::2]),
        ):
            panel.imshow(_tile(images), cmap=INK, vmin=0, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
    for panel, name in zip(
        grid[:, 0],
        ("codes by class", "draws from the prior", f"z from -{GRID_LIMIT:g} to {GRID_LIMIT:g}"),
        strict=True,
    ):
        panel.set(ylabel=name)
    return figure


def _draw_codes(panel: Axes, picture: Pictures) -> None:
    codes, labels = picture.codes[:CODES_SHOWN], picture.labels[:CODES_SHOWN]
    for label, colour in enumerate(CLASS_COLOURS):
        panel.scatter(*codes[labels == label].T, s=5, color=colour, linewidths=0)
    for mass in PRIOR_MASSES:
        radius = np.sqrt(-2 * np.log1p(-mass))
        panel.add_patch(Circle((0, 0), radius, fill=False, color="0.5", lw=0.8, ls="--"))
    panel.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), aspect="equal", xticks=[-3, 0, 3], yticks=[])


def _panels(
    rows: int, columns: int, *, width: float, height: float, share: bool = False
) -> tuple[Figure, np.ndarray]:
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows + 0.3),
        squeeze=False,
        sharex=share,
        sharey=share,
        layout="constrained",
    )
    for panel in grid.flat:
        panel.title.set_fontsize(9)
        panel.tick_params(labelsize=8)
    return figure, grid


def _tile(images: np.ndarray) -> np.ndarray:
    """Join images of shape (rows, columns, height, width) into one."""
    gap = images.shape[-1] // 8
    padded = np.pad(images, ((0, 0), (0, 0), (gap, gap), (gap, gap)))
    return np.block([list(row) for row in padded])
