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
from torch import Tensor, nn

from pyro_infovae._arrays.checkpointing import trial
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.flow_options import (
    ONES,
    AnnealedOptions,
    Path,
    Precondition,
    Prefactor,
    flow_options,
)
from pyro_infovae._core.programs import Program, recorded_like, unrecorded
from pyro_infovae._core.rows import Selection
from pyro_infovae._core.surrogate import NumPoints
from pyro_infovae._objectives.annealed_parameters import AnnealedParameters
from pyro_infovae._objectives.flow_parameters import FlowParameters
from pyro_infovae._objectives.flow_runs import FlowRuns, finite_rows_of
from pyro_infovae._objectives.objective import Objective, evaluate_traces
from pyro_infovae._traces.annealed_guide import AnnealedGuide
from pyro_infovae._traces.enumeration import enumerated_elbo
from pyro_infovae._traces.flow import LastRun, is_enumerated
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
        num_steps: int = 4,
        step_size: float | Tensor | Mapping[str, float | Tensor] | None = None,
        *,
        path: Path = "annealed",
        persistence: float | None = None,
        precondition: Precondition | None = None,
        surrogate: NumPoints | None = None,
        beta_0: float | None = None,
        tempering: Tempering | None = None,
        learn: bool = True,
        max_step_size: float | None = None,
        per_step: bool | None = None,
        checkpoint: bool = False,
        sites: Iterable[str] | None = None,
        logp_prefactor: Prefactor | None = None,
        logq_prefactor: Prefactor | None = None,
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
        options = flow_options(
            path,
            num_steps=num_steps,
            step_size=step_size,
            persistence=persistence,
            precondition=precondition,
            surrogate=surrogate,
            beta_0=beta_0,
            tempering=tempering,
            learn=learn,
            max_step_size=max_step_size,
            per_step=per_step,
            logp_prefactor=logp_prefactor,
            logq_prefactor=logq_prefactor,
        )
        self.flow: AnnealedParameters | FlowParameters
        if isinstance(options, AnnealedOptions):
            self.flow = AnnealedParameters(name, options)
        else:
            self.flow = FlowParameters(name, options)
        self.checkpoint = checkpoint
        self.sites = Selection.of(type(self).__name__, sites).names
        self.prefactors = objectives.Prefactors(logp_prefactor or ONES, logq_prefactor or ONES)

    @property
    def flows(self) -> bool:
        """Whether there is a flow in it."""
        return True

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
        last = self._last_run(model, guide)
        refined = self._refine(model, guide, self.prefactors, in_training=True, last=last)
        traces = FlowRuns(self, last).traces(weighted, refined, args, kwargs)
        if any(is_enumerated(model_trace) for model_trace, _ in traces):
            evaluation = _enumerated(traces, self.num_particles)
        else:
            evaluation = evaluate_traces(traces, self.num_particles, analytic=lambda *_: ())
        terms = {**evaluation.terms, **self.flow.terms()}
        return replace(evaluation, terms=terms, finite=finite_rows_of(traces))

    def _last_run(self, model: Program, guide: Program) -> LastRun | None:
        """Takes the run at the end of a flow for the scored one, where no row can end elsewhere."""
        is_recorded = unrecorded(model) is not model or unrecorded(guide) is not guide
        ends_elsewhere = self.vectorize_particles or not torch.is_grad_enabled()
        flow = self.flow
        follows_model = isinstance(flow, AnnealedParameters) and flow.options.surrogate is None
        if follows_model and not (self.checkpoint or is_recorded or ends_elsewhere):
            return LastRun()
        return None

    def _refine(
        self,
        model: Program,
        guide: Program,
        prefactors: objectives.Prefactors,
        *,
        in_training: bool = False,
        last: LastRun | None = None,
    ) -> Program:
        programs = unrecorded(model), unrecorded(guide)
        refined: Program
        if isinstance(self.flow, AnnealedParameters):
            refined = AnnealedGuide(
                *programs,
                self.flow,
                self.sites,
                in_training,
                self.max_plate_nesting,
                last,
                self.checkpoint,
            )
        else:
            refined = RefinedGuide(
                *programs,
                self.flow,
                self.sites,
                prefactors,
                in_training,
                self.max_plate_nesting,
                self.checkpoint,
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
