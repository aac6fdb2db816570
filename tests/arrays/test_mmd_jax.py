"""The estimators of JAX against torch's: values, gradients, blocks, precision and memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import numpyro_backend._arrays.normal_pairs as jax_normal_pairs
import numpyro_backend._arrays.pair_sums as jax_pairs
from pyro_infovae._arrays.normal_pairs import NormalPairs
from pyro_infovae._arrays.pair_sums import RadialPairs
from pyro_infovae._core.mmd import Periods, Sample
from pyro_infovae.kernels import IMQ, RBF
from pyro_infovae.mmd import mmd_squared
from tests.arrays.libraries import JAX, TORCH, Library, assert_agree, gaussian

N, M, D = 6, 9, 3


def estimates(library: Library, weighted: bool) -> Callable[..., list[Any]]:
    """Estimates of either half by several kernels, in one program."""
    mmd, polynomial = library.module("mmd"), lambda x, y: (x @ y.T + 1) ** 2

    def estimate(x: Any, y: Any, *weights: Any) -> list[Any]:
        options = dict(zip(("x_weights", "y_weights"), weights, strict=False))
        sampled = partial(mmd.mmd_squared, x, y, **options)
        if weighted:
            kernels = (RBF(1.0) + RBF(2.0), IMQ.wae(prior_scale=2.0), RBF() + IMQ(3.0), polynomial)
            by_datum = [sampled(kernel, batch_size=3) for kernel in kernels]
            return [*by_datum, sampled(polynomial, estimator="biased")]
        biased = sampled(IMQ.wae(prior_scale=2.0), estimator="biased", batch_size=3)
        return [sampled(RBF()), sampled(polynomial), biased]

    return estimate


def closed_forms(library: Library, weighted: bool) -> Callable[..., list[Any]]:
    normal = library.module("mmd").mmd_squared_normal

    def closed_form(x: Any, y: Any, x_scale: Any, y_scale: Any, *weights: Any) -> list[Any]:
        options = dict(zip(("x_weights", "y_weights"), weights, strict=False))
        if weighted:
            return [normal(x, x_scale, y, y_scale, RBF(1.0) + RBF(2.0), batch_size=3, **options)]
        return [normal(x, x_scale, y, y_scale, RBF.zhao())]

    return closed_form


def arrays(seed: int, *, scales: bool, weighted: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=(N, D)), rng.normal(size=(M, D)) + 0.5]
    if scales:
        drawn += [rng.uniform(size=(N, D)), rng.uniform(size=(M, D))]
        drawn[2][0] = 0.0
    if weighted:
        drawn += [rng.uniform(size=N) * (rng.uniform(size=N) > 0.3), rng.uniform(size=M)]
    return drawn


@pytest.mark.usefixtures("jax_active")
@pytest.mark.parametrize(
    ("make", "weighted"),
    [
        (estimates, False),
        pytest.param(estimates, True, marks=pytest.mark.slow),
        pytest.param(closed_forms, False, marks=pytest.mark.slow),
        (closed_forms, True),
    ],
)
def test_value_and_gradients_of_jax_equal_torchs(make: Any, weighted: bool) -> None:
    samples = [arrays(seed, scales=make is closed_forms, weighted=weighted) for seed in range(10)]
    got, want = (each.differentiate(make(each, weighted), *samples) for each in (JAX, TORCH))
    assert_agree(got, want)


@pytest.mark.usefixtures("jax_active")
@pytest.mark.parametrize(
    ("block_rows", "periods", "closed_form"),
    [
        (6, Periods(), False),
        pytest.param(6, Periods(), True, marks=pytest.mark.slow),
        pytest.param(4, Periods(3, 3, 3), False, marks=pytest.mark.slow),
        pytest.param(4, Periods(3, 3, 3), True, marks=pytest.mark.slow),
        pytest.param(4, Periods(3, 3, 3, 0.4), False, marks=pytest.mark.slow),
        (4, Periods(3, 3, 3, 0.4), True),
    ],
)
def test_blocks_of_jax_equal_torch(closed_form: bool, block_rows: int, periods: Periods) -> None:
    def value(library: Library, pairs: Any) -> Callable[..., list[Any]]:
        weighted_mmd = library.module("_arrays.pair_sums").weighted_mmd

        def of_arrays(x: Any, y: Any, *rest: Any) -> list[Any]:
            *scales, w, a, b, c = rest
            samples = Sample((x, *scales[:1]), w), Sample((y, *scales[1:]), None)
            return [weighted_mmd(pairs, *samples, periods, (a, b, c))]

        return of_arrays

    *rows, w, _ = arrays(0, scales=closed_form, weighted=True)
    sample = [*rows, w, np.array(0.3), np.array(0.5), np.array(-0.7)]
    ours, twins = jax_pairs.RadialPairs(IMQ(), block_rows), RadialPairs(IMQ())
    if closed_form:
        ours, twins = jax_normal_pairs.NormalPairs((0.7,), block_rows), NormalPairs((0.7,))
    # Undifferentiated, the value takes a road of its own.
    assert_agree(
        JAX.differentiate(value(JAX, ours), sample),
        TORCH.differentiate(value(TORCH, twins), sample),
    )


@pytest.mark.usefixtures("jax_active")
def test_vmap_and_higher_derivatives_of_jax() -> None:
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 3, 2))), jnp.asarray(rng.normal(size=(4, 2)))
    estimate = JAX.module("mmd").mmd_squared

    def derivatives(kernel: Any, x: Any) -> Any:
        def total(x: Any) -> Any:
            return jax.vmap(lambda x: estimate(x, y, kernel))(x).sum()

        one_by_one = jax.vmap(jax.grad(lambda x: estimate(x, y, kernel)))(x)
        return one_by_one, jax.grad(total)(x), jax.hessian(total)(x)

    got, want = (jax.jit(partial(derivatives, kernel))(x) for kernel in (RBF(), gaussian))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)


@pytest.mark.usefixtures("jax_active")
def test_float32_far_from_the_origin_in_jax() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(700, 10)) + 100, 0.8 * rng.normal(size=(900, 10)) + 100
    exact = mmd_squared(torch.tensor(x), torch.tensor(y), RBF())
    estimate = jax.jit(partial(JAX.module("mmd").mmd_squared, kernel=RBF()))
    single = estimate(jnp.asarray(x, "float32"), jnp.asarray(y, "float32"))
    assert single.dtype == jnp.float32
    assert abs(float(single) - exact.item()) < 1e-6


def test_memory_of_jax_grows_with_the_rows_not_with_the_pairs() -> None:
    n = 16384
    x = jax.ShapeDtypeStruct((n, 10), "float32")  # type: ignore[no-untyped-call]
    value = partial(JAX.module("mmd").mmd_squared, kernel=RBF())
    memory = jax.jit(jax.grad(value)).lower(x, x).compile().memory_analysis()
    assert memory is not None
    assert 2**20 < memory.temp_size_in_bytes < 50 * 2**20 < 4 * n * n / 10
