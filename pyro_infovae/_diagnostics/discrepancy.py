# SPDX-License-Identifier: MIT
"""Does q(z) match p(z)? A permutation test, and a weight of the MMD to start from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_infovae._core import discrepancy
from pyro_infovae._core.discrepancy import MMDTest, SuggestedLambd
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program
from pyro_infovae._diagnostics.data_runs import codes, numpy_generator, run_over_data, to_numpy
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae.groups import Group
from pyro_infovae.kernels import RBF, Kernel


@documented(discrepancy.MMD_TEST)
def mmd_test(
    model: Program,
    guide: Program,
    *args: Any,
    kernel: Kernel | None = None,
    num_permutations: int = 1000,
    max_data: int = 2000,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> MMDTest:
    """Test whether the aggregated posterior is the prior.

    Example:
        $programs
        >>> x = torch.randn(200)
        >>> test = mmd_test(model, lambda x: guide(x + 3.0), x)
        >>> round(test.p_value, 3)
        0.001
    """
    discrepancy.check_mmd_test(num_permutations, max_data)
    with parameters_untouched():
        runs = run_over_data("mmd_test", model, guide, args, kwargs, sites)
        return discrepancy.ask_mmd_test(
            runs,
            runs.draw(codes, None),
            _for_numpy(kernel),
            numpy_generator(),
            num_permutations=num_permutations,
            max_data=max_data,
        )


@documented(discrepancy.SUGGEST_LAMBD)
def suggest_lambd(
    model: Program,
    guide: Program,
    *args: Any,
    share: float = 0.1,
    alpha: float = 0.0,
    kernel: Kernel | None = None,
    max_data: int = 2000,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> SuggestedLambd:
    """Suggest the weight λ at which the MMD has a given share of the reconstruction term.

    Example:
        $programs
        >>> x = 3.0 * torch.randn(500)
        >>> suggested = suggest_lambd(model, guide, x, share=0.1)
        >>> mmd_term = 500 * (suggested.lambd - 1) * suggested.mmd_squared
        >>> round(mmd_term / abs(suggested.log_likelihood), 4)
        0.1
    """
    discrepancy.check_suggest_lambd(share, alpha, max_data)
    with parameters_untouched():
        runs = run_over_data("suggest_lambd", model, guide, args, kwargs, sites)
        discrepancy.check_observes(runs.caller, _observed(runs.first))
        return discrepancy.ask_suggest_lambd(
            runs,
            runs.run(lambda group: (*codes(group), _log_likelihood(group)))(None),
            _for_numpy(kernel),
            numpy_generator(),
            share=share,
            alpha=alpha,
            max_data=max_data,
        )


def _for_numpy(kernel: Kernel | None) -> discrepancy.Kernel:
    def pairs(x: Tensor, y: Tensor) -> Float[np.ndarray, "n m"]:
        return to_numpy((kernel or RBF())(x, y))

    return pairs


def _observed(group: Group) -> list[str]:
    """The names of the sites that the model observes."""
    (run,) = group.runs
    return [name for name, site in run.model.items() if site.is_data]


def _log_likelihood(group: Group) -> Float[Tensor, ""]:
    """The log density of the data as the loss has it: scaled to the full data, masks heeded."""
    (run,) = group.runs
    observed = [run.model[name] for name in _observed(group)]
    terms = [
        scale_and_mask(site.fn.log_prob(site.value), site.scale, site.mask).sum()
        for site in observed
    ]
    return torch.stack(terms).sum()
