"""Scores of joint and marginal rows: those of the critic, pair by pair, and no row twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_infovae._arrays.negatives import SCORERS
from pyro_infovae.critics import ConcatCritic, SeparableCritic, is_projecting, score_all_pairs

PARTICLES, VALUES, DATA = 3, 2, 5


class Tempered(SeparableCritic):
    """Its own forward, and what it inherits says something else."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return super().forward(x, z) / 7


class Bounded(ConcatCritic):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return super().forward(x, z).tanh()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rows = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("negatives", SCORERS)
@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic, Tempered, Bounded])
def test_scores_are_the_critics_own(family: Any, negatives: str) -> None:
    critic = family(4, 3, hidden=(6,))
    x = torch.randn(PARTICLES, DATA, 2, 2)
    z = torch.randn(PARTICLES, VALUES, DATA, 3, requires_grad=True)
    joint, marginal, others = SCORERS[negatives](critic, x, z)

    def score(particle: int, datum: int, code: Tensor) -> Tensor:
        return critic(x[particle, datum][None], code[None])[0]

    negatives_each = others.shape[-1]
    own, other = torch.empty_like(joint), torch.empty_like(marginal)
    for p in range(PARTICLES):
        codes = z[p].flatten(0, 1)
        for n in range(DATA):
            for v in range(VALUES):
                own[p, v, n] = score(p, n, z[p, v, n])
            for k in range(negatives_each):
                assert others[p, n, k] % DATA != n
                other[p, n, k] = score(p, n, codes[others[p, n, k]])
    torch.testing.assert_close(joint, own)
    torch.testing.assert_close(marginal, other)

    weights = torch.randn_like(joint), torch.randn_like(marginal)
    inputs = [z, *critic.parameters()]
    got, want = (
        torch.autograd.grad(
            sum((w * s).sum() for w, s in zip(weights, scores, strict=True)), inputs
        )
        for scores in ((joint, marginal), (own, other))
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("negatives", SCORERS)
@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic])
def test_encoders_see_each_datum_once(family: Any, negatives: str) -> None:
    encoder = Counting()
    critic = family(3, 3, x_encoder=encoder)
    SCORERS[negatives](critic, torch.randn(1, DATA, 2, 2), torch.randn(1, 1, DATA, 3))
    assert encoder.rows == DATA


def test_a_subclass_with_its_own_way_to_score_all_pairs_keeps_it() -> None:
    class Both(Tempered):
        def all_pairs(self, x: Tensor, z: Tensor) -> Tensor:
            return super().all_pairs(x, z) / 7

    critic = Both(4, 3)
    assert not is_projecting(critic)
    x, z = torch.randn(5, 4), torch.randn(6, 3)
    torch.testing.assert_close(score_all_pairs(critic, x, z), critic.all_pairs(x, z))
