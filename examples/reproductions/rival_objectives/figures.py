"""The two comparisons, as dots."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

mpl.use("agg")

STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
}
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


def posteriors(table: pd.DataFrame) -> Figure:
    """A row of panels per problem, a column per measure."""
    problems = list(table["problem"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(problems),
            len(MEASURES),
            figsize=(8.5, 2.3 * len(problems)),
            sharex=True,
            squeeze=False,
        )
        for row, problem in zip(axes, problems, strict=True):
            for ax, (column, label) in zip(row, MEASURES.items(), strict=True):
                for method, colour in COLOURS.items():
                    chosen = table[(table["problem"] == problem) & (table["method"] == method)]
                    if chosen.empty:
                        continue
                    ax.errorbar(
                        chosen["num_steps"],
                        chosen[column],
                        chosen[f"{column}_sd"],
                        fmt="o-",
                        ms=3,
                        lw=1,
                        capsize=2,
                        color=colour,
                        label=method,
                    )
                if column != "bound":
                    ax.set_ylim(bottom=0)
                elif problem == "funnel":
                    ax.axhline(0, color="black", lw=0.8, ls=":")
                ax.set_title(f"{problem}: {label}", fontsize=9)
                ax.set_xticks(sorted(table["num_steps"].unique()))
        for ax in axes[-1]:
            ax.set_xlabel("leapfrog steps K")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside lower center", frameon=False)
    return figure


def autoencoders(table: pd.DataFrame) -> Figure:
    """A row per objective, a panel per measure."""
    table = table.iloc[::-1]
    labels = [f"{m}, α = {a:g}" for m, a in zip(table["method"], table["alpha"], strict=True)]
    panels = {
        "log_evidence": "log p(x), nats",
        "mmd_squared": "MMD²(q(z), p(z))",
        "ratio": "time of a step",
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(8.5, 3), sharey=True)
        for ax, (column, label) in zip(axes, panels.items(), strict=True):
            ax.errorbar(table[column], labels, xerr=table[f"{column}_sd"], fmt="o", ms=4, capsize=2)
            ax.set_xlabel(label)
            ax.grid(axis="y", lw=0.3)
            ax.ticklabel_format(axis="x", useOffset=False)
        axes[1].axvline(0, color="black", lw=0.8, ls=":")
        axes[2].set_xlim(left=0)
    return figure
