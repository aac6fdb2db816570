# SPDX-License-Identifier: MIT
"""The Hamiltonian objective: an evidence lower bound by tempered leapfrog steps from the guide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor, nn

from pyro_infovae._arrays.checkpointing import trial
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.evaluation import Evaluation, Flow
from pyro_infovae._core.programs import Program, recorded_like, unrecorded
from pyro_infovae._core.rows import Selection
from pyro_infovae._objectives.flow_parameters import FlowParameters
from pyro_infovae._objectives.objective import Objective, evaluate_traces
from pyro_infovae._traces.enumeration import enumerated_elbo
from pyro_infovae._traces.flow import is_enumerated
from pyro_infovae._traces.recording import FLOWED, is_data
from pyro_infovae._traces.refined_guide import RefinedGuide, SiteWeights
from pyro_infovae._traces.runs import buffers_untouched
from pyro_infovae.tempering import Tempering


@documented(
    objectives.HAMILTONIAN,
    stored=(
        "They are in the param store under\n        ``name``; clearing it does not reset them, "
        "for the objective holds them: to start\n        afresh make a new one."
    ),
    named="the name of the learned values in the param store.",
    also_raised="",
)
class TraceHamiltonian_ELBO(Objective, Trace_ELBO):
    """The Hamiltonian VAE's evidence lower bound for any continuous model and guide.

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
        self.sites = Selection.of(type(self).__name__, sites).names
        self.prefactors = objectives.Prefactors(logp_prefactor, logq_prefactor)

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
        return self._refine(model, guide, objectives.Prefactors())

    def evaluate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Evaluation:
        """Run the guide, move its draw, score it there, and note which rows stayed finite."""
        if self.max_plate_nesting == math.inf:
            # Vectorised, Pyro's ELBOs look first too, with random numbers that are then spent.
            unspent = nullcontext() if self.vectorize_particles else trial()
            with unspent, buffers_untouched():
                self._guess_max_plate_nesting(unrecorded(model), unrecorded(guide), args, kwargs)
        likelihood, prior, _ = self.prefactors.logp
        weighted = SiteWeights(observed=likelihood, latent=prior)(model)
        refined = self._refine(model, guide, self.prefactors, in_training=True)
        traces = list(self._get_traces(weighted, refined, args, kwargs))
        if any(is_enumerated(model_trace) for model_trace, _ in traces):
            evaluation = _enumerated(traces, self.num_particles)
        else:
            evaluation = evaluate_traces(traces, self.num_particles, analytic=lambda *_: ())
        return replace(evaluation, finite=_finite_rows(traces))

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        """The traces of both; what the model enumerates and the guide does not draw is summed."""
        nesting = int(self.max_plate_nesting) + self.vectorize_particles
        enumerated = EnumMessenger(first_available_dim=-1 - nesting)(model)
        return super()._get_trace(enumerated, guide, args, kwargs)

    def _refine(
        self,
        model: Program,
        guide: Program,
        prefactors: objectives.Prefactors,
        *,
        in_training: bool = False,
    ) -> Program:
        refined = RefinedGuide(
            unrecorded(model),
            unrecorded(guide),
            self.flow,
            self.sites,
            prefactors,
            in_training,
            self.max_plate_nesting,
        )
        return recorded_like(guide, refined)


def _enumerated(traces: list[tuple[Trace, Trace]], num_particles: int) -> Evaluation:
    """The evaluation of runs whose models hold all values of some latents."""
    total: Any = 0.0
    for model, guide in traces:
        guide.pack_tensors()
        model.pack_tensors(guide.plate_to_symbol)
        total = total + enumerated_elbo(model, guide)
    return Evaluation(torch.as_tensor(-total / num_particles))


def _finite_rows(traces: list[tuple[Trace, Trace]]) -> dict[Flow, dict[str, Tensor]]:
    """By what has to be finite and by site, which rows are, particle after particle."""
    rows: dict[Flow, dict[str, list[Tensor]]] = {}

    def add(what: Flow, name: str, finite: Tensor) -> None:
        rows.setdefault(what, {}).setdefault(name, []).append(finite.reshape(-1))

    for model, guide in traces:
        for name, site in {**guide.nodes, **model.nodes}.items():
            if site["type"] != "sample":
                continue
            add("density", name, site["log_prob"].detach().isfinite())
            if is_data(site):
                add("data", name, site["value"].detach().isfinite())
            for what, finite in site["infer"].get(FLOWED, {}).items():
                add(what, name, finite)
    return {
        what: {name: torch.cat(parts) for name, parts in sites.items()}
        for what, sites in rows.items()
    }
