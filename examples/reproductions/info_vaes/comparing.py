"""Means over seeds, put into words: rows of `reproduction.page.mean_and_spread`."""

import numpy as np
import pandas as pd


def order(a: pd.Series, b: pd.Series, column: str) -> int:
    """1 or -1 where a mean is higher or lower by more than two standard errors, 0 if not.

    With a single seed, whose spread is unknown, it is 0.
    """
    difference = a[column] - b[column]
    error = np.hypot(a[f"{column}_sd"] / a.seeds**0.5, b[f"{column}_sd"] / b.seeds**0.5)
    return int(np.sign(difference)) if abs(difference) > 2 * error else 0


def in_words(row: pd.Series, column: str, form: str = ".2f") -> str:
    """Mean ± standard deviation."""
    spread = row[f"{column}_sd"]
    return f"{row[column]:{form}}" + ("" if np.isnan(spread) else f" ± {spread:{form}}")
