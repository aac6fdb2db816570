"""The table of all diagnostics."""

from __future__ import annotations

import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from scipy.stats import norm

from numpyro_backend import RBF
from numpyro_backend._diagnostics.summary import Summary, SummaryRow, summarise
from numpyro_backend.diagnostics import kl_by_dimension, mmd_test
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

NAMES = [
    "active_units",
    "kl",
    "mutual_information",
    "marginal_kl",
    "mmd_squared",
    "mmd_p_value",
    "log_evidence",
    "effective_sample_size",
    "pareto_k",
    "lambd",
]
KEY = jax.random.key(0)


def run(case: Programs, *, params: dict[str, Any] | None = None, **settings: Any) -> Summary:
    return summarise(KEY, params or {}, case.model, case.guide, *case.args, **settings)


@pytest.fixture
def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", exc_type=ImportError)


def linear(x: np.ndarray, *, mask: Any = True) -> Programs:
    """z ~ N(0, I), x ~ N(z_0, 1), and the exact posterior, in which z_1 is unused."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)), handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Array) -> None:
        slope = numpyro.param("slope", -1.0)
        with numpyro.plate("data", len(x)), handlers.mask(mask=mask):
            loc = jnp.stack([slope * x, 0 * x], -1)
            scale = jnp.array([math.sqrt(0.5), 1.0])
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,))


class TestValues:
    @pytest.mark.usefixtures("arviz")
    def test_of_an_exact_posterior(self) -> None:
        """Of as many data as the model would draw, moved by 1: all quantities are known.

        Masked data are no part of it.
        """
        x = 1.0 + math.sqrt(2.0) * programs.data(500, 1)[:, 0]
        mask = np.arange(500) % 5 != 0
        case, params, kernel = linear(x, mask=mask), {"slope": 0.5}, RBF(0.8)
        summary = run(case, params=params, kernel=kernel, num_importance_samples=50)
        assert [row.name for row in summary.rows] == NAMES
        assert (summary["active_units"].value, summary["active_units"].unit) == (1, "of 2")
        kl = 0.5 * (0.5 + np.square(x / 2)[mask].mean() - 1 - math.log(0.5))
        assert summary["kl"].value == pytest.approx(kl)
        assert summary["kl"].unit == "nats per datum"
        information, marginal = summary["mutual_information"], summary["marginal_kl"]
        assert 0 < information.standard_error < 0.05
        assert information.value == pytest.approx(0.5 * math.log(2), abs=0.1)
        assert marginal.value == pytest.approx(0.5**2 / 2, abs=0.1)
        total_error = 4 * (information.standard_error + marginal.standard_error)
        assert information.value + marginal.value == pytest.approx(kl, abs=total_error)
        assert summary["mmd_p_value"].value < 0.01
        exact = norm.logpdf(x[mask], scale=math.sqrt(2.0)).mean()
        assert summary["log_evidence"].value == pytest.approx(exact)
        assert summary["log_evidence"].unit == "nats per datum"
        assert summary["effective_sample_size"].value == pytest.approx(50.0)
        assert summary["effective_sample_size"].unit == "of 50"
        assert summary["pareto_k"].value == 0
        assert summary["lambd"].value > 1
        self.assert_those_of_the_diagnostics(summary, case, params, kernel)

    def assert_those_of_the_diagnostics(
        self, summary: Summary, case: Programs, params: dict[str, Any], kernel: RBF
    ) -> None:
        programs = KEY, params, case.model, case.guide, *case.args
        assert summary["kl"].value == kl_by_dimension(*programs).mean
        test = mmd_test(*programs, kernel=kernel)
        assert summary["mmd_squared"].value == test.mmd_squared
        assert summary["mmd_squared"].standard_error == test.standard_error
        assert summary["mmd_p_value"].value == test.p_value


class TestWhatCannotBeComputed:
    def test_has_a_row_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point masses have no densities. And a bar is shown where tqdm is installed."""
        case = programs.nested()

        def guide(x: Array) -> None:
            with numpyro.plate("groups", 6, dim=-1):
                numpyro.sample("outer", dist.Delta(x.mean(0)[:, :2], event_dim=1))
                with numpyro.plate("items", 4, dim=-2):
                    numpyro.sample("z", dist.Delta(x[..., :2], event_dim=1))

        shown = []

        def bar(steps: Any, **settings: Any) -> Any:
            shown.append(settings["desc"])
            return steps

        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
        summary = run(case._replace(guide=guide), sites=iter(["outer"]))
        assert shown == ["summarise"]
        assert summary["active_units"].unit == "of 2"
        assert math.isfinite(summary["mmd_squared"].value)
        for name in ("kl", "mutual_information", "marginal_kl", "log_evidence", "pareto_k"):
            row = summary[name]
            assert math.isnan(row.value)
            assert math.isnan(row.standard_error)
            assert row.meaning.startswith("not computed: ")
            assert "'outer'" in row.meaning
            assert "point mass" in row.meaning
            assert "JAX" not in row.meaning

    def test_whatever_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error without a message but with a note, and ArviZ, which is not there."""

        def fail(*_: Any, **__: Any) -> None:
            error = IndexError()
            error.add_note("what to do")
            raise error

        for diagnostic in ("aggregated_posterior", "mmd_test", "suggest_lambd"):
            monkeypatch.setattr(f"numpyro_backend._diagnostics.summary.{diagnostic}", fail)
        monkeypatch.setitem(sys.modules, "arviz", None)
        summary = run(programs.hierarchical(), num_importance_samples=20)
        for name in ("mutual_information", "marginal_kl", "mmd_squared", "lambd"):
            assert summary[name].meaning == "not computed: IndexError what to do"
        assert math.isfinite(summary["kl"].value)
        assert math.isfinite(summary["log_evidence"].value)
        assert summary["log_evidence"].unit == "nats, all data"
        assert summary["pareto_k"].meaning.startswith("not computed: Evidence.pareto_k needs ArviZ")

    def test_the_user_s_mistakes_are_raised(self) -> None:
        with pytest.raises(ValueError, match=r"num_samples >= 4 .*got num_samples=3"):
            run(programs.vae(), num_samples=3)
        with pytest.raises(ValueError, match=r">= 2; got .*num_importance_samples=1"):
            run(programs.vae(), num_importance_samples=1)


ROWS = (
    SummaryRow("kl", 1.23456, 0.01, "nats per datum", "how far"),
    SummaryRow("mutual_information", math.nan, math.nan, "", "not computed: no density"),
)


class TestTable:
    def test_as_text(self) -> None:
        assert str(Summary(ROWS)).splitlines() == [
            "quantity            value  error  unit            what it says",
            "kl                  1.235   0.01  nats per datum  how far",
            "mutual_information      -      -                  not computed: no density",
        ]

    def test_as_a_dictionary(self) -> None:
        table = Summary(ROWS).to_dict()
        assert list(table) == ["kl", "mutual_information"]
        assert table["kl"] == {
            "value": 1.23456,
            "standard_error": 0.01,
            "unit": "nats per datum",
            "meaning": "how far",
        }

    def test_an_unknown_name(self) -> None:
        with pytest.raises(KeyError, match=r"Expected one of \['kl', 'mutual.*got 'elbo'"):
            Summary(ROWS)["elbo"]
