"""Is the code used, does it match the prior, what is log p(x)? Questions to a model and guide."""

from numpyro_backend.aggregated_posterior import AggregatedPosterior as AggregatedPosterior
from numpyro_backend.aggregated_posterior import aggregated_posterior as aggregated_posterior
from numpyro_backend.critic_information import MutualInformationReport as MutualInformationReport
from numpyro_backend.critic_information import mutual_information as mutual_information
from numpyro_backend.evidence import Evidence as Evidence
from numpyro_backend.evidence import log_evidence as log_evidence

__all__ = [
    "AggregatedPosterior",
    "Evidence",
    "MutualInformationReport",
    "aggregated_posterior",
    "log_evidence",
    "mutual_information",
]
