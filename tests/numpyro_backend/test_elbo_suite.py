"""NumPyro's objectives keep the contract of tests/elbo_suite.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from numpyro_backend import TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from tests.elbo_suite import ONE, VECTORISED, ELBOSuite, HamiltonianSuite, InfoMaxSuite, MMDSuite
from tests.numpyro_backend.half import NUMPYRO

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class NumPyroSuite(ELBOSuite):
    half = NUMPYRO

    def particles(self, program: str) -> Sequence[dict[str, Any]]:
        """All of them on one program: each has to be compiled."""
        return super().particles(program) if program == "subsampled" else [VECTORISED]


class TestTraceMMD(NumPyroSuite, MMDSuite):
    elbo = TraceMMD_ELBO


class TestTraceInfoMax(NumPyroSuite, InfoMaxSuite):
    elbo = TraceInfoMax_ELBO

    def particles(self, program: str) -> Sequence[dict[str, Any]]:
        """One on every program too, where negatives are not told apart by particle."""
        return super().particles(program) if program == "subsampled" else [ONE, VECTORISED]


class TestTraceHamiltonian(NumPyroSuite, HamiltonianSuite):
    elbo = TraceHamiltonian_ELBO
