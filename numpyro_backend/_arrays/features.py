# SPDX-License-Identifier: MIT
"""The maximum mean discrepancy by random frequencies, with its gradient beside it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from numpyro_backend._arrays.pair_sums import Coefficients, as_arrays
from pyro_infovae._core.features import (
    BlockSums,
    Draws,
    Frequencies,
    block_size,
    block_sums,
    centred,
)
from pyro_infovae._core.mmd import Periods, Sample, coefficients


def draws_of(rng_key: Key[Array, ""]) -> Draws:
    """How a key draws random numbers."""
    normal_key, uniform_key = jax.random.split(rng_key)
    return Draws(
        lambda shape, like: jax.random.normal(normal_key, shape, like.dtype),
        lambda shape, like: jax.random.uniform(uniform_key, shape, like.dtype),
    )


def checked_key(rng_key: Key[Array, ""] | None) -> Key[Array, ""]:
    """The key, which has to be given.

    Raises:
        ValueError: if it is None.
    """
    if rng_key is None:
        raise ValueError(
            "Expected rng_key for estimator='features', which draws frequencies; got None: pass "
            "rng_key=jax.random.key(0), another one in every call"
        )
    return rng_key


def average_features(
    frequencies: Frequencies, x: Sample, y: Sample, periods: Periods
) -> Float[Array, ""]:
    """The estimate, summed over blocks of frequencies."""
    averaging = as_arrays(coefficients(x, y, periods), x)
    return _weighted(periods, frequencies, x, y, averaging)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(
    periods: Periods, frequencies: Frequencies, x: Sample, y: Sample, coefficients: Coefficients
) -> Float[Array, ""]:
    sums = _sums(periods, frequencies, x, y, coefficients, (False, False))
    return _combined(sums, coefficients)


def _forward(
    periods: Periods, frequencies: Frequencies, x: Sample, y: Sample, coefficients: Coefficients
) -> tuple[Array, tuple[Any, ...]]:
    sums = _sums(periods, frequencies, x, y, coefficients, (True, True))
    of_frequencies = jax.tree.map(jnp.zeros_like, frequencies)
    return _combined(sums, coefficients), (of_frequencies, sums.x, sums.y, sums[:3])


def _backward(periods: Periods, gradients: tuple[Any, ...], grad_value: Array) -> tuple[Any, ...]:
    return jax.tree.map(lambda g: grad_value * g, gradients)


_weighted.defvjp(_forward, _backward)


def _combined(sums: BlockSums, coefficients: Coefficients) -> Float[Array, ""]:
    a, b, c = coefficients
    return a * sums.xx + b * sums.yy + c * sums.xy


def _sums(
    periods: Periods,
    frequencies: Frequencies,
    x: Sample,
    y: Sample,
    coefficients: Coefficients,
    wanted: tuple[bool, bool],
) -> BlockSums:
    x, y = centred(x, y)
    size = block_size(x, y)
    if size >= len(frequencies.weights):
        return block_sums(frequencies, x, y, periods, coefficients, wanted)

    def cut(part: Array) -> Array:
        # Frequencies of weight 0 count for nothing.
        filled = jnp.pad(part, ((0, -len(part) % size), *((0, 0),) * (part.ndim - 1)))
        return filled.reshape(-1, size, *part.shape[1:])

    def add(sums: BlockSums, block: Frequencies) -> tuple[BlockSums, None]:
        more = block_sums(block, x, y, periods, coefficients, wanted)
        return jax.tree.map(jnp.add, sums, more), None

    blocks = jax.tree.map(cut, frequencies)
    one = jax.tree.map(lambda part: part[0], blocks)
    kinds = jax.eval_shape(
        lambda block: block_sums(block, x, y, periods, coefficients, wanted), one
    )
    zeros = jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), kinds)
    return jax.lax.scan(add, zeros, blocks)[0]
