"""Gradients, tracing and memory of the estimators."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_infovae._arrays.normal_pairs import NormalPairs
from pyro_infovae._arrays.pair_sums import Periods, RadialPairs, Sample, weighted_mmd
from pyro_infovae.kernels import IMQ, RBF, RadialKernel
from pyro_infovae.mmd import mmd_squared, mmd_squared_normal

N, M, D = 4, 6, 2
PERIODS = [Periods(), Periods(N, M), Periods(2, 2, 2)]


def leaf(*shape: int) -> Tensor:
    return torch.rand(shape).requires_grad_()


@pytest.mark.parametrize("kernel", [RBF(), IMQ.wae(), RBF(1.0) + IMQ(2.0)], ids=repr)
@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("block_elements", [1, 20, 100])
def test_gradient_of_radial_pairs(
    kernel: RadialKernel, periods: Periods, block_elements: int
) -> None:
    def value(x: Tensor, v: Tensor, y: Tensor, w: Tensor, *coefficients: Tensor) -> Tensor:
        sums = RadialPairs(kernel, block_elements)
        return weighted_mmd(sums, Sample((x,), v), Sample((y,), w), periods, coefficients)

    inputs = leaf(N, D), leaf(N), leaf(M, D), leaf(M), leaf(), leaf(), leaf()
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("block_elements", [1, 20, 100])
def test_gradient_of_normal_pairs(periods: Periods, block_elements: int) -> None:
    def value(*inputs: Tensor) -> Tensor:
        x_loc, x_scale, v, y_loc, y_scale, w, *coefficients = inputs
        sums = NormalPairs((0.7, 1.5), block_elements)
        x, y = Sample((x_loc, x_scale), v), Sample((y_loc, y_scale), w)
        return weighted_mmd(sums, x, y, periods, coefficients)

    rows = leaf(N, D), leaf(N, D), leaf(N), leaf(M, D), leaf(M, D), leaf(M)
    assert torch.autograd.gradcheck(value, (*rows, leaf(), leaf(), leaf()), fast_mode=True)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_gradient_of_mmd_squared_with_weights(estimator: Any, batch_size: int | None) -> None:
    def value(x: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
        options: dict[str, Any] = {"estimator": estimator, "batch_size": batch_size}
        return mmd_squared(x, y, RBF(), x_weights=v, y_weights=w, **options)

    v = torch.cat([leaf(N - 1), torch.zeros(1)]).detach().requires_grad_()
    assert torch.autograd.gradcheck(value, (leaf(N, D), leaf(M, D), v, leaf(M)))
    assert torch.autograd.gradcheck(value, (leaf(N, D), torch.rand(M, D), v, torch.rand(M)))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_gradient_of_mmd_squared_normal(batch_size: int | None) -> None:
    def value(a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor) -> Tensor:
        return mmd_squared_normal(a, b, c, d, RBF(), x_weights=w, batch_size=batch_size)

    inputs = leaf(N, D), leaf(N, D), leaf(M, D), leaf(M, D), leaf(N)
    assert torch.autograd.gradcheck(value, inputs)


def test_gradient_at_scale_zero_is_zero_for_the_scale_and_finite_for_the_location() -> None:
    loc, scale = leaf(N, D), torch.zeros(N, D, requires_grad=True)
    value = mmd_squared_normal(loc, scale, torch.rand(M, D), torch.ones(M, D), RBF())
    loc_gradient, scale_gradient = torch.autograd.grad(value, (loc, scale))
    assert torch.equal(scale_gradient, torch.zeros(N, D))
    points = torch.func.grad(
        lambda x: mmd_squared_normal(x, 0 * x, y, 0 * y, RBF()) - mmd_squared(x, y, RBF())
    )
    y = torch.rand(M, D)
    torch.testing.assert_close(points(loc.detach()), torch.zeros(N, D), rtol=0, atol=1e-14)
    assert loc_gradient.isfinite().all()


class NoSlope(RadialKernel):
    def profile(self, squared_distance: Tensor, num_features: int) -> Tensor:
        return 1 / (1 + squared_distance)

    def profile_and_slope(
        self, squared_distance: Tensor, num_features: int
    ) -> tuple[Tensor, Tensor]:
        raise AssertionError("The slope is not needed.")


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    x, y = leaf(N, D), leaf(M, D)
    (only_x,) = torch.autograd.grad(mmd_squared(x, y.detach(), RBF()), x)
    (only_y,) = torch.autograd.grad(mmd_squared(x.detach(), y, RBF()), y)
    both = torch.autograd.grad(mmd_squared(x, y, RBF()), (x, y))
    torch.testing.assert_close((only_x, only_y), both)
    assert not mmd_squared(x.detach(), y.detach(), NoSlope()).requires_grad
    with torch.no_grad():
        assert not mmd_squared(x, y, NoSlope()).requires_grad


def test_second_derivative_is_an_error_even_where_another_term_has_one() -> None:
    x, y = leaf(N, D), torch.rand(M, D)
    loss = mmd_squared(x, y, RBF()) + x.pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"Expected one derivative of MMD\^2; got a second"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=r"Expected one derivative of MMD\^2; got a second"):
        torch.func.grad(lambda x: torch.func.grad(unbiased)(x, y).sum())(x.detach())
    assert torch.autograd.gradgradcheck(lambda x: mmd_squared(x, y, lambda a, b: RBF()(a, b)), x)


def unbiased(x: Tensor, y: Tensor) -> Tensor:
    return mmd_squared(x, y, RBF())


def by_datum(x: Tensor, y: Tensor) -> Tensor:
    return mmd_squared(x, y, IMQ.wae(), x_weights=x[:, 0], batch_size=2)


def closed_form(x: Tensor, y: Tensor) -> Tensor:
    return mmd_squared_normal(x, 0.5 * x, y, 0.1 * y, RBF())


objectives = pytest.mark.parametrize("objective", [unbiased, by_datum, closed_form])


@objectives
@pytest.mark.parametrize("tracing_mode", ["real", "symbolic"])
def test_make_fx_traces_value_and_gradient(
    objective: Callable[[Tensor, Tensor], Tensor], tracing_mode: Any
) -> None:
    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = objective(x, y)
        return value, torch.autograd.grad(value, x)[0]

    graph = make_fx(step, tracing_mode=tracing_mode)(torch.rand(N, D), torch.rand(M, D))
    x, y = torch.rand(N, D), torch.rand(M, D)
    torch.testing.assert_close(graph(x, y), step(x, y), rtol=1e-13, atol=0)


@objectives
def test_torch_func(objective: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = torch.rand(3, N, D), torch.rand(M, D)
    leaves = x.clone().requires_grad_()
    total = torch.stack([objective(row, y) for row in leaves]).sum()
    (expected,) = torch.autograd.grad(total, leaves)
    gradients = torch.func.vmap(torch.func.grad(objective), in_dims=(0, None))(x, y)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch refuses it with a message of its own")
@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_vmap_inside_grad_is_an_error(argnums: Any) -> None:
    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.func.vmap(unbiased, in_dims=(0, None))(x, y).sum()

    with pytest.raises(RuntimeError, match="Expected grad inside vmap; got vmap inside grad"):
        torch.func.grad(total, argnums)(torch.rand(3, N, D), torch.rand(M, D))


class Allocations(TorchDispatchMode):
    """The size of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [a.numel() for a in tree_leaves(result) if isinstance(a, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


@pytest.mark.parametrize("closed_form", [False, True])
def test_no_tensor_of_all_pairs_is_ever_made(closed_form: bool) -> None:
    n, d = 4096, 1
    x, scale = torch.rand(n, d).requires_grad_(), torch.rand(n, d).requires_grad_()
    with Allocations() as allocations:
        if closed_form:
            value = mmd_squared_normal(x, scale, x.detach() + 1, scale, RBF(), batch_size=n // 2)
        else:
            value = mmd_squared(x, x.detach() + 1, RBF(), batch_size=n // 2)
        value.backward()
    assert n * n / 20 < allocations.largest <= n * n / 16
