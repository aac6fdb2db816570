"""Settings that the objectives refuse, and what they say: one table for both halves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class RefusedSettings(NamedTuple):
    """Settings of an objective, and what it says when it is made with them."""

    settings: dict[str, Any]
    message: str


MMD_SETTINGS = {
    "maximised": RefusedSettings(
        {"alpha": 0.2, "lambd": 0.5},
        "Expected alpha + lambd >= 1; got alpha=0.2, lambd=0.5, which would maximise the "
        "discrepancy between q(z) and p(z): raise lambd",
    ),
    "rewarded KL": RefusedSettings(
        {"alpha": 1.5},
        "Expected alpha <= 1; got alpha=1.5, which would reward the KL without bound",
    ),
    "nan": RefusedSettings(
        {"lambd": math.nan},
        "Expected alpha + lambd >= 1; got alpha=0.0, lambd=nan, which would maximise the "
        "discrepancy between q(z) and p(z): raise lambd",
    ),
    "estimator": RefusedSettings(
        {"estimator": "u"},
        "Expected estimator to be one of ('unbiased', 'biased', 'closed_form'); got 'u'",
    ),
    "prior draws": RefusedSettings({"prior_draws": 0}, "Expected prior_draws of at least 1; got 0"),
}

INFOMAX_SETTINGS = {
    "alpha": RefusedSettings(
        {"alpha": -0.1}, "Expected alpha >= 0 and beta >= 0; got alpha=-0.1, beta=1.0"
    ),
    "beta": RefusedSettings(
        {"beta": -1.0}, "Expected alpha >= 0 and beta >= 0; got alpha=1.0, beta=-1.0"
    ),
    "nan": RefusedSettings(
        {"alpha": math.nan}, "Expected alpha >= 0 and beta >= 0; got alpha=nan, beta=1.0"
    ),
    "bound": RefusedSettings(
        {"bound": "mine"},
        "Expected bound to be one of 'nwj', 'dv', 'infonce', 'js', 'smile', or a function; got "
        "'mine'",
    ),
    "negatives": RefusedSettings(
        {"negatives": "roll"}, "Expected negatives to be one of ['shift', 'all']; got 'roll'"
    ),
}

HAMILTONIAN_SETTINGS = {
    "steps": RefusedSettings({"num_steps": 0}, "Expected num_steps >= 1; got 0"),
    "beta_0": RefusedSettings({"beta_0": 1.5}, "Expected 0 < beta_0 <= 1; got 1.5"),
    "tempering": RefusedSettings(
        {"tempering": "linear"},
        "Expected tempering 'quadratic', 'constant', 'none', in an objective also 'free', or a "
        "callable (beta_0, k, num_steps) -> beta_k; got 'linear' (here, 'free' is "
        "free_inverse_temperatures(factors))",
    ),
    "step size too large": RefusedSettings(
        {"step_size": 0.7},
        "Expected 0 < step_size < max_step_size=0.5 where it is learned; got 0.7: raise "
        "max_step_size, or pass learn=False",
    ),
    "step size of zero": RefusedSettings(
        {"step_size": 0.0},
        "Expected 0 < step_size < max_step_size=0.5 where it is learned; got 0.0: raise "
        "max_step_size, or pass learn=False",
    ),
    "negative step size": RefusedSettings(
        {"step_size": -0.1, "learn": False}, "Expected step_size >= 0 and finite; got -0.1"
    ),
    "per step": RefusedSettings(
        {"step_size": np.full(2, 0.1), "per_step": True},
        "Expected step_size with a leading axis of num_steps=3, one entry per step; got shape (2,)",
    ),
    "prefactors": RefusedSettings(
        {"logp_prefactor": (1.0, 1.0)}, "Expected three prefactors; got (1.0, 1.0)"
    ),
}
