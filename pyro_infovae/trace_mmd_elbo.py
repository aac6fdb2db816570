# SPDX-License-Identifier: MIT
"""The InfoVAE objective: an ELBO with the MMD between aggregated posterior and prior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae._arrays.joining import joined
from pyro_infovae._traces.runs import is_number
from pyro_infovae.groups import Group
from pyro_infovae.kernels import RBF, Kernel
from pyro_infovae.mmd import mmd_squared, mmd_squared_normal
from pyro_infovae.penalised_elbo import PenalisedELBO, Regularizer
from pyro_infovae.rows import Rows, normal_rows

Estimator: TypeAlias = Literal["unbiased", "biased", "closed_form"]


class TraceMMD_ELBO(PenalisedELBO):
    r"""The InfoVAE (MMD-VAE) objective for any model and guide.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)]
        + (1 - \alpha) \, \mathrm{KL}(q(z \mid x) \| p(z))
        + N (\alpha + \lambda - 1) \, \mathrm{MMD}^2(q(z), p(z))

    in nats, summed over the data set of :math:`N` data: like Pyro's own losses it is scaled to the
    full size of every subsampled plate. :math:`q(z)` is the aggregated posterior, estimated by the
    rows of the minibatch; :math:`p(z)` is drawn afresh from the model, with every other latent as
    the guide drew it.

    Latents with the same stack of plates form a group, whose joint distribution is compared;
    several groups add up, each with its own :math:`N`.

    Args:
        alpha: the weight :math:`\alpha \le 1` of the mutual information preference. 0 keeps the
            KL, 1 removes it (the MMD-VAE).
        lambd: the weight :math:`\lambda` of the divergence of the aggregated posterior.
        kernel: a kernel of :mod:`pyro_infovae.kernels`, or any callable ``(x, y) -> matrix``;
            ``RBF()`` by default.
        sites: the latents to penalise, by name. By default every reparameterised latent in
            plates; discrete ones and those outside plates keep the base's treatment.
        estimator: ``"unbiased"`` (a U-statistic, may be slightly negative), ``"biased"`` (a
            V-statistic, at least 0) or ``"closed_form"`` (no sampling; one latent per group whose
            guide and prior are diagonal normals, RBF kernels).
        prior_draws: draws from the prior per datum.
        regularizer: a further penalty of yours: a function of each group's
            :class:`~pyro_infovae.rows.Rows` (latents, data, weights, N) to a scalar in nats.
        regularizer_weight: the factor on it.
        gather: whether the penalties see the rows of all ranks of ``torch.distributed``'s default
            process group, as one process with all of them would: the mean over the ranks of
            losses and of gradients is that process's. Each rank runs the model on as many rows,
            in plates of the size of the whole data set, and every rank has to evaluate the loss.
            Without a process group it changes nothing.
        base: the ELBO that the penalty is added to; by default the closed-form KL where it is
            valid, a sampled one otherwise. Its particle settings are the objective's.
        num_particles: draws per datum of the default base; the penalty pools them.
        max_plate_nesting: bound on the plate nesting of the default base.
        vectorize_particles: whether the default base draws its particles in one run.

    Raises:
        ValueError: for weights outside the above, an unknown estimator, both ``base`` and particle
            settings; when used, for ``sites`` that cannot be penalised, or for ranks that differ in
            the number of their rows.

    References:
        Zhao, Song, Ermon, *InfoVAE: Balancing Learning and Inference in Variational
        Autoencoders*, arXiv 1706.02262.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI
        >>> from pyro_infovae import TraceMMD_ELBO
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceMMD_ELBO(lambd=10.0))
        >>> isinstance(svi.step(torch.randn(32, 2)), float)
        True
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.0,
        lambd: float | Tensor = 1000.0,
        kernel: Kernel | None = None,
        *,
        sites: Iterable[str] | None = None,
        estimator: Estimator = "unbiased",
        prior_draws: int = 1,
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
        posterior = group.posterior
        return posterior.total * self.mmd_weight * self._mmd_squared(group, posterior)

    def _mmd_squared(self, group: Group, posterior: Rows) -> Tensor:
        if self.estimator == "closed_form":
            return self._closed_form(group, posterior)
        posterior, prior = self._gathered(posterior, group.prior(self.prior_draws))
        return mmd_squared(
            posterior.values,
            prior.values,
            self.kernel,
            estimator=self.estimator,
            x_weights=posterior.weights,
            y_weights=prior.weights,
            num_data=posterior.num_data,
        )

    def _closed_form(self, group: Group, posterior: Rows) -> Tensor:
        if len(group.names) > 1:
            raise ValueError(
                f"estimator='closed_form' takes one latent per stack of plates; got "
                f"{list(group.names)}, whose joint distribution need not be normal: name one of "
                "them in sites, or use estimator='unbiased'"
            )
        (name,) = group.names
        normals = (
            replace(posterior, latents={name: _normals(group, name, program)})
            for program in ("guide", "model")
        )
        q, p = self._gathered(*normals)
        q_loc, q_scale = q.values.chunk(2, dim=-1)
        p_loc, p_scale = p.values.chunk(2, dim=-1)
        return mmd_squared_normal(
            q_loc,
            q_scale,
            p_loc,
            p_scale,
            self.kernel,
            x_weights=q.weights,
            y_weights=p.weights,
            num_data=q.num_data,
        )


def _normals(group: Group, name: str, program: str) -> Float[Tensor, "rows parameters"]:
    """The locations of a latent's diagonal normals, and beside them their scales."""
    parts = []
    for run in group.runs:
        messages = getattr(run, program)
        rows = normal_rows(name, messages, run.guide)
        if rows is None:
            raise ValueError(
                f"estimator='closed_form' needs a diagonal normal at site '{name}'; the {program} "
                f"has {messages[name]['fn']}: use estimator='unbiased'"
            )
        parts.append(torch.cat(rows, dim=-1))
    return joined(parts)


def _check_weights(alpha: float | Tensor, lambd: float | Tensor) -> None:
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
