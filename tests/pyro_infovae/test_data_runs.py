"""What all diagnostics over the data share: plates, masks, refusals, parameters left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae._diagnostics.data_runs import DataRuns, feature_names
from pyro_infovae.diagnostics import (
    active_units,
    kl_by_dimension,
    mmd_test,
    simulation_based_calibration,
    suggest_lambd,
    summarise,
)
from tests.pyro_infovae import programs
from tests.pyro_infovae.param_store import assert_untouched
from tests.pyro_infovae.programs import Programs

OVER_THE_DATA: dict[str, Callable[..., Any]] = {
    "active_units": active_units,
    "kl_by_dimension": kl_by_dimension,
    "mmd_test": mmd_test,
    "suggest_lambd": suggest_lambd,
    "summarise": summarise,
}
ALL = {**OVER_THE_DATA, "simulation_based_calibration": simulation_based_calibration}


def runs_of(case: Programs, **settings: Any) -> DataRuns:
    return DataRuns.of("test", case.model, case.guide, case.args, {}, settings.get("sites"))


class TestDataRuns:
    @pytest.mark.parametrize("batch", [None, 3, 5, 12])
    def test_every_datum_counts_once_and_in_order(self, batch: int | None) -> None:
        case = programs.vae(batch=batch)
        runs = runs_of(case)
        assert runs.datum.tolist() == list(range(12))
        locs = runs.draw().per_datum(lambda group: group.runs[0].guide["z"]["fn"].mean)
        whole = programs.vae()
        fn = pyro.poutine.trace(whole.guide).get_trace(*case.args).nodes["z"]["fn"]
        torch.testing.assert_close(locs, fn.mean)

    def test_masked_data_are_left_out(self) -> None:
        runs = runs_of(programs.masked_vae())
        assert runs.datum.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]

    def test_nested_plates_of_which_one_is_subsampled(self) -> None:
        """Row and column of 2 x 7 data, met in minibatches of 3 columns: 0-2, 3-5, 6-0-1."""
        place = torch.arange(14.0).reshape(2, 7)

        def program() -> None:
            with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 7, 3, dim=-1) as index:
                pyro.sample("z", dist.Normal(place[:, index], 1e-9))

        runs = DataRuns.of("test", program, program, (), {}, None)
        torch.testing.assert_close(runs.draw().posterior[:, 0], torch.arange(14.0))

    def test_repeat_stops_where_nothing_is_random(self) -> None:
        runs = runs_of(programs.vae())
        locs = runs.repeat(lambda group: group.runs[0].guide["z"]["fn"].mean, 7)
        draws = runs.repeat(lambda group: group.posterior.values, 7)
        assert (len(locs), len(draws)) == (2, 7)
        assert not torch.equal(draws[0], draws[6])

    def test_names_of_features(self) -> None:
        group = runs_of(programs.two_latents()).draw().groups[0]
        assert feature_names(group.posterior) == ("z1", "z2")
        assert runs_of(programs.vae()).features == ("z[0]", "z[1]")


def program(loc: Tensor, *, mask: Any = True, batch: int | None = None) -> Programs:
    """z_i ~ N(loc_i, 1) in the guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), batch) as index, pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), batch) as index, pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(loc[index], 1.0))

    return Programs(model, guide, (torch.zeros(len(loc)),))


def several_subsampled() -> Programs:
    def run() -> None:
        with pyro.plate("rows", 6, 3, dim=-2), pyro.plate("columns", 6, 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(run, run, ())


def chosen_minibatch() -> Programs:
    def run() -> None:
        with pyro.plate("data", 5, subsample=torch.tensor([0, 2, 3])):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(run, run, ())


NAN = torch.tensor([0.0, torch.nan, 1.0, 2.0, -1.0], dtype=torch.float64)
MASK = torch.tensor([True, False, False, False])

REFUSED_OVER_THE_DATA: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "all but one masked": (
        program(torch.zeros(4), mask=MASK),
        {},
        "Expected at least 2 data that are not masked; got 1",
    ),
    "several subsampled": (
        several_subsampled(),
        {},
        r"minibatches of one plate; got several that are subsampled, \['rows', 'columns'\]",
    ),
    "chosen minibatch": (chosen_minibatch(), {}, "plate 'data' is given some of them as subsample"),
}
REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "unknown site": (programs.vae(), {"sites": ["y"]}, "sites names 'y', which is no latent"),
    "several plates": (programs.nested(), {}, r"\['outer'\], \['z'\]\] are in different plates"),
    "nan": (
        program(NAN),
        {},
        r"Expected finite codes; the guide (draws|gives) nan or infinity in \d+ of \d+ rows of "
        r"\['z'\]: look at its parameters",
    ),
}


@pytest.mark.parametrize("diagnostic", OVER_THE_DATA)
@pytest.mark.parametrize(
    ("case", "settings", "match"), REFUSED_OVER_THE_DATA.values(), ids=REFUSED_OVER_THE_DATA
)
def test_refusals_over_the_data(
    diagnostic: str, case: Programs, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=f"{diagnostic}.*{match}"):
        ALL[diagnostic](case.model, case.guide, *case.args, **settings)


@pytest.mark.parametrize("diagnostic", ALL)
@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refusals(diagnostic: str, case: Programs, settings: dict[str, Any], match: str) -> None:
    if diagnostic == "simulation_based_calibration":
        settings = {**settings, "data_args": lambda _: (case.args, {})}
    with pytest.raises(ValueError, match=f"{diagnostic}: .*{match}"):
        ALL[diagnostic](case.model, case.guide, *case.args, **settings)


@pytest.mark.parametrize("diagnostic", ["active_units", "kl_by_dimension", "mmd_test"])
def test_masked_rows_may_be_nan(diagnostic: str) -> None:
    case = program(NAN, mask=~NAN.isnan())
    ALL[diagnostic](case.model, case.guide, *case.args)


@pytest.mark.parametrize("diagnostic", ALL)
def test_parameters_are_left_alone(diagnostic: str) -> None:
    """Those of a store that is empty, and those of one that is not."""
    model, guide, (x,) = programs.vae(num=20, batch=7)
    case = Programs(model, guide, (5 * x,))

    few = {} if diagnostic in ("mmd_test", "suggest_lambd") else {"num_samples": 4}

    assert_untouched(case, lambda: ALL[diagnostic](case.model, case.guide, *case.args, **few))
