"""What the critics of both halves promise alike: shapes, dtypes, encoders, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

from pyro_infovae.critics import check_scores
from tests.arrays.libraries import JAX, TORCH, Library

each_family = pytest.mark.parametrize("family", ["ConcatCritic", "SeparableCritic"])


class LinearEncoder(NamedTuple):
    """(rows, \\*event) to (rows, width), in JAX."""

    inputs: int
    width: int

    def init(self, rng_key: jax.Array) -> jax.Array:
        return jax.random.normal(rng_key, (self.inputs, self.width))

    def apply(self, params: jax.Array, values: jax.Array) -> jax.Array:
        return values.reshape(values.shape[0], -1) @ params


def encoder(library: Library, inputs: int, width: int) -> Any:
    if library is JAX:
        return LinearEncoder(inputs, width)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, width, bias=False))


def critic_of(
    library: Library, family: str, *dims: int, dtype: str = "float64", **options: Any
) -> Callable[..., Any]:
    """A critic with parameters of its own."""
    critic = getattr(library.module("critics"), family)(*dims, hidden=(3,), **options)
    if library is TORCH:
        return critic.to(getattr(torch, dtype))
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(critic.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(dtype), shapes)
    return critic.bind(params)


def draw(library: Library, *shape: int, seed: int = 0) -> Any:
    return library.array(np.random.default_rng(seed).normal(size=shape))


def distance(x: Any, z: Any) -> Any:
    """A critic of the user's own."""
    return -((x.reshape(x.shape[0], -1)[:, :2] - z) ** 2).sum(1)


# --- forward --------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("event", [(), (1,), (6,), (2, 3), (1, 2, 3)])
def test_event_dims_are_flattened(library: Library, family: str, event: tuple[int, ...]) -> None:
    critic = critic_of(library, family, math.prod(event), 2)
    x, z = draw(library, 5, *event), draw(library, 5, 2, seed=1)
    got = critic(x, z)
    assert got.shape == (5,)
    np.testing.assert_allclose(*(values(s) for s in (got, critic(x.reshape(5, -1), z))), rtol=1e-12)


@each_family
def test_counts_are_taken_in_the_dtype_of_the_codes(library: Library, family: str) -> None:
    critic, counts = critic_of(library, family, 3, 2, dtype="float32"), np.arange(12).reshape(4, 3)
    z = library.array(np.ones((4, 2), np.float32))
    got = values(critic(library.array(counts), z))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values(critic(library.array(counts.astype("float32")), z)))


def values(array: Any) -> np.ndarray:
    return np.asarray(array.detach() if isinstance(array, torch.Tensor) else array)


# --- the user's mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((128, 1), r"Expected critic\(x, z\) of shape \(128,\); got \(128, 1\): squeeze its last"),
        ((64,), r"Expected critic\(x, z\) of shape \(128,\); got \(64,\): one score per row"),
        ((), r"Expected critic\(x, z\) of shape \(128,\); got \(\): one score per row"),
        ((128, 128), r"Expected critic\(x, z\) of shape \(128,\); got \(128, 128\): one score"),
    ],
)
def test_check_scores(library: Library, shape: tuple[int, ...], message: str) -> None:
    assert library.module("critics").check_scores is check_scores
    check_scores(library.array(np.zeros(128)), 128)
    with pytest.raises(ValueError, match=message):
        check_scores(library.array(np.zeros(shape)), 128)


def test_all_pairs_reject_a_column_of_scores(library: Library) -> None:
    message = r"Expected critic\(x, z\) of shape \(20,\); got \(20, 1\): squeeze"
    with pytest.raises(ValueError, match=message):
        library.module("critics").score_all_pairs(
            lambda x, z: distance(x, z)[:, None], draw(library, 5, 2), draw(library, 4, 2)
        )


class Square:
    """A critic whose matrix has the wrong shape."""

    def all_pairs(self, x: Any, z: Any) -> Any:
        return x @ x.T


def test_all_pairs_reject_another_matrix(library: Library) -> None:
    message = r"Expected critic.all_pairs\(x, z\) of shape \(5, 4\); got \(5, 5\)"
    with pytest.raises(ValueError, match=message):
        library.module("critics").score_all_pairs(
            Square(), draw(library, 5, 2), draw(library, 4, 2)
        )


@pytest.mark.parametrize("block_rows", [0, -3])
def test_all_pairs_reject_block_rows(library: Library, block_rows: int) -> None:
    with pytest.raises(ValueError, match=rf"Expected block_rows >= 1; got {block_rows}"):
        library.module("critics").score_all_pairs(
            distance, draw(library, 5, 2), draw(library, 5, 2), block_rows=block_rows
        )


@each_family
@pytest.mark.parametrize(
    ("x", "z", "message"),
    [
        (
            (5, 2, 2),
            (5, 2),
            r"Expected x with 3 features .* got 4 in \(5, 2, 2\): pass x_dim=4, or",
        ),
        ((5, 3), (5, 4), r"Expected z with 2 features .* got 4 in \(5, 4\): pass z_dim=4, or"),
        ((5, 3), (4, 2), r"Expected x and z with the same number of rows; got 5 and 4"),
    ],
)
def test_rejects_inputs(
    library: Library, family: str, x: tuple[int, ...], z: tuple[int, ...], message: str
) -> None:
    critic = critic_of(library, family, 3, 2)
    with pytest.raises(ValueError, match=message):
        critic(draw(library, *x), draw(library, *z))


@each_family
@pytest.mark.parametrize("name", ["x", "z"])
def test_rejects_what_an_encoder_returns(library: Library, family: str, name: str) -> None:
    critic = critic_of(library, family, 3, 3, **{f"{name}_encoder": encoder(library, 3, 7)})
    message = (
        rf"Expected {name}_encoder\({name}\) of shape \(5, 3\); got \(5, 7\): "
        rf"{name}_dim is the width of the encoder's output"
    )
    with pytest.raises(ValueError, match=message):
        critic(draw(library, 5, 3), draw(library, 5, 3))
