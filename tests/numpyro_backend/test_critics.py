"""The same critics as the PyTorch half, with its weights, and what only JAX can get wrong."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array
from jax.extend.core import jaxprs_in_params

import numpyro_backend.critics as ours
import pyro_infovae.critics as twin

pytestmark = pytest.mark.usefixtures("quick_double_precision", "strict_ranks")


def layer_params(layer: torch.nn.Module) -> dict[str, np.ndarray]:
    return {
        "kernel": layer.weight.detach().numpy().T.copy(),
        "bias": layer.bias.detach().numpy().copy(),
    }


def linear_layers(network: torch.nn.Module) -> list[dict[str, np.ndarray]]:
    return [layer_params(layer) for layer in network if isinstance(layer, torch.nn.Linear)]


class LinearEncoder(NamedTuple):
    """(rows, a, b) to (rows, width)."""

    inputs: int
    width: int

    def init(self, rng_key: Array) -> Array:
        return jax.random.normal(rng_key, (self.inputs, self.width))

    def apply(self, params: Array, values: Array) -> Array:
        return values.reshape(values.shape[0], -1) @ params


Case = tuple[Any, dict[str, Any], torch.nn.Module]


def concat(hidden: tuple[int, ...]) -> Case:
    other = twin.ConcatCritic(6, 2, hidden=hidden, activation=torch.nn.Tanh)
    params = {"first": layer_params(other.first), "rest": linear_layers(other.rest)}
    return ours.ConcatCritic(6, 2, hidden=hidden, activation=jnp.tanh), params, other


def separable(hidden: tuple[int, ...]) -> Case:
    other = twin.SeparableCritic(6, 2, hidden=hidden, embed_dim=3, activation=torch.nn.Tanh)
    params = {
        "x_embedding": linear_layers(other.x_embedding),
        "z_embedding": linear_layers(other.z_embedding),
    }
    critic = ours.SeparableCritic(6, 2, hidden=hidden, embed_dim=3, activation=jnp.tanh)
    return critic, params, other


each_case = pytest.mark.parametrize("make", [concat, separable])
each_family = pytest.mark.parametrize("family", [ours.ConcatCritic, ours.SeparableCritic])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def random_params(critic: Any) -> Any:
    """Parameters like those of critic.init, in less time."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(critic.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.3), shapes)


def distance(x: Array, z: Array) -> Array:
    """A critic of the user's own, without a derivative where x = z."""
    return -jnp.sqrt(((x.reshape(x.shape[0], -1)[:, :2] - z) ** 2).sum(1))


# --- parity ---------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_equals_the_twin(make: Callable[..., Case], hidden: tuple[int, ...]) -> None:
    critic, params, other = make(hidden)
    assert jax.tree.structure(params) == jax.tree.structure(random_params(critic))
    x, z = draw(5, 2, 3), draw(5, 2, seed=1)
    got = jax.jit(critic.apply)(params, x, z)
    np.testing.assert_allclose(got, other(torch.tensor(x), torch.tensor(z)).detach(), rtol=1e-12)
    np.testing.assert_allclose(critic.bind(params)(x, z), got, rtol=1e-12)


@each_case
@pytest.mark.parametrize(("rows", "block_rows"), [(5, 1), (5, 100), (11, 4), (11, 12)])
def test_all_pairs_equal_the_twin(make: Callable[..., Case], block_rows: int, rows: int) -> None:
    critic, params, other = make((5,))
    x, z, weights = draw(rows, 2, 3), draw(7, 2, seed=1), draw(rows, 7, seed=2)

    def weighted(params: Any, x: Array, z: Array) -> tuple[Array, Array]:
        scores = ours.score_all_pairs(critic.bind(params), x, z, block_rows=block_rows)
        return (weights * scores).sum(), scores

    grads, got = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(params, x, z)
    inputs = [torch.tensor(values, requires_grad=True) for values in (x, z)]
    want = twin.score_all_pairs(other, *inputs)
    (torch.tensor(weights) * want).sum().backward()
    np.testing.assert_allclose(got, want.detach(), rtol=1e-12, atol=1e-13)
    for mine, theirs in zip(grads[1:], inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-12, atol=1e-13)
    kernel_grads = [leaf for leaf in jax.tree.leaves(grads[0]) if leaf.ndim == 2]
    weight_grads = [p.grad.T for p in other.parameters() if p.ndim == 2]
    for mine, theirs in zip(kernel_grads, weight_grads, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


@each_family
def test_the_same_arguments(family: Any) -> None:
    want = getattr(twin, family.__name__).__init__.__kwdefaults__
    fields = family.__dataclass_fields__
    assert [name for name in fields if fields[name].kw_only] == list(want)
    assert family(3, 2).hidden == (256, 256)
    assert getattr(family(3, 2), "embed_dim", 32) == 32
    assert ours.BLOCK_ROWS == twin.BLOCK_ROWS


# --- forward --------------------------------------------------------------------------------------


@each_family
def test_init_is_uniform_within_one_over_root_inputs(family: Any) -> None:
    critic = family(50, 50, hidden=(400,))
    init = jax.jit(critic.init)
    params = init(jax.random.key(0))
    first = params["first"] if "first" in params else params["x_embedding"][0]
    inputs = first["kernel"].shape[0]
    for leaf in first.values():
        assert abs(leaf).max() < inputs**-0.5
        np.testing.assert_allclose(leaf.std(), (3 * inputs) ** -0.5, rtol=0.1)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == first["kernel"].shape]
    again = jax.tree.leaves(init(jax.random.key(1)))
    assert all((kernels[0] != other).all() for other in kernels[1:])
    assert all((a != b).all() for a, b in zip(jax.tree.leaves(params), again, strict=True))


@each_family
def test_encoders_get_their_own_shapes_and_are_trained(family: Any) -> None:
    critic = family(4, 3, hidden=(3,), x_encoder=LinearEncoder(6, 4), z_encoder=LinearEncoder(2, 3))
    params = random_params(critic)
    x, z = draw(5, 2, 3), draw(5, 2, seed=1)
    encoded = x.reshape(5, 6) @ params["x_encoder"], z @ params["z_encoder"]
    np.testing.assert_allclose(
        jax.jit(critic.apply)(params, x, z),
        jax.jit(family(4, 3, hidden=(3,)).apply)(params, *encoded),
        rtol=1e-12,
    )
    grads = jax.jit(jax.grad(lambda params: critic.apply(params, x, z).sum()))(params)
    assert (grads["x_encoder"] != 0).any()
    assert (grads["z_encoder"] != 0).any()


# --- all pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [3, 7, 14, 100])
def test_all_pairs_of_any_function(block_rows: int) -> None:
    x, z = draw(5, 3), draw(7, 2, seed=1)
    score = jax.jit(partial(ours.score_all_pairs, distance, block_rows=block_rows))
    want = [[-math.dist(x[i, :2], z[j]) for j in range(7)] for i in range(5)]
    np.testing.assert_allclose(score(x, z), want, rtol=1e-14)


def test_filled_up_blocks_leave_the_gradient_alone() -> None:
    x, z = draw(5, 2), draw(7, 2, seed=1)

    def total(x: Array, z: Array, block_rows: int) -> Array:
        return ours.score_all_pairs(distance, x, z, block_rows=block_rows).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)
    for mine, theirs in zip(gradient(x, z, 3), gradient(x, z, 35), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def largest_array(jaxpr: Any) -> int:
    """Elements of the largest array that any operation makes, inner programs included."""
    largest = 0
    for equation in jaxpr.eqns:
        largest = max([largest, *(math.prod(var.aval.shape) for var in equation.outvars)])
        for inner in jaxprs_in_params(equation.params):
            largest = max(largest, largest_array(inner))
    return largest


@pytest.mark.parametrize("kind", ["concat", "own"])
def test_memory_is_bounded_by_one_block(kind: str) -> None:
    n, width, block_rows = 64, 32, 128
    critic = ours.ConcatCritic(6, 2, hidden=(width, width))
    params = random_params(critic)
    x, z = draw(n, 6), draw(n, 2, seed=1)

    def cost(block_rows: int) -> int:
        def total(params: Any, z: Array) -> Array:
            bound = critic.bind(params) if kind == "concat" else partial(critic.apply, params)
            return ours.score_all_pairs(bound, x, z, block_rows=block_rows).sum()

        return largest_array(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(params, z).jaxpr)

    assert cost(block_rows) <= max(block_rows * width, n * n)
    # In one block the hidden layers of all pairs are there.
    assert cost(n * n) >= n * n * width
