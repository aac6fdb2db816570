"""A figure of both backends."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reproduction.options import BACKENDS

plt.switch_backend("agg")

STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
}


def by_backend(
    table: pd.DataFrame,
    draw: Callable[[np.ndarray, pd.DataFrame], None],
    *,
    panels: int,
    size: tuple[float, float],
    **shared: Any,
) -> Figure:
    """A row of panels for each backend that a table has, and one legend.

    Args:
        table: Of `Results.table`.
        draw: Takes the panels of a row, and the table's rows of a backend.
        panels: How many there are in a row.
        size: Width and height of a row, in inches.
        shared: For `subplots`.
    """
    backends = [backend for backend in BACKENDS if backend in set(table["backend"])]
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(backends),
            panels,
            figsize=(size[0], size[1] * len(backends)),
            squeeze=False,
            **shared,
        )
        for row, backend in zip(grid, backends, strict=True):
            draw(row, table[table["backend"] == backend])
            label = row[0].get_ylabel()
            row[0].set_ylabel(f"{backend}\n{label}".strip())
        entries: dict[str, Any] = {}
        for panel in grid.flat:
            handles, labels = panel.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        if entries:
            figure.legend(entries.values(), entries, loc="outside lower center", ncols=4)
    return figure
