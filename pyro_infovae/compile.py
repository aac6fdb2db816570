# SPDX-License-Identifier: MIT
r"""Training steps whose loss and gradients are captured once and replayed, free of Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, get_args

import pyro
import torch
from pyro.infer.elbo import ELBO
from pyro.infer.util import torch_item
from torch import Tensor

from pyro_infovae._arrays.random_state import RandomState
from pyro_infovae._compiled_step.captured_step import CapturedStep, capture
from pyro_infovae._compiled_step.guards import Call, elbos, take_apart
from pyro_infovae._compiled_step.observed_step import Observation, observe
from pyro_infovae._compiled_step.parameter_update import (
    Optim,
    ParameterUpdate,
    add_gradient,
    clear_gradients,
    gradients_apart,
)
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program

Backend: TypeAlias = Literal["inductor"]

MAX_CAPTURES = 8
"""The captures that are kept; making more is warned of."""


@documented("")
class CompiledSVI:
    r"""Stochastic variational inference with a compiled step: :class:`pyro.infer.SVI`, faster.

    The loss and its gradients are captured as one graph of tensor operations and replayed, without
    the Python of Pyro, model and guide. From the same seed, losses, gradients and random numbers
    are those of ``SVI``. The first step is Pyro's own and initialises the parameters. The second
    one, and every later one for which no capture holds, is Pyro's too, is captured on the way, and
    is compared with what was captured: that takes about a second.

    A capture holds while the arguments have the same structure, dtypes and devices, and equal
    numbers and strings; while no parameter is replaced or frozen; and while the public attributes
    of the objective, of the modules that model and guide call and of the object whose methods they
    are keep their values, ``training`` included. What these attributes and arguments hold as
    tensors is read afresh in every step, so that a weight that is annealed should be one::

        elbo.alpha = torch.tensor(0.0)
        elbo.alpha.fill_(0.5)

    A minibatch of another size is captured again, with sizes left open where the program takes
    them from ``x.shape`` and not from ``len(x)``. Other Python that model and guide run, such as
    a number that they read from a global variable or draw from another generator than torch's, is
    run once per capture: what it gives then is what it gives from then on.

    Under :class:`~pyro_infovae.TraceHamiltonian_ELBO`, a captured step keeps what ``SVI`` computes
    twice: it is quicker, and its memory grows with the number of leapfrog steps.

    A step whose loss is not finite is taken again by Pyro itself, from the same random numbers. So
    is one whose gradients are not finite, under an objective that leaves such gradients out.

    Args:
        model: the model.
        guide: the guide.
        optim: an optimiser of :mod:`pyro.optim`, or a function from a list of parameters to one of
            :mod:`torch.optim`, such as ``partial(torch.optim.Adam, lr=1e-3, fused=True)``, which
            steps all of them at once and so is faster.
        loss: an objective with a ``differentiable_loss``.
        backend: None to replay the operations as they are, or ``"inductor"`` to compile them with
            TorchInductor, which takes a C++ compiler and, for every size of a minibatch, half a
            minute.

    Raises:
        TypeError: for a loss that has no ``differentiable_loss``, or no optimiser.
        ValueError: for an unknown backend, or a loss that gathers rows of several processes.

    References:
        Reed, DeVito, He, Ussery, Ansel, *Torch.fx: Practical Program Capture and Transformation for
        Deep Learning in Python*, arXiv 2112.08429.

    Example:
        $trained
        >>> from pyro_infovae import TraceMMD_ELBO
        >>> svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMMD_ELBO())
        >>> x = torch.randn(64, 2)
        >>> losses = [svi.step(x) for _ in range(3)]  # the third one is replayed
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: Optim,
        loss: ELBO,
        *,
        backend: Backend | None = None,
    ) -> None:
        for part in (loss, *elbos(loss)):
            if not hasattr(part, "differentiable_loss"):
                raise TypeError(
                    f"Expected a loss that has a differentiable_loss, such as Trace_ELBO(); got "
                    f"{type(part).__name__}: train with pyro.infer.SVI, or use another"
                )
        if getattr(loss, "gather", False):
            raise ValueError(
                f"Expected a loss of one process; got {type(loss).__name__}(gather=True), whose "
                "exchange no graph can hold: train with pyro.infer.SVI, or leave gather out"
            )
        if backend is not None and backend not in get_args(Backend):
            raise ValueError(f"Expected backend to be None or 'inductor'; got {backend!r}")
        self.model = model
        self.guide = guide
        self.optim = optim
        self.loss = loss
        self.backend = backend
        self._captured: list[CapturedStep] = []
        self._num_captures = 0
        self._has_stepped = False
        self._update = ParameterUpdate(optim)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take a gradient step; returns the loss in nats.

        Args:
            *args: positional arguments of model and guide.
            **kwargs: keyword arguments of both.

        Raises:
            TypeError: for an argument that may change without notice.
            ValueError: for a tensor that requires a gradient.
            NotImplementedError: for a step that cannot be captured, naming the line.
            RuntimeError: for a captured step that differs from Pyro's.
        """
        call = take_apart(args, kwargs)
        captured = next((step for step in self._captured if step.change(call) is None), None)
        if captured is None:
            return self._step_and_capture(call, args, kwargs)
        random_state = RandomState.now()
        outputs = captured.replay(call)
        if not outputs.is_finite:
            random_state.restore()
            trained = [captured.leaves[name] for name in outputs.gradients]
            return self._step_by_pyro(trained, args, kwargs)
        for source, update in zip(captured.buffers, outputs.buffers, strict=True):
            source.value.copy_(update)
        for name, gradient in outputs.gradients.items():
            add_gradient(captured.leaves[name], gradient)
        self._update(captured.leaves.values())
        return outputs.loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without a gradient step; by Pyro itself.

        Args:
            *args: positional arguments of model and guide.
            **kwargs: keyword arguments of both.
        """
        with torch.no_grad():
            return float(torch_item(self.loss.loss(self.model, self.guide, *args, **kwargs)))

    def _step_by_pyro(
        self, trained: Iterable[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> float:
        """A step whose loss or gradient is not finite, to which the objective may object."""
        for leaf in trained:
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)  # as Pyro leaves it after a step
        observation = self._observe(args, kwargs)
        self._update(observation.leaves.values())
        return observation.loss

    def _step_and_capture(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """A step by Pyro, which initialises the parameters, captured on the way."""
        store = pyro.get_param_store()
        before, num_parameters = RandomState.now(), len(store)
        with gradients_apart(store._params.values()):
            observation = self._observe(args, kwargs)
            # A step that initialises may draw more numbers than the others.
            if self._has_stepped and len(store) == num_parameters:
                after = RandomState.now()
                try:
                    self._capture(call, observation, before)
                except BaseException:
                    clear_gradients(observation.leaves.values())
                    raise
                finally:
                    after.restore()
        self._has_stepped = True
        self._update(observation.leaves.values())
        return observation.loss

    def _observe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observation:
        return observe(lambda: self.loss.loss_and_grads(self.model, self.guide, *args, **kwargs))

    def _capture(self, call: Call, observation: Observation, before: RandomState) -> None:
        symbolic = self._symbolic(call)
        captured = capture(self.loss, self.model, self.guide, call, observation, symbolic=symbolic)
        before.restore()
        if not captured.check(call, observation):
            return  # a later step will do
        if self.backend == "inductor":
            captured = captured.by_inductor(call)
        self._keep(captured, call)

    def _symbolic(self, call: Call) -> list[list[bool]]:
        """The sizes that have differed before, which a graph may leave open."""
        alike = [step.call for step in self._captured if step.call.change(call) is None]
        if self.backend is not None:
            alike = []  # inductor compiles for the sizes of one call
        return [
            [any(size != other.shapes[i][dim] for other in alike) for dim, size in enumerate(shape)]
            for i, shape in enumerate(call.shapes)
        ]

    def _keep(self, captured: CapturedStep, call: Call) -> None:
        self._num_captures += 1
        if self._num_captures == MAX_CAPTURES + 1:
            warnings.warn(
                f"CompiledSVI captures its step for the {self._num_captures}th time, now since "
                f"{self._captured[0].change(call)}: each takes as long as many steps; pass what "
                "changes between steps as a tensor",
                stacklevel=5,
            )
        self._captured = [captured, *self._captured[: MAX_CAPTURES - 1]]
