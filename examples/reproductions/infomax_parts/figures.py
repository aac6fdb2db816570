"""The figure: what the weight of the mutual information does to code and model."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

mpl.use("agg")

NAMES = {"mlp": "MLP decoder", "autoregressive": "autoregressive decoder"}
COLOURS = {"mlp": "tab:blue", "autoregressive": "tab:orange"}
PANELS = {
    "information": "I(x; z), nats",
    "active_units": "active units",
    "accuracy": "linear accuracy, held-out",
    "log_prob": "log p(x), held-out, nats",
}


def sweep_figure(runs: pd.DataFrame) -> Figure:
    """A panel per measure: every seed, and the mean over them, by alpha."""
    alphas = np.sort(runs.alpha.unique())
    figure, grid = plt.subplots(1, len(PANELS), figsize=(12, 3.2), layout="constrained")
    for panel, (column, title) in zip(grid, PANELS.items(), strict=True):
        for decoder, part in runs.groupby("decoder", sort=False):
            places = np.searchsorted(alphas, part.alpha)
            mean = part.groupby("alpha")[column].mean()
            panel.plot(range(len(mean)), mean, color=COLOURS[decoder], label=NAMES[decoder])
            panel.plot(places, part[column], ".", ms=4, color=COLOURS[decoder], alpha=0.6)
        panel.set(title=title, xlabel="α")
        panel.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        panel.grid(alpha=0.3)
    for decoder, part in runs.groupby("decoder", sort=False):
        bound = part.groupby("alpha")["critic_bound"].median()
        grid[0].plot(range(len(bound)), bound, color=COLOURS[decoder], ls=":", lw=1.2)
    grid[0].axhline(runs.ceiling.max(), color="0.4", ls="--", lw=1)
    grid[0].set_ylim(bottom=-1)
    figure.legend(*grid[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
