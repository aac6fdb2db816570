# SPDX-License-Identifier: MIT
"""A base ELBO plus a penalty on the rows of its latents: what the penalised objectives share."""

from __future__ import annotations

import copy
import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial, reduce
from itertools import chain
from typing import Any, TypeAlias

import torch
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    ReweightedWakeSleep,
)
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.trace_mean_field_elbo import JitTraceMeanField_ELBO
from torch import Tensor, nn

from pyro_infovae._arrays.gathering import same_draws
from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.objectives import check_scalar, warn_of_enumeration
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import (
    Selection,
    drawn_not_enumerated,
    groups_of,
    particles_of,
    recorded,
    share_parents,
)
from pyro_infovae._objectives.objective import Objective, TraceAnalyticKL_ELBO, evaluate
from pyro_infovae._traces.recording import Recorder
from pyro_infovae.groups import Group, Rows

Regularizer: TypeAlias = Callable[[Rows], Tensor]

_REFUSED_BASES = (
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    ReweightedWakeSleep,
)


class PenalisedELBO(Objective):
    r"""A base ELBO with a weight :math:`w` on the KL of some latents, plus a penalty on their rows.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z))
        + \mathrm{penalty}

    in nats, summed over the data set. A subclass supplies ``kl_weight`` and ``penalty``.

    Args:
        sites: the latents, by name; None selects the reparameterised ones in plates of data.
        regularizer: a further penalty of the user's: a function of each group's
            :class:`~pyro_infovae.groups.Rows`, observed data included, to a scalar in nats.
        regularizer_weight: the factor on it.
        gather: whether the penalties see the rows of all ranks of the default process group.
        base: the ELBO below the penalty. Its particle settings are the objective's.
        num_particles: draws per datum of the default base.
        max_plate_nesting: bound on the plate nesting of the default base.
        vectorize_particles: whether the default base draws its particles in one run.

    Raises:
        ValueError: when both ``base`` and particle settings are given.
        NotImplementedError: for a base whose runs cannot be recorded.
    """

    def __init__(
        self,
        *,
        sites: Iterable[str] | None = None,
        regularizer: Regularizer | None = None,
        regularizer_weight: float | Tensor = 1.0,
        gather: bool = False,
        base: ELBO | None = None,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
    ) -> None:
        if base is None:
            base = TraceAnalyticKL_ELBO(
                num_particles=num_particles,
                max_plate_nesting=max_plate_nesting,
                vectorize_particles=vectorize_particles,
            )
        elif (num_particles, max_plate_nesting, vectorize_particles) != (1, math.inf, False):
            raise ValueError(
                f"Expected particle settings in base; got {type(self).__name__}(base=..., "
                f"num_particles={num_particles}, max_plate_nesting={max_plate_nesting}, "
                f"vectorize_particles={vectorize_particles}): pass them to "
                f"{type(base).__name__}(...)"
            )
        if isinstance(base, _REFUSED_BASES):
            raise NotImplementedError(
                f"Expected a base ELBO that runs model and guide in every step; got "
                f"{type(base).__name__}: use one such as Trace_ELBO()"
            )
        super().__init__(
            num_particles=base.num_particles,
            vectorize_particles=base.vectorize_particles,
            retain_graph=base.retain_graph,
        )
        self.base = base
        self.sites = Selection.of(type(self).__name__, sites).names
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.gather = gather

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Model, guide and what the base learns as one module whose call is the loss."""
        inner = self.base(model, guide)
        outer = copy.copy(self)
        outer.base = inner.elbo
        module = ELBOModule(model, guide, outer)
        for name, learned in inner.named_children():
            if name not in ("model", "guide"):
                setattr(module, name, learned)
        return module

    @property
    @abstractmethod
    def kl_weight(self) -> float | Tensor:
        """The factor on the KL of the selected latents."""

    @abstractmethod
    def penalty(self, groups: list[Group]) -> Tensor:
        """The penalty in nats: a differentiable scalar."""

    @property
    def flows(self) -> bool:
        """Whether there is a flow in the base."""
        return isinstance(self.base, Objective) and self.base.flows

    def evaluate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Evaluation:
        """Evaluate the base on the recorded programs, and add the penalties on their rows."""
        selection = Selection(type(self).__name__, self.sites, self.base.num_particles)
        recorder, base = recorded(
            partial(Recorder, selection, self.kl_weight),
            lambda recorder: evaluate(
                self.base, recorder.model(model), recorder.guide(guide), args, kwargs
            ),
        )
        runs = recorder.last(1 if self.base.vectorize_particles else self.base.num_particles)
        if marked := drawn_not_enumerated(runs[0]):
            warn_of_enumeration(marked)
        names = groups_of(runs[0])
        pooled = [runs]
        if self.num_particles > 1 and any(share_parents(group, runs[0]) for group in names):
            pooled = [(particle,) for run in runs for particle in particles_of(run)]
        # Outside plates the particles are the rows, and stay together.
        parts = [
            [
                Group(
                    group,
                    part if runs[0].model[group[0]].plates else runs,
                    model,
                    args,
                    kwargs,
                    self.gather,
                )
                for group in names
            ]
            for part in pooled
        ]
        penalties = self._penalties(parts)
        return Evaluation(
            reduce(operator.add, penalties.values(), base.loss),
            {**base.terms, **{name: penalty.detach() for name, penalty in penalties.items()}},
            base.finite,
            {**base.counts, **_counts(parts)},
        )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.base._get_trace(model, guide, args, kwargs)

    def _penalties(self, parts: list[list[Group]]) -> dict[str, Tensor]:
        """By name, the mean over the parts, in nats.

        What they draw is the same on all ranks whose rows they share.
        """
        with same_draws() if self.gather else nullcontext():
            values = [self._penalties_of(groups) for groups in parts]
        if len(values) == 1:
            return values[0]
        return {name: torch.stack([v[name] for v in values]).mean() for name in values[0]}

    def _penalties_of(self, groups: list[Group]) -> dict[str, Tensor]:
        penalties = {type(self).__name__: self.penalty(groups)}
        if self.regularizer is not None:
            values = torch.stack([self._regularizer_of(group) for group in groups])
            penalties["regularizer"] = self.regularizer_weight * values.sum()
        return penalties

    def _regularizer_of(self, group: Group) -> Tensor:
        assert self.regularizer is not None
        return check_scalar(self.regularizer(group.with_data(group.own_data)), group.names)


def _counts(parts: list[list[Group]]) -> dict[tuple[str, ...], Tensor]:
    """How many rows of a masked group count, in the part where they are fewest."""
    counts: dict[tuple[str, ...], Tensor] = {}
    for group in chain.from_iterable(parts):
        if (weights := group.posterior.weights) is not None:
            count = (weights > 0).sum()
            counts[group.names] = torch.minimum(counts.get(group.names, count), count)
    return counts
