"""The two comparisons."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reproduction.figures import by_backend

COLOURS = {
    "AutoNormal": "tab:grey",
    "TraceHamiltonian_ELBO": "tab:blue",
    "AutoDAIS": "tab:orange",
}
MEASURES = {
    "bound": "bound, nats",
    "mean_error": "error of means, in sds",
    "sd_error": "relative error of sds",
}
OF_AUTOENCODERS = {
    "log_evidence": "log p(x), nats",
    "mmd_squared": "MMD²(q(z), p(z))",
    "ratio": "time of a step",
}


def posteriors(table: pd.DataFrame) -> Figure:
    """A panel per problem and measure, by the number of leapfrog steps."""
    problems = list(table["problem"].unique())
    panels = len(problems) * len(MEASURES)
    return by_backend(table, _draw_posteriors, panels=panels, size=(2.6 * panels, 2.4))


def _draw_posteriors(panels: np.ndarray, table: pd.DataFrame) -> None:
    by_problem = panels.reshape(-1, len(MEASURES))
    for row, (problem, part) in zip(by_problem, table.groupby("problem", sort=False), strict=True):
        for panel, (column, label) in zip(row, MEASURES.items(), strict=True):
            for method, rows in part.groupby("method"):
                style = {"fmt": "o-", "ms": 3, "lw": 1, "capsize": 2, "color": COLOURS[method]}
                deviation = rows.get(f"{column}_sd")
                panel.errorbar(rows["num_steps"], rows[column], deviation, label=method, **style)
            if column != "bound":
                panel.set_ylim(bottom=0)
            elif problem == "funnel":
                panel.axhline(0, color="black", lw=0.8, ls=":")
            panel.set(title=f"{problem}: {label}", xlabel="leapfrog steps K")
            panel.set_xticks(sorted(part["num_steps"].unique()))


def autoencoders(table: pd.DataFrame) -> Figure:
    """A line per objective, a panel per measure."""
    panels = len(OF_AUTOENCODERS)
    return by_backend(table, _draw_autoencoders, panels=panels, size=(9, 2.8))


def _draw_autoencoders(panels: np.ndarray, table: pd.DataFrame) -> None:
    table = table.iloc[::-1]
    labels = [f"{m}, α = {a:g}" for m, a in zip(table["method"], table["alpha"], strict=True)]
    for panel, (column, label) in zip(panels, OF_AUTOENCODERS.items(), strict=True):
        deviation = table.get(f"{column}_sd")
        panel.errorbar(table[column], labels, xerr=deviation, fmt="o", ms=4, capsize=2)
        panel.set_xlabel(label)
        panel.grid(axis="y", lw=0.3)
        panel.ticklabel_format(axis="x", useOffset=False)
    for panel in panels[1:]:
        panel.set_yticklabels([])
    panels[1].axvline(0, color="black", lw=0.8, ls=":")
    panels[2].set_xlim(left=0)
