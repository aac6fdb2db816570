"""What the objectives refuse in Pyro alone."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
from pyro.infer import JitTrace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoNormal

from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from tests.objectives.flows import normal_hierarchy
from tests.pyro_infovae import programs
from tests.pyro_infovae.half import PYRO
from tests.pyro_infovae.programs import Programs


def _enumerated(case: Programs, *kind: Any, **settings: Any) -> Programs:
    return case._replace(guide=pyro.infer.config_enumerate(case.guide, *kind, **settings))


def test_a_compiled_base() -> None:
    match = "runs model and guide in every step.*JitTrace"
    with pytest.raises((ValueError, NotImplementedError), match=match):
        TraceMMD_ELBO(base=JitTrace_ELBO())


@pytest.mark.parametrize("critic", [lambda x, z: z, ConcatCritic], ids=["function", "class"])
def test_a_critic_that_is_no_module(critic: Any) -> None:
    with pytest.raises(TypeError, match=r"Expected critic to be a torch.nn.Module; got <"):
        TraceInfoMax_ELBO(critic)


ENUMERATING: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "not in the guide": (
        programs.mixture(enumerate_in_model=True),
        {"sites": ["y"]},
        "'y', which the guide does not draw",
    ),
    "closed form, mixture": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {"estimator": "closed_form"},
        "prior of 'z' is a mixture over a latent that the model sums out",
    ),
    "mixture prior": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {"alpha": 0.5},
        "KL of 'z' cannot be weighted by 0.5: its prior depends on 'y'",
    ),
    "sequential": (
        _enumerated(programs.mixture(), "sequential"),
        {},
        "'y' is enumerated sequentially",
    ),
    "parallel draws": (
        _enumerated(programs.vae(), "parallel", num_samples=3, expand=True),
        {},
        r"'z' is drawn several times in parallel \(num_samples\)",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), ENUMERATING.values(), ids=ENUMERATING)
def test_programs_under_enumeration(case: Programs, settings: dict, match: str) -> None:
    objective = TraceMMD_ELBO(base=TraceEnum_ELBO(max_plate_nesting=1), **settings)
    with pytest.raises((ValueError, NotImplementedError), match=match):
        objective.loss_and_grads(case.model, case.guide, *case.args)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ({}, {"per_step": True}, r"'hamiltonian.step_size' of shape \(4,\).*shape \(\)"),
        ({"tempering": "free"}, {"num_steps": 5}, r"tempering_factors' of shape \(5,\)"),
    ],
)
def test_two_flows_of_one_name(first: dict, second: dict, match: str) -> None:
    """The param store keeps the first one's values: 3 learned factors are no 5 steps."""
    model = normal_hierarchy(PYRO)
    guide = AutoNormal(model)
    TraceHamiltonian_ELBO(**first, path="posterior").loss(model, guide)
    settings = {**first, **second}
    with pytest.raises(ValueError, match=f"{match}.*another name, or clear the param store"):
        TraceHamiltonian_ELBO(**settings, path="posterior").loss(model, guide)
    TraceHamiltonian_ELBO(**settings, name="other", path="posterior").loss(model, guide)


def test_a_messenger_that_observes() -> None:
    model = normal_hierarchy(PYRO)
    with pytest.raises(NotImplementedError, match="got AutoHierarchicalNormalM"):
        TraceHamiltonian_ELBO(path="posterior").loss(model, AutoHierarchicalNormalMessenger(model))
