# SPDX-License-Identifier: MIT
"""Estimates of mutual information from a critic's scores."""

from pyro_infovae._core import mutual_information as _shared
from pyro_infovae._core.mutual_information import (
    BOUNDS,
    Bound,
    MutualInformationEstimate,
    dv,
    get_bound,
    infonce,
    js,
    nwj,
    smile,
)

__all__ = [
    "BOUNDS",
    "Bound",
    "MutualInformationEstimate",
    "dv",
    "get_bound",
    "infonce",
    "js",
    "nwj",
    "smile",
]

__doc__ = _shared.__doc__
