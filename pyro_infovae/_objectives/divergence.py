# SPDX-License-Identifier: MIT
"""What becomes of a step in which a flow diverged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor


def take_back_if_diverged(loss: float, tensor: Tensor) -> None:
    """Take back the gradients that a loss has added, where one of them is not finite; warns."""
    gradients = [leaf.grad for leaf in _leaves(tensor) if leaf.grad is not None]
    if not all(gradient.isfinite().all() for gradient in gradients):
        for gradient in gradients:
            gradient.zero_()
        _warn_of_divergence(f"the loss is {loss}, and its gradient is not finite")


def warn_of_rows(loss: float, finite: Mapping[str, Tensor]) -> None:
    """Warn of a loss that is not finite, and say how many rows of which sites are not."""
    counts = {name: int((~rows).sum()) for name, rows in finite.items()}
    rows = {name: count for name, count in counts.items() if count}
    _warn_of_divergence(f"the loss is {loss}, with rows of non-finite log density per site {rows}")


def _warn_of_divergence(symptom: str) -> None:
    warnings.warn(
        f"TraceHamiltonian_ELBO: {symptom}: the step size is too large for the posterior, and this "
        "step's gradient is left out; lower step_size or max_step_size",
        stacklevel=4,
    )


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors whose gradients a backward pass adds to."""
    pending, seen, leaves = [loss.grad_fn], set(), []
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending.extend(following for following, _ in node.next_functions)
    return leaves
