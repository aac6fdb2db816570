"""What the posteriors say, side by side: tables and a forest plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arviz
import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import wasserstein_distance

PARAMETERS = ("mu", "tau", "theta")
TRUTH = "NUTS"


def parameters_table(posteriors: Mapping[str, Any]) -> Table:
    """Means and standard deviations, and how far each posterior is from the chain's."""
    table = Table(title="Posterior mean ± sd, and Wasserstein distance to NUTS", box=SIMPLE_HEAD)
    table.add_column("")
    for name in posteriors:
        table.add_column(name, justify="right")
    draws = {name: draws_of(data) for name, data in posteriors.items()}
    for parameter, truth in draws[TRUTH].items():
        cells = [f"{truth.mean():.2f} ± {truth.std():.2f}"]
        for name in posteriors:
            if name != TRUTH:
                values = draws[name][parameter]
                distance = wasserstein_distance(values, truth)
                cells.insert(-1, f"{values.mean():.2f} ± {values.std():.2f}  {distance:.2f}")
        table.add_row(parameter, *cells)
    return table


def loo_table(posteriors: Mapping[str, Any]) -> Table:
    """The expected log density of a school left out, and for how many it is not to be believed."""
    table = Table(title="Leave one school out", box=SIMPLE_HEAD)
    for heading in ("", "elpd (nats)", "se", "p_loo", "k̂ > 0.7"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, data in posteriors.items():
        loo = arviz.loo(data, pointwise=True, var_name="effect")
        unreliable = int((loo.pareto_k > 0.7).sum())
        cells = (f"{loo.elpd_loo:.2f}", f"{loo.se:.2f}", f"{loo.p_loo:.2f}", f"{unreliable} of 8")
        table.add_row(name, *cells)
    return table


def save(posteriors: Mapping[str, Any], folder: Path) -> list[Path]:
    """The forest plot, and every posterior as a netCDF file."""
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
    paths = [folder / "forest.png"]
    axes.figure.savefig(paths[0], bbox_inches="tight", dpi=120)
    plt.close(axes.figure)
    for name, data in posteriors.items():
        paths.append(folder / f"{name.replace(' ', '_').lower()}.nc")
        data.to_netcdf(str(paths[-1]))
    return paths


def draws_of(data: Any) -> dict[str, np.ndarray]:
    """The draws of every parameter, by its name, and the school's number if it has one."""
    draws = {}
    for name in PARAMETERS:
        values = np.concatenate(data.posterior[name].values)
        if values.ndim == 1:
            draws[name] = values
        else:
            draws |= {f"{name}[{i}]": column for i, column in enumerate(values.T)}
    return draws
