"""The same estimators as the PyTorch half, which is tested against plain loops."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

import numpyro_backend._arrays.pair_sums as ours_pair_sums
import numpyro_backend.kernels as kernels
import numpyro_backend.mmd as ours
import pyro_infovae._arrays.pair_sums as twin_pair_sums
import pyro_infovae.kernels as twin_kernels
import pyro_infovae.mmd as twin
from numpyro_backend._arrays.normal_pairs import NormalPairs
from numpyro_backend._arrays.radial_pairs import RadialPairs
from pyro_infovae._arrays.normal_pairs import NormalPairs as TwinNormalPairs
from pyro_infovae._arrays.radial_pairs import RadialPairs as TwinRadialPairs
from tests.numpyro_backend.twin_kernels import KERNELS, assert_close

pytestmark = pytest.mark.usefixtures("strict_ranks", "double_precision")

NUM_DATA, N, M, D = 3, 6, 9, 2


def draw_arrays(seed: int, *, scales: bool, weighted: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {"x": rng.normal(size=(N, D)), "y": rng.normal(size=(M, D)) + 0.5}
    if scales:
        arrays |= {"x_scale": rng.uniform(size=(N, D)), "y_scale": rng.uniform(size=(M, D))}
        arrays["x_scale"][0] = 0.0
    if weighted:
        arrays |= {"x_weights": rng.uniform(size=N), "y_weights": rng.uniform(size=M)}
        arrays["x_weights"][rng.uniform(size=N) < 0.3] = 0.0
    return arrays


def estimate(
    mmd: Any, kernels: Any, arrays: dict[str, Any], name: str, by_datum: bool, estimator: str | None
) -> Any:
    """Call mmd_squared, or mmd_squared_normal where there are scales, of either half."""
    rows = [arrays[k] for k in ("x", "x_scale", "y", "y_scale") if k in arrays]
    options = {k: a for k, a in arrays.items() if k.endswith("weights")}
    options["num_data"] = NUM_DATA if by_datum else None
    if estimator is None:
        return mmd.mmd_squared_normal(*rows, KERNELS[name](kernels), **options)
    return mmd.mmd_squared(*rows, KERNELS[name](kernels), estimator=estimator, **options)


@cache
def compiled(name: str, by_datum: bool, estimator: str | None) -> Callable[..., Any]:
    return jax.jit(
        jax.value_and_grad(lambda a: estimate(ours, kernels, a, name, by_datum, estimator))
    )


@pytest.mark.parametrize(
    ("name", "estimator", "by_datum", "weighted"),
    [
        *((name, "unbiased", True, True) for name in ("rbf-sum", "wae", "mixed-sum", "callable")),
        *((name, "unbiased", False, False) for name in ("rbf", "callable")),
        ("callable", "biased", False, True),
        ("wae", "biased", True, False),
        ("rbf-sum", None, True, True),
        ("zhao", None, False, False),
    ],
)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_value_and_gradients_equal_the_twins(
    name: str, estimator: str | None, by_datum: bool, weighted: bool, seed: int
) -> None:
    arrays = draw_arrays(seed, scales=estimator is None, weighted=weighted)
    tensors = {k: torch.tensor(a, requires_grad=True) for k, a in arrays.items()}
    want = estimate(twin, twin_kernels, tensors, name, by_datum, estimator)
    gradients = torch.autograd.grad(want, list(tensors.values()))
    got = compiled(name, by_datum, estimator)(arrays)
    assert_close(got, (want.detach(), dict(zip(arrays, gradients, strict=True))))


@pytest.mark.parametrize("closed_form", [False, True])
@pytest.mark.parametrize(("block_rows", "period"), [(6, None), (4, 3)])
def test_blocks_equal_the_twin(closed_form: bool, block_rows: int, period: int | None) -> None:
    arrays = draw_arrays(0, scales=closed_form, weighted=True)
    coefficients = {"a": np.array(0.3), "b": np.array(0.5), "c": np.array(-0.7)}

    def value(pair_sums: Any, kernel: Any, arrays: dict[str, Any]) -> Any:
        def sample(side: str) -> Any:
            rows = tuple(arrays[k] for k in (side, f"{side}_scale") if k in arrays)
            return pair_sums.Sample(rows, arrays[f"{side}_weights"] if side == "x" else None)

        return pair_sums.weighted_mmd(
            kernel,
            sample("x"),
            sample("y"),
            pair_sums.Periods(period, period, period),
            tuple(arrays[k] for k in coefficients),
        )

    arrays = {k: a for k, a in (arrays | coefficients).items() if k != "y_weights"}
    tensors = {k: torch.tensor(a, requires_grad=True) for k, a in arrays.items()}
    kernel: Any = RadialPairs(kernels.IMQ(), block_rows)
    twin_kernel: Any = TwinRadialPairs(twin_kernels.IMQ())
    if closed_form:
        kernel, twin_kernel = NormalPairs((0.7,), block_rows), TwinNormalPairs((0.7,))
    want = value(twin_pair_sums, twin_kernel, tensors)
    gradients = torch.autograd.grad(want, list(tensors.values()))
    ours_value = partial(value, ours_pair_sums, kernel)
    # Undifferentiated, the value takes a road of its own.
    assert_close(jax.jit(ours_value)(arrays), want.detach())
    assert_close(jax.jit(jax.grad(ours_value))(arrays), dict(zip(arrays, gradients, strict=True)))


def test_vmap_and_higher_derivatives() -> None:
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 3, 2))), jnp.asarray(rng.normal(size=(4, 2)))

    def total(kernel: Any, x: Array) -> Array:
        return jax.vmap(lambda x: ours.mmd_squared(x, y, kernel))(x).sum()

    def derivatives(kernel: Any, x: Array) -> Any:
        one_by_one = jax.vmap(jax.grad(lambda x: ours.mmd_squared(x, y, kernel)))(x)
        return (
            one_by_one,
            jax.grad(partial(total, kernel))(x),
            jax.hessian(partial(total, kernel))(x),
        )

    def dense(a: Array, b: Array) -> Array:
        return kernels.RBF()(a, b)

    got = jax.jit(partial(derivatives, kernels.RBF()))(x)
    assert_close(got, jax.jit(partial(derivatives, dense))(x))


def test_float32_far_from_the_origin() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(700, 10)) + 100, 0.8 * rng.normal(size=(900, 10)) + 100
    exact = twin.mmd_squared(torch.tensor(x), torch.tensor(y), twin_kernels.RBF())
    estimate = jax.jit(partial(ours.mmd_squared, kernel=kernels.RBF()))
    single = estimate(jnp.asarray(x, "float32"), jnp.asarray(y, "float32"))
    assert single.dtype == jnp.float32
    assert abs(float(single) - exact.item()) < 1e-6


def test_masked_rows_count_for_nothing_whatever_they_hold() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(7, 2))
    mask = np.array([1, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    expected = twin.mmd_squared(torch.tensor(x[mask]), torch.tensor(y), twin_kernels.RBF()).item()

    @jax.jit
    @jax.value_and_grad
    def estimate(x: Array) -> Array:
        return ours.mmd_squared(x, jnp.asarray(y), kernels.RBF(), x_weights=jnp.asarray(mask))

    for filler in (0.0, 1e6, math.inf, math.nan):
        value, gradient = estimate(np.where(mask[:, None], x, filler))
        assert value == pytest.approx(expected, abs=1e-10)
        assert not gradient[~mask].any()


def test_too_few_effective_rows_give_zero_and_zero_gradients() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))

    @partial(jax.jit, static_argnums=2)
    @partial(jax.value_and_grad, argnums=(0, 1))
    def estimate(x: Array, w: Array, num_data: int | None) -> Array:
        return ours.mmd_squared(x, x + 1, kernels.RBF(), x_weights=w, num_data=num_data)

    zeros = (0.0, (np.zeros((4, 2)), np.zeros(4)))
    assert_close(estimate(x, jnp.array([0.0, 1.3, 0.0, 0.0]), None), zeros)
    assert_close(estimate(x, jnp.zeros(4), None), zeros)
    assert_close(estimate(x, jnp.array([0.0, 1.3, 0.0, 0.7]), 2), zeros)


def test_memory_grows_with_the_rows_not_with_the_pairs() -> None:
    n = 16384
    x = jax.ShapeDtypeStruct((n, 10), "float32")  # type: ignore[no-untyped-call]

    def value(x: Array, y: Array) -> Array:
        return ours.mmd_squared(x, y, kernels.RBF())

    memory = jax.jit(jax.grad(value)).lower(x, x).compile().memory_analysis()
    assert memory is not None
    assert 2**20 < memory.temp_size_in_bytes < 50 * 2**20 < 4 * n * n / 10


X, Y = np.zeros((4, 2)), np.zeros((6, 2))


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        (X, Y, {"estimator": "best"}),
        (X, Y, {"estimator": "closed_form"}),
        (X, np.zeros((6, 3)), {}),
        (X[:1], Y, {}),
        (X[:0], Y, {"estimator": "biased"}),
        (X, Y, {"x_weights": np.ones((4, 1))}),
        (X, Y, {"num_data": 3}),
        (X, Y, {"kernel": lambda x, y: x[0]}),
    ],
)
def test_errors_are_the_twins(x: np.ndarray, y: np.ndarray, options: dict[str, Any]) -> None:
    tensors = {k: torch.tensor(v) if "weights" in k else v for k, v in options.items()}
    messages = []
    for mmd, k, args, kwargs in (
        (ours, kernels, (jnp.asarray(x), jnp.asarray(y)), options),
        (twin, twin_kernels, (torch.tensor(x), torch.tensor(y)), tensors),
    ):
        with pytest.raises(ValueError, match=r"^Expected .* got") as error:
            mmd.mmd_squared(*args, **{"kernel": k.RBF(), **kwargs})
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_misuse_of_the_closed_form_is_an_error() -> None:
    loc, scale = jnp.zeros((4, 2)), jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"y_scale of y_loc's shape \(4, 2\); got \(2,\)"):
        ours.mmd_squared_normal(loc, scale, loc, scale[0], kernels.RBF())
    with pytest.raises(ValueError, match=r"sum of RBFs.*got IMQ.*\. Use estimator='unbiased'"):
        ours.mmd_squared_normal(loc, scale, loc, scale, kernels.IMQ())
