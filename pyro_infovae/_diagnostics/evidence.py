# SPDX-License-Identifier: MIT
"""How probable the data are under a model: importance-weighted log p(x), row by row."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_infovae._core import evidence
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.evidence import Evidence
from pyro_infovae._core.information import check_chunks
from pyro_infovae._core.programs import Program
from pyro_infovae._traces.importance_weights import ImportanceSampler, chunk_sizes
from pyro_infovae._traces.runs import buffers_untouched
from pyro_infovae.trace_hamiltonian_elbo import TraceHamiltonian_ELBO


@documented(evidence.LOG_EVIDENCE)
def log_evidence(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    elbo: TraceHamiltonian_ELBO | None = None,
    **kwargs: Any,
) -> Evidence[Tensor]:
    """Estimate log p(x) by importance sampling from a guide.

    Example:
        $programs
        >>> x = torch.tensor([0.5, -1.0, 2.0])
        >>> log_evidence(model, guide, x, num_samples=100).log_evidence
        tensor([-1.3280, -1.5155, -2.2655])
    """
    check_chunks(num_samples, chunk_size)
    if elbo is not None:
        guide = elbo.refine(model, guide)
    store = pyro.get_param_store()
    with torch.no_grad(), store.scope(store.get_state()), buffers_untouched():
        sampler = ImportanceSampler.of(model, guide, args, kwargs)
        sizes = chunk_sizes(num_samples, chunk_size, sampler.draw_size)
        found = Evidence(torch.cat([sampler.log_weights(size) for size in sizes]))
    evidence.warn_if_unreliable(found)
    return found
