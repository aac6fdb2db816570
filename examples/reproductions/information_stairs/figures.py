"""The stairs as they were climbed, and the errors on each."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from information_stairs.errors import CEILINGS, WINDOWS
from information_stairs.problem import STAIRS

mpl.use("agg")

BOUNDS = ("nwj", "dv", "infonce", "js", "smile")
CRITICS = {"joint": "tab:blue", "separable": "tab:orange"}
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
}


def climbs(frame: pd.DataFrame) -> Figure:
    """A panel per bound and kind of pairs, with all other rows as negatives."""
    frame = frame[(frame["negatives"] == "all") & frame["critic"].isin(CRITICS)]
    kinds = [kind for kind in ("normal", "cubic") if kind in set(frame["pairs"])]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(kinds), len(BOUNDS), figsize=(11, 2.3 * len(kinds)), sharex=True, sharey=True
        )
        for row, kind in zip(np.atleast_2d(axes), kinds, strict=True):
            for ax, bound in zip(row, BOUNDS, strict=True):
                _climb(ax, frame[(frame["pairs"] == kind) & (frame["bound"] == bound)])
                if bound == "infonce":
                    ax.axhline(CEILINGS["all"], color="grey", lw=0.8, ls=":")
                    ax.annotate("log 64", (0.5, CEILINGS["all"] + 0.2), color="grey")
                ax.set_title(f"{bound}, {kind}" if kind == "cubic" else bound)
        for ax in np.atleast_2d(axes)[:, 0]:
            ax.set_ylabel("nats")
        for ax in np.atleast_2d(axes)[-1]:
            ax.set_xlabel("stair")
        ax.set_ylim(-0.5, 11.5)
        ax.set_xticks(range(1, len(STAIRS) + 1))
        handles, labels = np.atleast_2d(axes)[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside lower center", frameon=False)
    return figure


def spreads(table: pd.DataFrame) -> Figure:
    """Bias and standard deviation by stair, where the pairs are normal."""
    table = table[table["pairs"] == "normal"]
    critics = ("exact", "joint", "separable")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(critics), figsize=(9, 4.6), sharex=True, sharey="row")
        for column, critic in zip(axes.T, critics, strict=True):
            column[0].set_title(f"{critic} critic")
            column[0].axhline(0, color="grey", lw=0.8)
            column[0].set_ylim(-10, 4)
            column[1].set_yscale("log")
            column[1].set_xlabel("I(x; z), nats")
            column[1].set_xticks(STAIRS)
            for colour, bound in zip(mpl.color_sequences["tab10"], BOUNDS, strict=False):
                for negatives, style in (("all", "-"), ("shift", ":")):
                    chosen = table[
                        (table["critic"] == critic)
                        & (table["bound"] == bound)
                        & (table["negatives"] == negatives)
                    ]
                    if chosen.empty:
                        continue
                    label = f"{bound}, {negatives}"
                    for ax, error in zip(column, ("bias", "sd"), strict=True):
                        information, values = chosen["information"], chosen[error]
                        ax.plot(information, values, style, color=colour, label=label)
        axes[0, 0].set_ylabel("bias, nats")
        axes[1, 0].set_ylabel("standard deviation, nats")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=5, loc="outside lower center", frameon=False)
    return figure


def _climb(ax: Axes, frame: pd.DataFrame) -> None:
    ends = np.arange(len(STAIRS) + 1) + 0.5
    ax.stairs(STAIRS, ends, baseline=None, color="black", lw=1, label="exact")
    for critic, colour in CRITICS.items():
        chosen = frame[frame["critic"] == critic]
        if chosen["seed"].empty:
            continue
        chosen = chosen[chosen["seed"] == chosen["seed"].min()]
        chosen = chosen.sort_values(["information", "window"])
        stair = chosen["information"].map({value: i + 1 for i, value in enumerate(STAIRS)})
        place = stair - 0.5 + (chosen["window"] + 0.5) / WINDOWS
        ax.plot(place, chosen["mean"], color=colour, lw=1.2, label=f"{critic} critic")
        ax.fill_between(place, chosen["low"], chosen["high"], color=colour, alpha=0.25, lw=0)
