# SPDX-License-Identifier: MIT
r"""Critics: networks that score how well a code belongs to a datum.

A critic takes x as (rows, \*event) and z as (rows, features) and returns (rows,) scores T(x, z).
Any `torch.nn.Module` that does so serves; `ConcatCritic` and `SeparableCritic` are two that are
ready. `score_all_pairs` scores every x with every z.

A row that is in many pairs need not be computed for each: the critics of this module say in
`project` what of a pair depends on one side only, and in `score_projected` the rest.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeGuard

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import linear

from pyro_infovae._arrays.layers import Activation, activated_layers, encode, score_in_blocks
from pyro_infovae._core import critics as _shared
from pyro_infovae._core.critics import BLOCK_ROWS, check_scores
from pyro_infovae._core.docstrings import documented

__all__ = [
    "BLOCK_ROWS",
    "ConcatCritic",
    "SeparableCritic",
    "check_scores",
    "is_projecting",
    "score_all_pairs",
]


@documented(_shared.CONCAT_CRITIC)
class ConcatCritic(torch.nn.Module):
    """A network on x and z side by side, after an encoder of each if given.

    Example:
        >>> critic = ConcatCritic(x_dim=28 * 28, z_dim=8)
        >>> critic(torch.randn(5, 28, 28), torch.randn(5, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        hidden: Sequence[int] = (256, 256),
        *,
        activation: Activation = torch.nn.ReLU,
        x_encoder: torch.nn.Module | None = None,
        z_encoder: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_dim, self.z_dim = x_dim, z_dim
        self.x_encoder, self.z_encoder = x_encoder, z_encoder
        widths = [*hidden, 1]
        self.first = torch.nn.Linear(x_dim + z_dim, widths[0])
        self.rest = torch.nn.Sequential(*activated_layers(widths, activation))

    def forward(
        self, x: Shaped[Tensor, " rows *event"], z: Float[Tensor, " rows features"]
    ) -> Float[Tensor, " rows"]:
        """Score each row of x with the same row of z.

        Raises:
            ValueError: if x and z differ in rows, or their features from x_dim and z_dim.
        """
        _shared.check_rows(x, z)
        features = torch.cat(self._encode(x, z), 1)
        scores: Tensor = self.rest(self.first(features)).squeeze(1)
        return scores

    def project(
        self, x: Shaped[Tensor, " n *event"], z: Float[Tensor, " m features"]
    ) -> tuple[Float[Tensor, " n width"], Float[Tensor, " m width"]]:
        """Each side's share of the first layer."""
        x, z = self._encode(x, z)
        x_weight, z_weight = torch.split(self.first.weight, [self.x_dim, self.z_dim], 1)
        return linear(x, x_weight, self.first.bias), linear(z, z_weight)

    def score_projected(
        self, x: Float[Tensor, "*#pairs width"], z: Float[Tensor, "*#pairs width"]
    ) -> Float[Tensor, "*pairs"]:
        """Score pairs of what `project` returned."""
        scores: Tensor = self.rest(x + z).squeeze(-1)
        return scores

    def _encode(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return (
            encode("x", x, self.x_dim, self.x_encoder, z),
            encode("z", z, self.z_dim, self.z_encoder, z),
        )


@documented(_shared.SEPARABLE_CRITIC)
class SeparableCritic(torch.nn.Module):
    """The inner product of an embedding of x and an embedding of z.

    Example:
        >>> critic = SeparableCritic(x_dim=28 * 28, z_dim=8)
        >>> critic.all_pairs(torch.randn(5, 28, 28), torch.randn(5, 8)).shape
        torch.Size([5, 5])
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        hidden: Sequence[int] = (256, 256),
        *,
        embed_dim: int = 32,
        activation: Activation = torch.nn.ReLU,
        x_encoder: torch.nn.Module | None = None,
        z_encoder: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_dim, self.z_dim = x_dim, z_dim
        self.x_encoder, self.z_encoder = x_encoder, z_encoder
        widths = [*hidden, embed_dim]
        self.x_embedding, self.z_embedding = (
            torch.nn.Sequential(
                torch.nn.Linear(width, widths[0]), *activated_layers(widths, activation)
            )
            for width in (x_dim, z_dim)
        )

    def forward(
        self, x: Shaped[Tensor, " rows *event"], z: Float[Tensor, " rows features"]
    ) -> Float[Tensor, " rows"]:
        """Score each row of x with the same row of z.

        Raises:
            ValueError: if x and z differ in rows, or their features from x_dim and z_dim.
        """
        _shared.check_rows(x, z)
        return self.score_projected(*self.project(x, z))

    def all_pairs(
        self, x: Shaped[Tensor, " n *event"], z: Float[Tensor, " m features"]
    ) -> Float[Tensor, " n m"]:
        """Score every x with every z: entry (i, j) is forward of x_i and z_j."""
        x, z = self.project(x, z)
        return x @ z.T

    def project(
        self, x: Shaped[Tensor, " n *event"], z: Float[Tensor, " m features"]
    ) -> tuple[Float[Tensor, " n width"], Float[Tensor, " m width"]]:
        """Each side's embedding."""
        return (
            self.x_embedding(encode("x", x, self.x_dim, self.x_encoder, z)),
            self.z_embedding(encode("z", z, self.z_dim, self.z_encoder, z)),
        )

    def score_projected(
        self, x: Float[Tensor, "*#pairs width"], z: Float[Tensor, "*#pairs width"]
    ) -> Float[Tensor, "*pairs"]:
        """Score pairs of what `project` returned."""
        return (x * z).sum(-1)


@documented(_shared.SCORE_ALL_PAIRS)
def score_all_pairs(
    critic: torch.nn.Module,
    x: Shaped[Tensor, " n *event"],
    z: Float[Tensor, " m features"],
    *,
    block_rows: int = BLOCK_ROWS,
) -> Float[Tensor, " n m"]:
    """Score every x with every z.

    Example:
        >>> critic = ConcatCritic(x_dim=3, z_dim=2)
        >>> score_all_pairs(critic, torch.randn(5, 3), torch.randn(4, 2)).shape
        torch.Size([5, 4])
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


def is_projecting(critic: torch.nn.Module) -> TypeGuard[ConcatCritic | SeparableCritic]:
    """Whether `project` and `score_projected` say what calling the critic does.

    Not those of a subclass with a `forward` of its own.

    Args:
        critic: module that scores pairs.

    Example:
        >>> is_projecting(ConcatCritic(x_dim=3, z_dim=2)), is_projecting(torch.nn.Identity())
        (True, False)
    """
    own = (ConcatCritic, SeparableCritic)
    return isinstance(critic, own) and type(critic).forward in {each.forward for each in own}


def _all_pairs_of(critic: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A critic's own way to score all pairs, where it says what calling the critic does."""
    all_pairs: Callable[[Tensor, Tensor], Tensor] | None = getattr(critic, "all_pairs", None)
    inherited = getattr(type(critic), "all_pairs", None) is SeparableCritic.all_pairs
    return None if inherited and not is_projecting(critic) else all_pairs


def _score_projected_grid(critic: ConcatCritic | SeparableCritic, x: Tensor, z: Tensor) -> Tensor:
    return critic.score_projected(x[:, None], z)


def _score_grid(critic: torch.nn.Module, x: Tensor, z: Tensor) -> Tensor:
    rows, columns = x.shape[0], z.shape[0]
    x = x[:, None].expand(rows, columns, *x.shape[1:]).flatten(0, 1)
    z = z.expand(rows, *z.shape).flatten(0, 1)
    scores: Tensor = critic(x, z)
    check_scores(scores, rows * columns)
    return scores.view(rows, columns)
