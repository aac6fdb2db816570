# SPDX-License-Identifier: MIT
r"""Critics: networks that score how well a code belongs to a datum.

A critic takes x as (rows, \*event) and z as (rows, features) and returns (rows,) scores T(x, z).
Any function critic(x, z) that does so serves: an equinox or flax.nnx module, or
`functools.partial(module.apply, variables)` of a flax.linen one. `ConcatCritic` and
`SeparableCritic` are two that are ready and need no such library: `init` draws their parameters,
`apply` scores with them, and `bind` makes a function critic(x, z) of both. `score_all_pairs` scores
every x with every z.

A row that is in many pairs need not be computed for each: the critics of this module say in
`project` what of a pair depends on one side only, and in `score_projected` the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from numpyro_backend._arrays.layers import (
    Activation,
    Encoder,
    Params,
    activated_layers,
    encode,
    init_encoders,
    init_layers,
    linear,
    score_in_blocks,
)
from pyro_infovae._core import critics as _shared
from pyro_infovae._core.critics import BLOCK_ROWS, check_scores
from pyro_infovae._core.docstrings import documented

__all__ = [
    "BLOCK_ROWS",
    "BoundCritic",
    "BoundSeparableCritic",
    "ConcatCritic",
    "Critic",
    "SeparableCritic",
    "check_scores",
    "is_projecting",
    "score_all_pairs",
]

Critic = Callable[[Array, Array], Array]


@documented(_shared.CONCAT_CRITIC)
@dataclass(frozen=True)
class ConcatCritic:
    """A network on x and z side by side, after an encoder of each if given.

    Example:
        >>> critic = ConcatCritic(x_dim=28 * 28, z_dim=8)
        >>> params = critic.init(jax.random.key(0))
        >>> critic.apply(params, jnp.zeros((5, 28, 28)), jnp.zeros((5, 8))).shape
        (5,)
    """

    x_dim: int
    z_dim: int
    hidden: Sequence[int] = (256, 256)
    _: KW_ONLY
    activation: Activation = jax.nn.relu
    x_encoder: Encoder | None = None
    z_encoder: Encoder | None = None

    def init(self, rng_key: Key[Array, ""]) -> Params:
        """Draw parameters, those of the encoders included."""
        network_key, encoder_key = jax.random.split(rng_key)
        first, *rest = init_layers(network_key, [self.x_dim + self.z_dim, *self.hidden, 1])
        return {
            "first": first,
            "rest": rest,
            **init_encoders(encoder_key, self.x_encoder, self.z_encoder),
        }

    def apply(
        self, params: Params, x: Shaped[Array, " rows *event"], z: Float[Array, " rows features"]
    ) -> Float[Array, " rows"]:
        """Score each row of x with the same row of z.

        Raises:
            ValueError: if x and z differ in rows, or their features from x_dim and z_dim.
        """
        _shared.check_rows(x, z)
        features = jnp.concatenate(self._encode(params, x, z), 1)
        hidden = linear(params["first"], features)
        return activated_layers(params["rest"], self.activation, hidden).squeeze(1)

    def project(
        self, params: Params, x: Shaped[Array, " n *event"], z: Float[Array, " m features"]
    ) -> tuple[Float[Array, " n width"], Float[Array, " m width"]]:
        """Each side's share of the first layer."""
        x, z = self._encode(params, x, z)
        x_kernel, z_kernel = jnp.split(params["first"]["kernel"], [self.x_dim])
        return linear({"kernel": x_kernel, "bias": params["first"]["bias"]}, x), z @ z_kernel

    def score_projected(
        self, params: Params, x: Float[Array, "*#pairs width"], z: Float[Array, "*#pairs width"]
    ) -> Float[Array, "*pairs"]:
        """Score pairs of what `project` returned."""
        return activated_layers(params["rest"], self.activation, x + z).squeeze(-1)

    def bind(self, params: Params) -> "BoundCritic":
        """Make a function critic(x, z)."""
        return BoundCritic(self, params)

    def _encode(self, params: Params, x: Array, z: Array) -> tuple[Array, Array]:
        return (
            encode("x", x, self.x_dim, self.x_encoder, params, z),
            encode("z", z, self.z_dim, self.z_encoder, params, z),
        )


@documented(_shared.SEPARABLE_CRITIC)
@dataclass(frozen=True)
class SeparableCritic:
    """The inner product of an embedding of x and an embedding of z.

    Example:
        >>> critic = SeparableCritic(x_dim=28 * 28, z_dim=8)
        >>> params = critic.init(jax.random.key(0))
        >>> critic.all_pairs(params, jnp.zeros((5, 28, 28)), jnp.zeros((5, 8))).shape
        (5, 5)
    """

    x_dim: int
    z_dim: int
    hidden: Sequence[int] = (256, 256)
    _: KW_ONLY
    embed_dim: int = 32
    activation: Activation = jax.nn.relu
    x_encoder: Encoder | None = None
    z_encoder: Encoder | None = None

    def init(self, rng_key: Key[Array, ""]) -> Params:
        """Draw parameters, those of the encoders included."""
        x_key, z_key, encoder_key = jax.random.split(rng_key, 3)
        return {
            "x_embedding": init_layers(x_key, [self.x_dim, *self.hidden, self.embed_dim]),
            "z_embedding": init_layers(z_key, [self.z_dim, *self.hidden, self.embed_dim]),
            **init_encoders(encoder_key, self.x_encoder, self.z_encoder),
        }

    def apply(
        self, params: Params, x: Shaped[Array, " rows *event"], z: Float[Array, " rows features"]
    ) -> Float[Array, " rows"]:
        """Score each row of x with the same row of z.

        Raises:
            ValueError: if x and z differ in rows, or their features from x_dim and z_dim.
        """
        _shared.check_rows(x, z)
        return self.score_projected(params, *self.project(params, x, z))

    def all_pairs(
        self, params: Params, x: Shaped[Array, " n *event"], z: Float[Array, " m features"]
    ) -> Float[Array, " n m"]:
        """Score every x with every z: entry (i, j) is apply of x_i and z_j."""
        x, z = self.project(params, x, z)
        return x @ z.T

    def project(
        self, params: Params, x: Shaped[Array, " n *event"], z: Float[Array, " m features"]
    ) -> tuple[Float[Array, " n width"], Float[Array, " m width"]]:
        """Each side's embedding."""
        x = encode("x", x, self.x_dim, self.x_encoder, params, z)
        z = encode("z", z, self.z_dim, self.z_encoder, params, z)
        x_first, *x_rest = params["x_embedding"]
        z_first, *z_rest = params["z_embedding"]
        return (
            activated_layers(x_rest, self.activation, linear(x_first, x)),
            activated_layers(z_rest, self.activation, linear(z_first, z)),
        )

    def score_projected(
        self, params: Params, x: Float[Array, "*#pairs width"], z: Float[Array, "*#pairs width"]
    ) -> Float[Array, "*pairs"]:
        """Score pairs of what `project` returned."""
        return (x * z).sum(-1)

    def bind(self, params: Params) -> "BoundSeparableCritic":
        """Make a function critic(x, z)."""
        return BoundSeparableCritic(self, params)


@dataclass(frozen=True)
class BoundCritic:
    """A critic of this module with its parameters."""

    critic: ConcatCritic | SeparableCritic
    params: Params

    def __call__(
        self, x: Shaped[Array, " rows *event"], z: Float[Array, " rows features"]
    ) -> Float[Array, " rows"]:
        """Score each row of x with the same row of z."""
        return self.critic.apply(self.params, x, z)

    def project(
        self, x: Shaped[Array, " n *event"], z: Float[Array, " m features"]
    ) -> tuple[Float[Array, " n width"], Float[Array, " m width"]]:
        """What of a pair depends on one side only."""
        return self.critic.project(self.params, x, z)

    def score_projected(
        self, x: Float[Array, "*#pairs width"], z: Float[Array, "*#pairs width"]
    ) -> Float[Array, "*pairs"]:
        """Score pairs of what `project` returned."""
        return self.critic.score_projected(self.params, x, z)


@dataclass(frozen=True)
class BoundSeparableCritic(BoundCritic):
    """A `SeparableCritic` with its parameters."""

    critic: SeparableCritic

    def all_pairs(
        self, x: Shaped[Array, " n *event"], z: Float[Array, " m features"]
    ) -> Float[Array, " n m"]:
        """Score every x with every z."""
        return self.critic.all_pairs(self.params, x, z)


@documented(_shared.SCORE_ALL_PAIRS)
def score_all_pairs(
    critic: Critic,
    x: Shaped[Array, " n *event"],
    z: Float[Array, " m features"],
    *,
    block_rows: int = BLOCK_ROWS,
) -> Float[Array, " n m"]:
    """Score every x with every z.

    Example:
        >>> critic = ConcatCritic(x_dim=3, z_dim=2)
        >>> bound = critic.bind(critic.init(jax.random.key(0)))
        >>> score_all_pairs(bound, jnp.zeros((5, 3)), jnp.zeros((4, 2))).shape
        (5, 4)
    """
    if block_rows < 1:
        raise ValueError(f"Expected block_rows >= 1; got {block_rows}")
    all_pairs = _all_pairs_of(critic)
    if all_pairs is not None:
        scores = all_pairs(x, z)
        _shared.check_all_pairs(scores, x, z)
        return scores
    if is_projecting(critic):
        grid = partial(_score_projected_grid, critic)
        return score_in_blocks(grid, *critic.project(x, z), block_rows)
    return score_in_blocks(partial(_score_grid, critic), x, z, block_rows)


def is_projecting(critic: Critic) -> TypeGuard[BoundCritic]:
    """Whether `project` and `score_projected` say what calling the critic does.

    Not those of a subclass with an `apply` of its own.

    Args:
        critic: function that scores pairs.

    Example:
        >>> critic = ConcatCritic(x_dim=3, z_dim=2)
        >>> is_projecting(critic.bind(critic.init(jax.random.key(0))))
        True
    """
    own = (ConcatCritic, SeparableCritic)
    return isinstance(critic, BoundCritic) and (
        type(critic.critic).apply in {each.apply for each in own}
    )


def _all_pairs_of(critic: Critic) -> Critic | None:
    """A critic's own way to score all pairs, where it says what calling the critic does."""
    if not isinstance(critic, BoundSeparableCritic):
        all_pairs: Critic | None = getattr(critic, "all_pairs", None)
        return all_pairs
    inherited = type(critic.critic).all_pairs is SeparableCritic.all_pairs
    return None if inherited and not is_projecting(critic) else critic.all_pairs


def _score_projected_grid(critic: BoundCritic, x: Array, z: Array) -> Array:
    return critic.score_projected(x[:, None], z[None])


def _score_grid(critic: Critic, x: Array, z: Array) -> Array:
    rows, columns = x.shape[0], z.shape[0]
    scores = critic(jnp.repeat(x, columns, axis=0), jnp.tile(z, (rows,) + (1,) * (z.ndim - 1)))
    check_scores(scores, rows * columns)
    return scores.reshape(rows, columns)
