# SPDX-License-Identifier: MIT
"""One evaluation of an ELBO, and the losses and gradients that every objective derives from it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from pyro.distributions import Delta
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.util import (
    MultiFrameTensor,
    check_fully_reparametrized,
    get_plate_stacks,
    is_validation_enabled,
)
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import biject_to, kl_divergence
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.programs import Program
from pyro_infovae._objectives.divergence import take_back_if_not_finite, warn_of_rows
from pyro_infovae._objectives.foreign_losses import enumerated_loss, foreign_loss

Traces: TypeAlias = Iterable[tuple[Trace, Trace]]


class Objective(ELBO):
    """An ELBO of which a subclass says one thing: how a model and a guide are evaluated."""

    @abstractmethod
    def evaluate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Evaluation:
        """Run model and guide, and return the loss with what is known of it.

        Nothing waits for the device, and nothing is kept on the objective.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, as a float.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        loss = float(self.evaluate(model, guide, *args, **kwargs).loss.item())
        warn_if_nan(loss, "loss")
        return loss

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss in nats, as a scalar tensor to differentiate; nothing waits for the device.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        loss: Tensor = self.evaluate(model, guide, *args, **kwargs).loss
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, as a float, after adding its gradient to every parameter's ``grad``.

        A row whose flow diverged counts by the guide's own draw, and a warning says so. Where the
        loss or its gradient is not finite all the same, a step of a flow leaves no gradient.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        evaluation = self.evaluate(model, guide, *args, **kwargs)
        tensor = evaluation.loss
        loss = float(tensor.item())
        if not evaluation.finite:
            warn_if_nan(loss, "loss")
        is_left_out = bool(evaluation.finite) and not math.isfinite(loss)
        if tensor.requires_grad and not is_left_out:
            tensor.backward(retain_graph=self.retain_graph)
            is_left_out = bool(evaluation.finite) and take_back_if_not_finite(tensor)
        if evaluation.finite:
            warn_of_rows(loss, evaluation.finite, is_left_out=is_left_out)
        return loss


class TraceAnalyticKL_ELBO(Objective, Trace_ELBO):
    r"""The stock ELBO with every KL in closed form where that is valid, sampled otherwise.

    .. math:: \mathrm{loss} = -E_q[\log p(x \mid z)] + \mathrm{KL}(q(z \mid x) \| p(z))

    in nats, summed over the data set. Where model and guide visit the latents in the same order
    and all of them are reparameterised it is :class:`~pyro.infer.TraceMeanField_ELBO`, elsewhere
    :class:`~pyro.infer.Trace_ELBO`.
    """

    def evaluate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Evaluation:
        """Run model and guide, and return the loss and its terms."""
        traces = self._get_traces(model, guide, args, kwargs)
        return evaluate_traces(traces, self.num_particles, analytic=has_analytic_kl)


def evaluate(
    elbo: ELBO, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Evaluation:
    """Evaluate an ELBO, ours or Pyro's, so that one backward pass of its loss is a step of it.

    Args:
        elbo: the ELBO.
        model: the model.
        guide: the guide.
        args: the positional arguments of both.
        kwargs: the keyword arguments of both.
    """
    if isinstance(elbo, Objective):
        return elbo.evaluate(model, guide, *args, **kwargs)
    if type(elbo) in (Trace_ELBO, TraceMeanField_ELBO):
        is_analytic = type(elbo) is TraceMeanField_ELBO
        traces = elbo._get_traces(model, guide, args, kwargs)
        return evaluate_traces(traces, elbo.num_particles, analytic=lambda *_: is_analytic)
    if type(elbo) is TraceEnum_ELBO:
        return Evaluation(enumerated_loss(elbo, model, guide, args, kwargs))
    return Evaluation(foreign_loss(elbo, model, guide, args, kwargs))


def evaluate_traces(
    traces: Traces, num_particles: int, *, analytic: Callable[[Trace, Trace], bool]
) -> Evaluation:
    """Evaluate the stock ELBO on the runs of model and guide.

    Args:
        traces: the traces of model and guide, a pair per particle.
        num_particles: their number.
        analytic: says of a pair whether every KL is taken in closed form.

    Returns:
        The loss, whose gradient is that of Pyro's surrogate loss, and its terms
        ``log_likelihood[site]`` and ``kl[site]``.
    """
    loss: Any = 0.0
    terms: dict[str, Any] = {}
    for pair in traces:
        likelihoods, divergences = (_analytic_terms if analytic(*pair) else _sampled_terms)(*pair)
        for site, term in likelihoods.items():
            loss = loss - term
            _add(terms, f"log_likelihood[{site}]", term)
        for site, term in divergences.items():
            loss = loss + term
            _add(terms, f"kl[{site}]", term)
    if num_particles > 1:
        loss = loss / num_particles
        terms = {name: term / num_particles for name, term in terms.items()}
    return Evaluation(torch.as_tensor(loss), terms)


def has_analytic_kl(model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether the KL of every latent may be taken in closed form."""
    model = list(model_trace.stochastic_nodes)
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


_Terms: TypeAlias = dict[str, Any]


def _sampled_terms(model_trace: Trace, guide_trace: Trace) -> tuple[_Terms, _Terms]:
    """Log likelihoods and divergences by site, with the gradient of Pyro's ``Trace_ELBO``."""
    likelihoods: _Terms = {}
    divergences: _Terms = {}
    log_ratio: MultiFrameTensor | None = None
    for name, site in _sample_sites(model_trace):
        if site["is_observed"]:
            likelihoods[name] = site["log_prob_sum"]
        else:
            divergences[name] = -site["log_prob_sum"]
    for name, site in _sample_sites(guide_trace):
        _, score_function_term, entropy_term = site["score_parts"]
        if is_identically_zero(score_function_term):
            log_q = (
                site["log_prob_sum"] if is_identically_zero(entropy_term) else entropy_term.sum()
            )
        else:
            log_ratio = log_ratio or _log_ratio(model_trace, guide_trace)
            downstream = log_ratio.sum_to(site["cond_indep_stack"])
            surrogate = -(downstream * score_function_term).sum()
            if not is_identically_zero(entropy_term):
                surrogate = surrogate + entropy_term.sum()
            log_q = site["log_prob_sum"].detach() + (surrogate - surrogate.detach())
        divergences[name] = divergences.get(name, 0.0) + log_q
    return likelihoods, divergences


def _analytic_terms(model_trace: Trace, guide_trace: Trace) -> tuple[_Terms, _Terms]:
    """The same with the KL of each latent in closed form, where there is one."""
    likelihoods: _Terms = {}
    divergences: _Terms = {}
    for name, site in _sample_sites(model_trace):
        if site["is_observed"]:
            likelihoods[name] = site["log_prob_sum"]
        else:
            divergences[name] = _divergence(guide_trace.nodes[name], site)
    for name, site in _sample_sites(guide_trace):
        if name not in model_trace.nodes:
            if is_validation_enabled():
                check_fully_reparametrized(site)
            divergences[name] = site["score_parts"].entropy_term.sum()
    return likelihoods, divergences


def _divergence(guide_site: Any, model_site: Any) -> Any:
    if is_validation_enabled():
        check_fully_reparametrized(guide_site)
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return guide_site["score_parts"].entropy_term.sum() - model_site["log_prob_sum"]
    kl = scale_and_mask(kl, scale=guide_site["scale"], mask=guide_site["mask"])
    if isinstance(kl, Tensor):
        return kl.sum()
    return kl * guide_site["fn"].batch_shape.numel()


def _log_ratio(model_trace: Trace, guide_trace: Trace) -> MultiFrameTensor:
    log_ratio = MultiFrameTensor()
    stacks = get_plate_stacks(model_trace)
    for name, site in _sample_sites(model_trace):
        term = site["log_prob"]
        if not site["is_observed"]:
            term = term - guide_trace.nodes[name]["log_prob"]
        log_ratio.add((stacks[name], term.detach()))
    return log_ratio


def _sample_sites(trace: Trace) -> Iterable[tuple[str, Any]]:
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample"]


def _add(terms: _Terms, name: str, term: Any) -> None:
    detached = term.detach() if isinstance(term, Tensor) else term
    terms[name] = terms[name] + detached if name in terms else detached
