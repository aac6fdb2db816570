# SPDX-License-Identifier: MIT
"""What the critics of both halves share: what they are, and the checks of shapes."""

from __future__ import annotations

import math

from jaxtyping import Float, Shaped

from pyro_infovae._core.arrays import Array, cast

BLOCK_ROWS = 16384
"""Pairs in a block: 16 MB for each layer of 256 units in float32."""

_NETWORKS = """
        x_dim: features of x: the product of its event dims, or the width of `x_encoder`'s output.
        z_dim: features of z, or the width of `z_encoder`'s output.
        activation: any elementwise function of an array; in torch, a module class too.
        x_encoder: network that takes x in its own shape, a convolutional one say: a torch module,
            or in JAX an object with `init(rng_key)` and `apply(params, x)`. x is flattened to
            (rows, x_dim) if not given.
        z_encoder: the same for z (rows, features)."""
"""The arguments of both critics."""

CONCAT_CRITIC = (
    r"""
    .. math:: T(x, z) = \mathrm{MLP}([e_x(x), e_z(z)])

    The usual critic of MINE and InfoMax-VAE, where it is also called a mutual information chain. It
    can learn any T, and scores n² pairs in n² passes of its layers after the first.

    Args:
        hidden: widths of the hidden layers."""
    + _NETWORKS
    + """

    Source:
        Belghazi et al., "MINE: Mutual Information Neural Estimation", arXiv 1801.04062; Rezaabad,
        Vishwanath, "Learning Representations by Maximizing Mutual Information in Variational
        Autoencoders", arXiv 1912.13361.
"""
)

SEPARABLE_CRITIC = (
    r"""
    .. math:: T(x, z) = f(e_x(x)) \cdot g(e_z(z))

    All n² pairs cost 2n passes of the networks and one matrix product, so it suits many negatives;
    T has rank `embed_dim` at most. The product is not divided by :math:`\sqrt{\texttt{embed_dim}}`:
    with the usual initial weights the scores start near 0 anyway, and the learning rate is kept.

    Args:
        hidden: widths of the hidden layers of both f and g.
        embed_dim: width of the embeddings."""
    + _NETWORKS
    + """

    Source:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding",
        arXiv 1807.03748; compared with the other in Poole et al., arXiv 1905.06922.
"""
)

SCORE_ALL_PAIRS = r"""
    A critic with a method `all_pairs(x, z)` does it its own way. Any other is called on blocks of
    pairs, whose inner values are computed again in the backward pass, so that memory stays bounded
    by one block; a `ConcatCritic` computes its encoders and first layer only once per row. A
    subclass that scores in a way of its own is called as any other critic.

    Args:
        critic: maps (rows, \*event) and (rows, features) to (rows,) scores.
        x: data, shape (n, \*event).
        z: codes, shape (m, features).
        block_rows: most pairs in one block.

    Returns:
        Scores, entry (i, j) that of x_i and z_j.

    Raises:
        ValueError: if `block_rows` is not positive, or the critic's scores have another shape.
"""


def check_scores(scores: Shaped[Array, " *shape"], rows: int) -> None:
    """Check that a critic returned one score per row.

    Args:
        scores: what critic(x, z) returned.
        rows: rows of x and z.

    Raises:
        ValueError: if `scores` is not of shape (rows,).

    Example:
        >>> import numpy as np
        >>> check_scores(np.zeros(5), rows=5)
    """
    if scores.shape == (rows,):
        return
    remedy = "squeeze its last dimension" if scores.shape == (rows, 1) else "one score per row"
    raise ValueError(
        f"Expected critic(x, z) of shape ({rows},); got {tuple(scores.shape)}: {remedy}"
    )


def check_all_pairs(scores: Array, x: Array, z: Array) -> None:
    """Check the matrix of a critic that scores all pairs its own way.

    Raises:
        ValueError: if it is not (rows of x, rows of z).
    """
    expected = (x.shape[0], z.shape[0])
    if scores.shape != expected:
        raise ValueError(
            f"Expected critic.all_pairs(x, z) of shape {expected}; got {tuple(scores.shape)}"
        )


def check_rows(x: Array, z: Array) -> None:
    """Check that there is a code for each datum.

    Raises:
        ValueError: if x and z differ in rows.
    """
    if x.shape[0] != z.shape[0]:
        raise ValueError(
            f"Expected x and z with the same number of rows; got {x.shape[0]} and {z.shape[0]}: "
            "score_all_pairs scores every x with every z"
        )


def check_encoded(
    name: str, features: Float[Array, " rows {width}"], rows: int, width: int
) -> Float[Array, " rows {width}"]:
    """What an encoder made of x or z.

    Raises:
        ValueError: if it is not (rows, width).
    """
    if features.shape != (rows, width):
        raise ValueError(
            f"Expected {name}_encoder({name}) of shape ({rows}, {width}); got "
            f"{tuple(features.shape)}: {name}_dim is the width of the encoder's output"
        )
    return features


def flattened(
    name: str, values: Shaped[Array, " rows *event"], width: int, like: Float[Array, "*axes"]
) -> Float[Array, " rows {width}"]:
    """Rows of x or z with their event dims flattened, in the dtype of another array.

    Raises:
        ValueError: if a row has not `width` features.
    """
    features = values.reshape(values.shape[0], math.prod(values.shape[1:]))
    if features.shape[1] != width:
        raise ValueError(
            f"Expected {name} with {width} features in each row; got {features.shape[1]} in "
            f"{tuple(values.shape)}: pass {name}_dim={features.shape[1]}, or an encoder"
        )
    return cast(features, like.dtype)
