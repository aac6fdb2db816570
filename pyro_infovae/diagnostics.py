# SPDX-License-Identifier: MIT
"""Is the code used, does it match the prior, what is log p(x)? Questions to a model and guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pyro_infovae._core import summary
from pyro_infovae._core.calibration import Calibration
from pyro_infovae._core.dimensions import ActiveUnits, KLByDimension
from pyro_infovae._core.discrepancy import MMDTest, SuggestedLambd
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.evidence import Evidence
from pyro_infovae._core.information import AggregatedPosterior, MutualInformationReport
from pyro_infovae._core.programs import Program
from pyro_infovae._core.summary import Summary, SummaryRow
from pyro_infovae._diagnostics.aggregated_posterior import aggregated_posterior
from pyro_infovae._diagnostics.calibration import simulation_based_calibration
from pyro_infovae._diagnostics.critic_information import mutual_information
from pyro_infovae._diagnostics.data_runs import run_over_data
from pyro_infovae._diagnostics.dimensions import active_units, kl_by_dimension
from pyro_infovae._diagnostics.discrepancy import mmd_test, suggest_lambd
from pyro_infovae._diagnostics.evidence import log_evidence
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae.kernels import Kernel

__all__ = [
    "ActiveUnits",
    "AggregatedPosterior",
    "Calibration",
    "Evidence",
    "KLByDimension",
    "MMDTest",
    "MutualInformationReport",
    "SuggestedLambd",
    "Summary",
    "SummaryRow",
    "active_units",
    "aggregated_posterior",
    "kl_by_dimension",
    "log_evidence",
    "mmd_test",
    "mutual_information",
    "simulation_based_calibration",
    "suggest_lambd",
    "summarise",
]

_ASKED = (
    active_units,
    kl_by_dimension,
    aggregated_posterior,
    mmd_test,
    log_evidence,
    suggest_lambd,
)


@documented(summary.SUMMARISE, settings="its default settings")
def summarise(
    model: Program,
    guide: Program,
    *args: Any,
    kernel: Kernel | None = None,
    num_samples: int = 10,
    num_importance_samples: int = 1000,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> Summary:
    """Answer all questions at once: is the code used, does q(z) match p(z), what is log p(x).

    Example:
        $programs
        >>> x = torch.randn(200)
        >>> summary = summarise(model, guide, x)
        >>> summary["active_units"].value, summary["active_units"].unit
        (1, 'of 1')
        >>> print(summary["pareto_k"].meaning)
        the largest; above 0.7: do not believe log p(x)
    """
    summary.check_summarise(num_samples, num_importance_samples)
    sites = (sites,) if isinstance(sites, str) else None if sites is None else tuple(sites)
    with parameters_untouched():
        # What is refused here would be refused in every row.
        run_over_data("summarise", model, guide, args, kwargs, sites)

    def ask(diagnostic: Callable[..., Any], **settings: Any) -> Any:
        return diagnostic(model, guide, *args, **settings, **kwargs)

    return summary.ask_all(
        _ASKED,
        ask,
        kernel=kernel,
        num_samples=num_samples,
        num_importance_samples=num_importance_samples,
        sites=sites,
    )
