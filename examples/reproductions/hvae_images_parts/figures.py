"""NLL against the VAE's, at equal gradients and at equal steps."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hvae_images_parts.methods import VAE
from reproduction.figures import by_backend


def comparison(table: pd.DataFrame) -> Figure:
    """Left: NLL by optimisation steps; right: what is between bound and NLL."""
    return by_backend(table, _draw, panels=2, size=(10.5, 3.2))


def _draw(panels: np.ndarray, table: pd.DataFrame) -> None:
    by_steps, gaps = panels
    vae = table[table["method"] == VAE].sort_values("steps")
    final = table.drop_duplicates("method", keep="last")
    by_steps.errorbar(vae["steps"], vae["nll"], vae["nll_sd"], c="black", marker=".", label=VAE)
    for i, (_, row) in enumerate(final[final["method"] != VAE].iterrows()):
        by_steps.errorbar(
            row["steps"] * 1.02 ** (i - 2),
            row["nll"],
            row["nll_sd"],
            c=f"C{i}",
            marker="o",
            ls="none",
            label=row["method"],
        )
    by_steps.axhline(vae["nll"].iloc[-1], c="black", ls=":", lw=1)
    by_steps.set(
        xscale="log", xlabel="optimisation steps", ylabel="NLL, nats", title="lower is better"
    )
    ticks = sorted(table["steps"].unique())
    by_steps.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    by_steps.xaxis.minorticks_off()
    gaps.barh(final["method"], final["gap"], xerr=final["gap_sd"], color="lightgray")
    gaps.invert_yaxis()
    gaps.set(xlabel="nats", title="bound - NLL, at equal gradients")
