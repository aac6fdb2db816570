# SPDX-License-Identifier: MIT
"""Is the code used, does it match the prior, what is log p(x)? Questions to a model and guide."""

from pyro_infovae._diagnostics.active_units import ActiveUnits as ActiveUnits
from pyro_infovae._diagnostics.active_units import active_units as active_units
from pyro_infovae._diagnostics.aggregated_posterior import (
    AggregatedPosterior as AggregatedPosterior,
)
from pyro_infovae._diagnostics.aggregated_posterior import (
    aggregated_posterior as aggregated_posterior,
)
from pyro_infovae._diagnostics.calibration import Calibration as Calibration
from pyro_infovae._diagnostics.calibration import (
    simulation_based_calibration as simulation_based_calibration,
)
from pyro_infovae._diagnostics.critic_information import (
    MutualInformationReport as MutualInformationReport,
)
from pyro_infovae._diagnostics.critic_information import mutual_information as mutual_information
from pyro_infovae._diagnostics.evidence import Evidence as Evidence
from pyro_infovae._diagnostics.evidence import log_evidence as log_evidence
from pyro_infovae._diagnostics.kl_by_dimension import KLByDimension as KLByDimension
from pyro_infovae._diagnostics.kl_by_dimension import kl_by_dimension as kl_by_dimension
from pyro_infovae._diagnostics.mmd_test import MMDTest as MMDTest
from pyro_infovae._diagnostics.mmd_test import mmd_test as mmd_test
from pyro_infovae._diagnostics.suggested_lambd import SuggestedLambd as SuggestedLambd
from pyro_infovae._diagnostics.suggested_lambd import suggest_lambd as suggest_lambd
from pyro_infovae._diagnostics.summary import Summary as Summary
from pyro_infovae._diagnostics.summary import SummaryRow as SummaryRow
from pyro_infovae._diagnostics.summary import summarise as summarise

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
