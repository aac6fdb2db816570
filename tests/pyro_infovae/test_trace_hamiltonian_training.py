"""Training with TraceHamiltonian_ELBO."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import flow, normal_hierarchy


def test_trains_with_svi_and_evaluates() -> None:
    case = programs.vae(num=40, batch=10)
    objective = TraceHamiltonian_ELBO(3, 0.1, per_step=True, tempering="free")
    svi = SVI(case.model, case.guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    before = svi.evaluate_loss(*case.args)
    names = set(pyro.get_param_store().keys())
    assert {"hamiltonian.step_size", "hamiltonian.tempering_factors"} < names
    start = pyro.param("hamiltonian.step_size").detach().clone()
    for _ in range(100):
        svi.step(*case.args)
    assert svi.evaluate_loss(*case.args) < before
    assert not torch.allclose(start, pyro.param("hamiltonian.step_size"))
    assert (pyro.param("hamiltonian.step_size") < 0.5).all()


def test_training_resumes_from_a_saved_param_store(tmp_path: Path) -> None:
    def start() -> tuple[SVI, pyro.optim.PyroOptim]:
        pyro.clear_param_store()
        elbo = flow(per_step=True, tempering="free", max_step_size=0.7)
        model, _ = normal_hierarchy()
        optimiser = pyro.optim.Adam({"lr": 0.02})
        return SVI(model, AutoNormal(model), optimiser, loss=elbo), optimiser

    svi, optimiser = start()
    for _ in range(10):
        svi.step()
    pyro.get_param_store().save(tmp_path / "params")
    optimiser.save(tmp_path / "optimiser")
    pyro.set_rng_seed(1)
    expected = [svi.step() for _ in range(3)]
    parameters = {name: value.clone() for name, value in pyro.get_param_store().items()}

    svi, optimiser = start()
    pyro.get_param_store().load(tmp_path / "params")
    optimiser.load(tmp_path / "optimiser")
    svi.guide()
    pyro.set_rng_seed(1)
    assert [svi.step() for _ in range(3)] == pytest.approx(expected, rel=1e-12)
    for name, value in pyro.get_param_store().items():
        torch.testing.assert_close(value, parameters[name])
