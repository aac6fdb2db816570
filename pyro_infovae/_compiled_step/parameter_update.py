# SPDX-License-Identifier: MIT
"""What a step does to parameters once their gradients are known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

Optim: TypeAlias = PyroOptim | Callable[[list[Tensor]], Optimizer]
"""An optimiser of Pyro, or a function from a list of parameters to one of torch."""


class ParameterUpdate:
    """Steps parameters by their gradients and takes these away; new ones are taken up.

    Args:
        optim: the optimiser.

    Raises:
        TypeError: for what is no optimiser.
    """

    def __init__(self, optim: Optim) -> None:
        if not callable(optim):
            raise TypeError(
                "Expected optim to be a PyroOptim, or a function of parameters such as "
                f"partial(torch.optim.Adam, lr=1e-3, fused=True); got {type(optim).__name__}"
            )
        self.optim = optim
        self._optimizer: Optimizer | None = None

    def __call__(self, leaves: Collection[Tensor]) -> None:
        """Step the parameters.

        Args:
            leaves: unconstrained parameters; those without a gradient stay.
        """
        if isinstance(self.optim, PyroOptim):
            self.optim(leaves)
        else:
            self._optimizer_of(leaves, self.optim).step()
        clear_gradients(leaves)

    def _optimizer_of(
        self, leaves: Collection[Tensor], make: Callable[[list[Tensor]], Optimizer]
    ) -> Optimizer:
        if self._optimizer is None:
            self._optimizer = make(list(leaves))
        known = {id(leaf) for group in self._optimizer.param_groups for leaf in group["params"]}
        new = [leaf for leaf in leaves if id(leaf) not in known]
        if new:
            self._optimizer.add_param_group({"params": new})
        return self._optimizer


def add_gradient(leaf: Tensor, gradient: Tensor) -> None:
    """Do to a leaf, and by its hooks, what a backward pass does."""
    for hook in (leaf._backward_hooks or {}).values():
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    for hook in (leaf._post_accumulate_grad_hooks or {}).values():
        hook(leaf)


@contextmanager
def gradients_apart(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Start from no gradients; those from before are added at the end."""
    earlier = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    clear_gradients(leaf for leaf, _ in earlier)
    try:
        yield
    finally:
        for leaf, gradient in earlier:
            leaf.grad = gradient if leaf.grad is None else gradient + leaf.grad


def clear_gradients(leaves: Iterable[Tensor]) -> None:
    """Take the gradients of parameters away."""
    for leaf in leaves:
        leaf.grad = None
