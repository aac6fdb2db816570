# SPDX-License-Identifier: MIT
"""A base ELBO plus a penalty on the rows of its latents: what the penalised objectives share."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    ReweightedWakeSleep,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
)
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.trace_mean_field_elbo import JitTraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_infovae._arrays.gathering import same_draws
from pyro_infovae._objectives.base_elbo import (
    TensorLoss,
    TraceAnalyticKL_ELBO,
    has_tensor_loss,
    take_step,
    tensor_loss,
)
from pyro_infovae._traces.gathered_rows import gather
from pyro_infovae._traces.runs import Program, Recorder
from pyro_infovae.groups import Group
from pyro_infovae.rows import Rows, group_by_plates
from pyro_infovae.sites import Selection

Regularizer: TypeAlias = Callable[[Rows], Tensor]

_REFUSED_BASES = (
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    ReweightedWakeSleep,
)


class PenalisedELBO(ELBO):
    r"""A base ELBO with a weight :math:`w` on the KL of some latents, plus a penalty on their rows.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z))
        + \mathrm{penalty}

    in nats, summed over the data set. A subclass supplies ``kl_weight`` and ``penalty``.

    Args:
        sites: the latents, by name; None selects every reparameterised latent in plates.
        regularizer: a further penalty of the user's: a function of each group's
            :class:`~pyro_infovae.rows.Rows`, observed data included, to a scalar in nats.
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
        if isinstance(sites, str):
            sites = (sites,)
        super().__init__(
            num_particles=base.num_particles,
            vectorize_particles=base.vectorize_particles,
            retain_graph=base.retain_graph,
        )
        self.base = base
        self.sites = None if sites is None else frozenset(sites)
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

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, as a float.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        recorder = self._recorder()
        value = self.base.loss(recorder.model(model), recorder.guide(guide), *args, **kwargs)
        penalty = torch_item(self._penalties(recorder, model, args, kwargs))
        warn_if_nan(penalty, "penalty")
        return float(value + penalty)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss in nats, as a scalar tensor to differentiate; nothing waits for the device.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.

        Raises:
            NotImplementedError: when the base has no differentiable loss.
        """
        recorder = self._recorder()
        recorded = recorder.model(model), recorder.guide(guide)
        if has_tensor_loss(self.base):
            value = tensor_loss(self.base, *recorded, args, kwargs)
        elif hasattr(self.base, "differentiable_loss"):
            value = self.base.differentiable_loss(*recorded, *args, **kwargs)
        else:
            raise NotImplementedError(
                f"{type(self.base).__name__} has no differentiable_loss: use loss_and_grads, as "
                "SVI does, or another base"
            )
        return value + self._penalties(recorder, model, args, kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, as a float, after adding its gradient to every parameter's ``grad``.

        Args:
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        if has_tensor_loss(self.base):
            return self.guarded(lambda: take_step(self, model, guide, args, kwargs))
        recorder = self._recorder()
        recorded = recorder.model(model), recorder.guide(guide)
        with _graph_retained(self.base):
            value = self.base.loss_and_grads(*recorded, *args, **kwargs)
        penalty = self._penalties(recorder, model, args, kwargs)
        if penalty.requires_grad:
            penalty.backward(retain_graph=self.retain_graph)
        warn_if_nan(torch_item(penalty), "penalty")
        return float(value + torch_item(penalty))

    def guarded(self, step: Callable[[], float]) -> float:
        """Run a step that adds gradients; the base may take them back."""
        if isinstance(self.base, TensorLoss | PenalisedELBO):
            return self.base.guarded(step)
        return step()

    def accepts(self, loss: float) -> bool:
        """Whether a loss may be differentiated, as the base says; warns where not, or if nan."""
        if isinstance(self.base, TensorLoss | PenalisedELBO):
            return self.base.accepts(loss)
        warn_if_nan(loss, "loss")
        return True

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.base._get_trace(model, guide, args, kwargs)

    def _recorder(self) -> Recorder:
        selection = Selection(type(self).__name__, self.sites, self.base.num_particles)
        return Recorder(selection, self.kl_weight)

    def _penalties(
        self, recorder: Recorder, model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        runs = recorder.last(1 if self.base.vectorize_particles else self.base.num_particles)
        groups = [
            Group(names, tuple(runs), model, args, kwargs)
            for names in group_by_plates(runs[0].model, runs[0].selected)
        ]
        penalty = self.penalty(groups)
        if self.regularizer is not None:
            for group in groups:
                penalty = penalty + self.regularizer_weight * self._regularize(group)
        return penalty

    def _regularize(self, group: Group) -> Tensor:
        assert self.regularizer is not None
        (rows,) = self._gathered(replace(group.posterior, data=group.data))
        with self._drawing_alike():
            value = self.regularizer(rows)
        if value.shape != ():
            raise ValueError(
                f"Expected regularizer(rows) to be a scalar; got shape {tuple(value.shape)} for "
                f"the rows of {list(group.names)}: sum or average over the rows"
            )
        return value

    def _gathered(self, *parts: Rows) -> tuple[Rows, ...]:
        """The rows that a penalty sees: of all ranks, or of this one."""
        return gather(*parts) if self.gather else parts

    def _drawing_alike(self) -> AbstractContextManager[None]:
        """What a penalty draws after it has gathered is the same on all ranks."""
        return same_draws() if self.gather else nullcontext()


@contextmanager
def _graph_retained(base: ELBO) -> Iterator[None]:
    """Let the base's own backward keep the graph that the penalty shares with it."""
    heeds = isinstance(base, PenalisedELBO | TraceEnum_ELBO | TraceGraph_ELBO)
    before = base.retain_graph
    base.retain_graph = True
    try:
        with nullcontext() if heeds else _RetainGraph():
            yield
    finally:
        base.retain_graph = before


class _RetainGraph(TorchFunctionMode):
    """For bases such as RenyiELBO, which do not heed their own ``retain_graph``."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        retained = {"retain_graph": True} if func is Tensor.backward else {}
        return func(*args, **{**(kwargs or {}), **retained})
