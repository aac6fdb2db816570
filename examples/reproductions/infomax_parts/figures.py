"""The figure: what the weight of the mutual information does to code and model."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reproduction.figures import by_backend

NAMES = {"mlp": "MLP decoder", "autoregressive": "autoregressive decoder"}
COLOURS = {"mlp": "tab:blue", "autoregressive": "tab:orange"}
PANELS = {
    "information": "I(x; z), nats",
    "active_units": "active units",
    "accuracy": "linear accuracy, held-out",
    "log_prob": "log p(x), held-out, nats",
}


def sweep_figure(table: pd.DataFrame) -> Figure:
    """A panel per measure, by alpha: the mean over the seeds, and their standard deviation."""
    return by_backend(table, _draw, panels=len(PANELS), size=(12, 2.8), sharey="col")


def _draw(panels: np.ndarray, table: pd.DataFrame) -> None:
    for decoder, part in table.groupby("decoder", sort=False):
        place, colour = np.arange(len(part)), COLOURS[decoder]
        for panel, (column, title) in zip(panels, PANELS.items(), strict=True):
            panel.errorbar(
                place, part[column], part.get(f"{column}_sd"), color=colour, label=NAMES[decoder]
            )
            panel.set(title=title, xlabel="α")
            panel.set_xticks(place, [f"{alpha:g}" for alpha in part["alpha"]])
            panel.grid(alpha=0.3)
        panels[0].plot(place, part["critic_bound"], color=colour, ls=":", lw=1.2)
    panels[0].axhline(table["ceiling"].max(), color="0.4", ls="--", lw=1)
