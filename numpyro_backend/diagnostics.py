# SPDX-License-Identifier: MIT
"""Is the code used, does it match the prior, what is log p(x)? Questions to a model and guide."""

from numpyro_backend._diagnostics.active_units import ActiveUnits as ActiveUnits
from numpyro_backend._diagnostics.active_units import active_units as active_units
from numpyro_backend._diagnostics.aggregated_posterior import (
    AggregatedPosterior as AggregatedPosterior,
)
from numpyro_backend._diagnostics.aggregated_posterior import (
    aggregated_posterior as aggregated_posterior,
)
from numpyro_backend._diagnostics.calibration import Calibration as Calibration
from numpyro_backend._diagnostics.calibration import (
    simulation_based_calibration as simulation_based_calibration,
)
from numpyro_backend._diagnostics.critic_information import (
    MutualInformationReport as MutualInformationReport,
)
from numpyro_backend._diagnostics.critic_information import mutual_information as mutual_information
from numpyro_backend._diagnostics.evidence import Evidence as Evidence
from numpyro_backend._diagnostics.evidence import log_evidence as log_evidence
from numpyro_backend._diagnostics.kl_by_dimension import KLByDimension as KLByDimension
from numpyro_backend._diagnostics.kl_by_dimension import kl_by_dimension as kl_by_dimension
from numpyro_backend._diagnostics.mmd_test import MMDTest as MMDTest
from numpyro_backend._diagnostics.mmd_test import mmd_test as mmd_test
from numpyro_backend._diagnostics.suggested_lambd import SuggestedLambd as SuggestedLambd
from numpyro_backend._diagnostics.suggested_lambd import suggest_lambd as suggest_lambd
from numpyro_backend._diagnostics.summary import Summary as Summary
from numpyro_backend._diagnostics.summary import SummaryRow as SummaryRow
from numpyro_backend._diagnostics.summary import summarise as summarise

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
