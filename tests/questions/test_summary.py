"""The table of all diagnostics."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from pyro_infovae._core.summary import Summary, SummaryRow
from tests.halves import Case
from tests.questions.asking import Asking, data, slow_in_numpyro
from tests.questions.programs import in_plate, nested, vae

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


def linear(half: Asking, x: np.ndarray, *, mask: np.ndarray) -> Case:
    """z ~ N(0, I), x ~ N(z_0, 1), and the exact posterior, in which z_1 is unused."""
    rows = half.array(x)

    def model(_: Any) -> None:
        prior = half.dist.Normal(half.array(np.zeros((len(x), 2))), 1.0)
        z = half.sample("z", prior.to_event(1))
        half.sample("x", half.dist.Normal(z[..., 0], 1.0), obs=rows)

    def guide(_: Any) -> None:
        loc = half.xp.stack([rows / 2, 0 * rows], -1)
        scale = half.array([math.sqrt(0.5), 1.0])
        half.sample("z", half.dist.Normal(loc, scale).to_event(1))

    return Case(*(in_plate(half, len(x), draw, mask=mask) for draw in (model, guide)))


class TestValues:
    @slow_in_numpyro
    def test_of_an_exact_posterior(self, half: Asking) -> None:
        """Of as many data as the model would draw, moved by 1: all quantities are known.

        Masked data are no part of it.
        """
        x = 1.0 + math.sqrt(2.0) * data(500, 1)[:, 0]
        mask, kernel = np.arange(500) % 5 != 0, half.library.RBF(0.8)
        case = linear(half, x, mask=mask)
        summary = half.ask("summarise", case, kernel=kernel, num_importance_samples=50)
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
        assert summary["kl"].value == half.ask("kl_by_dimension", case).mean
        test = half.ask("mmd_test", case, kernel=kernel)
        error = math.hypot(test.standard_error, summary["mmd_squared"].standard_error)
        assert summary["mmd_squared"].value == pytest.approx(test.mmd_squared, abs=4 * error)


class TestWhatCannotBeComputed:
    @slow_in_numpyro
    def test_has_a_row_with_the_reason(self, half: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point masses have no densities. And a bar is shown where tqdm is installed."""
        loc = half.array(data(24, 2).reshape(4, 6, 2))

        def guide() -> None:
            with half.plate("groups", 6):
                half.sample("outer", half.dist.Delta(loc.mean(0), event_dim=1))
                with half.plate("items", 4, dim=-2):
                    half.sample("z", half.dist.Delta(loc, event_dim=1))

        shown = []

        def bar(steps: Any, **settings: Any) -> Any:
            shown.append(settings["desc"])
            return steps

        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
        case = nested(half)._replace(guide=guide)
        summary = half.ask("summarise", case, sites=iter(["outer"]))
        assert shown[0] == "summarise"
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

    @slow_in_numpyro
    def test_whatever_is_raised(self, half: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error without a message but with a note. There is no tqdm, nor ArviZ."""

        def failing(name: str) -> Any:
            def fail(*_: Any, **__: Any) -> None:
                error = IndexError()
                error.add_note("what to do")
                raise error

            fail.__name__ = name
            return fail

        failed = {"aggregated_posterior", "mmd_test", "suggest_lambd"}
        asked = [
            failing(one.__name__) if one.__name__ in failed else one
            for one in half.diagnostics._ASKED
        ]
        monkeypatch.setattr(half.diagnostics, "_ASKED", asked)
        monkeypatch.setitem(sys.modules, "arviz", None)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        normal = half.dist.Normal(half.array(0.0), 1.0)
        rest = vae(half)

        def with_global(program: Any) -> Any:
            def run() -> None:
                half.sample("theta", normal)
                program()

            return run

        case = Case(with_global(rest.model), with_global(rest.guide))
        summary = half.ask("summarise", case, num_importance_samples=20)
        for name in ("mutual_information", "marginal_kl", "mmd_squared", "lambd"):
            assert summary[name].meaning == "not computed: IndexError what to do"
        assert math.isfinite(summary["kl"].value)
        assert math.isfinite(summary["log_evidence"].value)
        assert summary["log_evidence"].unit == "nats, all data"
        assert not math.isnan(summary["pareto_k"].value)

    def test_the_users_mistakes_are_raised(self, half: Asking) -> None:
        for settings, match in (
            ({"sites": "y"}, "summarise: sites names 'y'"),
            ({"num_samples": 3}, r"num_samples >= 4 .*got num_samples=3"),
            ({"num_importance_samples": 1}, r">= 2; got .*num_importance_samples=1"),
        ):
            with pytest.raises(ValueError, match=match):
                half.ask("summarise", vae(half), **settings)


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
