# SPDX-License-Identifier: MIT
"""One evaluation of an ELBO, and the losses and gradients that every objective derives from it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from functools import partial
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
from torch.distributions import kl_divergence

from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.objectives import warn_of_counts
from pyro_infovae._core.programs import Program
from pyro_infovae._core.step_scale import warn_of_harm
from pyro_infovae._objectives.divergence import (
    attempt,
    take_back_if_not_finite,
    warn_of_rows,
)
from pyro_infovae._objectives.foreign_losses import enumerated_loss, foreign_loss

Traces: TypeAlias = Iterable[tuple[Trace, Trace]]


class Objective(ELBO):
    """An ELBO of which a subclass says one thing: how a model and a guide are evaluated."""

    @property
    def flows(self) -> bool:
        """Whether there is a flow in it, of which rows may diverge."""
        return False

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
        evaluation = self.evaluate(model, guide, *args, **kwargs)
        loss = float(evaluation.loss.item())
        warn_if_nan(loss, "loss")
        if evaluation.counts:
            warn_of_counts(evaluation.counts)
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
        evaluate = partial(self.evaluate, model, guide, *args, **kwargs)
        evaluation, found = attempt(evaluate) if self.flows else (evaluate(), {})
        tensor = evaluation.loss
        loss = float(tensor.item())
        if evaluation.counts:
            warn_of_counts(evaluation.counts)
        if not evaluation.finite:
            warn_if_nan(loss, "loss")
        is_left_out = bool(evaluation.finite) and not math.isfinite(loss)
        if tensor.requires_grad and not is_left_out:
            tensor.backward(retain_graph=self.retain_graph)
            is_left_out = bool(evaluation.finite) and take_back_if_not_finite(tensor)
        if evaluation.finite:
            warn_of_rows(loss, found, is_left_out=is_left_out)
        if "harm_scale" in evaluation.terms and evaluation.terms["harm_scale"] < 1:
            warn_of_harm()
        return loss


class TraceAnalyticKL_ELBO(Objective, Trace_ELBO):
    r"""The stock ELBO with every KL in closed form where that is valid, sampled otherwise.

    .. math:: \mathrm{loss} = -E_q[\log p(x \mid z)] + \mathrm{KL}(q(z \mid x) \| p(z))

    in nats, summed over the data set. The closed form is valid where model and guide visit the
    latents in the same order and all of them are reparameterised. A point mass in the guide, whose
    log density may be a flow's, is always sampled, and so is a latent that model and guide weigh
    differently.
    """

    def evaluate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Evaluation:
        """Run model and guide, and return the loss and its terms."""
        traces = self._get_traces(model, guide, args, kwargs)
        return evaluate_traces(traces, self.num_particles, analytic=latents_with_analytic_kl)


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
        analytic = _latents if type(elbo) is TraceMeanField_ELBO else lambda *_: []
        traces = elbo._get_traces(model, guide, args, kwargs)
        return evaluate_traces(traces, elbo.num_particles, analytic=analytic)
    if type(elbo) is TraceEnum_ELBO:
        return Evaluation(enumerated_loss(elbo, model, guide, args, kwargs))
    return Evaluation(foreign_loss(elbo, model, guide, args, kwargs))


def evaluate_traces(
    traces: Traces, num_particles: int, *, analytic: Callable[[Trace, Trace], Collection[str]]
) -> Evaluation:
    """Evaluate the stock ELBO on the runs of model and guide.

    Args:
        traces: the traces of model and guide, a pair per particle.
        num_particles: their number.
        analytic: names the latents of a pair whose KL is taken in closed form, if it has one.

    Returns:
        The loss, whose gradient is that of Pyro's surrogate loss, and its terms
        ``log_likelihood[site]`` and ``kl[site]``.
    """
    loss: Any = 0.0
    terms: dict[str, Any] = {}
    for pair in traces:
        likelihoods, divergences = _terms(*pair, analytic=analytic(*pair))
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


def latents_with_analytic_kl(model_trace: Trace, guide_trace: Trace) -> Collection[str]:
    """The latents whose closed-form KL has the expectation of the sampled one."""
    model = _latents(model_trace, guide_trace)
    guide = [name for name in guide_trace.stochastic_nodes if name in model_trace.nodes]
    if model != guide or not all(guide_trace.nodes[name]["fn"].has_rsample for name in guide):
        return ()
    return [
        name for name in guide if _is_analytic(model_trace.nodes[name], guide_trace.nodes[name])
    ]


def _latents(model_trace: Trace, guide_trace: Trace) -> list[str]:
    return list(model_trace.stochastic_nodes)


def _is_analytic(model_site: Any, guide_site: Any) -> bool:
    # Pyro's KL of a point mass leaves out its log density, which may be a flow's or a Jacobian.
    if isinstance(_innermost(guide_site["fn"]), Delta):
        return False
    # One factor weighs all of a closed form, as far as the factors can be compared without waiting.
    scales = guide_site["scale"], model_site["scale"]
    alike = any(isinstance(scale, Tensor) for scale in scales) or scales[0] == scales[1]
    return alike and (guide_site["mask"] is None) == (model_site["mask"] is None)


def _innermost(fn: Any) -> Any:
    """The distribution below event dims, masks, expansions and transforms."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


_Terms: TypeAlias = dict[str, Any]


def _terms(
    model_trace: Trace, guide_trace: Trace, *, analytic: Collection[str]
) -> tuple[_Terms, _Terms]:
    """Log likelihoods and divergences by site, with the gradient of Pyro's own ELBOs."""
    likelihoods: _Terms = {}
    divergences: _Terms = {}
    log_ratio: MultiFrameTensor | None = None
    for name, site in _sample_sites(model_trace):
        if site["is_observed"]:
            likelihoods[name] = site["log_prob_sum"]
        elif name in analytic:
            divergences[name] = _divergence(guide_trace.nodes[name], site)
        else:
            divergences[name] = -site["log_prob_sum"]
    for name, site in _sample_sites(guide_trace):
        if name in analytic:
            continue
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
