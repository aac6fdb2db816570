# SPDX-License-Identifier: MIT
"""The InfoVAE objective: an ELBO with the MMD between aggregated posterior and prior."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial, reduce
from operator import attrgetter

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae._arrays.features import DRAWS
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.features import (
    NUM_FEATURES,
    check_features,
    estimate_mmd_of_group,
)
from pyro_infovae._core.mmd import estimate_mmd, estimate_mmd_of_normals
from pyro_infovae._traces.recording import is_number
from pyro_infovae.groups import Group, Rows
from pyro_infovae.kernels import RBF, Kernel
from pyro_infovae.mmd import SUMS
from pyro_infovae.penalised_elbo import PenalisedELBO, Regularizer


@documented(objectives.MMD)
class TraceMMD_ELBO(PenalisedELBO):
    """The InfoVAE (MMD-VAE) objective for any model and guide.

    Example:
        $trained
        >>> from pyro.infer import SVI
        >>> from pyro_infovae import TraceMMD_ELBO
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceMMD_ELBO(lambd=10.0))
        >>> isinstance(svi.step(torch.randn(32, 2)), float)
        True
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.0,
        lambd: float | Tensor = 10.0,
        kernel: Kernel | None = None,
        *,
        sites: Iterable[str] | None = None,
        estimator: objectives.Estimator = "unbiased",
        prior_draws: int = 1,
        num_features: int = NUM_FEATURES,
        regularizer: Regularizer | None = None,
        regularizer_weight: float | Tensor = 1.0,
        gather: bool = False,
        base: ELBO | None = None,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
    ) -> None:
        super().__init__(
            sites=sites,
            regularizer=regularizer,
            regularizer_weight=regularizer_weight,
            gather=gather,
            base=base,
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )
        objectives.check_mmd(alpha, lambd, estimator, prior_draws)
        self.alpha = alpha
        self.lambd = lambd
        self.kernel = RBF() if kernel is None else kernel
        if estimator == "features":
            check_features(self.kernel, num_features)
        self.estimator = estimator
        self.prior_draws = prior_draws
        self.num_features = num_features

    @property
    def kl_weight(self) -> float | Tensor:
        """The factor on the KL of the selected latents: 1 - alpha."""
        return 1 - self.alpha

    @property
    def mmd_weight(self) -> float | Tensor:
        """The factor on each datum's MMD²: alpha + lambd - 1."""
        return self.alpha + self.lambd - 1

    def penalty(self, groups: list[Group]) -> Tensor:
        """N (alpha + lambd - 1) MMD², summed over the groups, in nats."""
        if is_number(self.mmd_weight, 0):
            return groups[0].posterior.values.new_zeros(())
        return reduce(torch.add, (self._group_penalty(group) for group in groups))

    def _group_penalty(self, group: Group) -> Tensor:
        rows = group.posterior
        lacks_pairs = self.estimator in ("unbiased", "features") or (
            self.estimator == "closed_form" and rows.num_data > 1
        )
        if rows.batch_size == 1 and lacks_pairs:
            objectives.warn_of_single_row(type(self).__name__, group.names)
            return rows.values.new_zeros(())
        return rows.num_data * self.mmd_weight * self._mmd_squared(group)

    def _mmd_squared(self, group: Group) -> Tensor:
        if self.estimator == "closed_form":
            return self._closed_form(group)
        if self.estimator == "features":
            return self._by_features(group)
        posterior, prior = group.posterior, group.prior(self.prior_draws)
        return estimate_mmd(
            SUMS,
            posterior.values,
            prior.values,
            self.kernel,
            estimator=self.estimator,
            x_weights=posterior.weights,
            y_weights=prior.weights,
            batch_size=posterior.batch_size,
        )

    def _by_features(self, group: Group) -> Tensor:
        draw_prior = partial(group.prior, self.prior_draws)
        return estimate_mmd_of_group(SUMS, DRAWS, group, draw_prior, self.kernel, self.num_features)

    def _closed_form(self, group: Group) -> Tensor:
        objectives.check_one_latent(group.names)
        q, p = _normals(group, "guide"), _normals(group, "model")
        return estimate_mmd_of_normals(
            SUMS,
            (q.latents["loc"], q.latents["scale"]),
            (p.latents["loc"], p.latents["scale"]),
            self.kernel,
            x_weights=q.weights,
            y_weights=p.weights,
            batch_size=q.batch_size or 1,
            num_data=q.num_data,
        )


def _normals(group: Group, program: str) -> Rows:
    """The locations and scales of the diagonal normals that a latent is drawn from."""
    normals = group.normals(attrgetter(program))
    if normals is None:
        (name,) = group.names
        raise ValueError(
            f"estimator='closed_form' needs a diagonal normal at site '{name}'; the {program} "
            f"has {getattr(group.runs[0], program)[name].fn}: use estimator='unbiased'"
        )
    return normals
