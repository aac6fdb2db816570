"""Error and gap by dimension, and error by budget."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvae_gaussian_parts.methods import METHODS
from reproduction.figures import by_backend

STYLES = {
    "VB": ("black", "-"),
    "HVAE K=1": ("tab:blue", "-"),
    "HVAE K=10": ("tab:red", "-"),
    "HVAE K=1, no tempering": ("tab:blue", "--"),
    "HVAE K=10, no tempering": ("tab:red", "--"),
}


def errors_and_gaps(table: pd.DataFrame) -> Figure:
    """Three panels: error by dimension, error by budget in the highest, gap by dimension."""
    return by_backend(table, _draw_all, panels=3, size=(12, 3.2))


def _draw_all(panels: np.ndarray, table: pd.DataFrame) -> None:
    by_dim, by_budget, gaps = panels
    dims, budgets = list(table["dim"].unique()), list(table["gradients"].unique())
    last = table[table["gradients"] == budgets[-1]]
    highest = table[table["dim"] == dims[-1]]
    _draw(by_dim, last, "dim", "error")
    best = last.drop_duplicates("dim")
    by_dim.plot(best["dim"], best["error_of_mle"], "o", mfc="none", c="gray", ms=9, label="MLE")
    by_dim.set(title=f"after {budgets[-1]:,} gradients", xlabel="d", ylabel="error of (Δ, σ)")
    _draw(by_budget, highest, "gradients", "error")
    by_budget.axhline(highest["error_of_mle"].iloc[0], c="gray", ls=":")
    by_budget.set(title=f"d = {dims[-1]}", xlabel="gradients", ylabel="error of (Δ, σ)")
    _draw(gaps, last, "dim", "gap")
    flows = last[last["method"] == "HVAE K=10"]
    gaps.plot(
        flows["dim"], flows["least_gap"], "s", mfc="none", c="tab:red", ms=9, label="least, K=10"
    )
    gaps.set(title="log p(D) - ELBO", xlabel="d", ylabel="nats")
    for axes, ticks in ((by_dim, dims), (by_budget, budgets), (gaps, dims)):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.xaxis.minorticks_off()


def _draw(axes: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    for method in METHODS:
        rows = table[table["method"] == method]
        colour, style = STYLES[method]
        axes.plot(rows[x], rows[y], c=colour, ls=style, marker=".", label=method)
        axes.errorbar(rows[x], rows[y], rows[f"{y}_sd"], c=colour, ls="none")
