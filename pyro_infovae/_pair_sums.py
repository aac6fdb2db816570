r"""The maximum mean discrepancy as one node of the graph, for any kernel with row sums.

A *row sum* is :math:`\sum_j w_j f(x_i, y_j)`: one number for each row i, from a function of pairs
and the weights of the rows j. The kernel's row sums give the value, and those of its derivatives
the gradient. Both are worked out while a block of pairs is at hand, so that no more than one block
exists at a time; backward only scales the gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_ELEMENTS = 2**18
"""Pairs in a block: few enough for a processor's cache."""

Gradients = Sequence[Tensor | None]


class Sample(NamedTuple):
    """Rows, described by one or more tensors (n, d), and their weights; None for ones."""

    rows: tuple[Tensor, ...]
    weights: Float[Tensor, " n"] | None


class Periods(NamedTuple):
    """The pairs each term leaves out: ``i % period == j % period``; None keeps all."""

    xx: int | None = None
    yy: int | None = None
    xy: int | None = None


class RowSums(Protocol):
    """A kernel's row sums: the kernel's own in column 0 and, if wanted, its derivatives' after."""

    def prepare(self, x: Sample, y: Sample) -> tuple[Any, Any]:
        """Return both samples in the form that the other methods take."""

    def within(self, x: Any, period: int | None, wanted: bool) -> Float[Tensor, "n columns"]:
        """Return the row sums of a sample over itself."""

    def across(
        self, x: Any, y: Any, period: int | None, x_wanted: bool, y_wanted: bool
    ) -> tuple[Float[Tensor, "n columns"], Float[Tensor, "m columns"]]:
        """Return the row sums of x over y, and of y over x (undefined unless wanted)."""

    def gradients(self, x: Any, sums: Float[Tensor, "n columns"]) -> Gradients:
        """Return the gradient with respect to each tensor of a sample and to its weights."""


def weighted_mmd(
    row_sums: RowSums,
    x: Sample,
    y: Sample,
    periods: Periods,
    coefficients: Sequence[Tensor | float],
) -> Float[Tensor, ""]:
    r"""Return :math:`a S_{xx} + b S_{yy} + c S_{xy}`, where S sums over the weighted pairs.

    Args:
        row_sums: the kernel.
        x: one sample.
        y: the other.
        periods: the pairs that each sum leaves out.
        coefficients: a, b and c.
    """
    inputs = (*x.rows, x.weights, *y.rows, y.weights, *coefficients)
    wanted = [isinstance(i, Tensor) and i.requires_grad and torch.is_grad_enabled() for i in inputs]
    evaluate = partial(_value_and_gradients, row_sums, periods)
    value: Tensor = _WithGradients.apply(evaluate, wanted, *inputs)[0]  # type: ignore[no-untyped-call]
    return value


def row_blocks(n: int, m: int, block_elements: int) -> Iterator[slice]:
    """Cut n rows of m pairs into blocks of at most ``block_elements`` pairs, or one row."""
    size = max(1, block_elements // m)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def leave_out_(block: Float[Tensor, "n m"], period: int | None, shift: int) -> None:
    """Set the pairs of a block to zero where ``(i + shift) % period == j % period``."""
    if period is not None:
        rows, columns = block.shape
        for offset in range((shift + rows - 1) % period - rows + 1, columns, period):
            block.diagonal(offset).zero_()


def _value_and_gradients(
    row_sums: RowSums, periods: Periods, wanted: Sequence[bool], *inputs: Any
) -> tuple[Tensor, Gradients]:
    *samples, a, b, c = inputs
    half = len(samples) // 2
    x_wanted, y_wanted = any(wanted[:half]), any(wanted[half:-3])
    x_weights, y_weights = samples[half - 1], samples[-1]
    x, y = row_sums.prepare(
        Sample(tuple(samples[: half - 1]), x_weights), Sample(tuple(samples[half:-1]), y_weights)
    )
    xx = row_sums.within(x, periods.xx, x_wanted)
    yy = row_sums.within(y, periods.yy, y_wanted)
    xy, yx = row_sums.across(x, y, periods.xy, x_wanted, y_wanted)

    s_xx, s_yy, s_xy = _total(xx, x_weights), _total(yy, y_weights), _total(xy, x_weights)
    none = (None,) * half
    gradients = (
        *(row_sums.gradients(x, 2 * a * xx + c * xy) if x_wanted else none),
        *(row_sums.gradients(y, 2 * b * yy + c * yx) if y_wanted else none),
        *(s_xx, s_yy, s_xy),
    )
    kept = [g if w else None for g, w in zip(gradients, wanted, strict=True)]
    return a * s_xx + b * s_yy + c * s_xy, kept


def _total(sums: Tensor, weights: Tensor | None) -> Tensor:
    return sums[:, 0].sum() if weights is None else (sums[:, 0] * weights).sum()


class _WithGradients(torch.autograd.Function):
    """The value of ``evaluate(wanted, *inputs)``, with the gradients that come beside it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        evaluate: Callable[..., tuple[Tensor, Gradients]], wanted: Sequence[bool], *inputs: Any
    ) -> tuple[Tensor | None, ...]:
        value, gradients = evaluate(wanted, *inputs)
        return value, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, *second: Tensor | None) -> tuple[Any, ...]:
        gradients = ctx.saved_tensors
        if any(g is not None for g in second):
            raise RuntimeError(
                "Expected one derivative of MMD^2; got a second. For more, hide the kernel in a "
                "callable: lambda x, y: kernel(x, y)."
            )
        if any(n and g is None for n, g in zip(ctx.needs_input_grad[2:], gradients, strict=True)):
            # Inside vmap, a tensor does not tell that an outer transform differentiates it.
            raise RuntimeError("Expected grad inside vmap; got vmap inside grad: swap them.")
        return None, None, *(None if g is None else grad_value * g for g in gradients)
