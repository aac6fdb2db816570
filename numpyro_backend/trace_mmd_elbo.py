# SPDX-License-Identifier: MIT
"""The InfoVAE objective: an ELBO with the MMD between aggregated posterior and prior."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from numpyro.infer.elbo import ELBO

from numpyro_backend.groups import Group
from numpyro_backend.kernels import RBF, Kernel
from numpyro_backend.mmd import mmd_squared, mmd_squared_normal
from numpyro_backend.penalised_elbo import PenalisedELBO, Regularizer
from numpyro_backend.rows import Rows, normal_rows, pool

Estimator: TypeAlias = Literal["unbiased", "biased", "closed_form"]


class TraceMMD_ELBO(PenalisedELBO):
    r"""The InfoVAE (MMD-VAE) objective for any model and guide.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)]
        + (1 - \alpha) \, \mathrm{KL}(q(z \mid x) \| p(z))
        + N (\alpha + \lambda - 1) \, \mathrm{MMD}^2(q(z), p(z))

    in nats, summed over the data set of :math:`N` data: like NumPyro's own losses it is scaled to
    the full size of every subsampled plate. :math:`q(z)` is the aggregated posterior, estimated by
    the rows of the minibatch; :math:`p(z)` is drawn afresh from the model, with every other latent
    as the guide drew it.

    Latents with the same stack of plates form a group, whose joint distribution is compared;
    several groups add up, each with its own :math:`N`.

    Args:
        alpha: the weight :math:`\alpha \le 1` of the mutual information preference. 0 keeps the
            KL, 1 removes it (the MMD-VAE).
        lambd: the weight :math:`\lambda` of the divergence of the aggregated posterior.
        kernel: a kernel of :mod:`numpyro_backend.kernels`, or any callable ``(x, y) -> matrix``;
            ``RBF()`` by default.
        sites: the latents to penalise, by name. By default every reparameterised latent in
            plates; discrete ones and those outside plates keep the base's treatment.
        estimator: ``"unbiased"`` (a U-statistic, may be slightly negative), ``"biased"`` (a
            V-statistic, at least 0) or ``"closed_form"`` (no sampling; one latent per group whose
            guide and prior are diagonal normals, RBF kernels).
        prior_draws: draws from the prior per datum.
        regularizer: a further penalty of yours: a function of each group's
            :class:`~numpyro_backend.rows.Rows` (latents, data, weights, N) to a scalar in nats.
        regularizer_weight: the factor on it.
        base: the ELBO that the penalty is added to; by default the closed-form KL where it is
            valid, a sampled one otherwise. Its particle settings are the objective's.
        num_particles: draws per datum of the default base; the penalty pools them.
        vectorize_particles: how the default base maps over its particles: True for
            :func:`jax.vmap`, False for :func:`jax.lax.map`, or a callable (function, keys).

    Raises:
        ValueError: for weights outside the above, an unknown estimator, both ``base`` and particle
            settings; when used, for ``sites`` that cannot be penalised.

    References:
        Zhao, Song, Ermon, *InfoVAE: Balancing Learning and Inference in Variational
        Autoencoders*, arXiv 1706.02262.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> from numpyro.infer import SVI
        >>> from numpyro_backend import TraceMMD_ELBO
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ...         numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     loc = numpyro.param("loc", jnp.zeros(2))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))
        >>> svi = SVI(model, guide, numpyro.optim.Adam(1e-2), loss=TraceMMD_ELBO(lambd=10.0))
        >>> x = jax.random.normal(jax.random.key(0), (32, 2))
        >>> svi.run(jax.random.key(1), 5, x, progress_bar=False).losses.shape
        (5,)
    """

    def __init__(
        self,
        alpha: float = 0.0,
        lambd: float = 1000.0,
        kernel: Kernel | None = None,
        *,
        sites: Iterable[str] | None = None,
        estimator: Estimator = "unbiased",
        prior_draws: int = 1,
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
        _check_weights(alpha, lambd)
        if estimator not in get_args(Estimator):
            raise ValueError(
                f"Expected estimator to be one of {get_args(Estimator)}; got {estimator!r}"
            )
        if prior_draws < 1:
            raise ValueError(f"Expected prior_draws of at least 1; got {prior_draws}")
        self.alpha = alpha
        self.lambd = lambd
        self.kernel = RBF() if kernel is None else kernel
        self.estimator = estimator
        self.prior_draws = prior_draws

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
        posterior = group.posterior
        return posterior.total * self.mmd_weight * self._mmd_squared(group, posterior)

    def _mmd_squared(self, group: Group, posterior: Rows) -> Float[Array, ""]:
        if self.estimator == "closed_form":
            return self._closed_form(group, posterior)
        prior = group.prior(self.prior_draws)
        return mmd_squared(
            posterior.values,
            prior.values,
            self.kernel,
            estimator=self.estimator,
            x_weights=posterior.weights,
            y_weights=prior.weights,
            num_data=posterior.num_data,
        )

    def _closed_form(self, group: Group, posterior: Rows) -> Float[Array, ""]:
        if len(group.names) > 1:
            raise ValueError(
                f"estimator='closed_form' takes one latent per stack of plates; got "
                f"{list(group.names)}, whose joint distribution need not be normal: name one of "
                "them in sites, or use estimator='unbiased'"
            )
        (name,) = group.names
        q_loc, q_scale = _normals(group, name, "guide")
        p_loc, p_scale = _normals(group, name, "model")
        return mmd_squared_normal(
            q_loc,
            q_scale,
            p_loc,
            p_scale,
            self.kernel,
            x_weights=posterior.weights,
            y_weights=posterior.weights,
            num_data=posterior.num_data,
        )


def _normals(
    group: Group, name: str, program: str
) -> tuple[Float[Array, "rows features"], Float[Array, "rows features"]]:
    rows = jax.vmap(lambda run: normal_rows(name, getattr(run, program), run.model))(group.runs)
    if rows is None:
        raise ValueError(
            f"estimator='closed_form' needs a diagonal normal at site '{name}'; the {program} "
            f"has {getattr(group.runs, program)[name].kind}: use estimator='unbiased'"
        )
    return pool(rows)


def _check_weights(alpha: float, lambd: float) -> None:
    if not alpha <= 1:
        raise ValueError(
            f"Expected alpha <= 1; got alpha={alpha}, which would reward the KL without bound"
        )
    if not alpha + lambd >= 1:
        raise ValueError(
            f"Expected alpha + lambd >= 1; got alpha={alpha}, lambd={lambd}, which would maximise "
            "the discrepancy between q(z) and p(z): raise lambd"
        )
    if alpha + lambd == 1:
        warnings.warn(
            f"alpha={alpha}, lambd={lambd} give the MMD a weight of alpha + lambd - 1 = 0: the "
            "objective is the base ELBO with a KL weight of 1 - alpha",
            stacklevel=3,
        )
