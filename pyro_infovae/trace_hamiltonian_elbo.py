# SPDX-License-Identifier: MIT
"""The Hamiltonian objective: an evidence lower bound by tempered leapfrog steps from the guide."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from pyro_infovae._objectives.base_elbo import TensorLoss, tensor_loss
from pyro_infovae._objectives.flow_parameters import FlowParameters
from pyro_infovae._traces.refined_guide import Prefactors, RefinedGuide, SiteWeights
from pyro_infovae._traces.runs import Program, recorded_like, unrecorded
from pyro_infovae.tempering import Tempering


class TraceHamiltonian_ELBO(TensorLoss, Trace_ELBO):
    r"""The Hamiltonian VAE's evidence lower bound for any continuous model and guide.

    The guide's draw is moved towards the posterior by K leapfrog steps in unconstrained space,
    with a momentum that cools from :math:`\beta_0` on:

    .. math::
        u_0 \sim q, \quad \rho_0 \sim N(0, I / \beta_0), \quad
        (u_K, \rho_K) = \mathrm{leapfrog}^K(u_0, \rho_0)

    .. math::
        \log w = \ell(u_K) + \log N(\rho_K; 0, I) - \left[ \log q(u_0)
        + \log N(\rho_0; 0, I / \beta_0) - \tfrac{d}{2} \log(\beta_0 / \beta_K) \right]

    with :math:`\ell(u) = \log p(x, T(u)) + \log |\det J_T(u)|`. The loss is
    :math:`-E[\log w] \ge -\log p(x)` in nats, summed over the data set, and :math:`E[w] = p(x)`
    exactly, whatever the step sizes and temperatures.

    Every datum of a plate is moved by its own posterior, subsampled or not, and masked rows
    contribute nothing. Memory does not grow with the number of steps.

    Args:
        num_steps: the number K of leapfrog steps; each costs one gradient of the log joint.
        step_size: the initial step size: a number, a tensor that broadcasts to a site's
            unconstrained value, or either by site name.
        beta_0: the initial inverse temperature in (0, 1].
        tempering: ``"quadratic"``, ``"free"`` (a learned factor per step), ``"none"``
            (:math:`\beta_k = 1`), ``"constant"`` (:math:`\beta_k = \beta_0`) or a callable
            ``(beta_0, k, num_steps) -> beta_k``.
        learn: whether step sizes and temperatures are learned. They are in the param store under
            ``name``.
        max_step_size: the bound of learned step sizes.
        per_step: whether every step has a step size of its own; a tensor then has a leading axis
            of ``num_steps``.
        sites: the latents that flow, by name; by default all that the guide draws. The others stay
            as drawn.
        logp_prefactor: factors on the likelihood, the prior and the final momentum. Anything but
            1 leaves the bound.
        logq_prefactor: factors on the guide, the initial momentum and the tempering's Jacobian,
            likewise.
        name: the name of the learned values in the param store.
        num_particles: draws per datum.
        max_plate_nesting: bound on the plate nesting.
        vectorize_particles: whether the particles are drawn in one run.

    Raises:
        ValueError: for numbers out of range; when used, naming the site: for a latent that is
            discrete, a point mass, or global under a subsampled plate.

    References:
        Caterini, Doucet, Sejdinovic, *Hamiltonian Variational Auto-Encoder*, arXiv 1805.11328.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_infovae import TraceHamiltonian_ELBO
        >>> def model(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> guide = AutoNormal(model)
        >>> elbo = TraceHamiltonian_ELBO(num_steps=3, step_size=0.05)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
        >>> x = torch.tensor([3.0, 1.0, 2.0])
        >>> isinstance(svi.step(x), float)
        True
        >>> refined = elbo.refine(model, guide)
        >>> refined(x)["rate"].shape
        torch.Size([])
    """

    def __init__(
        self,
        num_steps: int = 3,
        step_size: float | Tensor | Mapping[str, float | Tensor] = 0.1,
        *,
        beta_0: float = 0.5,
        tempering: Tempering = "quadratic",
        learn: bool = True,
        max_step_size: float = 0.5,
        per_step: bool = False,
        sites: Iterable[str] | None = None,
        logp_prefactor: tuple[float, float, float] = (1.0, 1.0, 1.0),
        logq_prefactor: tuple[float, float, float] = (1.0, 1.0, 1.0),
        name: str = "hamiltonian",
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )
        self.flow = FlowParameters(
            name,
            num_steps=num_steps,
            step_size=step_size,
            beta_0=beta_0,
            tempering=tempering,
            learn=learn,
            max_step_size=max_step_size,
            per_step=per_step,
        )
        names = (sites,) if isinstance(sites, str) else sites
        self.sites = None if names is None else frozenset(names)
        self.prefactors = Prefactors(_three(logp_prefactor), _three(logq_prefactor))
        self._row_log_probs: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Model, guide and flow as one module whose call is the loss."""
        module = super().__call__(model, guide)
        module.flow = self.flow
        return module

    def refine(self, model: Program, guide: Program) -> Program:
        """The guide after the flow: a guide whose draws are nearer to the posterior.

        Its latents have the right log density, so it serves ``Predictive``, importance weights and
        every diagnostic in the guide's place.

        Args:
            model: the model.
            guide: the guide.
        """
        return self._refine(model, guide, Prefactors())

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
        return tensor_loss(self, model, guide, args, kwargs)

    def guarded(self, step: Callable[[], float]) -> float:
        """Run a step; one whose gradient is not finite leaves none, and a warning."""
        with poutine.trace(param_only=True) as parameters:
            loss = step()
        leaves = [_leaf(site["value"]) for site in parameters.trace.nodes.values()]
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            for gradient in gradients:
                gradient.zero_()
            _warn_of_divergence(f"the loss is {loss}, and its gradient is not finite")
        return loss

    def accepts(self, loss: float) -> bool:
        """Whether every row's flow stayed finite; warns, and counts the rows, where not."""
        if math.isfinite(loss):
            return True
        counts = {
            name: int((~log_prob.isfinite()).sum())
            for run in self._row_log_probs
            for name, log_prob in run.items()
        }
        rows = {name: count for name, count in counts.items() if count}
        _warn_of_divergence(
            f"the loss is {loss}, with rows of non-finite log density per site {rows}"
        )
        return False

    def _refine(self, model: Program, guide: Program, prefactors: Prefactors) -> Program:
        refined = RefinedGuide(
            unrecorded(model), unrecorded(guide), self.flow, self.sites, prefactors
        )
        return recorded_like(guide, refined)

    def _get_traces(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Iterator[Any]:
        self._row_log_probs = []
        if self.vectorize_particles and self.max_plate_nesting == math.inf:
            self._guess_max_plate_nesting(unrecorded(model), unrecorded(guide), args, kwargs)
        likelihood, prior, _ = self.prefactors.logp
        weighted = SiteWeights(observed=likelihood, latent=prior)(model)
        refined = self._refine(model, guide, self.prefactors)
        for traces in super()._get_traces(weighted, refined, args, kwargs):
            self._row_log_probs.append(
                {
                    name: site["log_prob"].detach()
                    for trace in traces
                    for name, site in trace.nodes.items()
                    if site["type"] == "sample"
                }
            )
            yield traces


def _leaf(parameter: Tensor) -> Tensor:
    # A plain torch parameter under module_local_params is its own leaf.
    return parameter.unconstrained() if hasattr(parameter, "unconstrained") else parameter


def _warn_of_divergence(symptom: str) -> None:
    warnings.warn(
        f"TraceHamiltonian_ELBO: {symptom}: the step size is too large for the posterior, and this "
        "step's gradient is left out; lower step_size or max_step_size",
        stacklevel=3,
    )


def _three(prefactors: tuple[float, float, float]) -> tuple[float, float, float]:
    if len(prefactors) != 3:
        raise ValueError(f"Expected three prefactors; got {prefactors}")
    return prefactors
