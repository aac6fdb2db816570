# SPDX-License-Identifier: MIT
"""The ELBO below a penalty: the default one, and the loss of Pyro's own without a host sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from pyro_infovae._arrays.rebinding import with_globals
from pyro_infovae._traces.runs import Program


class TraceAnalyticKL_ELBO(TraceMeanField_ELBO):
    r"""The stock ELBO with every KL in closed form where that is valid, sampled otherwise.

    .. math:: \mathrm{loss} = -E_q[\log p(x \mid z)] + \mathrm{KL}(q(z \mid x) \| p(z))

    in nats, summed over the data set. Where model and guide visit the latents in the same order
    and all of them are reparameterised it is :class:`~pyro.infer.TraceMeanField_ELBO`, elsewhere
    :class:`~pyro.infer.Trace_ELBO`.
    """

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return Trace_ELBO._get_trace(self, model, guide, args, kwargs)

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Any:
        return particle_loss(self, model_trace, guide_trace)(self, model_trace, guide_trace)


def particle_loss(base: ELBO, model_trace: Trace, guide_trace: Trace) -> Callable[..., Any]:
    """Pyro's own loss of one particle, as a function, that the base uses for these traces."""
    if not isinstance(base, TraceAnalyticKL_ELBO):
        return type(base)._differentiable_loss_particle
    stock = TraceMeanField_ELBO if _has_valid_kl(model_trace, guide_trace) else Trace_ELBO
    return stock._differentiable_loss_particle


def _has_valid_kl(model_trace: Trace, guide_trace: Trace) -> bool:
    model = [name for name in model_trace.stochastic_nodes]
    guide = [name for name in guide_trace.stochastic_nodes if name in model_trace.nodes]
    if model != guide:
        return False
    # Pyro's KL of a point mass leaves out its density, which AutoNormal uses for the Jacobian.
    auxiliary = len(guide_trace.stochastic_nodes) > len(guide)
    return all(
        guide_trace.nodes[name]["fn"].has_rsample
        and not (auxiliary and _is_transformed(model_trace.nodes[name], guide_trace.nodes[name]))
        for name in guide
    )


def _is_transformed(model_site: Any, guide_site: Any) -> bool:
    return isinstance(guide_site["fn"], Delta) and not _is_identity(
        biject_to(model_site["fn"].support)
    )


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


# Pyro's own, detaching where the original calls ``.item()``.
_TENSOR_PARTICLE_LOSS = {
    stock._differentiable_loss_particle: with_globals(
        stock._differentiable_loss_particle, torch_item=_detached
    )
    for stock in (Trace_ELBO, TraceMeanField_ELBO)
}


class TensorLoss(ELBO):
    """An objective whose ``differentiable_loss`` is a tensor that nothing on the host waits for."""

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, as a float, after adding its gradient to every parameter's ``grad``.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        return self.guarded(lambda: take_step(self, model, guide, args, kwargs))

    def guarded(self, step: Callable[[], float]) -> float:
        """Run a step that adds gradients; an objective may take them back."""
        return step()

    def accepts(self, loss: float) -> bool:
        """Whether a loss may be differentiated; warns where it is nan."""
        warn_if_nan(loss, "loss")
        return True


def take_step(objective: Any, model: Program, guide: Program, args: Any, kwargs: Any) -> float:
    """The loss of an objective as a float, after adding its gradient where the loss is accepted."""
    loss = objective.differentiable_loss(model, guide, *args, **kwargs)
    value: float = loss.item()
    if objective.accepts(value) and loss.requires_grad:
        loss.backward(retain_graph=objective.retain_graph)
    return value


def has_tensor_loss(base: ELBO) -> bool:
    """Whether the base is one whose loss is known here as a tensor."""
    return isinstance(base, TensorLoss) or (
        isinstance(base, Trace_ELBO)
        and type(base).differentiable_loss is Trace_ELBO.differentiable_loss
        and (
            isinstance(base, TraceAnalyticKL_ELBO)
            or type(base)._differentiable_loss_particle in _TENSOR_PARTICLE_LOSS
        )
    )


def tensor_loss(base: ELBO, model: Program, guide: Program, args: Any, kwargs: Any) -> Tensor:
    """``base.differentiable_loss`` without its host synchronisation.

    Args:
        base: an ELBO for which :func:`has_tensor_loss` is true.
        model: the model.
        guide: the guide.
        args: the positional arguments of both.
        kwargs: the keyword arguments of both.

    Returns:
        The loss in nats: a scalar tensor whose gradient is that of Pyro's surrogate loss.
    """
    total: Any = 0.0
    for traces in base._get_traces(model, guide, args, kwargs):
        loss, surrogate = _TENSOR_PARTICLE_LOSS[particle_loss(base, *traces)](base, *traces)
        total = total + (loss + (surrogate - _detached(surrogate))) / base.num_particles
    return torch.as_tensor(total)
