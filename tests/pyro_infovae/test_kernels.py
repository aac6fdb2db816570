import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_infovae.kernels import IMQ, RBF, RadialKernel, SumKernel, rbf_lengthscales
from tests import reference

D = 3
SEVERAL = (0.5, 1.0, 4.0)


def matrix(kernel: reference.PairKernel, x: Tensor, y: Tensor) -> np.ndarray:
    return np.array([[kernel(a, b) for b in y.numpy()] for a in x.numpy()])


def wae_original(x: Tensor, y: Tensor, prior_scale: float) -> Tensor:
    distances = (x[:, None] - y).pow(2).sum(-1)
    stat = torch.zeros_like(distances)
    for scale in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]:
        c = 2.0 * x.shape[1] * prior_scale**2 * scale
        stat += c / (c + distances)
    return stat


def zhao_original(x: Tensor, y: Tensor) -> Tensor:
    dim = x.shape[1]
    return torch.exp(-(x[:, None] - y).pow(2).mean(2) / dim)


def toolkit_original(x: Tensor, y: Tensor, rho: float) -> Tensor:
    return torch.exp(-(x[:, None] - y).pow(2).sum(2) / rho**2 / x.shape[1])


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (RBF(), reference.rbf([math.sqrt(D)])),
        (RBF(1.7), reference.rbf([1.7])),
        (RBF(SEVERAL), reference.rbf(SEVERAL)),
        (IMQ(), reference.imq([2 * D])),
        (IMQ(0.3), reference.imq([0.3])),
        (IMQ(list(SEVERAL)), reference.imq(SEVERAL)),
        (RBF(1.0) + RBF(2.0) + RBF(3.0), reference.rbf([1.0, 2.0, 3.0])),
    ],
    ids=lambda value: repr(value) if isinstance(value, RadialKernel) else "formula",
)
def test_kernel_equals_its_formula(kernel: RadialKernel, expected: reference.PairKernel) -> None:
    x, y = torch.randn(4, D), torch.randn(5, D)
    np.testing.assert_allclose(kernel(x, y).numpy(), matrix(expected, x, y), rtol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "original"),
    [
        (RBF.zhao(), zhao_original),
        (RBF.autoencodertoolkit(0.7), lambda x, y: toolkit_original(x, y, 0.7)),
        (IMQ.wae(), lambda x, y: wae_original(x, y, 1.0)),
        (IMQ.wae(prior_scale=2.0), lambda x, y: wae_original(x, y, 2.0)),
    ],
    ids=["zhao", "autoencodertoolkit", "wae", "wae-scaled"],
)
@pytest.mark.parametrize("d", [1, 2, 7])
def test_named_constructor_follows_the_original_code(
    kernel: RadialKernel, original: Callable[[Tensor, Tensor], Tensor], d: int
) -> None:
    x, y = torch.randn(4, d), torch.randn(5, d)
    torch.testing.assert_close(kernel(x, y), original(x, y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", [RBF(), RBF(SEVERAL), IMQ(), IMQ.wae(), RBF() + IMQ(2.0)])
def test_slope_is_the_derivative_of_the_profile(kernel: RadialKernel) -> None:
    r2 = torch.linspace(0.0, 30.0, 20, requires_grad=True)
    expected = kernel.profile(r2, D)
    (derivative,) = torch.autograd.grad(expected.sum(), r2)
    before = r2.detach().clone()
    value, slope = kernel.profile_and_slope(r2.detach(), D)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(slope, derivative, rtol=1e-14, atol=0)
    torch.testing.assert_close(r2.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [RBF(), IMQ.wae(), RBF(1.0) + IMQ(2.0)])
def test_kernel_gradient(kernel: RadialKernel) -> None:
    x = torch.randn(3, D, requires_grad=True)
    y = torch.randn(4, D, requires_grad=True)
    assert torch.autograd.gradcheck(kernel, (x, y))


def test_kernel_of_far_rows_keeps_its_digits_in_float32() -> None:
    x, y = torch.randn(50, 8) + 100, torch.randn(60, 8) + 100
    exact = RBF()(x, y)
    assert (RBF()(x.float(), y.float()) - exact).abs().max() < 1e-5


def test_addition_flattens_and_compares_by_value() -> None:
    total = RBF(1.0) + IMQ(2.0) + RBF(3.0)
    assert total == SumKernel((RBF(1.0), IMQ(2.0), RBF(3.0)))
    assert RBF([1, 2]) == RBF((1.0, 2.0)) != RBF((2.0, 1.0))
    assert RBF() == RBF(1.0, dimension_power=0.5) != RBF(1.0)
    assert len({RBF(), RBF(), IMQ()}) == 2


def test_repr_is_readable_code() -> None:
    for kernel in (RBF(), RBF.zhao(), IMQ.wae(), RBF(2.0) + IMQ()):
        assert eval(repr(kernel)) == kernel
    assert repr(RBF(2.0)) == "RBF(lengthscale=(2.0,), dimension_power=0.0)"


def test_lengthscales_of_sums() -> None:
    kernel = RBF() + SumKernel((RBF((1.0, 2.0)), RBF.zhao()))
    assert rbf_lengthscales(kernel, 4) == pytest.approx((2.0, 1.0, 2.0, 4 * math.sqrt(0.5)))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan, (1.0, 0.0), ()])
@pytest.mark.parametrize(("kernel", "name"), [(RBF, "lengthscale"), (IMQ, "scale")])
def test_bad_scale_is_an_error(kernel: type, name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=f"Expected positive, finite {name}; got {name}="):
        kernel(bad)


def test_adding_what_is_no_radial_kernel_is_an_error() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        RBF() + (lambda x, y: x @ y.T)  # type: ignore[operator]
