"""What all questions about the data share: plates, masks, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import numpyro_backend._diagnostics.data_runs as in_numpyro
import pyro_infovae._diagnostics.data_runs as in_pyro
from pyro_infovae._core.data_runs import DataRuns, first_of_each, minibatches
from tests.halves import Case
from tests.questions.asking import Asking, data, slow_in_numpyro
from tests.questions.programs import (
    WEIGHT,
    in_plate,
    nested,
    several_subsampled,
    two_latents,
    vae,
)

KEY = jax.random.key(0)
OVER_THE_DATA = ("active_units", "kl_by_dimension", "mmd_test", "suggest_lambd", "summarise")
ALL = (*OVER_THE_DATA, "simulation_based_calibration")


def runs_of(half: Asking, case: Case) -> DataRuns:
    if half.library.__name__ == "pyro_infovae":
        return in_pyro.run_over_data("test", *case[:2], (), {}, None)
    return in_numpyro.run_over_data("test", KEY, {}, *case[:2], (), {}, None)


def group_of(draw: Any) -> Any:
    return getattr(draw, "group", draw)


def codes(draw: Any) -> Any:
    return group_of(draw).posterior.values, group_of(draw).prior(1).values


def test_the_first_row_of_each_datum_that_counts() -> None:
    datum, counts = np.array([3, 1, 0, 1, 3, 2]), np.array([0, 1, 1, 1, 1, 0], bool)
    assert first_of_each(datum, counts).tolist() == [2, 1, 4]


def test_minibatches_cover_the_data() -> None:
    assert minibatches("test", [("whole", 7, 7)]) == [{}]
    parts = minibatches("test", [("rows", 2, 2), ("columns", 3, 7)])
    rows = [part["columns"].tolist() for part in parts]
    assert rows == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]


class TestDataRuns:
    @pytest.mark.parametrize("batch", [None, 5])
    def test_every_datum_counts_once_and_in_order(self, half: Asking, batch: int | None) -> None:
        case = vae(half, batch=batch)._replace(
            guide=in_plate(half, 12, lambda index: half.sample("z", at(index)), batch=batch)
        )
        loc = half.array(data() @ WEIGHT)

        def at(index: Any) -> Any:
            return half.dist.Normal(loc[index], 1e-9).to_event(1)

        runs = runs_of(half, case)
        assert runs.datum.tolist() == list(range(12))
        assert runs.num_data == 12
        found = runs.draw(lambda draw: group_of(draw).posterior.values, KEY)
        np.testing.assert_allclose(found, data() @ WEIGHT, atol=1e-7)
        assert runs.features == ("z[0]", "z[1]")

    def test_nested_plates_of_which_one_is_subsampled(self, half: Asking) -> None:
        """Row and column of 2 x 7 data, met in minibatches of 3 columns: 0-2, 3-5, 6-0-1."""
        place = half.array(np.arange(14.0).reshape(2, 7))

        def program() -> None:
            with half.plate("rows", 2, dim=-2), half.plate("columns", 7, batch=3) as index:
                half.sample("z", half.dist.Normal(place[:, index], 1e-9))

        posterior, prior = runs_of(half, Case(program, program)).draw(codes, KEY)
        for drawn in (posterior, prior):
            np.testing.assert_allclose(drawn[:, 0], np.arange(14.0), atol=1e-7)
        assert not (posterior == prior).any()

    @slow_in_numpyro
    def test_repeat_stops_where_nothing_is_random(self, half: Asking) -> None:
        runs = runs_of(half, vae(half, mask=np.arange(12) % 3 != 0))
        assert runs.datum.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
        keys = jax.random.split(KEY, 7)
        nothing = runs.repeat(lambda draw: 0 * group_of(draw).posterior.values, keys, times=7)
        draws = runs.repeat(lambda draw: group_of(draw).posterior.values, keys, times=7)
        assert nothing.shape == (2, 8, 2)
        assert draws.shape == (7, 8, 2)
        assert len(np.unique(draws)) == draws.size

    def test_names_of_features(self, half: Asking) -> None:
        assert runs_of(half, two_latents(half)).features == ("z1", "z2")


def program(
    half: Asking, loc: np.ndarray, *, prior: Any = 0.0, mask: Any = None, **plate: Any
) -> Case:
    """z_i ~ N(loc_i, 1) in the guide."""
    num, locs = len(loc), half.array(loc)
    priors = half.array(np.broadcast_to(prior, num).astype(float))

    def model(index: Any) -> None:
        half.sample("z", half.dist.Normal(priors[index], 1.0))
        zeros = half.xp.zeros_like(locs[index])
        half.sample("x", half.dist.Normal(zeros, 1.0), obs=zeros)

    def guide(index: Any) -> None:
        half.sample("z", half.dist.Normal(locs[index], 1.0))

    return Case(*(in_plate(half, num, draw, mask=mask, **plate) for draw in (model, guide)))


NAN = np.array([0.0, np.nan, 1.0, 2.0, -1.0])

REFUSED_OVER_THE_DATA: dict[str, tuple[Callable[[Asking], Case], str]] = {
    "all but one masked": (
        lambda half: program(half, np.zeros(4), mask=np.arange(4) == 0),
        "Expected at least 2 data that are not masked; got 1",
    ),
    "several subsampled": (
        several_subsampled,
        r"minibatches of one plate; got several that are subsampled, \['rows', 'columns'\]",
    ),
    "chosen minibatch": (
        lambda half: program(half, np.zeros(5), index=np.array([0, 2, 3])),
        "plate 'data' is given some of them (as subsample|by handlers.substitute)",
    ),
}
REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "unknown site": (vae, {"sites": ["y"]}, "sites names 'y', which is no latent"),
    "several plates": (nested, {}, r"\[\['outer'\], \['z'\]\] are in different plates"),
    "nan": (
        lambda half: program(half, NAN),
        {},
        r"Expected finite codes; the guide draws nan or infinity in 1 of 5 rows of \['z'\]: look "
        "at its parameters",
    ),
}


def ask(half: Asking, question: str, case: Case, **settings: Any) -> Any:
    if question == "simulation_based_calibration":
        settings = {"data_args": lambda _: ((), {}), **settings}
    return half.ask(question, case, **settings)


@pytest.mark.parametrize("question", OVER_THE_DATA)
@pytest.mark.parametrize(
    ("case", "match"), REFUSED_OVER_THE_DATA.values(), ids=REFUSED_OVER_THE_DATA
)
def test_refusals_over_the_data(half: Asking, question: str, case: Any, match: str) -> None:
    with pytest.raises(ValueError, match=f"{question}.*{match}"):
        ask(half, question, case(half))


@pytest.mark.parametrize("question", ALL)
@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refusals(
    half: Asking, question: str, case: Any, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=f"{question}: .*{match}"):
        ask(half, question, case(half), **settings)


@pytest.mark.parametrize(
    ("half", "question"),
    [("pyro", question) for question in ("active_units", "kl_by_dimension", "mmd_test")]
    + [("numpyro", question) for question in ("kl_by_dimension", "simulation_based_calibration")],
    indirect=["half"],
)
def test_masked_rows_may_be_nan(half: Asking, question: str) -> None:
    ask(half, question, program(half, NAN, mask=~np.isnan(NAN)))


@pytest.mark.parametrize("question", ["mmd_test", "simulation_based_calibration"])
def test_refuses_a_prior_that_is_not_finite(half: Asking, question: str) -> None:
    """Which is nan only where the model draws afresh."""
    refused = r"codes; the model draws nan or infinity in 1 of 5 rows of \['z'\]"
    with pytest.raises(ValueError, match=refused):
        ask(half, question, program(half, np.zeros(5), prior=NAN))
