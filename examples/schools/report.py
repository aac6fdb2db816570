"""What the posteriors say, side by side: tables and a forest plot."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
RELIABLE_PARETO_K = 0.7


@dataclass(frozen=True)
class Marginal:
    """One parameter under one posterior; the distance is Wasserstein's, to that of the chain."""

    posterior: str
    parameter: str
    mean: float
    sd: float
    distance: float


@dataclass(frozen=True)
class LeaveOneOut:
    """The expected log density of a school left out, in nats, and whether to believe it."""

    posterior: str
    elpd: float
    se: float
    p_loo: float
    unreliable: int


def marginals(posteriors: Mapping[str, Any]) -> list[Marginal]:
    """Every parameter under every posterior."""
    draws = {name: draws_of(data) for name, data in posteriors.items()}
    return [
        Marginal(
            name,
            parameter,
            float(values.mean()),
            float(values.std()),
            float(wasserstein_distance(values, draws[TRUTH][parameter])),
        )
        for name in posteriors
        for parameter, values in draws[name].items()
    ]


def leave_one_out(posteriors: Mapping[str, Any]) -> list[LeaveOneOut]:
    """Cross-validation of every posterior by Pareto-smoothed importance sampling."""
    found = []
    for name, data in posteriors.items():
        loo = arviz.loo(data, pointwise=True, var_name="effect")
        numbers = float(loo.elpd_loo), float(loo.se), float(loo.p_loo)
        found.append(LeaveOneOut(name, *numbers, int((loo.pareto_k > RELIABLE_PARETO_K).sum())))
    return found


def marginals_table(found: Sequence[Marginal]) -> Table:
    """A row per parameter, a column per posterior."""
    table = Table(title="Posterior mean ± sd, and Wasserstein distance to NUTS", box=SIMPLE_HEAD)
    table.add_column("")
    for name in dict.fromkeys(marginal.posterior for marginal in found):
        table.add_column(name, justify="right")
    for parameter in dict.fromkeys(marginal.parameter for marginal in found):
        row = [marginal for marginal in found if marginal.parameter == parameter]
        cells = [
            f"{m.mean:.2f} ± {m.sd:.2f}" + (f"  {m.distance:.2f}" if m.posterior != TRUTH else "")
            for m in row
        ]
        table.add_row(parameter, *cells)
    return table


def leave_one_out_table(found: Sequence[LeaveOneOut]) -> Table:
    """A row per posterior."""
    table = Table(title="Leave one school out", box=SIMPLE_HEAD)
    for heading in ("", "elpd (nats)", "se", "p_loo", f"k̂ > {RELIABLE_PARETO_K}"):
        table.add_column(heading, justify="right" if heading else "left")
    for loo in found:
        cells = (f"{loo.elpd:.2f}", f"{loo.se:.2f}", f"{loo.p_loo:.2f}", f"{loo.unreliable} of 8")
        table.add_row(loo.posterior, *cells)
    return table


def write_csv(rows: Sequence[Marginal] | Sequence[LeaveOneOut], path: Path) -> Path:
    """Save a row per entry, and return where."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(vars(rows[0])))
        writer.writeheader()
        writer.writerows(map(vars, rows))
    return path


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
    legend = axes.get_legend()
    legend.set_loc("upper left")
    legend.set_bbox_to_anchor((1.02, 1.0))
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
