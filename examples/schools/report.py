"""What the posteriors say, side by side: tables and a forest plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from arviz.sel_utils import xarray_var_iter
from rich.table import Table
from scipy.stats import wasserstein_distance

from demo.tables import text_table

PARAMETERS = ("mu", "tau", "theta")
TRUTH = "NUTS"
RELIABLE_PARETO_K = 0.7


def marginals(posteriors: Mapping[str, Any]) -> pd.DataFrame:
    """Moments of every parameter under every posterior, and Wasserstein's distance to the chain."""
    draws = {name: draws_of(data) for name, data in posteriors.items()}
    return pd.DataFrame(
        {
            "posterior": name,
            "parameter": parameter,
            "mean": values.mean(),
            "sd": values.std(),
            "distance": wasserstein_distance(values, draws[TRUTH][parameter]),
        }
        for name in posteriors
        for parameter, values in draws[name].items()
    )


def leave_one_out(posteriors: Mapping[str, Any]) -> pd.DataFrame:
    """Cross-validation of every posterior by Pareto-smoothed importance sampling.

    The expected log density of a school left out, in nats, and for how many not to believe it.
    """
    found = {
        name: arviz.loo(data, pointwise=True, var_name="effect")
        for name, data in posteriors.items()
    }
    return pd.DataFrame(
        {
            "posterior": name,
            "elpd": loo.elpd_loo,
            "se": loo.se,
            "p_loo": loo.p_loo,
            "unreliable": int((loo.pareto_k > RELIABLE_PARETO_K).sum()),
        }
        for name, loo in found.items()
    )


def marginals_table(found: pd.DataFrame) -> Table:
    """A row per parameter, a column per posterior."""
    title = "Posterior mean ± sd, and Wasserstein distance to NUTS"
    cells = [
        f"{m.mean:.2f} ± {m.sd:.2f}" + (f"  {m.distance:.2f}" if m.posterior != TRUTH else "")
        for m in found.itertuples()
    ]
    rows = [
        [name, *row]
        for name, row in found.assign(cell=cells).groupby("parameter", sort=False)["cell"]
    ]
    return text_table(title, ["", *found["posterior"].unique()], rows)


def leave_one_out_table(found: pd.DataFrame) -> Table:
    """A row per posterior."""
    headings = ("", "elpd (nats)", "se", "p_loo", f"k̂ > {RELIABLE_PARETO_K}")
    rows = [
        [name, *(f"{number:.2f}" for number in numbers), f"{unreliable} of 8"]
        for name, *numbers, unreliable in found.itertuples(index=False)
    ]
    return text_table("Leave one school out", headings, rows)


def save(
    posteriors: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], folder: Path
) -> list[Path]:
    """The tables, the forest plot, and every posterior as a netCDF file."""
    for name, frame in tables.items():
        frame.round(2).to_csv(folder / f"{name}.csv", index=False)
    plt.switch_backend("agg")
    (axes, *_) = arviz.plot_forest(
        list(posteriors.values()),
        model_names=list(posteriors),
        var_names=list(PARAMETERS),
        combined=True,
        hdi_prob=0.9,
        figsize=(7, 8),
    )
    axes.set_title("Eight schools: 90 % intervals")
    legend = axes.get_legend()
    legend.set_loc("upper left")
    legend.set_bbox_to_anchor((1.02, 1.0))
    paths = [*(folder / f"{name}.csv" for name in tables), folder / "forest.png"]
    axes.figure.savefig(paths[-1], bbox_inches="tight", dpi=120)
    plt.close(axes.figure)
    for name, data in posteriors.items():
        paths.append(folder / f"{name.replace(' ', '_').lower()}.nc")
        data.to_netcdf(str(paths[-1]))
    return paths


def draws_of(data: Any) -> dict[str, np.ndarray]:
    """The draws of every parameter, by its name, and the school's number if it has one."""
    found = xarray_var_iter(data.posterior, PARAMETERS, combined=True)
    return {
        name + "".join(f"[{i}]" for i in index.values()): values.ravel()
        for name, _, index, values in found
    }
