"""Runs that give arrays, without a model or a guide: what is computed of runs needs neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_infovae._core.data_runs import DataRuns


def runs_of_arrays(num_data: int, draw: Callable[[], Any]) -> DataRuns:
    """Runs that all give what is drawn, whatever the quantity and the seed."""
    return DataRuns(
        "a test",
        run=lambda quantity: lambda seed: [draw()],
        array=np.asarray,
        first=None,
        num_data=num_data,
        kept=np.arange(num_data),
        datum=np.arange(num_data),
        features=("z[0]", "z[1]"),
    )
