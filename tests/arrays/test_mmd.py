"""Values of the estimators against float64 loops, weights, and errors."""

import math
from functools import partial
from typing import Any

import numpy as np
import pyro.contrib.gp.kernels as gp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_infovae._arrays.normal_pairs import NormalPairs
from pyro_infovae._arrays.pair_sums import RadialPairs, weighted_mmd
from pyro_infovae._core.mmd import Periods, Sample
from pyro_infovae.kernels import IMQ, RBF, Kernel, RadialKernel
from pyro_infovae.mmd import mmd_squared, mmd_squared_normal
from tests import reference
from tests.arrays.libraries import Library, gaussian

N, M, D = 6, 9, 3
SCALES = (0.5, 2.0)
ONE = torch.ones((), dtype=torch.float64)
WAE = tuple(2 * D * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))
RBF_SCALES = [
    (RBF(), (math.sqrt(D),)),
    (RBF(SCALES), SCALES),
    (RBF(1.0) + RBF(2.0), (1.0, 2.0)),
]
KERNELS = [
    *((kernel, reference.rbf(scales)) for kernel, scales in RBF_SCALES),
    (IMQ(), reference.imq([2 * D])),
    (IMQ.wae(), reference.imq(WAE)),
    (lambda x, y: (x @ y.T + 1) ** 2, lambda a, b: (a @ b + 1) ** 2),
    (gp.RBF(D, variance=ONE, lengthscale=1.3 * ONE), reference.rbf([1.3])),
]
NAMES = ["rbf", "rbf-sequence", "rbf-sum", "imq", "imq-wae", "callable", "pyro-gp"]

shapes = pytest.mark.parametrize("batch_size", [None, 3], ids=["rows", "draws"])
weighting = pytest.mark.parametrize("weighted", ["", "x", "y", "xy"])


def weights(weighted: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    draws = {"x": torch.rand(N, generator=generator), "y": torch.rand(M, generator=generator)}
    draws["x"][1] = 0.0
    return {f"{s}_weights": draws[s].double() if s in weighted else None for s in "xy"}


def as_numpy(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize(("kernel", "pair_kernel"), KERNELS, ids=NAMES)
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@weighting
@shapes
def test_mmd_squared_equals_the_loops(
    kernel: Kernel,
    pair_kernel: reference.PairKernel,
    estimator: Any,
    weighted: str,
    batch_size: int | None,
) -> None:
    x, y = torch.randn(N, D), torch.randn(M, D) + 0.5
    options: dict[str, Any] = {
        "estimator": estimator,
        "batch_size": batch_size,
        **weights(weighted),
    }
    expected = reference.mmd_squared(x.numpy(), y.numpy(), pair_kernel, **as_numpy(options))
    actual = mmd_squared(x, y, kernel, **options)
    assert actual.shape == ()
    assert actual.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("kernel", "lengthscales"), RBF_SCALES, ids=NAMES[:3])
@weighting
@shapes
def test_mmd_squared_normal_equals_the_loops(
    kernel: Kernel, lengthscales: tuple[float, ...], weighted: str, batch_size: int | None
) -> None:
    x_loc, x_scale = torch.randn(N, D), torch.rand(N, D)
    y_loc, y_scale = torch.randn(M, D) + 0.5, torch.rand(M, D)
    x_scale[0] = y_scale[1:4] = 0.0
    options: dict[str, Any] = {"batch_size": batch_size, **weights(weighted)}
    expected = reference.mmd_squared_normal(
        x_loc.numpy(),
        x_scale.numpy(),
        y_loc.numpy(),
        y_scale.numpy(),
        lengthscales,
        **as_numpy(options),
    )
    actual = mmd_squared_normal(x_loc, x_scale, y_loc, y_scale, kernel, **options)
    assert actual.item() == pytest.approx(expected, rel=1e-11)


@settings(deadline=None, max_examples=60)
@given(
    batch_size=st.integers(2, 5),
    draws=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    within=st.booleans(),
    across=st.booleans(),
    factor=st.sampled_from([0.0, 0.3, 1.0]),
    block_elements=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_blocks_of_any_size_give_the_dense_sums(
    batch_size: int,
    draws: tuple[int, int],
    within: bool,
    across: bool,
    factor: float,
    block_elements: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, m = (batch_size * p for p in draws)
    x, y = (torch.randn(k, 2, generator=generator).double() for k in (n, m))
    v, w = (torch.rand(k, generator=generator).double() for k in (n, m))
    period = batch_size if within else None
    periods = Periods(period, period, batch_size if across else None, factor)
    coefficients = (0.7, 1.1, -0.3)

    def term(a: Tensor, b: Tensor, v: Tensor, w: Tensor, period: int | None) -> float:
        pairs = torch.exp(-(torch.cdist(a, b) ** 2) / 2) * v[:, None] * w
        if period is not None:
            i, j = torch.arange(len(a))[:, None], torch.arange(len(b))
            pairs = torch.where(i % period == j % period, factor * pairs, pairs)
        return pairs.sum().item()

    terms = (x, x, v, v), (y, y, w, w), (x, y, v, w)
    expected = sum(
        c * term(*t, p) for c, t, p in zip(coefficients, terms, periods[:3], strict=True)
    )
    points = weighted_mmd(
        RadialPairs(RBF(1.0), block_elements),
        Sample((x,), v),
        Sample((y,), w),
        periods,
        coefficients,
    )
    normals = weighted_mmd(
        NormalPairs((1.0,), block_elements),
        Sample((x, 0 * x), v),
        Sample((y, 0 * y), w),
        periods,
        coefficients,
    )
    assert points.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert normals.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kernel", [RBF(), IMQ.wae()], ids=repr)
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_float32_far_from_the_origin(kernel: Kernel, estimator: Any) -> None:
    x, y = torch.randn(700, 10) + 100, 0.8 * torch.randn(900, 10) + 100
    exact = mmd_squared(x, y, lambda a, b: kernel(a, b), estimator=estimator)
    single = mmd_squared(x.float(), y.float(), kernel, estimator=estimator)
    assert single.dtype == torch.float32
    assert abs(single.item() - exact.item()) < 1e-6


@pytest.mark.parametrize("distance", [100.0, 1e4])
@pytest.mark.parametrize("kernel", [RBF(), IMQ()], ids=repr)
def test_float32_of_samples_far_apart(
    library: Library, kernel: RadialKernel, distance: float
) -> None:
    """Each side keeps its digits; those of the distances across carry no more than float32 has."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(128, 2)) + distance, rng.normal(size=(128, 2))
    singles = [x.astype(np.float32), y.astype(np.float32)]
    doubles = [single.astype(np.float64) for single in singles]

    def estimate(a: Any, b: Any) -> list[Any]:
        return [library.module("mmd").mmd_squared(a, b, kernel)]

    (single,), (double,) = (
        library.differentiate(estimate, arrays) for arrays in (singles, doubles)
    )
    np.testing.assert_allclose(single.values, double.values, rtol=1e-5)
    for got, want in zip(single.gradients[0], double.gradients[0], strict=True):
        assert got.dtype == np.float32
        assert np.linalg.norm(got - want) < 1e-4 * np.linalg.norm(want)


def test_normals_in_float32() -> None:
    loc, scale = torch.randn(200, 5) + 100, torch.rand(200, 5)
    y_loc, y_scale = torch.zeros(200, 5) + 100, torch.ones(200, 5)
    exact = mmd_squared_normal(loc, scale, y_loc, y_scale, RBF())
    single = mmd_squared_normal(loc.float(), scale.float(), y_loc.float(), y_scale.float(), RBF())
    assert single.dtype == torch.float32
    assert abs(single.item() - exact.item()) < 1e-6


def test_masked_rows_count_for_nothing_whatever_they_hold(library: Library) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(7, 2))
    mask = np.array([1, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    estimate = library.module("mmd").mmd_squared

    def estimates(x: Any, **options: Any) -> list[Any]:
        return [
            estimate(x, library.array(y), kernel, estimator=estimator, **options)
            for kernel in (RBF(), gaussian)
            for estimator in ("unbiased", "biased")
        ]

    (kept,) = library.differentiate(estimates, [x[mask]])
    fillers = (0.0, 1e6, math.inf, math.nan)
    for got in library.differentiate(
        partial(estimates, x_weights=library.array(mask)),
        *([np.where(mask[:, None], x, filler)] for filler in fillers),
    ):
        np.testing.assert_allclose(got.values, kept.values, rtol=1e-10, atol=1e-10)
        assert not any(gradient[~mask].any() for (gradient,) in got.gradients)


def test_scaling_the_weights_changes_nothing() -> None:
    x, y, w = torch.randn(8, 2), torch.randn(6, 2), torch.rand(8)
    values = [mmd_squared(x, y, RBF(), x_weights=s * w) for s in (1.0, 1e-3, 1e3)]
    torch.testing.assert_close(values, [values[0]] * 3)


@pytest.mark.parametrize(
    ("batch_size", "x_weights"),
    [(None, [[0.0, 1.3, 0.0, 0.0], [0.0] * 4]), (2, [[0.0, 1.3, 0.0, 0.7]])],
    ids=["one row, none", "one datum"],
)
def test_too_few_effective_rows_give_zero_and_zero_gradients(
    library: Library, batch_size: int | None, x_weights: list[list[float]]
) -> None:
    rng, mmd = np.random.default_rng(0), library.module("mmd")

    def estimates(x: Any, y: Any, scale: Any, w: Any) -> list[Any]:
        options: dict[str, Any] = {"x_weights": w, "batch_size": batch_size}
        return [
            *(mmd.mmd_squared(x, y, kernel, **options) for kernel in (RBF(), gaussian)),
            mmd.mmd_squared_normal(x, scale, y, scale, RBF(), **options),
        ]

    rows = rng.normal(size=(4, 2)), rng.normal(size=(4, 2)), rng.uniform(size=(4, 2))
    for got in library.differentiate(estimates, *((*rows, np.array(w)) for w in x_weights)):
        assert not np.any(got.values)
        assert not any(gradient.any() for gradients in got.gradients for gradient in gradients)


@given(seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_draws_of_one_datum_are_no_pair_however_rounded(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(15, 2, generator=generator, dtype=torch.float32)
    w = torch.rand(15, generator=generator, dtype=torch.float32)
    w[torch.arange(15) % 5 != 2] = 0.0
    assert mmd_squared(x, x, RBF(), x_weights=w, batch_size=5).item() == 0.0


class Laplace(RadialKernel):
    """A kernel of one's own, that takes the root of the squared distance."""

    def profile(self, squared_distance: Tensor, num_features: int) -> Tensor:
        return torch.exp(-squared_distance.sqrt())

    def profile_and_slope(
        self, squared_distance: Tensor, num_features: int
    ) -> tuple[Tensor, Tensor]:
        raise AssertionError("The slope is not needed.")


def test_squared_distances_are_never_negative() -> None:
    x = torch.randn(20, 8).float().repeat(2, 1) + 5
    assert Laplace()(x, x).isfinite().all()
    assert mmd_squared(x, x, Laplace(), estimator="biased").item() == pytest.approx(0, abs=1e-3)


def test_biased_is_zero_between_equal_samples_and_never_negative() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 3)
    assert mmd_squared(x, x, RBF(), estimator="biased").item() == pytest.approx(0.0, abs=1e-15)
    assert mmd_squared(x[:1], y[:1], RBF(), estimator="biased") > 0
    assert mmd_squared(x, y, RBF(), estimator="unbiased") < mmd_squared(
        x, y, RBF(), estimator="biased"
    )


# --- misuse ---------------------------------------------------------------------------------------

X, Y = np.zeros((4, 2)), np.zeros((6, 2))


@pytest.mark.parametrize(
    ("x", "y", "options", "match"),
    [
        (
            X,
            Y,
            {"estimator": "best"},
            r"^Expected estimator 'unbiased', 'biased' or 'features'; got 'best'\.$",
        ),
        (X, Y, {"estimator": "closed_form"}, "got 'closed_form'. Use mmd_squared_normal for the"),
        (X, np.zeros((6, 3)), {}, r"shapes \(n, d\) and \(m, d\); got \(4, 2\) and \(6, 3\)"),
        (np.zeros(4), Y, {}, r"shapes \(n, d\) and \(m, d\); got \(4,\) and \(6, 2\)"),
        (X[:1], Y, {}, "Expected at least 2 rows of x; got 1"),
        (X, Y[:1], {}, "Expected at least 2 rows of y; got 1"),
        (X[:0], Y, {"estimator": "biased"}, "Expected at least 1 rows of x; got 0"),
        (X, Y, {"x_weights": np.ones((4, 1))}, r"x_weights of shape \(4,\); got \(4, 1\)"),
        (X, Y, {"y_weights": np.ones(4)}, r"y_weights of shape \(6,\); got \(4,\)"),
        (X, Y, {"batch_size": 3}, "batch_size of at least 2 that divides the 4 rows of x; got 3"),
        (X, Y, {"batch_size": 4}, "batch_size of at least 2 that divides the 6 rows of y; got 4"),
        (X, Y, {"batch_size": 1}, "batch_size of at least 2 that divides the 4 rows of x; got 1"),
    ],
)
def test_misuse_is_an_error(
    library: Library, x: Any, y: Any, options: dict[str, Any], match: str
) -> None:
    converted = {k: library.array(v) if "weights" in k else v for k, v in options.items()}
    with pytest.raises(ValueError, match=match):
        library.module("mmd").mmd_squared(library.array(x), library.array(y), RBF(), **converted)


def test_kernel_of_the_wrong_shape_is_an_error(library: Library) -> None:
    match = r"Expected kernel\(x, y\) of shape \(5, 7\); got \(5, 7, 2\)"

    def kernel(x: Any, y: Any) -> Any:
        return x @ y.T if len(x) == len(y) else x[:, None] - y[None]

    x, y = library.array(np.zeros((5, 2))), library.array(np.zeros((7, 2)))
    with pytest.raises(ValueError, match=match):
        library.module("mmd").mmd_squared(x, y, kernel)


def test_misuse_of_the_closed_form_is_an_error(library: Library) -> None:
    estimate = library.module("mmd").mmd_squared_normal
    loc, scale = library.array(np.zeros((4, 2))), library.array(np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"y_scale of y_loc's shape \(4, 2\); got \(2,\)"):
        estimate(loc, scale, loc, scale[0], RBF())
    for kernel in (IMQ(), RBF() + IMQ(), lambda x, y: x @ y.T):
        with pytest.raises(ValueError, match=r"sum of RBFs.*got .*\. Use estimator='unbiased'"):
            estimate(loc, scale, loc, scale, kernel)
