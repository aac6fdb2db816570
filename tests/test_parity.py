"""The same objectives in both halves: loss and gradients, parameters and every draw being equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import LENGTHSCALES
from tests.halves import Case, Half, OrderedDraws
from tests.numpyro_backend.half import NUMPYRO
from tests.pyro_infovae.half import PYRO
from tests.shared_programs import MASK, MINIBATCH, critic, nested, positive, vae

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")

PROGRAMS: dict[str, Callable[[Half], Case]] = {
    "plain": vae,
    "subsampled": partial(vae, index=MINIBATCH),
    "masked": partial(vae, mask=MASK),
    "nested": nested,
    "positive": positive,
}


def base(half: Half, program: str) -> Any:
    """The default one, but where only one half knows a KL in closed form."""
    return half.infer.Trace_ELBO() if program == "positive" else None


def mmd(half: Half, program: str) -> list[Any]:
    settings: list[dict[str, Any]] = [
        {},
        {"alpha": 0.4},
        {"alpha": 1.0, "estimator": "biased"},
    ]
    if program != "positive":
        settings.append({"alpha": 0.4, "estimator": "closed_form"})
    kernel = half.library.RBF(LENGTHSCALES)
    elbo = half.library.TraceMMD_ELBO
    return [elbo(lambd=30.0, kernel=kernel, base=base(half, program), **kw) for kw in settings]


def infomax(half: Half, program: str) -> list[Any]:
    settings: list[dict[str, Any]] = [
        {},
        {"negatives": "all"},
        {"bound": "infonce", "negatives": "all"},
        {"bound": "js"},
    ]
    elbo, below = half.library.TraceInfoMax_ELBO, base(half, program)
    return [elbo(critic(half), 1.5, 0.7, sites="z", base=below, **kw) for kw in settings]


def hamiltonian(half: Half, program: str) -> list[Any]:
    settings: list[dict[str, Any]] = [
        {"path": "posterior", "tempering": "free", "per_step": True},
        {},
        {"path": "posterior"},
        {"path": "posterior", "tempering": "none", "learn": False},
        {"precondition": "none", "persistence": 0.0, "per_step": False},
    ]
    if program == "positive":
        settings = settings[:2]  # the others meet the other programs
    elbo = half.library.TraceHamiltonian_ELBO
    elbos = [elbo(3, 0.2, **kw) for kw in settings]
    if program == "subsampled":
        elbos.append(half.library.TraceMMD_ELBO(0.4, 30.0, base=elbo(3, 0.2)))
    return elbos


QUICK = [
    (mmd, "subsampled"),
    (infomax, "subsampled"),
    (hamiltonian, "subsampled"),
]
"""The others take long, for each objective is compiled for each program."""
CASES = [
    pytest.param(make, program, marks=[] if (make, program) in QUICK else [pytest.mark.slow])
    for make in (mmd, infomax, hamiltonian)
    for program in PROGRAMS
]


@pytest.mark.parametrize(("objectives", "program"), CASES)
def test_loss_and_gradients_agree(
    objectives: Callable[[Half, str], list[Any]], program: str
) -> None:
    """Every parameter's gradient, those of critics, step sizes and temperatures included."""
    with NUMPYRO.precision(double=True):
        expected, ours = (
            half.steps(objectives(half, program), PROGRAMS[program](half), draws=OrderedDraws)
            for half in (PYRO, NUMPYRO)
        )
    for step, expected_step in zip(ours, expected, strict=True):
        assert step.loss == pytest.approx(expected_step.loss, rel=1e-9)
        assert step.grads.keys() == expected_step.grads.keys()
        for name, grad in expected_step.grads.items():
            np.testing.assert_allclose(step.grads[name], grad, 1e-9, 1e-9, err_msg=name)
