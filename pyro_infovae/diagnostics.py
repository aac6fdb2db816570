"""Is the code used, does it match the prior, what is log p(x)? Questions to a model and guide."""

from pyro_infovae.aggregated_posterior import AggregatedPosterior as AggregatedPosterior
from pyro_infovae.aggregated_posterior import aggregated_posterior as aggregated_posterior
from pyro_infovae.critic_information import MutualInformationReport as MutualInformationReport
from pyro_infovae.critic_information import mutual_information as mutual_information
from pyro_infovae.evidence import Evidence as Evidence
from pyro_infovae.evidence import log_evidence as log_evidence

__all__ = [
    "AggregatedPosterior",
    "Evidence",
    "MutualInformationReport",
    "aggregated_posterior",
    "log_evidence",
    "mutual_information",
]
