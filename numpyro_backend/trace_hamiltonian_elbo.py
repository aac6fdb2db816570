# SPDX-License-Identifier: MIT
"""The Hamiltonian objective: an evidence lower bound by tempered leapfrog steps from the guide."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Key
from numpyro.infer import Trace_ELBO

from numpyro_backend._objectives.annealed_parameters import AnnealedParameters
from numpyro_backend._objectives.flow_parameters import FlowParameters
from numpyro_backend._objectives.guide_with_flow import GuideWithFlow, without_flow
from numpyro_backend._objectives.objective import Objective
from numpyro_backend._traces.annealed_guide import AnnealedGuide
from numpyro_backend._traces.enumeration import SummedOut
from numpyro_backend._traces.refined_guide import RefinedGuide, SiteWeights
from numpyro_backend.tempering import Tempering
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.flow_options import (
    AnnealedOptions,
    InitialStepSize,
    Path,
    Precondition,
    Prefactor,
    flow_options,
)
from pyro_infovae._core.programs import Program, recorded_like, unrecorded
from pyro_infovae._core.rows import Selection
from pyro_infovae._core.surrogate import NumPoints


@documented(
    objectives.HAMILTONIAN,
    stored=(
        "They are parameters, named after\n"
        "        ``name``, that :class:`numpyro_backend.SVI` declares."
    ),
    named="the name before that of each learned parameter.",
    also_raised=", or for learned values that\n        nobody declared",
)
class TraceHamiltonian_ELBO(Objective):
    """The Hamiltonian VAE's evidence lower bound for any continuous model and guide.

    A row whose flow diverges, for its steps are too large, counts by the guide's own draw. Where
    the loss or its gradient is not finite all the same,
    :meth:`SVI.stable_update <numpyro.infer.SVI.stable_update>` leaves such a step out
    (``svi.run(..., stable_update=True)``).

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from numpyro_backend import SVI, TraceHamiltonian_ELBO
        >>> def model(x):
        ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Poisson(rate), obs=x)
        >>> guide = AutoNormal(model)
        >>> elbo = TraceHamiltonian_ELBO(num_steps=3, step_size=0.05)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(1e-2), loss=elbo)
        >>> x = jnp.array([3.0, 1.0, 2.0])
        >>> result = svi.run(jax.random.key(0), 5, x, progress_bar=False)
        >>> result.losses.shape
        (5,)
        >>> refined = elbo.refine(model, guide)
        >>> predictive = numpyro.infer.Predictive(
        ...     model, guide=refined, params=result.params, num_samples=4, return_sites=["rate"])
        >>> predictive(jax.random.key(1), x)["rate"].shape
        (4,)
    """

    can_infer_discrete = True  # what the model enumerates is summed out

    def __init__(
        self,
        num_steps: int = 4,
        step_size: InitialStepSize | None = None,
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
        vectorize_particles: bool | Callable[..., Any] = True,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        options = flow_options(
            path,
            num_steps=num_steps,
            step_size=_concrete(step_size),
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
        self.flow: FlowParameters | AnnealedParameters
        if isinstance(options, AnnealedOptions):
            self.flow = AnnealedParameters(name, options)
        else:
            self.flow = FlowParameters(name, options)
        self.checkpoint = checkpoint
        self.sites = Selection.of(type(self).__name__, sites).names
        self.prefactors = objectives.Prefactors(
            logp_prefactor or (1.0, 1.0, 1.0), logq_prefactor or (1.0, 1.0, 1.0)
        )

    def wrap_model(self, model: Program) -> Program:
        """The model, which declares what a flow along the posterior learns.

        Args:
            model: the model.
        """
        flow = self.flow
        if isinstance(flow, AnnealedParameters):
            return model

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            flow.declare()
            return model(*args, **kwargs)

        return wrapped

    def wrap_guide(self, guide: Program) -> Program:
        """The guide, which declares what an annealed flow of its sites learns.

        Args:
            guide: the guide.
        """
        if isinstance(self.flow, AnnealedParameters):
            return GuideWithFlow(guide, self.flow, self.sites)
        return guide

    def refine(self, model: Program, guide: Program) -> Program:
        """The guide after the flow: a guide whose draws are nearer to the posterior.

        Its latents have the right log density, so it serves ``Predictive``, importance weights and
        every diagnostic in the guide's place. It declares the parameters of the model, which it
        needs, and those of the flow.

        Args:
            model: the model.
            guide: the guide.
        """
        return self._refine(_summed_out(model, guide), guide, objectives.Prefactors())

    def evaluate(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> Evaluation:
        """Run the guide, move its draw, and score the model there."""
        model = _summed_out(model, guide)
        likelihood, prior, _ = self.prefactors.logp
        weighted = SiteWeights(model, observed=likelihood, latent=prior)
        refined = self._refine(model, guide, self.prefactors, declared=param_map.keys())

        def single_particle(key: Key[Array, ""]) -> dict[str, Any]:
            stock = Trace_ELBO()
            return stock.loss_with_mutable_state(key, param_map, weighted, refined, *args, **kwargs)

        if self.num_particles == 1:
            particle = single_particle(rng_key)
            return Evaluation(particle["loss"], mutable_state=particle["mutable_state"])
        keys = jax.random.split(rng_key, self.num_particles)
        particles = self.vectorize_particles_fn(single_particle, keys)
        first = jax.tree.map(lambda leaf: leaf[0], particles["mutable_state"])
        return Evaluation(particles["loss"].mean(), mutable_state=first)

    def _refine(
        self,
        model: Program,
        guide: Program,
        prefactors: objectives.Prefactors,
        *,
        declared: Collection[str] | None = None,
    ) -> Program:
        """The guide after the flow, in training with the parameters that were declared."""
        in_training, flow = declared is not None, self.flow
        programs = unrecorded(model), without_flow(unrecorded(guide))
        refined: Program
        if isinstance(flow, AnnealedParameters):
            settings = replace(flow, declared=declared)
            refined = AnnealedGuide(*programs, settings, self.sites, in_training, self.checkpoint)
        else:
            if declared is not None:
                self._check_declared(flow, declared)
            refined = RefinedGuide(
                *programs, flow, self.sites, prefactors, in_training, self.checkpoint
            )
        return recorded_like(guide, refined)

    def _check_declared(self, flow: FlowParameters, declared: Collection[str]) -> None:
        for name in flow.learned:
            if name not in declared:
                raise ValueError(
                    f"{type(self).__name__} has parameters of its own, '{name}', that svi.init did "
                    "not declare: use numpyro_backend.SVI, or pass elbo.wrap_model(model) as the "
                    "model"
                )


def _concrete(step_size: InitialStepSize | None) -> InitialStepSize | None:
    """With arrays of NumPy, which are checked in a transformation too."""
    if isinstance(step_size, Mapping):
        return {
            site: np.asarray(size) if hasattr(size, "shape") else size
            for site, size in step_size.items()
        }
    return np.asarray(step_size) if hasattr(step_size, "shape") else step_size


def _summed_out(model: Program, guide: Program) -> Program:
    """The model without the latents that it enumerates, under its own recording handlers."""
    own = without_flow(unrecorded(guide))
    return recorded_like(model, SummedOut(unrecorded(model), own))
