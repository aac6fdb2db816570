"""What TraceInfoMax_ELBO refuses beside tests/refusals.py, and what it warns of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from numpyro.infer import Trace_ELBO

from numpyro_backend.mutual_information import nwj
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.recording import concat, evaluate

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]

REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "critic": ({"critic": nwj}, TypeError, "Expected critic to be a module of flax.linen"),
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
        TraceInfoMax_ELBO(**{"critic": concat(), **settings})


def test_few_rows_warn_once() -> None:
    few, many = programs.vae(num=63), programs.vae(num=64)
    objective = TraceInfoMax_ELBO(concat())
    with pytest.warns(UserWarning, match="from 63 rows, which is poor below 64"):
        evaluate(objective, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(objective, few)
        evaluate(TraceInfoMax_ELBO(concat()), many)
