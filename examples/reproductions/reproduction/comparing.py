"""Means over seeds, put into words: rows of `page.mean_and_spread`."""

import numpy as np
import pandas as pd


def order(a: pd.Series, b: pd.Series, column: str) -> int:
    """1 or -1 where a mean is higher or lower by more than two standard errors, 0 if not.

    The standard error of each seed's own measurement, where it is known (`elbo_se`), is added to
    that over the seeds. With a single seed, whose spread is unknown, it is 0.
    """
    difference = a[column] - b[column]
    variance = sum(
        row[f"{column}_sd"] ** 2 / row["seeds"] + row.get(f"{column}_se", 0.0) ** 2 / row["seeds"]
        for row in (a, b)
    )
    return int(np.sign(difference)) if abs(difference) > 2 * np.sqrt(variance) else 0


def order_by_spread(a: pd.Series, b: pd.Series, column: str) -> int:
    """1 or -1 where a mean is higher or lower by more than both spreads together, 0 if not.

    Unlike `order`, it is about single runs: more seeds do not make it finer.
    """
    difference = a[column] - b[column]
    return int(np.sign(difference)) if abs(difference) > both_spreads(a, b, column) else 0


def both_spreads(a: pd.Series, b: pd.Series, column: str) -> float:
    """The sum of the standard deviations."""
    return a[f"{column}_sd"] + b[f"{column}_sd"]


def in_words(row: pd.Series, column: str, form: str = ".2f") -> str:
    """Mean ± standard deviation."""
    spread = row[f"{column}_sd"]
    return f"{row[column]:{form}}" + ("" if np.isnan(spread) else f" ± {spread:{form}}")
