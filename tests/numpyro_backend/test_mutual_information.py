"""The same bounds as the PyTorch half, which is tested against plain loops and known truths."""

import inspect
import itertools
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

import numpyro_backend.mutual_information as ours
import pyro_infovae.mutual_information as twin

pytestmark = pytest.mark.usefixtures("double_precision", "strict_ranks")

NAMES = list(ours.BOUNDS)
ROWS, NEGATIVES = 6, 4


def draw_scores(layout: str = "all", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    marginal = 2 * rng.normal(size=(ROWS, NEGATIVES))
    return 2 * rng.normal(size=ROWS), marginal[:, 0] if layout == "shift" else marginal


@cache
def compiled(name: str, **options: Any) -> Callable[..., Any]:
    def everything(scores: tuple[Array, Array], weights: dict[str, Array]) -> Any:
        def bound(joint: Array, marginal: Array) -> tuple[Array, Array]:
            return tuple(ours.BOUNDS[name](joint, marginal, **weights, **options))

        return bound(*scores), jax.jacrev(bound, argnums=(0, 1))(*scores)

    return jax.jit(everything)


def values_and_gradients(
    name: str, scores: tuple[np.ndarray, ...], weights: dict[str, np.ndarray], **options: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Estimate and surrogate, and the gradients of each: ours, then the twin's."""
    got = [np.asarray(leaf) for leaf in jax.tree.leaves(compiled(name, **options)(scores, weights))]

    tensors = tuple(torch.tensor(score, requires_grad=True) for score in scores)
    tensor_weights = {key: torch.tensor(weight) for key, weight in weights.items()}
    want = twin.BOUNDS[name](*tensors, **tensor_weights, **options)
    grads = [torch.autograd.grad(value, tensors, retain_graph=True) for value in want]
    return got, [leaf.detach().numpy() for leaf in (*want, *grads[0], *grads[1])]


def assert_equal(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("layout", "kind"),
    [("shift", "none"), ("all", "none"), ("all", "fractions"), ("shift", "mask"), ("all", "mask")],
)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_equals_the_twin(name: str, layout: str, kind: str, seed: int) -> None:
    joint, marginal = draw_scores(layout, seed)
    rng = np.random.default_rng([seed, 1])
    weights = {}
    if kind == "fractions":
        weights = {
            "joint_weights": rng.uniform(size=joint.shape),
            "marginal_weights": rng.uniform(size=marginal.shape),
        }
    elif kind == "mask":
        weights = {
            "joint_weights": np.arange(ROWS) != 2,
            "marginal_weights": rng.uniform(size=marginal.shape) < 0.7,
        }
        joint[2], marginal[~weights["marginal_weights"]] = np.nan, np.inf
    got, want = values_and_gradients(name, (joint, marginal), weights)
    assert all(np.isfinite(leaf).all() for leaf in got)
    assert_equal(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_twin_beyond_the_exponential(name: str) -> None:
    joint, marginal = draw_scores()
    marginal[0] = [19, 20, 21, 1e4]
    assert_equal(*values_and_gradients(name, (joint, marginal), {}))


@pytest.mark.parametrize("clip", [0.5, 3.0, math.inf])
def test_smile_equals_the_twin_at_other_clips(clip: float) -> None:
    assert_equal(*values_and_gradients("smile", draw_scores(), {}, clip=clip))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_weights_are_finite_at_zero(name: str) -> None:
    scores = draw_scores()
    wj = np.array([0.0] + [0.7] * (ROWS - 1))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradient(wj: Array, wm: Array) -> Array:
        return sum(ours.BOUNDS[name](*scores, joint_weights=wj, marginal_weights=wm))

    for grad in gradient(wj, np.repeat(wj[:, None], NEGATIVES, axis=1)):
        assert jnp.isfinite(grad).all()
        assert (grad != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_left_is_zero_information(name: str) -> None:
    joint, marginal = draw_scores()
    weights = {"joint_weights": np.zeros(ROWS)}
    got, _ = values_and_gradients(name, (joint, marginal), weights)
    for leaf in got:
        np.testing.assert_allclose(leaf, 0, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_huge_scores_stay_finite(name: str, weighted: bool) -> None:
    weights = {"joint_weights": np.arange(64) % 2} if weighted else {}

    def bound(joint: Array, marginal: Array) -> tuple[Array, Array]:
        return tuple(ours.BOUNDS[name](joint, marginal, **weights))

    @jax.jit
    def everything(*scores: Array) -> Any:
        return bound(*scores), jax.jacrev(bound, argnums=(0, 1))(*scores)

    for signs in itertools.product((1, -1), repeat=2):
        scores = [np.full(64, sign * 1e4, np.float32) for sign in signs]
        values, gradients = everything(*scores)
        for value in values:
            assert value.dtype == jnp.float32
            assert jnp.isfinite(value)
        for gradient in jax.tree.leaves(gradients):
            assert jnp.isfinite((1e5 * gradient.sum()) ** 2)


def test_get_bound() -> None:
    want = [ours.nwj, ours.dv, ours.infonce, ours.js, ours.smile]
    assert [ours.get_bound(name) for name in NAMES] == want
    own = partial(ours.smile, clip=1.0)
    assert ours.get_bound(own) is own


MISTAKES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "joint": ("nwj", (np.zeros((6, 1)), np.zeros(6)), {}),
    "joint_weights": ("dv", (np.zeros(6), np.zeros(6)), {"joint_weights": np.ones(3)}),
    "marginal_weights": ("js", (np.zeros(6), np.zeros(6)), {"marginal_weights": np.ones(3)}),
    "layout": ("infonce", (np.zeros(6), np.zeros((5, 2))), {}),
    "clip": ("smile", (np.zeros(6), np.zeros(6)), {"clip": -1.0}),
    "name": ("get_bound", ("mine",), {}),
}


def message_of(function: Any, args: tuple[Any, ...], options: dict[str, Any], array: Any) -> str:
    def convert(value: Any) -> Any:
        return array(value) if isinstance(value, np.ndarray) else value

    with pytest.raises(ValueError, match=r"^Expected .*; *got ") as caught:
        function(*map(convert, args), **{key: convert(value) for key, value in options.items()})
    return str(caught.value)


@pytest.mark.parametrize(("name", "args", "options"), MISTAKES.values(), ids=MISTAKES)
def test_the_same_messages(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    got = message_of(getattr(ours, name), args, options, jnp.asarray)
    assert got == message_of(getattr(twin, name), args, options, torch.tensor)


@pytest.mark.parametrize("name", [*NAMES, "get_bound"])
def test_the_same_arguments(name: str) -> None:
    mine, theirs = (inspect.signature(getattr(half, name)).parameters for half in (ours, twin))
    assert [(p.name, p.kind, p.default) for p in mine.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
