# SPDX-License-Identifier: MIT
"""The InfoMax objective: an ELBO with the mutual information of data and code, by a critic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pyro
from pyro.infer.elbo import ELBO, ELBOModule
from torch import Tensor, nn

from pyro_infovae._traces.critic_data import DataSource, critic_data, only_group
from pyro_infovae._traces.runs import is_number
from pyro_infovae.groups import Group
from pyro_infovae.mutual_information import Bound, get_bound
from pyro_infovae.negatives import SCORERS, bound_information, by_particle
from pyro_infovae.penalised_elbo import PenalisedELBO, Regularizer

FEW_ROWS = 64
"""Below this many rows the estimate of mutual information is poor."""


class TraceInfoMax_ELBO(PenalisedELBO):
    r"""The InfoMax-VAE objective for any model and guide.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)] + \beta \, \mathrm{KL}(q(z \mid x) \| p(z))
        - N \alpha \, \hat I(x; z)

    in nats, summed over the data set of :math:`N` data. A critic :math:`T(x, z)` estimates the
    mutual information; with the default bound

    .. math:: \hat I = \mathrm{mean}\, T(x, z) - \mathrm{mean}\, e^{T(x, \tilde z) - 1}

    where :math:`\tilde z` is the code of another datum. Critic and guide both maximise it: the
    critic's gradient is that of :math:`-\hat I`, whatever :math:`\alpha` and :math:`N`, and the
    guide's is :math:`N \alpha` times it. With :math:`\alpha = 0` the critic only monitors.

    The critic's parameters are in the param store under ``name``, so one ``SVI`` trains everything.
    A per-parameter optimiser, which sees them as ``"critic.…"``, can give the critic a learning
    rate of its own: ``Adam(lambda name: {"lr": 1e-4 if name.startswith("critic.") else 1e-3})``.

    Args:
        critic: a module from data (rows, \*event) and codes (rows, features) to scores (rows,),
            such as those of :mod:`pyro_infovae.critics`.
        alpha: the weight :math:`\alpha \ge 0` of the mutual information.
        beta: the weight :math:`\beta \ge 0` of the KL.
        bound: ``"nwj"``, ``"dv"``, ``"infonce"``, ``"js"`` or ``"smile"``, see
            :mod:`pyro_infovae.mutual_information`, or a function like them.
        negatives: ``"shift"`` pairs each datum with one other code of its particle, ``"all"`` with
            every other.
        data: the data the critic sees: the name of an observed site, or a function of the model's
            arguments to a tensor (data, \*event). By default the observed site in the latents'
            plates.
        sites: the latents, by name, in one stack of plates. By default every reparameterised
            latent in plates.
        name: the critic's name in the param store.
        regularizer: a further penalty of yours: a function of the group's
            :class:`~pyro_infovae.rows.Rows` (latents, data, weights, N) to a scalar in nats.
        regularizer_weight: the factor on it.
        gather: whether the penalties see the rows of all ranks of ``torch.distributed``'s default
            process group, as one process with all of them would: the mean over the ranks of
            losses and of gradients is that process's. Each rank runs the model on as many rows,
            in plates of the size of the whole data set, and every rank has to evaluate the loss.
            Without a process group it changes nothing.
        base: the ELBO that the penalty is added to; by default the closed-form KL where it is
            valid, a sampled one otherwise. Its particle settings are the objective's.
        num_particles: draws per datum of the default base; their scores are pooled.
        max_plate_nesting: bound on the plate nesting of the default base.
        vectorize_particles: whether the default base draws its particles in one run.

    Raises:
        ValueError: for negative weights, an unknown bound or kind of negatives; when used, for
            scores of the wrong shape, data that cannot be found, latents in several stacks of
            plates, or ranks that differ in the number of their rows.
        TypeError: for a critic that is no module.

    References:
        Rezaabad, Vishwanath, *Learning Representations by Maximizing Mutual Information in
        Variational Autoencoders*, arXiv 1912.13361.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI
        >>> from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))
        >>> critic = ConcatCritic(x_dim=2, z_dim=2, hidden=(16,))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceInfoMax_ELBO(critic))
        >>> isinstance(svi.step(torch.randn(64, 2)), float)
        True
    """

    def __init__(
        self,
        critic: nn.Module,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        *,
        bound: str | Bound = "nwj",
        negatives: str = "shift",
        data: DataSource = None,
        sites: Iterable[str] | None = None,
        name: str = "critic",
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
        if not isinstance(critic, nn.Module):
            raise TypeError(f"Expected critic to be a torch.nn.Module; got {critic!r}")
        if not (alpha >= 0 and beta >= 0):
            raise ValueError(f"Expected alpha >= 0 and beta >= 0; got alpha={alpha}, beta={beta}")
        if negatives not in SCORERS:
            raise ValueError(f"Expected negatives to be one of {list(SCORERS)}; got {negatives!r}")
        self.critic = critic
        self.alpha = alpha
        self.beta = beta
        self.bound = get_bound(bound)
        self.negatives = negatives
        self.data = data
        self.name: str | None = name
        self._has_warned = False

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Model, guide and critic as one module whose call is the loss."""
        module = super().__call__(model, guide)
        module.elbo.name = None  # the module's owner trains the critic, not the param store
        module.critic = self.critic
        return module

    @property
    def kl_weight(self) -> float | Tensor:
        """The factor on the KL of the selected latents: beta."""
        return self.beta

    def penalty(self, groups: list[Group]) -> Tensor:
        """-N alpha Î in nats, with the gradient of -Î for the critic."""
        asker = type(self).__name__
        group = only_group(groups, asker=asker)
        own = group.posterior
        x = critic_data(self.data, group, len(own.values), asker=asker)
        (rows,) = self._gathered(replace(own, data={"x": x}))
        assert rows.num_data is not None
        arrange = partial(
            by_particle,
            runs=len(group.runs),
            particles=self.base.num_particles,
            num_data=rows.num_data,
        )
        self._warn_if_few(len(rows.values))
        weight = rows.total * self.alpha
        x, z = (arrange(_scale_gradient(each, weight)) for each in (rows.data["x"], rows.values))
        with self._drawing_alike():
            scores = SCORERS[self.negatives](self._critic(), x[:, 0], z)
        weights = None if rows.weights is None else arrange(rows.weights)
        information = bound_information(self.bound, scores, weights)
        surrogate = information.surrogate
        return surrogate.detach() - surrogate - weight * information.estimate.detach()

    def _critic(self) -> nn.Module:
        """The critic, with its parameters in the param store."""
        if self.name is None:
            return self.critic
        store = pyro.get_param_store()
        for name, parameter in self.critic.named_parameters():
            full = f"{self.name}$$${name}"
            if full in store and store[full].shape != parameter.shape:
                raise ValueError(
                    f"Expected '{full}' of shape {tuple(parameter.shape)} in the param store; got "
                    f"{tuple(store[full].shape)} of an earlier critic: pyro.clear_param_store(), "
                    "or pass another name="
                )
        return pyro.module(self.name, self.critic, update_module_params=True)

    def _warn_if_few(self, rows: int) -> None:
        if rows < FEW_ROWS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{type(self).__name__} estimates mutual information from {rows} rows, which is "
                f"poor below {FEW_ROWS}: use a larger minibatch",
                stacklevel=2,
            )


def _scale_gradient(tensor: Tensor, factor: float | Tensor) -> Tensor:
    """The tensor itself, with its gradient multiplied: exact forward, whatever the factor."""
    if is_number(factor, 0) or not tensor.requires_grad:
        return tensor.detach()
    return tensor + (factor - 1) * (tensor - tensor.detach())
