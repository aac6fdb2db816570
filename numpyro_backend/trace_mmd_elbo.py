# SPDX-License-Identifier: MIT
"""The InfoVAE objective: an ELBO with the MMD between aggregated posterior and prior."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from numpyro.infer.elbo import ELBO

from numpyro_backend._arrays.features import draws_of
from numpyro_backend.groups import Group, Rows
from numpyro_backend.kernels import RBF, Kernel
from numpyro_backend.mmd import SUMS
from numpyro_backend.penalised_elbo import PenalisedELBO, Regularizer
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.features import (
    NUM_FEATURES,
    check_features,
    estimate_mmd_of_group,
)
from pyro_infovae._core.mmd import estimate_mmd, estimate_mmd_of_normals


@documented(objectives.MMD)
class TraceMMD_ELBO(PenalisedELBO):
    """The InfoVAE (MMD-VAE) objective for any model and guide.

    Example:
        $trained
        >>> from numpyro.infer import SVI
        >>> from numpyro_backend import TraceMMD_ELBO
        >>> svi = SVI(model, guide, numpyro.optim.Adam(1e-2), loss=TraceMMD_ELBO(lambd=10.0))
        >>> x = jax.random.normal(jax.random.key(0), (32, 2))
        >>> svi.run(jax.random.key(1), 5, x, progress_bar=False).losses.shape
        (5,)
    """

    def __init__(
        self,
        alpha: float = 0.0,
        lambd: float = 10.0,
        kernel: Kernel | None = None,
        *,
        sites: Iterable[str] | None = None,
        estimator: objectives.Estimator = "unbiased",
        prior_draws: int = 1,
        num_features: int = NUM_FEATURES,
        regularizer: Regularizer | None = None,
        regularizer_weight: float = 1.0,
        base: ELBO | None = None,
        num_particles: int = 1,
        vectorize_particles: bool | Callable[..., Any] = True,
    ) -> None:
        super().__init__(
            sites=sites,
            regularizer=regularizer,
            regularizer_weight=regularizer_weight,
            base=base,
            num_particles=num_particles,
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
    def kl_weight(self) -> float:
        """The factor on the KL of the selected latents: 1 - alpha."""
        return 1 - self.alpha

    @property
    def mmd_weight(self) -> float:
        """The factor on each datum's MMD²: alpha + lambd - 1."""
        return self.alpha + self.lambd - 1

    def penalty(self, groups: list[Group]) -> Float[Array, ""]:
        """N (alpha + lambd - 1) MMD², summed over the groups, in nats."""
        if self.mmd_weight == 0:
            return jnp.zeros((), groups[0].posterior.values.dtype)
        return reduce(operator.add, (self._group_penalty(group) for group in groups))

    def _group_penalty(self, group: Group) -> Float[Array, ""]:
        rows = group.posterior
        lacks_pairs = self.estimator in ("unbiased", "features") or (
            self.estimator == "closed_form" and rows.num_data > 1
        )
        if rows.batch_size == 1 and lacks_pairs:
            objectives.warn_of_single_row(type(self).__name__, group.names)
            return jnp.zeros((), rows.values.dtype)
        return rows.num_data * self.mmd_weight * self._mmd_squared(group)

    def _mmd_squared(self, group: Group) -> Float[Array, ""]:
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

    def _by_features(self, group: Group) -> Float[Array, ""]:
        own_key, prior_key = jax.random.split(group.rng_key)
        draw_prior = partial(replace(group, rng_key=prior_key).prior, self.prior_draws)
        return estimate_mmd_of_group(
            SUMS, draws_of(own_key), group, draw_prior, self.kernel, self.num_features
        )

    def _closed_form(self, group: Group) -> Float[Array, ""]:
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
    normals = group.normals(operator.attrgetter(program))
    if normals is None:
        (name,) = group.names
        raise ValueError(
            f"estimator='closed_form' needs a diagonal normal at site '{name}'; the {program} "
            f"has {getattr(group.runs, program)[name].kind}: use estimator='unbiased'"
        )
    return normals
