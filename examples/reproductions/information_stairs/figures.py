"""The stairs as they were climbed, and the errors on each."""

from collections.abc import Mapping
from itertools import product

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from information_stairs.errors import CEILINGS, WINDOWS
from information_stairs.problem import STAIRS
from reproduction.figures import STYLE, by_backend

BOUNDS = ("nwj", "dv", "infonce", "js", "smile")
CRITICS = {"joint": "tab:blue", "separable": "tab:orange"}
SPREADS = ("exact", "joint", "separable")
NEGATIVES = {"all": "-", "shift": ":"}


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


def spreads(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Bias and standard deviation by stair, where the pairs are normal.

    Args:
        tables: Of `by_stair`, by the kind of negatives.
    """
    table = pd.concat({n: table[table["pairs"] == "normal"] for n, table in tables.items()})
    panels = 2 * len(SPREADS)
    return by_backend(table, _draw_spreads, panels=panels, size=(11, 2.8), sharex=True)


def _draw_spreads(panels: np.ndarray, table: pd.DataFrame) -> None:
    for panel, (error, critic) in zip(panels, product(("bias", "sd"), SPREADS), strict=True):
        chosen = table[table["critic"] == critic]
        columns = [f"{error} {information:g}" for information in STAIRS]
        for (negatives, _), row in chosen.iterrows():
            colour = mpl.color_sequences["tab10"][BOUNDS.index(row["bound"])]
            label = f"{row['bound']}, {negatives}"
            panel.plot(STAIRS, row[columns], NEGATIVES[negatives], color=colour, label=label)
        panel.set(title=f"{error}, {critic} critic", xlabel="I(x; z), nats", xticks=STAIRS)
        if error == "bias":
            panel.axhline(0, color="grey", lw=0.8)
            panel.set_ylim(-10, 4)
        else:
            panel.set_yscale("log")
    panels[0].set_ylabel("nats")


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
