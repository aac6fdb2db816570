"""Settings that the objectives refuse, and what they say: one table for both halves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class RefusedSettings(NamedTuple):
    """Settings of an objective, what it says when made with them, and others that it takes."""

    settings: dict[str, Any]
    message: str
    legal: tuple[dict[str, Any], ...]


MMD_SETTINGS = {
    "maximised": RefusedSettings(
        {"alpha": 0.2, "lambd": 0.5},
        "Expected alpha + lambd >= 1; got alpha=0.2, lambd=0.5, which would maximise the "
        "discrepancy between q(z) and p(z): raise lambd",
        ({"alpha": 0.2, "lambd": 0.9},),
    ),
    "rewarded KL": RefusedSettings(
        {"alpha": 1.5},
        "Expected alpha <= 1; got alpha=1.5, which would reward the KL without bound",
        ({"alpha": 1.0},),
    ),
    "nan": RefusedSettings(
        {"lambd": math.nan},
        "Expected alpha + lambd >= 1; got alpha=0.0, lambd=nan, which would maximise the "
        "discrepancy between q(z) and p(z): raise lambd",
        ({"lambd": 2.0},),
    ),
    "estimator": RefusedSettings(
        {"estimator": "u"},
        "Expected estimator to be one of ('unbiased', 'biased', 'closed_form', 'features'); got "
        "'u'",
        ({"estimator": "biased"},),
    ),
    "features": RefusedSettings(
        {"estimator": "features", "num_features": 0},
        "Expected num_features of at least 1, one for each term of the kernel; got 0",
        ({"estimator": "features", "num_features": 1},),
    ),
    "prior draws": RefusedSettings(
        {"prior_draws": 0}, "Expected prior_draws of at least 1; got 0", ({"prior_draws": 1},)
    ),
}

INFOMAX_SETTINGS = {
    "alpha": RefusedSettings(
        {"alpha": -0.1},
        "Expected alpha >= 0 and beta >= 0; got alpha=-0.1, beta=1.0",
        ({"alpha": 0.0},),
    ),
    "beta": RefusedSettings(
        {"beta": -1.0},
        "Expected alpha >= 0 and beta >= 0; got alpha=1.0, beta=-1.0",
        ({"beta": 0.0},),
    ),
    "nan": RefusedSettings(
        {"alpha": math.nan},
        "Expected alpha >= 0 and beta >= 0; got alpha=nan, beta=1.0",
        ({"alpha": 1.0},),
    ),
    "bound": RefusedSettings(
        {"bound": "mine"},
        "Expected bound to be one of 'nwj', 'dv', 'infonce', 'js', 'smile', or a function; got "
        "'mine'",
        ({"bound": "js"},),
    ),
    "negatives": RefusedSettings(
        {"negatives": "roll"},
        "Expected negatives to be one of ['shift', 'all']; got 'roll'",
        ({"negatives": "all"},),
    ),
}

POSTERIOR = {"path": "posterior"}

HAMILTONIAN_SETTINGS = {
    "steps": RefusedSettings(
        {"num_steps": 0}, "Expected num_steps >= 1; got 0", ({"num_steps": 1},)
    ),
    "path": RefusedSettings(
        {"path": "tempered"},
        "Expected path to be 'annealed' or 'posterior'; got 'tempered'",
        ({"path": "annealed"}, POSTERIOR),
    ),
    "persistence": RefusedSettings(
        {"persistence": 1.5},
        "Expected 0 <= persistence <= 1; got 1.5",
        ({"persistence": 0.0}, {"persistence": 1.0}),
    ),
    "precondition": RefusedSettings(
        {"precondition": "mass"},
        "Expected precondition to be 'guide' or 'none'; got 'mass'",
        ({"precondition": "guide"}, {"precondition": "none"}),
    ),
    "surrogate": RefusedSettings(
        {"surrogate": 0},
        "Expected surrogate to be a number of rows, at least 1, or one such number by the name of "
        "their plate; got 0",
        ({"surrogate": 1}, {"surrogate": {"data": 1}}),
    ),
    "surrogate of two plates": RefusedSettings(
        {"surrogate": {"data": 1, "others": 2}},
        "Expected surrogate to be a number of rows, at least 1, or one such number by the name of "
        "their plate; got {'data': 1, 'others': 2}",
        ({"surrogate": {"data": 1}},),
    ),
    "surrogate of the other path": RefusedSettings(
        {"surrogate": 4, **POSTERIOR},
        "Expected no surrogate on path='posterior'; got 4: leave it out, or pass path='annealed', "
        "which has one",
        (POSTERIOR, {"surrogate": 4}),
    ),
    "beta_0 of the other path": RefusedSettings(
        {"beta_0": 0.3},
        "Expected no beta_0 on path='annealed'; got 0.3: leave it out, or pass path='posterior', "
        "which has one",
        ({}, {"beta_0": 0.3, **POSTERIOR}),
    ),
    "persistence of the other path": RefusedSettings(
        {"persistence": 0.3, **POSTERIOR},
        "Expected no persistence on path='posterior'; got 0.3: leave it out, or pass "
        "path='annealed', which has one",
        (POSTERIOR, {"persistence": 0.3, "path": "annealed"}),
    ),
    "beta_0": RefusedSettings(
        {"beta_0": 1.5, **POSTERIOR},
        "Expected 0 < beta_0 <= 1; got 1.5",
        ({"beta_0": 1.0, **POSTERIOR},),
    ),
    "tempering": RefusedSettings(
        {"tempering": "linear", **POSTERIOR},
        "Expected tempering 'quadratic', 'constant', 'none', in an objective also 'free', or a "
        "callable (beta_0, k, num_steps) -> beta_k; got 'linear' (here, 'free' is "
        "free_inverse_temperatures(factors))",
        ({"tempering": "free", **POSTERIOR},),
    ),
    "step size too large": RefusedSettings(
        {"step_size": 0.7, "max_step_size": 0.5},
        "Expected step_size < max_step_size=0.5 where it is learned; got 0.7: raise "
        "max_step_size, or pass learn=False",
        (
            {"step_size": 0.7, "max_step_size": 0.8},
            {"step_size": 0.7, "max_step_size": 0.5, "learn": False},
        ),
    ),
    "step size too large for the posterior": RefusedSettings(
        {"step_size": {"z": 0.7}, **POSTERIOR},
        "Expected step_size['z'] < max_step_size=0.5 where it is learned; got 0.7: raise "
        "max_step_size, or pass learn=False",
        (
            {"step_size": {"z": 0.7}, "max_step_size": 0.8, **POSTERIOR},
            {"step_size": {"z": 0.7}, "learn": False, **POSTERIOR},
        ),
    ),
    "step size of zero": RefusedSettings(
        {"step_size": 0.0},
        "Expected step_size > 0 where it is learned; got 0.0: start above 0, or pass learn=False",
        ({"step_size": 1e-3}, {"step_size": 0.0, "learn": False}),
    ),
    "negative step size": RefusedSettings(
        {"step_size": -0.1, "learn": False},
        "Expected step_size >= 0 and finite; got -0.1",
        ({"step_size": 0.0, "learn": False},),
    ),
    "per step": RefusedSettings(
        {"num_steps": 3, "step_size": np.full(2, 0.1), "per_step": True},
        "Expected step_size with a leading axis of num_steps=3, one entry per step; got shape (2,)",
        ({"num_steps": 3, "step_size": np.full(3, 0.1), "per_step": True},),
    ),
    "prefactors": RefusedSettings(
        {"logp_prefactor": (1.0, 1.0), **POSTERIOR},
        "Expected three prefactors; got (1.0, 1.0)",
        ({"logp_prefactor": (1.0, 1.0, 1.0), **POSTERIOR},),
    ),
}
