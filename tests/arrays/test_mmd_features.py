"""The estimator by random frequencies averages to the loops over pairs, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring import peak_megabytes
from pyro_infovae._core.features import frequencies_of
from pyro_infovae.kernels import IMQ, RBF, RadialKernel
from pyro_infovae.mmd import mmd_squared
from tests import reference
from tests.arrays.libraries import JAX, Library

N, M, D = 8, 12, 3
RNG = np.random.default_rng(0)
X, Y = 0.7 * RNG.normal(size=(N, D)) + 0.4, RNG.normal(size=(M, D))
SCALES = RNG.uniform(0.3, 1.2, size=(M, D))
X_WEIGHTS, Y_WEIGHTS = RNG.uniform(size=N), RNG.uniform(size=M)
X_WEIGHTS[2] = 0.0
KERNELS: list[tuple[RadialKernel, reference.PairKernel]] = [
    (RBF(), reference.rbf([math.sqrt(D)])),
    (RBF((0.5, 2.0)), reference.rbf([0.5, 2.0])),
    (IMQ(), reference.imq([2 * D])),
    (
        RBF(1.0) + IMQ((2.0, 0.5)),
        lambda a, b: reference.rbf([1.0])(a, b) + reference.imq([2.0, 0.5])(a, b),
    ),
]
NAMES = ["rbf", "rbf-sequence", "imq", "sum"]


def draws_of(library: Library, count: int, **options: Any) -> Callable[..., Any]:
    """The estimate of some arrays by each of several sets of frequencies."""
    estimate = partial(library.module("mmd").mmd_squared, estimator="features", **options)
    if library is JAX:
        keys = jax.random.split(jax.random.key(3), count)
        return lambda *a, **kw: jax.vmap(lambda key: estimate(*a, rng_key=key, **kw))(keys)

    def stacked(*arrays: Any, **kw: Any) -> Any:
        torch.manual_seed(3)
        return torch.stack([estimate(*arrays, **kw) for _ in range(count)])

    return stacked


def assert_averages_to(samples: Any, expected: Any) -> None:
    """Within four standard errors, in each component."""
    samples = np.asarray(samples)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - expected) < 4 * error + 1e-12).all()


@pytest.mark.parametrize(("kernel", "pair_kernel"), KERNELS, ids=NAMES)
@pytest.mark.parametrize("batch_size", [None, 4], ids=["rows", "draws"])
@pytest.mark.parametrize("is_weighted", [False, True], ids=["", "weighted"])
def test_averages_to_the_unbiased_loops(
    library: Library,
    kernel: RadialKernel,
    pair_kernel: reference.PairKernel,
    batch_size: int | None,
    is_weighted: bool,
) -> None:
    weights = {"x_weights": X_WEIGHTS, "y_weights": Y_WEIGHTS} if is_weighted else {}
    expected = reference.mmd_squared(X, Y, pair_kernel, batch_size=batch_size, **weights)
    estimate = draws_of(library, 150, num_features=24, batch_size=batch_size)
    arrays = {name: library.array(w) for name, w in weights.items()}
    values = estimate(library.array(X), library.array(Y), kernel, **arrays)
    assert_averages_to(values, expected)
    assert np.asarray(values).std() > 1e-4


def mixture(x: np.ndarray, loc: np.ndarray, scale: np.ndarray, lengthscale: float) -> float:
    """Points against one normal law, by the closed form of each pair."""
    zeros = np.zeros(D)

    def k(a: np.ndarray, s: np.ndarray, b: np.ndarray, t: np.ndarray) -> float:
        return reference.expected_rbf(a, s, b, t, lengthscale)

    within = [k(a, zeros, b, zeros) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    across = [k(a, zeros, loc, scale) for a in x]
    return float(np.mean(within) + k(loc, scale, loc, scale) - 2 * np.mean(across))


def test_a_normal_law_is_not_sampled(library: Library) -> None:
    estimate = draws_of(library, 200, num_features=24)
    loc, scale = library.array(Y[:1]), library.array(SCALES[:1])
    values = estimate(library.array(X), loc, RBF(1.3), y_scale=scale)
    assert_averages_to(values, mixture(X, Y[0], SCALES[0], 1.3))


@pytest.mark.parametrize("batch_size", [None, 4], ids=["rows", "draws"])
def test_normals_by_row_average_to_the_loops(library: Library, batch_size: int | None) -> None:
    expected = reference.mmd_squared_normal(
        X, np.zeros_like(X), Y, SCALES, (1.3,), batch_size=batch_size, x_weights=X_WEIGHTS
    )
    estimate = draws_of(library, 150, num_features=24, batch_size=batch_size)
    values = estimate(
        *map(library.array, (X, Y)),
        RBF(1.3),
        y_scale=library.array(SCALES),
        x_weights=library.array(X_WEIGHTS),
    )
    assert_averages_to(values, expected)


@pytest.mark.parametrize("kernel", [RBF(1.3), IMQ(2.0)], ids=repr)
def test_gradients_average_to_those_of_the_unbiased(kernel: RadialKernel, library: Library) -> None:
    options: dict[str, Any] = {"estimator": "features", "num_features": 24, "batch_size": 4}
    x, y, v = map(library.array, (X, Y, X_WEIGHTS))
    estimate = library.module("mmd").mmd_squared

    def value(x: Any, v: Any, **more: Any) -> Any:
        return estimate(x, y, kernel, x_weights=v, **{**options, **more})

    if library is JAX:
        keys = jax.random.split(jax.random.key(3), 200)
        gradient = jax.grad(lambda x, v, key: value(x, v, rng_key=key), (0, 1))
        samples = jax.jit(jax.vmap(gradient, (None, None, 0)))(x, v, keys)
        expected = jax.grad(partial(value, estimator="unbiased"), (0, 1))(x, v)
    else:
        torch.manual_seed(3)
        leaves = x.requires_grad_(), v.requires_grad_()
        each = [torch.autograd.grad(value(*leaves), leaves) for _ in range(200)]
        samples = tuple(torch.stack(part) for part in zip(*each, strict=True))
        expected = torch.autograd.grad(value(*leaves, estimator="unbiased"), leaves)
    for part, exact in zip(samples, expected, strict=True):
        assert_averages_to(part, np.asarray(exact))
        assert np.asarray(part).std() > 1e-4


def seeded(**options: Any) -> Callable[..., torch.Tensor]:
    def value(x: torch.Tensor, y: torch.Tensor, **more: Any) -> torch.Tensor:
        torch.manual_seed(1)
        kernel = RBF(1.0) + IMQ(2.0)
        kw = {"estimator": "features", "num_features": 7, **options, **more}
        return mmd_squared(x, y, kernel, **kw)

    return value


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("block", [100, 2], ids=["whole", "blocks"])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, batch_size: int | None, block: int) -> None:
    monkeypatch.setattr("pyro_infovae._arrays.features.block_size", lambda x, y: block)
    value = seeded(batch_size=batch_size)
    x, y, s, v, w = (
        torch.rand(*shape).requires_grad_() for shape in ((4, D), (6, D), (6, D), (4,), (6,))
    )
    check = partial(torch.autograd.gradcheck, fast_mode=True)
    assert check(lambda x, y, v, w: value(x, y, x_weights=v, y_weights=w), (x, y, v, w))
    assert check(
        lambda x, y, s, v, w: value(x, y, y_scale=s, x_weights=v, y_weights=w), (x, y, s, v, w)
    )
    law = y[:1].detach().requires_grad_(), s[:1].detach().requires_grad_()
    assert check(lambda x, y, s, v: value(x, y, y_scale=s, x_weights=v), (x, *law, v))


def test_blocks_give_the_whole(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    package = library.package
    estimate = draws_of(library, 1, num_features=25)
    arrays = [(X, Y, X_WEIGHTS)]
    found = []
    for block in (100, 3):
        monkeypatch.setattr(
            f"{package}._arrays.features.block_size", lambda x, y, block=block: block
        )
        (derivatives,) = library.differentiate(
            lambda x, y, v: list(estimate(x, y, RBF(1.0) + IMQ(), x_weights=v)), *arrays
        )
        found.append(derivatives)
    whole, blocks = found
    np.testing.assert_allclose(blocks.values, whole.values, rtol=1e-10)
    for got, want in zip(blocks.gradients[0], whole.gradients[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", [RBF(1.3), IMQ((2.0, 0.5))], ids=repr)
def test_frequencies_are_those_of_the_kernel(library: Library, kernel: RBF | IMQ) -> None:
    """Their cosines average to the kernel, and in a block of d they are orthogonal."""
    rng = np.random.default_rng(5)
    normal, uniform = rng.normal(size=(4000, D, D)), rng.uniform(size=4000 * D)
    values, weights = map(
        np.asarray, frequencies_of((kernel,), library.array(normal), library.array(uniform))
    )
    difference = np.array([[0.4, -0.9, 0.7]])
    expected = kernel.profile((difference**2).sum(), D)
    assert weights @ np.cos(values @ difference[0]) == pytest.approx(expected, abs=0.02)
    gram = np.einsum("bid,bjd->bij", *[values.reshape(-1, D, D)] * 2)
    np.testing.assert_allclose(gram[:, *np.triu_indices(D, 1)], 0, atol=1e-9)


def test_masked_rows_count_for_nothing_whatever_they_hold(library: Library) -> None:
    mask = np.array([1, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    estimate = draws_of(library, 1, num_features=9)
    weights = library.array(mask)

    def values(x: Any) -> list[Any]:
        return list(estimate(x, library.array(Y), RBF(), x_weights=weights))

    def kept_values(x: Any) -> list[Any]:
        return list(estimate(x, library.array(Y), RBF()))

    (kept,) = library.differentiate(kept_values, [X[mask]])
    fillers = (0.0, 1e6, math.inf, math.nan)
    for got in library.differentiate(
        values, *([np.where(mask[:, None], X, filler)] for filler in fillers)
    ):
        np.testing.assert_allclose(got.values, kept.values, rtol=1e-9, atol=1e-10)
        assert not any(gradient[~mask].any() for (gradient,) in got.gradients)


def test_too_few_effective_rows_give_zero_and_zero_gradients(library: Library) -> None:
    estimate = draws_of(library, 1, num_features=9)

    def values(x: Any, y: Any, s: Any, v: Any) -> list[Any]:
        return [
            estimate(x, y, RBF(), x_weights=v)[0],
            estimate(x, y[:1], RBF(), y_scale=s[:1], x_weights=v)[0],
        ]

    for weights in ([0.0] * N, [0.0] * (N - 1) + [1.3]):
        (got,) = library.differentiate(values, (X, Y, SCALES, np.array(weights)))
        assert not np.any(got.values)
        assert not any(gradient.any() for gradients in got.gradients for gradient in gradients)


def test_float32_far_from_the_origin(library: Library) -> None:
    estimate = draws_of(library, 200, num_features=24)
    x = (X + 1000).astype(np.float32)
    loc, scale = (np.full((1, D), c, dtype=np.float32) for c in (1000.0, 1.0))
    values = estimate(*map(library.array, (x, loc)), RBF(1.3), y_scale=library.array(scale))
    assert np.asarray(values).dtype == np.float32
    expected = mixture(x.astype(np.float64) - 1000, np.zeros(D), np.ones(D), 1.3)
    assert_averages_to(values, expected)


def test_frequencies_are_drawn_anew_in_every_call(library: Library) -> None:
    values = draws_of(library, 5, num_features=4)(library.array(X), library.array(Y), RBF())
    assert len(set(np.asarray(values).tolist())) == 5


class _Reads(TorchDispatchMode):
    """Counts what waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back() -> None:
    x, y, v = torch.tensor(X, requires_grad=True), torch.tensor(Y), torch.tensor(X_WEIGHTS)
    with _Reads() as reads:
        mmd_squared(x, y, RBF() + IMQ(), estimator="features", x_weights=v).backward()
    assert reads.count == 0


def test_one_compiled_function_serves_all_keys() -> None:
    traced = []

    @jax.jit
    def estimate(x: Any, key: Any) -> Any:
        traced.append(1)
        return JAX.module("mmd").mmd_squared(x, x + 1, RBF(), estimator="features", rng_key=key)

    with JAX.active():
        values = {float(estimate(JAX.array(X), key)) for key in jax.random.split(jax.random.key(0))}
    assert len(values) == 2
    assert len(traced) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [RBF(), IMQ.wae()], ids=["rbf", "wae"])
def test_memory_grows_with_the_rows_alone(kernel: RadialKernel) -> None:
    n, d = 65536, 10
    x = torch.randn(n, d, dtype=torch.float32, requires_grad=True)
    loc, scale = torch.zeros(1, d, dtype=torch.float32), torch.ones(1, d, dtype=torch.float32)

    def step(x: torch.Tensor) -> None:
        mmd_squared(x, loc, kernel, estimator="features", y_scale=scale).backward()

    step(x[:64])
    assert peak_megabytes(lambda: step(x)) < 64


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_features": 0}, "Expected num_features of at least 1, one for each term of the ker"),
        ({"kernel": RBF(1.0) + IMQ.wae(), "num_features": 7}, "num_features of at least 8.*got 7"),
        ({"kernel": lambda x, y: x @ y.T}, "whose spectrum is known; got .*estimator='unbiased'"),
        ({"y_scale": np.ones((2, D))}, r"y_scale of y_loc's shape \(12, 3\); got \(2, 3\)"),
        ({"batch_size": 3}, "batch_size of at least 2 that divides the 8 rows of x; got 3"),
        (
            {"estimator": "unbiased", "y_scale": np.ones((M, D))},
            r"Expected y_scale=None, for estimator='unbiased' compares points: use estimator='feat",
        ),
    ],
)
def test_misuse_is_an_error(library: Library, options: dict[str, Any], match: str) -> None:
    given = {k: library.array(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    settings = {"kernel": RBF(), "estimator": "features", **given}
    if library is JAX:
        settings["rng_key"] = jax.random.key(0)
    with pytest.raises(ValueError, match=match):
        library.module("mmd").mmd_squared(library.array(X), library.array(Y), **settings)


def test_jax_needs_a_key() -> None:
    with pytest.raises(ValueError, match="Expected rng_key for estimator='features'"):
        JAX.module("mmd").mmd_squared(JAX.array(X), JAX.array(Y), RBF(), estimator="features")
