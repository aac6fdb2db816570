# SPDX-License-Identifier: MIT
r"""Critic scores of joint rows, each datum with its own code, and of marginal ones, with others'.

Codes z come as (particles, values, data, features), the values being those of discrete latents that
are enumerated, data x as (particles, data, \*event). A negative is a code of another datum of the
same particle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from pyro_infovae.critics import check_scores, is_projecting, score_all_pairs
from pyro_infovae.mutual_information import Bound, MutualInformationEstimate

LARGE = 2**31 - 1
"""So large that its remainders by a number of data are all but equally likely."""


class PairScores(NamedTuple):
    """Scores of every datum with its own codes, and with the codes ``others`` of its particle."""

    joint: Float[Tensor, "particles values data"]
    marginal: Float[Tensor, "particles data negatives"]
    others: Int[Tensor, "particles data negatives"]


Scorer: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor | None], PairScores]


def score_shifted(
    critic: nn.Module,
    x: Shaped[Tensor, " particles data *event"],
    z: Float[Tensor, "particles values data features"],
    weights: Float[Tensor, "particles values data"] | None = None,
) -> PairScores:
    """Scores against the codes rolled by a random offset, so that no datum meets its own.

    Data of weight 0 are left out of the roll.
    """
    particles, values, batch_size = z.shape[:3]
    data = torch.arange(batch_size, device=z.device)
    if weights is None:
        offset = torch.randint(1, batch_size, (particles, 1), device=z.device)
        shifted = (data + offset) % batch_size
    else:
        shifted = _rolled_among_counted(weights.sum(1) > 0)
    value = batch_size * torch.arange(values, device=z.device)
    others = shifted[..., None] + value
    own = (data[:, None] + value).expand_as(others)
    joint, marginal = _score_choices(critic, x, z.flatten(1, 2), torch.stack([own, others]))
    return PairScores(joint.transpose(1, 2), marginal, others)


def score_all(
    critic: nn.Module,
    x: Shaped[Tensor, " particles data *event"],
    z: Float[Tensor, "particles values data features"],
    weights: Float[Tensor, "particles values data"] | None = None,
) -> PairScores:
    """Scores against the codes of all other data, whatever their weights."""
    particles, values, batch_size = z.shape[:3]
    pairs = torch.stack(
        [score_all_pairs(critic, *block) for block in zip(x, z.flatten(1, 2), strict=True)]
    )
    data = torch.arange(batch_size, device=z.device)
    absent = data[:-1] + (data[:-1] >= data[:, None]).long()
    columns = absent[:, None] + batch_size * torch.arange(values, device=z.device)[:, None]
    others = columns.flatten(1).expand(particles, -1, -1)
    own = pairs.view(particles, batch_size, values, batch_size).diagonal(dim1=1, dim2=3)
    return PairScores(own, pairs.gather(2, others), others)


SCORERS: Mapping[str, Scorer] = {"shift": score_shifted, "all": score_all}
"""Ways to choose the negatives, by name."""


def by_particle(
    rows: Shaped[Tensor, " rows *event"], *, runs: int, particles: int, batch_size: int
) -> Shaped[Tensor, " particles values data *event"]:
    """Rows of several runs, each of some particles, by particle, enumerated value and datum."""
    layout = (runs, -1, particles // runs, batch_size)
    return rows.reshape(*layout, *rows.shape[1:]).transpose(1, 2).flatten(0, 1)


def bound_information(
    bound: Bound,
    scores: PairScores,
    weights: Float[Tensor, "particles values data"] | None = None,
) -> MutualInformationEstimate:
    """The bound on the scores of all particles, pooled.

    Args:
        bound: one of :mod:`pyro_infovae.mutual_information`.
        scores: the scores of joint and marginal rows.
        weights: how much every code counts, as a datum's own and as a negative: 0 where it is
            masked, and the probability of its enumerated value.
    """
    joint, marginal, others = scores
    values = joint.shape[1]
    if weights is None:
        return bound(joint.flatten(), _per_row(marginal, values))
    datum = weights.sum(1)[..., None]
    negative = weights.flatten(1).gather(1, others.flatten(1)).view(others.shape)
    return bound(
        joint.flatten(),
        _per_row(marginal, values),
        joint_weights=weights.flatten(),
        marginal_weights=_per_row(datum * negative, values),
    )


def _rolled_among_counted(counts: Bool[Tensor, "particles data"]) -> Int[Tensor, "particles data"]:
    """For each datum that counts another that does, by one roll of a particle's."""
    order = torch.argsort(counts.logical_not(), dim=1, stable=True)  # those that count first
    rank = torch.argsort(order, dim=1)
    total = counts.sum(1, keepdim=True)
    draw = torch.randint(0, LARGE, (len(counts), 1), device=counts.device)
    offset = 1 + draw % (total - 1).clamp_min(1)
    # A datum alone meets one that does not count, so that nothing does.
    return order.gather(1, (rank + offset) % total.clamp_min(2))


def _per_row(
    marginal: Float[Tensor, "particles data negatives"], values: int
) -> Float[Tensor, "rows negatives"]:
    """A datum's negatives for each of its joint rows."""
    return marginal[:, None].expand(-1, values, -1, -1).flatten(0, 2)


def _score_choices(
    critic: nn.Module,
    x: Shaped[Tensor, " particles data *event"],
    z: Float[Tensor, "particles codes features"],
    choices: Int[Tensor, "sets particles data chosen"],
) -> Sequence[Float[Tensor, "particles data chosen"]]:
    """Scores of every datum with those of its particle's codes that each set names."""
    particles, codes = z.shape[:2]
    first = codes * torch.arange(particles, device=z.device)[:, None, None]
    rows, code_rows = x.flatten(0, 1), z.flatten(0, 1)
    if is_projecting(critic):
        rows, code_rows = critic.project(rows, code_rows)
        chosen = code_rows.index_select(0, (first + choices).flatten())
        scores = critic.score_projected(
            rows.view(*x.shape[:2], 1, -1), chosen.view(*choices.shape, -1)
        )
        return scores.unbind()
    pairs = choices.shape[1:]
    repeated = x[:, :, None].expand(*pairs, *x.shape[2:]).flatten(0, 2)
    return [
        _score(critic, repeated, code_rows.index_select(0, chosen.flatten())).view(pairs)
        for chosen in first + choices
    ]


def _score(critic: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    scores: Tensor = critic(x, z)
    check_scores(scores, len(z))
    return scores
