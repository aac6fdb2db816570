"""Pyro's objectives keep the contract of tests/elbo_suite.py."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch

from pyro_infovae import TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from tests.elbo_suite import ELBOSuite, HamiltonianSuite, InfoMaxSuite, MMDSuite
from tests.halves import Case
from tests.pyro_infovae.half import PYRO
from tests.shared_programs import PROGRAMS, vae


def assert_same_losses(elbo: Any, case: Case) -> None:
    elbo.loss(*case)  # in which it finds out how the plates are nested
    losses = []
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        pyro.set_rng_seed(3)
        losses.append(float(torch.as_tensor(method(*case)).detach()))
    assert losses == [pytest.approx(losses[0], rel=1e-12)] * 3


class PyroSuite(ELBOSuite):
    half = PYRO

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_all_methods_give_the_same_loss(self, name: str) -> None:
        case = PROGRAMS[name](PYRO)
        for elbo in (self.neutral(**kw) for kw in self.particles(name)):
            assert_same_losses(elbo, case)

    def test_all_methods_of_a_typical_objective_give_the_same_loss(self) -> None:
        assert_same_losses(self.typical(), vae(PYRO, batch=5))


class TestTraceMMD(PyroSuite, MMDSuite):
    elbo = TraceMMD_ELBO


class TestTraceInfoMax(PyroSuite, InfoMaxSuite):
    elbo = TraceInfoMax_ELBO


class TestTraceHamiltonian(PyroSuite, HamiltonianSuite):
    elbo = TraceHamiltonian_ELBO
