"""Kernels against their formulas and the code that named them, over the arrays of both halves."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import numpyro_backend.kernels as numpyros
import pyro_infovae.kernels as pyros
from pyro_infovae.kernels import IMQ, RBF, RadialKernel, SumKernel, rbf_lengthscales
from tests import reference
from tests.arrays.libraries import JAX, Library

D = 3
SEVERAL = (0.5, 1.0, 4.0)
Matrix = np.ndarray


def matrix(kernel: reference.PairKernel, x: Matrix, y: Matrix) -> Matrix:
    return np.array([[kernel(a, b) for b in y] for a in x])


def squared_differences(x: Matrix, y: Matrix) -> Matrix:
    return (x[:, None] - y[None]) ** 2


def wae_original(x: Matrix, y: Matrix, prior_scale: float) -> Matrix:
    distances = squared_differences(x, y).sum(-1)
    stat = np.zeros_like(distances)
    for scale in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]:
        c = 2.0 * x.shape[1] * prior_scale**2 * scale
        stat += c / (c + distances)
    return stat


def zhao_original(x: Matrix, y: Matrix) -> Matrix:
    return np.exp(-squared_differences(x, y).mean(2) / x.shape[1])


def toolkit_original(x: Matrix, y: Matrix, rho: float) -> Matrix:
    return np.exp(-squared_differences(x, y).sum(2) / rho**2 / x.shape[1])


def draw(n: int, m: int, d: int, offset: float = 0.0) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)) + offset, rng.normal(size=(m, d)) + offset


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
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_kernel_equals_its_formula(
    library: Library, kernel: RadialKernel, expected: reference.PairKernel, offset: float
) -> None:
    x, y = draw(4, 5, D, offset)
    actual = kernel(library.array(x), library.array(y))
    np.testing.assert_allclose(actual, matrix(expected, x, y), rtol=1e-12)


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
def test_named_constructor_follows_the_original_code(
    library: Library, kernel: RadialKernel, original: Callable[[Matrix, Matrix], Matrix]
) -> None:
    for d in (1, 2, 7):
        x, y = draw(4, 5, d)
        actual = kernel(library.array(x), library.array(y))
        np.testing.assert_allclose(actual, original(x, y), rtol=1e-12)


def test_slope_is_the_derivative_of_the_profile(library: Library) -> None:
    kernels = [RBF(), RBF(SEVERAL), IMQ(), IMQ.wae(), RBF() + IMQ(2.0)]
    r2 = np.linspace(0.0, 30.0, 20)
    (got,) = library.differentiate(lambda r2: [k.profile(r2, D).sum() for k in kernels], (r2,))
    for kernel, (derivative,) in zip(kernels, got.gradients, strict=True):
        distances = library.array(r2)
        value, slope = kernel.profile_and_slope(distances, D)
        np.testing.assert_allclose(value, kernel.profile(distances, D), rtol=1e-14)
        np.testing.assert_allclose(slope, derivative, rtol=1e-14)
        np.testing.assert_array_equal(distances, r2)


@pytest.mark.parametrize("kernel", [RBF(), IMQ.wae(), RBF(1.0) + IMQ(2.0)])
def test_kernel_gradient(kernel: RadialKernel) -> None:
    x = torch.randn(3, D, requires_grad=True)
    y = torch.randn(4, D, requires_grad=True)
    assert torch.autograd.gradcheck(kernel, (x, y))


def test_kernel_of_far_rows_keeps_its_digits_in_float32(library: Library) -> None:
    x, y = draw(50, 60, 8, 100.0)
    exact, single = (
        np.asarray(RBF()(library.array(x.astype(dtype)), library.array(y.astype(dtype))))
        for dtype in ("float64", "float32")
    )
    assert single.dtype == np.float32
    assert abs(single - exact).max() < 1e-5


def test_both_halves_have_the_same_kernels() -> None:
    assert pyros.__all__ == numpyros.__all__
    for name in set(pyros.__all__) - {"squared_distances"}:
        assert getattr(numpyros, name) is getattr(pyros, name)


def test_jax_takes_numpys_arrays(jax_active: None) -> None:
    x, y = draw(4, 5, D)
    np.testing.assert_allclose(
        RBF()(x, JAX.array(y)), RBF()(*map(torch.tensor, (x, y))), rtol=1e-12
    )


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
