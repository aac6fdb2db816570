"""What all diagnostics over the data share: plates, masks, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend._diagnostics.data_runs import DataRuns, feature_names
from numpyro_backend.diagnostics import (
    active_units,
    kl_by_dimension,
    mmd_test,
    simulation_based_calibration,
    suggest_lambd,
    summarise,
)
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

OVER_THE_DATA: dict[str, Callable[..., Any]] = {
    "active_units": active_units,
    "kl_by_dimension": kl_by_dimension,
    "mmd_test": mmd_test,
    "suggest_lambd": suggest_lambd,
    "summarise": summarise,
}
ALL = {**OVER_THE_DATA, "simulation_based_calibration": simulation_based_calibration}
KEY = jax.random.key(0)


def runs_of(case: Programs) -> DataRuns:
    return DataRuns.of("test", KEY, {}, case.model, case.guide, case.args, {}, None)


def ask(diagnostic: str, case: Programs, **settings: Any) -> Any:
    if diagnostic == "simulation_based_calibration":
        settings = {"data_args": lambda _: (case.args, {}), **settings}
    return ALL[diagnostic](KEY, {}, case.model, case.guide, *case.args, **settings)


class TestDataRuns:
    @pytest.mark.parametrize("batch", [None, 5])
    def test_every_datum_counts_once_and_in_order(self, batch: int | None) -> None:
        case = programs.vae(batch=batch)
        runs = runs_of(case)
        assert runs.datum.tolist() == list(range(12))
        locs = runs.per_datum(
            runs.draw(KEY).per_minibatch(lambda draw: draw.run.guide["z"].normal[0])
        )
        weight = np.linspace(-0.5, 0.6, 6).reshape(3, 2)
        np.testing.assert_allclose(locs, case.args[0] @ weight)
        assert runs.features == ("z[0]", "z[1]")

    def test_nested_plates_of_which_one_is_subsampled(self) -> None:
        """Row and column of 2 x 7 data, met in minibatches of 3 columns: 0-2, 3-5, 6-0-1."""
        place = jnp.arange(14.0).reshape(2, 7)

        def program() -> None:
            columns = numpyro.plate("columns", 7, subsample_size=3, dim=-1)
            with numpyro.plate("rows", 2, dim=-2), columns as index:
                numpyro.sample("z", dist.Normal(place[:, index], 1e-9))

        posterior, prior = runs_of(Programs(program, program, ())).draw(KEY).codes
        for codes in (posterior, prior):
            np.testing.assert_allclose(codes[:, 0], np.arange(14.0), atol=1e-7)
        assert not (posterior == prior).any()

    def test_repeat_stops_where_nothing_is_random(self) -> None:
        runs = runs_of(programs.masked_vae())
        assert runs.datum.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
        locs = runs.repeat(KEY, lambda draw: draw.run.guide["z"].normal[0], 7)
        draws = runs.repeat(KEY, lambda draw: draw.group.posterior.values, 7)
        assert locs.shape == (2, 8, 2)
        assert draws.shape == (7, 8, 2)
        assert len(np.unique(draws)) == draws.size

    def test_names_of_features(self) -> None:
        rows = runs_of(programs.two_latents()).outline.rows
        assert feature_names(rows) == ("z1", "z2")


def program(loc: Any, *, mask: Any = True) -> Programs:
    """z_i ~ N(loc_i, 1) in the guide."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(loc)), handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(loc)), handlers.mask(mask=mask):
            numpyro.sample("z", dist.Normal(loc, 1.0))

    return Programs(model, guide, (np.zeros(len(loc)),))


def several_subsampled() -> Programs:
    def run() -> None:
        rows, columns = (
            numpyro.plate(name, 6, subsample_size=3, dim=dim)
            for name, dim in (("rows", -2), ("columns", -1))
        )
        with rows, columns:
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(run, run, ())


def chosen_minibatch() -> Programs:
    case = programs.vae(batch=3)
    rows = {"data": jnp.array([0, 2, 3])}
    return case._replace(guide=handlers.substitute(case.guide, data=rows))


def one_code_for_all() -> Programs:
    return program(np.zeros(5))._replace(guide=lambda x: numpyro.sample("z", dist.Normal(0.0, 1.0)))


NAN = np.array([0.0, np.nan, 1.0, 2.0, -1.0])

REFUSED_OVER_THE_DATA: dict[str, tuple[Programs, str]] = {
    "all but one masked": (
        program(np.zeros(4), mask=np.arange(4) == 0),
        "Expected at least 2 data that are not masked; got 1",
    ),
    "several subsampled": (
        several_subsampled(),
        r"minibatches of one plate; got several that are subsampled, \['rows', 'columns'\]",
    ),
    "chosen minibatch": (
        chosen_minibatch(),
        "plate 'data' is given some of them by handlers.substitute",
    ),
    "one code for all": (
        one_code_for_all(),
        r"Expected the guide to draw 'z' with batch shape \(5,\), as the model does; got \(\)",
    ),
}
REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "unknown site": (programs.vae(), {"sites": ["y"]}, "sites names 'y', which is no latent"),
    "several plates": (
        programs.nested(),
        {},
        r"\[\['outer'\], \['z'\]\] are in different plates",
    ),
    "nan": (
        program(NAN),
        {},
        r"Expected finite codes; the guide draws nan or infinity in 1 of 5 rows of \['z'\]: look "
        "at its parameters",
    ),
}


@pytest.mark.parametrize("diagnostic", OVER_THE_DATA)
@pytest.mark.parametrize(
    ("case", "match"), REFUSED_OVER_THE_DATA.values(), ids=REFUSED_OVER_THE_DATA
)
def test_refusals_over_the_data(diagnostic: str, case: Programs, match: str) -> None:
    with pytest.raises(ValueError, match=f"{diagnostic}.*{match}"):
        ask(diagnostic, case)


@pytest.mark.parametrize("diagnostic", ALL)
@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refusals(diagnostic: str, case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"{diagnostic}: .*{match}"):
        ask(diagnostic, case, **settings)


@pytest.mark.parametrize("diagnostic", ["kl_by_dimension", "simulation_based_calibration"])
def test_masked_rows_may_be_nan(diagnostic: str) -> None:
    ask(diagnostic, program(NAN, mask=~np.isnan(NAN)))


@pytest.mark.parametrize("diagnostic", ["mmd_test", "simulation_based_calibration"])
def test_refuses_a_prior_that_is_not_finite(diagnostic: str) -> None:
    """Which is nan only where the model draws afresh."""

    def model(x: Array) -> None:
        with numpyro.plate("data", 5):
            numpyro.sample("z", dist.Normal(NAN, 1.0))
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    refused = r"codes; the model draws nan or infinity in 1 of 5 rows of \['z'\]"
    with pytest.raises(ValueError, match=refused):
        ask(diagnostic, program(np.zeros(5))._replace(model=model))
