"""From every step's estimate to bias, standard deviation and error per stair."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from information_stairs.problem import BATCH, STAIRS
from reproduction.results import cell

WINDOWS = 20
SETTING = ["pairs", "negatives", "critic", "bound"]
ERRORS = ["bias", "sd", "rmse"]
CEILINGS = {"all": math.log(BATCH), "shift": math.log(2)}


def windows(estimates: Mapping[str, np.ndarray]) -> Iterator[dict[str, str | float]]:
    """Mean, variance and central half of the estimates, over twentieths of every stair."""
    for bound, steps in estimates.items():
        for information, stair in zip(STAIRS, steps.reshape(len(STAIRS), -1), strict=True):
            for window, values in enumerate(np.array_split(stair, WINDOWS)):
                low, high = np.quantile(values, (0.25, 0.75))
                yield {
                    "bound": bound,
                    "information": information,
                    "window": window,
                    "mean": float(values.mean()),
                    "variance": float(values.var()),
                    "low": float(low),
                    "high": float(high),
                }


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Bias, standard deviation and RMSE of the estimates on the second half of every stair."""
    settled = frame[frame["window"] >= WINDOWS // 2]
    groups = settled.groupby([*SETTING, "information"], sort=False)
    # The law of total variance; every window has as many steps, but for one.
    table = groups["mean"].mean().to_frame("estimate")
    table["sd"] = np.sqrt(groups["variance"].mean() + groups["mean"].var(ddof=0))
    table = table.reset_index()
    table["bias"] = table["estimate"] - table["information"]
    table["rmse"] = np.hypot(table["bias"], table["sd"])
    return table


def by_stair(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table per kind of negatives, with the columns `bias 2`, `bias 4`, ..., `sd 2`, ..."""
    wide = table.pivot(index=SETTING, columns="information", values=ERRORS).sort_index()
    wide.columns = [f"{error} {information:g}" for error, information in wide.columns]
    cells = wide.map(cell)
    kinds = cells.index.unique("negatives")
    return {negatives: cells.xs(negatives, level="negatives") for negatives in kinds}
