# SPDX-License-Identifier: MIT
r"""The maximum mean discrepancy as one node of the graph, summed over blocks of pairs.

A *row sum* is :math:`\sum_j w_j f(x_i, y_j)`: one number for each row i, from a function of pairs
and the weights of the rows j. The kernel's row sums give the value, and those of its derivatives
the gradient. Both are worked out while a block of pairs is at hand, so that no more than one block
exists at a time; backward only scales the gradient.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._core.kernels import RadialKernel
from pyro_infovae._core.mmd import Periods, Sample, coefficients

BLOCK_ELEMENTS = 2**20
"""Pairs in a block: few megabytes, yet few blocks."""

Side = Any
"""A kernel's own NamedTuple of tensors (features, n): a sample as its blocks want it."""

Gradients = Sequence[Tensor | None]


class Term(NamedTuple):
    """A function of the pairs in a block, and the factors of its row sums."""

    columns: slice
    """Which of the row sums they are."""
    pairs: Float[Tensor, "n m"]
    x_factors: Float[Tensor, "columns n"]
    y_factors: Float[Tensor, "columns m"]
    sign: int = 1
    """The sign of the function with x and y swapped."""


class PairKernel(Protocol):
    """A kernel that can be summed over blocks of pairs."""

    @property
    def block_elements(self) -> int:
        """The pairs per block, at most (but at least one row)."""

    def prepare(self, x: Sample, y: Sample) -> tuple[Side, Side, Side]:
        """Return x and y as sides for pairs within each, and y for the pairs with x."""

    def columns(self, x: Side, derivatives: bool) -> int:
        """Return the number of row sums, with those of the derivatives or without."""

    def terms(
        self, x: Side, y: Side, weigh: Callable[[Tensor], None], derivatives: bool
    ) -> Iterator[Term]:
        """Yield the kernel for column 0, then, if asked for, its derivatives for the others."""

    def gradients(self, x: Side, sums: Float[Tensor, "columns n"]) -> Sequence[Tensor]:
        """Return the gradient with respect to each tensor of a sample, its weights last."""


def weighted_mmd(
    kernel: PairKernel,
    x: Sample,
    y: Sample,
    periods: Periods,
    coefficients: Sequence[Tensor | float],
) -> Float[Tensor, ""]:
    r"""Return :math:`a S_{xx} + b S_{yy} + c S_{xy}`, where S sums over the weighted pairs.

    Args:
        kernel: the kernel.
        x: one sample.
        y: the other.
        periods: the pairs that each sum weighs apart, or leaves out.
        coefficients: a, b and c.
    """
    inputs = (*x.rows, x.weights, *y.rows, y.weights, *coefficients)
    return with_gradients(partial(_value_and_gradients, kernel, periods), inputs)


def with_gradients(
    evaluate: Callable[..., tuple[Tensor, Gradients]], inputs: Sequence[Any]
) -> Float[Tensor, ""]:
    """Return the value of ``evaluate(wanted, *inputs)`` as a node of the graph.

    Args:
        evaluate: returns a scalar, and its gradient with respect to each input that is wanted.
        inputs: tensors, and what else it takes.
    """
    wanted = [isinstance(i, Tensor) and i.requires_grad and torch.is_grad_enabled() for i in inputs]
    value: Tensor = _WithGradients.apply(evaluate, wanted, *inputs)[0]  # type: ignore[no-untyped-call]
    return value


def weigh_(block: Float[Tensor, "n m"], period: int | None, factor: float, shift: int) -> None:
    """Multiply the pairs of a block by a factor where ``(i + shift) % period == j % period``."""
    if period is not None:
        rows, columns = block.shape
        for offset in range((shift + rows - 1) % period - rows + 1, columns, period):
            pairs = block.diagonal(offset)
            pairs.mul_(factor) if factor else pairs.zero_()  # of what may not be finite


def _value_and_gradients(
    kernel: PairKernel, periods: Periods, wanted: Sequence[bool], *inputs: Any
) -> tuple[Tensor, Gradients]:
    *samples, a, b, c = inputs
    half = len(samples) // 2
    x_wanted, y_wanted = any(wanted[:half]), any(wanted[half:-3])
    x_weights, y_weights = samples[half - 1], samples[-1]
    x, y, y_across = kernel.prepare(
        Sample(tuple(samples[: half - 1]), x_weights), Sample(tuple(samples[half:-1]), y_weights)
    )
    factor = periods.factor
    xx = _sums_within(kernel, x, periods.xx, factor, x_wanted)
    yy = _sums_within(kernel, y, periods.yy, factor, y_wanted)
    xy, yx = _sums_across(kernel, x, y_across, periods.xy, factor, x_wanted, y_wanted)

    s_xx, s_yy, s_xy = _total(xx, x_weights), _total(yy, y_weights), _total(xy, x_weights)
    gradients: list[Tensor | None] = [None] * (2 * half)
    if x_wanted:
        gradients[:half] = kernel.gradients(x, 2 * a * xx + c * xy)
    if y_wanted:
        parts = kernel.gradients(y, 2 * b * yy), kernel.gradients(y_across, c * yx)
        gradients[half:] = map(torch.add, *parts)
    gradients += (s_xx, s_yy, s_xy)
    kept = [g if w else None for g, w in zip(gradients, wanted, strict=True)]
    return a * s_xx + b * s_yy + c * s_xy, kept


def _sums_within(
    kernel: PairKernel, x: Side, period: int | None, factor: float, derivatives: bool
) -> Float[Tensor, "columns n"]:
    """Return the row sums of a sample over itself."""
    n = _num_rows(x)
    sums: Tensor = x[0].new_zeros(kernel.columns(x, derivatives), n)
    for rows in _row_blocks(n, n, kernel.block_elements):
        onwards, after = slice(rows.start, n), slice(rows.stop, n)
        weigh = partial(weigh_, period=period, factor=factor, shift=0)
        for term in kernel.terms(_select(x, rows), _select(x, onwards), weigh, derivatives):
            sums[term.columns, rows].add_(term.y_factors @ term.pairs.T)
            if rows.stop < n:
                # The pairs before the diagonal mirror those after it.
                mirrored = term.x_factors @ term.pairs[:, rows.stop - rows.start :]
                sums[term.columns, after].add_(mirrored, alpha=term.sign)
    return sums


def _sums_across(
    kernel: PairKernel,
    x: Side,
    y: Side,
    period: int | None,
    factor: float,
    x_wanted: bool,
    y_wanted: bool,
) -> tuple[Float[Tensor, "columns n"], Float[Tensor, "columns m"]]:
    """Return the row sums of x over y and, if wanted, those of y over x."""
    n, m = _num_rows(x), _num_rows(y)
    derivatives = x_wanted or y_wanted
    columns = kernel.columns(x, derivatives)
    x_sums, y_sums = x[0].new_zeros(columns, n), y[0].new_zeros(columns, m)
    for rows in _row_blocks(n, m, kernel.block_elements):
        weigh = partial(weigh_, period=period, factor=factor, shift=rows.start)
        for term in kernel.terms(_select(x, rows), y, weigh, derivatives):
            x_sums[term.columns, rows].add_(term.y_factors @ term.pairs.T)
            if y_wanted:
                y_sums[term.columns].add_(term.x_factors @ term.pairs, alpha=term.sign)
    return x_sums, y_sums


def _row_blocks(n: int, m: int, block_elements: int) -> Iterator[slice]:
    size = max(1, block_elements // m)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _num_rows(side: Side) -> int:
    return int(side[0].shape[1])


def _select(side: Side, rows: slice) -> Side:
    return side if rows == slice(0, _num_rows(side)) else side._make(a[:, rows] for a in side)


def _total(sums: Float[Tensor, "columns n"], weights: Tensor | None) -> Float[Tensor, ""]:
    return sums[0].sum() if weights is None else (sums[0] * weights).sum()


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

    # torch asks for it in every call, and to work it out takes as long as a product of matrices.
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def backward(
        ctx: Any, grad_value: Tensor | None, *second: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if any(g is not None for g in second):
            raise RuntimeError(
                "Expected one derivative of MMD^2; got a second. For more, hide the kernel in a "
                "callable: lambda x, y: kernel(x, y)"
            )
        if grad_value is None:
            return None, None, *(None for _ in gradients)
        if any(n and g is None for n, g in zip(ctx.needs_input_grad[2:], gradients, strict=True)):
            # Inside vmap, a tensor does not tell that an outer transform differentiates it.
            raise RuntimeError("Expected grad inside vmap; got vmap inside grad: swap them.")
        return None, None, *(None if g is None else grad_value * g for g in gradients)


class _Points(NamedTuple):
    r"""Centred points, and factors with left_i · right_j = ‖x_i - y_j‖²."""

    left: Float[Tensor, "d+2 n"]
    right: Float[Tensor, "d+2 n"]
    weights: Float[Tensor, "1 n"]
    moments: Float[Tensor, "d+1 n"]


@dataclass(frozen=True)
class RadialPairs:
    r"""The kernel :math:`k = f(\|x - y\|^2)`.

    Its gradient at x is the sum of :math:`2 f' (x - y)`: row sums of the slope :math:`f'` times
    the moments (y, 1).
    """

    kernel: RadialKernel
    block_elements: int = BLOCK_ELEMENTS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Points, _Points, _Points]:
        """Centre the samples, for the product to keep its digits, and factor the distances.

        Within a sample the centre is its own mean: one that x and y share may be far from both.
        """
        x_mean, y_mean = _mean(x), _mean(y)
        return _factored(x, x_mean), _factored(y, y_mean), _factored(y, x_mean)

    def columns(self, x: _Points, derivatives: bool) -> int:
        """Count the kernel and the moments."""
        return 1 + len(x.moments) if derivatives else 1

    def terms(
        self, x: _Points, y: _Points, weigh: Callable[[Tensor], None], derivatives: bool
    ) -> Iterator[Term]:
        """Yield the kernel and its slope."""
        # Clamps at zero, as clamp_ does; but vmap knows relu_.
        distances = (x.left.T @ y.right).relu_()
        num_features = len(x.left) - 2
        if not derivatives:
            value = self.kernel.profile(distances, num_features)
            weigh(value)
            yield Term(slice(1), value, x.weights, y.weights)
            return
        value, slope = self.kernel.profile_and_slope(distances, num_features)
        weigh(value)
        yield Term(slice(1), value, x.weights, y.weights)
        weigh(slope)
        yield Term(slice(1, None), slope, x.moments, y.moments)

    def gradients(self, x: _Points, sums: Float[Tensor, "columns n"]) -> Sequence[Tensor]:
        """Return the gradient with respect to the points and to their weights."""
        points = x.right[:-2]
        return (2 * x.weights * (points * sums[-1] - sums[1:-1])).T, sums[0]


def _mean(x: Sample) -> Float[Tensor, " d"]:
    """Return the weighted mean, which a masked row does not move; 0 if all are masked."""
    (points,) = x.rows
    if x.weights is None:
        return points.mean(0)
    total = x.weights.sum()
    return x.weights @ points / torch.where(total > 0, total, 1.0)


def _factored(x: Sample, centre: Float[Tensor, " d"]) -> _Points:
    points = (x.rows[0] - centre).T
    squares = (points * points).sum(0, keepdim=True)
    ones = torch.ones_like(squares)
    left = torch.cat([-2 * points, squares, ones])
    right = torch.cat([points, ones, squares])
    if x.weights is None:
        return _Points(left, right, ones, right[:-1])
    weights = x.weights[None]
    return _Points(left, right, weights, right[:-1] * weights)


def average_radial(
    kernel: RadialKernel, x: Sample, y: Sample, periods: Periods
) -> Float[Tensor, ""]:
    """The estimate by a radial kernel of points."""
    return weighted_mmd(RadialPairs(kernel), x, y, periods, coefficients(x, y, periods))


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """No autocast where a tensor is: a squared distance is a difference of large numbers."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
