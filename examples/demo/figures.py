"""The four figures, a panel per objective."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from demo.pictures import GRID_LIMIT
from demo.results import Result, by_objective

mpl.use("agg")

PANEL = 4.6
PRIOR_MASSES = (0.5, 0.9, 0.99)
PRIOR_NOTE = "circles hold 50%, 90% and 99% of the prior"
CLASS_COLOURS = mpl.color_sequences["tab10"]
STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.15,
    "figure.titlesize": 12,
    "font.size": 10,
    "savefig.dpi": 160,
}
INK = "gray_r"
CURVES = {
    "training_loss": ("training loss (each its own)", "log"),
    "reconstruction": ("reconstruction, held-out", "log"),
    "kl": ("KL(q(z|x) ‖ p(z)), held-out", "linear"),
    "mmd_squared": ("MMD²(q(z), p(z)), held-out", "symlog"),
}


def draw_all(results: Sequence[Result], folder: Path, *, latent_dim: int) -> list[Path]:
    """Save every figure, and return where; all but the curves show each objective's first seed."""
    first = [group[0] for group in by_objective(results).values()]
    axes_names = ("z₁", "z₂") if latent_dim == 2 else ("first direction", "second direction")
    plane = "" if latent_dim == 2 else f", first two principal directions of {latent_dim}"
    with mpl.rc_context(STYLE):
        figures = {
            "code_space.png": code_space(first, axes_names, plane),
            "prior_samples.png": prior_samples(first),
            "manifold.png": manifold(first, axes_names, plane),
            "training_curves.png": training_curves(results),
        }
        for name, figure in figures.items():
            figure.savefig(folder / name)
            plt.close(figure)
    return [folder / name for name in figures]


def code_space(results: Sequence[Result], axes_names: tuple[str, str], plane: str) -> Figure:
    """The held-out images' codes, coloured by class, over circles of the prior."""
    figure, panels = _panels(results)
    furthest = max(float(np.abs(result.pictures.codes).max()) for result in results)
    limit = min(max(1.05 * furthest, 3.5), 6.0)
    for panel, result in zip(panels, results, strict=True):
        codes, labels = result.pictures.codes, result.pictures.labels
        for label, colour in enumerate(CLASS_COLOURS):
            x, y = codes[labels == label].T
            panel.scatter(x, y, s=16, color=colour, alpha=0.85, linewidths=0, label=label)
        draw_prior(panel, colour="0.5")
        outside = np.mean(np.linalg.norm(codes, axis=-1) > _radius(PRIOR_MASSES[-1]))
        panel.set(title=f"{result.objective}  ({outside:.1%} outside the last circle)")
        _label_axes(panel, axes_names, limit=limit)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
        markerscale=2,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    figure.suptitle(f"Held-out images in code space{plane}\n{PRIOR_NOTE}")
    return figure


def prior_samples(results: Sequence[Result]) -> Figure:
    """Images decoded from draws of the prior, the same draws for every objective."""
    figure, panels = _panels(results)
    for panel, result in zip(panels, results, strict=True):
        panel.imshow(tile(result.pictures.samples), cmap=INK, vmin=0, vmax=1)
        panel.set(title=result.objective, xticks=[], yticks=[])
        panel.spines[:].set_visible(True)
    figure.suptitle("Images drawn from the prior (the same z for every objective)")
    return figure


def manifold(results: Sequence[Result], axes_names: tuple[str, str], plane: str) -> Figure:
    """A grid over the code space, decoded."""
    figure, panels = _panels(results)
    for panel, result in zip(panels, results, strict=True):
        images = result.pictures.manifold
        # Every image is centred on its code.
        limit = GRID_LIMIT * (1 + 1 / (len(images) - 1))
        extent = (-limit, limit, -limit, limit)
        panel.imshow(tile(images), cmap=INK, vmin=0, vmax=1, extent=extent)
        draw_prior(panel, colour="tab:orange")
        panel.set(title=result.objective)
        _label_axes(panel, axes_names, limit=limit)
    figure.suptitle(f"A grid over code space{plane}, decoded\n{PRIOR_NOTE}")
    return figure


def training_curves(results: Sequence[Result]) -> Figure:
    """The fit to held-out images, epoch by epoch: the mean over the seeds, and their range."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True)
    for panel, (column, (title, scale)) in zip(grid.flat, CURVES.items(), strict=True):
        for name, group in by_objective(results).items():
            curves = np.array([[row[column] for row in result.curves] for result in group])
            epochs = range(1, curves.shape[1] + 1)
            panel.plot(epochs, curves.mean(0), label=name)
            panel.fill_between(epochs, curves.min(0), curves.max(0), alpha=0.2, linewidth=0)
        if scale == "symlog":
            panel.set_yscale("symlog", linthresh=0.01)
        else:
            panel.set_yscale(scale)
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
        panel.set(title=title)
        panel.grid(alpha=0.3)
    for panel in grid[1]:
        panel.set(xlabel="epoch")
    grid[0, 0].legend(frameon=False)
    figure.suptitle("Training (nats per image, MMD² without unit)")
    return figure


def _panels(results: Sequence[Result]) -> tuple[Figure, list[Axes]]:
    columns = 2 if len(results) == 4 else min(len(results), 3)
    rows = -(-len(results) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(PANEL * columns, PANEL * rows + 0.6), squeeze=False
    )
    panels = list(grid.flat)
    for unused in panels[len(results) :]:
        unused.remove()
    return figure, panels[: len(results)]


def draw_prior(panel: Axes, *, colour: str) -> None:
    """Circles that hold the shares `PRIOR_MASSES` of a standard normal."""
    for mass in PRIOR_MASSES:
        circle = Circle((0, 0), _radius(mass), fill=False, color=colour, lw=0.9, ls="--")
        panel.add_patch(circle)


def _radius(mass: float) -> float:
    """Radius of the circle that holds this share of a standard normal in the plane."""
    return float(np.sqrt(-2 * np.log1p(-mass)))


def _label_axes(panel: Axes, names: tuple[str, str], *, limit: float) -> None:
    panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    panel.set(xlabel=names[0], ylabel=names[1])


def tile(images: np.ndarray) -> np.ndarray:
    """Join images of shape (rows, columns, height, width) into one, with a gap between them."""
    gap = images.shape[-1] // 8
    padded = np.pad(images, ((0, 0), (0, 0), (gap, gap), (gap, gap)))
    return np.block([list(row) for row in padded])
