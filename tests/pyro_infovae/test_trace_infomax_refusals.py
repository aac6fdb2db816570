"""What TraceInfoMax_ELBO refuses beside tests/refusals.py, and what it warns of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from pyro.infer import Trace_ELBO

from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.recording import Recording

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")

REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "function": ({"critic": lambda x, z: z}, TypeError, "Expected critic to be a torch.nn.Module"),
    "class": ({"critic": ConcatCritic}, TypeError, "torch.nn.Module; got <class"),
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        ValueError,
        "particle settings in base",
    ),
}


@pytest.mark.parametrize(
    ("settings", "error", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS
)
def test_settings(settings: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        TraceInfoMax_ELBO(**{"critic": Recording(), **settings})


def test_few_rows_warn_once() -> None:
    few, many = programs.vae(num=63), programs.vae(num=64)
    objective = TraceInfoMax_ELBO(Recording())
    with pytest.warns(UserWarning, match="from 63 rows, which is poor below 64"):
        objective.loss_and_grads(few.model, few.guide, *few.args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.loss_and_grads(few.model, few.guide, *few.args)
        TraceInfoMax_ELBO(Recording()).loss(many.model, many.guide, *many.args)
