# SPDX-License-Identifier: MIT
"""The InfoMax objective: an ELBO with the mutual information of data and code, by a critic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import pyro
from pyro.infer.elbo import ELBO, ELBOModule
from torch import Tensor, nn

from pyro_infovae._arrays.negatives import SCORERS, bound_information, by_particle
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._traces.critic_data import DataSource, critic_rows, only_group
from pyro_infovae._traces.recording import is_number
from pyro_infovae.groups import Group
from pyro_infovae.mutual_information import Bound, get_bound
from pyro_infovae.penalised_elbo import PenalisedELBO, Regularizer


@documented(
    objectives.INFOMAX,
    storage=(
        "The critic's parameters are in the param store under ``name``, so one ``SVI`` trains\n"
        'everything. A per-parameter optimiser, which sees them as ``"critic.…"``, can give the\n'
        'critic a learning rate of its own: ``Adam(lambda name: {"lr": 1e-4 if\n'
        'name.startswith("critic.") else 1e-3})``. Clearing the store does not reset them, for\n'
        "the critic holds them: to start afresh make a new one."
    ),
    critic=(
        "a module from data (rows, \\*event) and codes (rows, features) to scores (rows,),\n"
        "        such as those of :mod:`pyro_infovae.critics`."
    ),
    named="the critic's name in the param store.",
)
class TraceInfoMax_ELBO(PenalisedELBO):
    """The InfoMax-VAE objective for any model and guide.

    Example:
        $trained
        >>> from pyro.infer import SVI
        >>> from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO
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
        objectives.check_infomax(alpha, beta, negatives, SCORERS)
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
        caller = type(self).__name__
        group = only_group(groups, caller=caller)
        rows = critic_rows(self.data, group, caller=caller)
        assert rows.batch_size is not None
        if rows.batch_size == 1:
            objectives.warn_of_single_row(caller, group.names)
            return rows.values.new_zeros(())
        arrange = partial(
            by_particle,
            runs=len(group.runs),
            particles=group.num_particles,
            batch_size=rows.batch_size,
        )
        self._warn_if_few(len(rows.values))
        weight = rows.num_data * self.alpha
        x, z = (arrange(_scale_gradient(each, weight)) for each in (rows.data["x"], rows.values))
        weights = None if rows.weights is None else arrange(rows.weights)
        scores = SCORERS[self.negatives](self._critic(), x[:, 0], z, weights)
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
        if rows < objectives.FEW_ROWS and not self._has_warned:
            self._has_warned = True
            objectives.warn_of_few_rows(type(self).__name__, rows)


def _scale_gradient(tensor: Tensor, factor: float | Tensor) -> Tensor:
    """The tensor itself, with its gradient multiplied: exact forward, whatever the factor."""
    if is_number(factor, 0) or not tensor.requires_grad:
        return tensor.detach()
    return tensor + (factor - 1) * (tensor - tensor.detach())
