# SPDX-License-Identifier: MIT
"""What becomes of a step in which something of a flow is not finite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_infovae._arrays.checkpointing import random_state, replayed, untried
from pyro_infovae._core.evaluation import Evaluation, Flow
from pyro_infovae._traces.runs import buffers_untouched


def take_back_if_not_finite(tensor: Tensor) -> bool:
    """Take back the gradients that a loss has added, where one of them is not finite."""
    gradients = [leaf.grad for leaf in _leaves(tensor) if leaf.grad is not None]
    is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    if not is_finite:
        for gradient in gradients:
            gradient.zero_()
    return not is_finite


Found: TypeAlias = Mapping[str, tuple[str, str]]
"""By what is not finite, the first site where it is not, and in how many rows of how many."""


def attempt(evaluate: Callable[[], Evaluation]) -> tuple[Evaluation, Found]:
    """Evaluate a flow, and again if rows of it diverge, which then stay where they were drawn.

    Args:
        evaluate: draws the same again where the random numbers are the same.
    """
    state = random_state()
    with untried() as pending:
        evaluation = evaluate()
    found = rows_not_finite(evaluation.finite)
    if not found.keys() & {"force", "path"}:
        for action in pending:
            action()
        return evaluation, found
    with replayed(state), buffers_untouched():
        evaluation = evaluate()
    return evaluation, rows_not_finite(evaluation.finite)


def rows_not_finite(finite: Mapping[Flow, Mapping[str, Tensor]]) -> Found:
    """What was not finite in a flow; to look waits for the device.

    Args:
        finite: by what has to be finite and by site, which rows are.
    """
    sites = [(what, site, rows) for what, sites in finite.items() for site, rows in sites.items()]
    if not sites:
        return {}
    counts = torch.stack([(~rows).sum() for _, _, rows in sites]).tolist()
    found: dict[str, tuple[str, str]] = {}
    for (what, site, rows), count in zip(sites, counts, strict=True):
        if count:
            found.setdefault(what, (site, f"{count} of {rows.numel()}"))
    return found


def warn_of_rows(loss: float, found: Found, *, is_left_out: bool) -> None:
    """Warn of what was not finite in a flow: of its start first, and of its path at last.

    Args:
        loss: the loss in nats.
        found: what was not finite.
        is_left_out: whether the step's gradient is left out.
    """
    if is_left_out:
        _warn(f"{_cause(loss, found)}; this step's gradient is left out")
    elif "start" in found:
        name, share = found["start"]
        _warn(
            f"the guide draws '{name}' on the edge of its support in {share} rows, from where no "
            "flow can start: they count by that draw; use float64, or a guide that keeps away "
            "from the edge"
        )
    elif "path" in found:
        name, share = found["path"]
        _warn(
            f"the flow of '{name}' diverged in {share} rows, for which the step size is too large: "
            "they count by the guide's own draw; lower step_size or max_step_size"
        )


def _cause(loss: float, found: Found) -> str:
    """Why a loss or its gradient is not finite."""
    if "data" in found:
        site, values = found["data"]
        return (
            f"site '{site}' observes nan or infinity in {values} values, which the gradient does "
            "not stand under a mask either: mask them, and fill them with torch.nan_to_num"
        )
    if not math.isfinite(loss) and "density" in found:
        site, rows = found["density"]
        return (
            f"the log density of '{site}' is not finite in {rows} rows, whatever the step size: "
            "look at the parameters of model and guide"
        )
    if "force" in found:
        site, rows = found["force"]
        return (
            f"the model's log density has no finite gradient in '{site}' where the guide draws it, "
            f"in {rows} rows: look for an infinite slope, as of a square root at 0"
        )
    return (
        f"the loss is {loss}, and its gradient is not finite: look for an infinite slope in model "
        "or guide, as of a square root at 0, and lower step_size or max_step_size if there is none"
    )


def _warn(message: str) -> None:
    warnings.warn(f"TraceHamiltonian_ELBO: {message}", stacklevel=4)


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
