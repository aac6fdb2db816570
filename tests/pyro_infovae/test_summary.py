"""The table of all diagnostics."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae import RBF
from pyro_infovae._diagnostics.summary import Summary, SummaryRow, summarise
from pyro_infovae.diagnostics import (
    active_units,
    aggregated_posterior,
    kl_by_dimension,
    mmd_test,
)
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

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


def linear(x: Tensor, *, guide_mask: Any = True) -> Programs:
    """z ~ N(0, I), x ~ N(z_0, 1), and the exact posterior, in which z_1 is unused."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=guide_mask):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=guide_mask):
            loc = torch.stack([x / 2, 0 * x], -1)
            scale = torch.tensor([math.sqrt(0.5), 1.0])
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,))


def assert_near(row: SummaryRow, expected: float) -> None:
    assert row.value == pytest.approx(expected, abs=4 * row.standard_error + 1e-6)


class TestValues:
    def test_of_an_exact_posterior(self) -> None:
        """Of as many data as the model would draw, moved by 1: all quantities are known."""
        x = 1.0 + math.sqrt(2.0) * torch.randn(400)
        case = linear(x)
        summary = summarise(*case[:2], x, num_importance_samples=50)
        assert [row.name for row in summary.rows] == NAMES
        assert (summary["active_units"].value, summary["active_units"].unit) == (1, "of 2")
        kl = 0.5 * (0.5 + (x / 2).square().mean() - 1 - math.log(0.5))
        assert summary["kl"].value == pytest.approx(float(kl))
        assert summary["kl"].unit == "nats per datum"
        information, marginal = summary["mutual_information"], summary["marginal_kl"]
        assert 0 < information.standard_error < 0.05
        assert information.value == pytest.approx(0.5 * math.log(2), abs=0.1)
        assert marginal.value == pytest.approx(0.5**2 / 2, abs=0.1)
        assert summary["mmd_p_value"].value < 0.01
        exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).mean()
        assert_near(summary["log_evidence"], float(exact))
        assert summary["effective_sample_size"].value == pytest.approx(50.0)
        assert summary["effective_sample_size"].unit == "of 50"
        assert summary["pareto_k"].value == 0
        assert summary["lambd"].value > 1

    def test_are_those_of_the_diagnostics(self) -> None:
        case = programs.vae(num=30)
        kernel = RBF(0.5)
        summary = summarise(*case[:2], *case.args, kernel=kernel, num_samples=200)
        assert summary["active_units"].value == active_units(*case[:2], *case.args).num_active
        assert summary["kl"].value == kl_by_dimension(*case[:2], *case.args).mean
        split = aggregated_posterior(*case[:2], *case.args, num_samples=200)
        assert_near(summary["mutual_information"], split.mutual_information)
        tests = [mmd_test(*case[:2], *case.args, kernel=kernel).mmd_squared for _ in range(50)]
        assert_near(summary["mmd_squared"], float(torch.tensor(tests).mean()))

    def test_masked_data_have_no_evidence(self) -> None:
        x = torch.randn(40)
        mask = torch.arange(40) % 4 == 0
        case = linear(x, guide_mask=mask)
        summary = summarise(*case[:2], x, num_importance_samples=20)
        exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x)[mask].mean()
        assert_near(summary["log_evidence"], float(exact))

    def test_evidence_of_all_data_together(self) -> None:
        case = programs.hierarchical()
        summary = summarise(*case[:2], *case.args)
        assert summary["log_evidence"].unit == "nats, all data"

    def test_of_the_named_latents(self) -> None:
        case = programs.nested()
        summary = summarise(*case[:2], *case.args, sites=iter(["outer"]))
        assert math.isfinite(summary["mutual_information"].value)
        assert summary["active_units"].unit == "of 2"


class TestWhatCannotBeComputed:
    def test_has_a_row_with_the_reason(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(2 * x + 1))

        summary = summarise(model, guide, torch.randn(100))
        assert summary["active_units"].value == 1
        assert summary["mmd_p_value"].value < 0.01
        for name in ("kl", "mutual_information", "marginal_kl", "log_evidence", "pareto_k"):
            row = summary[name]
            assert math.isnan(row.value)
            assert math.isnan(row.standard_error)
            assert row.meaning.startswith("not computed: ")
            assert "'z'" in row.meaning
            assert "point mass" in row.meaning

    def test_whatever_is_raised(self) -> None:
        """A model that cannot be run in a plate to the left of its own."""

        def model(x: Tensor) -> None:
            with pyro.plate("data", 10):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if z.dim() > 1:
                    raise IndexError
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 10):
                pyro.sample("z", dist.Normal(x, 1.0))

        summary = summarise(model, guide, torch.randn(10))
        assert summary["log_evidence"].meaning.startswith(
            "not computed: IndexError log_evidence ran the programs with 1000 draws at once"
        )
        assert math.isfinite(summary["kl"].value)

    def test_the_user_s_mistakes_are_raised(self) -> None:
        case = programs.vae()
        with pytest.raises(ValueError, match="summarise: sites names 'y'"):
            summarise(*case[:2], *case.args, sites="y")
        with pytest.raises(ValueError, match=r"num_samples >= 4 .*got num_samples=3"):
            summarise(*case[:2], *case.args, num_samples=3)
        with pytest.raises(ValueError, match=r">= 2; got .*num_importance_samples=1"):
            summarise(*case[:2], *case.args, num_importance_samples=1)


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


def test_shows_a_bar_where_tqdm_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def bar(steps: Any, **settings: Any) -> Any:
        shown.append(settings["desc"])
        return steps

    case = programs.vae()
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
    summarise(*case[:2], *case.args)
    assert shown[0] == "summarise"
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert math.isfinite(summarise(*case[:2], *case.args)["kl"].value)
