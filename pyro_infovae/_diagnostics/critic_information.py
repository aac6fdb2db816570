# SPDX-License-Identifier: MIT
"""What the code knows of the data, from a critic trained for the question."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from pyro_infovae._arrays.negatives import PairScores, bound_information, score_all
from pyro_infovae._core import information
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.information import (
    MAX_GRADIENT_NORM,
    MAX_RUNS,
    MutualInformationReport,
    Split,
    check_rows,
)
from pyro_infovae._core.programs import Program
from pyro_infovae._core.progress import with_progress
from pyro_infovae._diagnostics.data_runs import numpy_generator
from pyro_infovae._traces.critic_data import DataSource, critic_rows
from pyro_infovae._traces.fresh_draws import FreshDraws, datum_of_rows, parameters_untouched
from pyro_infovae.critics import ConcatCritic
from pyro_infovae.mutual_information import Bound, get_bound

_CALLER = "mutual_information"


@documented(
    information.MUTUAL_INFORMATION, critic="an untrained critic, of which a copy is trained"
)
def mutual_information(
    model: Program,
    guide: Program,
    *args: Any,
    critic: nn.Module | None = None,
    bound: str | Bound = "nwj",
    num_steps: int = 1000,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    num_samples: int = 5000,
    held_out: float = 0.5,
    data: DataSource = None,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> MutualInformationReport:
    """Estimate what the code knows of the data, by a critic of its own.

    Example:
        $programs
        >>> x = torch.randn(500)
        >>> report = mutual_information(model, lambda x: guide(0 * x), x, num_steps=50)
        >>> abs(report.estimate) < 0.2  # the code ignores the data
        True
    """
    information.check_training(held_out, num_steps, batch_size, num_samples)
    score_bound = get_bound(bound)
    with parameters_untouched():
        draws = FreshDraws(_CALLER, model, guide, args, kwargs, sites)
        split = Split.of(draws.draw().posterior.num_data, held_out, numpy_generator())
        seen, unseen = (
            _Part(draws, data, torch.as_tensor(kept))
            for kept in (~split.is_held_out, split.is_held_out)
        )
        first, _ = seen.draw(), unseen.draw()
        fresh = _standardised_critic(first) if critic is None else copy.deepcopy(critic)
        _train(fresh, score_bound, seen.batches(batch_size), num_steps, learning_rate)
        scored = _score(fresh, unseen.batches(batch_size), num_samples)
        estimates = [float(_estimate(score_bound, scored, kept)) for kept in split.counted]
    num_data = len(torch.cat([block.datum for block in scored]).unique())
    return MutualInformationReport.of(np.array(estimates), bound, num_data)


class _Rows(NamedTuple):
    """Data, their codes, and which of the data set they are."""

    x: Shaped[Tensor, " rows *event"]
    z: Float[Tensor, "rows features"]
    datum: Int[Tensor, " rows"]

    def take(self, index: Tensor) -> _Rows:
        return _Rows(*(part[index] for part in self))


class _ScoredRows(NamedTuple):
    """The scores of some rows with one another's codes."""

    scores: PairScores
    datum: Int[Tensor, " rows"]


@dataclass(frozen=True)
class _Part:
    """A part of the data, to draw codes of.

    Attributes:
        draws: the model and the guide.
        data: what the critic sees.
        kept: whether a datum belongs to the part.
    """

    draws: FreshDraws
    data: DataSource
    kept: Bool[Tensor, " data"]

    def draw(self) -> _Rows:
        """The rows of a run, which may draw a minibatch without any, that has 2 at least."""
        for _ in range(MAX_RUNS):
            rows = self._draw()
            if len(rows.z) > 1:
                break
        check_rows(_CALLER, len(rows.z))
        return rows

    def _draw(self) -> _Rows:
        """One run's rows of this part that are not masked."""
        group = self.draws.draw()
        rows = critic_rows(self.data, group, caller=_CALLER)
        drawn = _Rows(rows.data["x"], rows.values, datum_of_rows(group))
        return drawn.take(self.kept.to(drawn.datum.device)[drawn.datum] & (rows.dense_weights > 0))

    def batches(self, batch_size: int) -> Iterator[_Rows]:
        """Rows in random order, drawn afresh when they are used up."""
        while True:
            rows = self.draw()
            order = torch.randperm(len(rows.z), device=rows.z.device)
            for index in order.tensor_split(math.ceil(len(order) / batch_size)):
                if len(index) > 1:
                    yield rows.take(index)


class _Standardised(nn.Module):
    """Features in units of their standard deviation.

    Args:
        values: what to take mean and standard deviation from.
        dtype: the dtype of the features.
    """

    def __init__(self, values: Shaped[Tensor, " rows *event"], dtype: torch.dtype) -> None:
        super().__init__()
        features = values.flatten(1).to(dtype) if values.dim() > 1 else values[:, None].to(dtype)
        scale = features.std(0)
        self.mean = features.mean(0)
        self.scale = torch.where(scale > 0, scale, 1.0)

    def forward(self, values: Shaped[Tensor, " rows *event"]) -> Float[Tensor, "rows features"]:
        return (values.reshape(len(values), -1).to(self.mean) - self.mean) / self.scale


def _standardised_critic(rows: _Rows) -> nn.Module:
    x, z = (_Standardised(part, rows.z.dtype) for part in (rows.x, rows.z))
    critic = ConcatCritic(len(x.mean), len(z.mean), (64, 64), x_encoder=x, z_encoder=z)
    return critic.to(rows.z)


def _train(
    critic: nn.Module,
    bound: Bound,
    batches: Iterator[_Rows],
    num_steps: int,
    learning_rate: float,
) -> None:
    optimiser = torch.optim.Adam(critic.parameters(), lr=learning_rate)
    critic.train()
    for rows in with_progress(islice(batches, num_steps), total=num_steps, label="critic"):
        optimiser.zero_grad()
        with torch.enable_grad():
            (-bound_information(bound, _score_block(critic, rows)).surrogate).backward()
        nn.utils.clip_grad_norm_(critic.parameters(), MAX_GRADIENT_NORM)
        optimiser.step()


def _score(critic: nn.Module, batches: Iterator[_Rows], num_samples: int) -> list[_ScoredRows]:
    """The scores of at least so many rows."""
    critic.eval()
    scored: list[_ScoredRows] = []
    while num_samples > 0:
        rows = next(batches)
        scored.append(_ScoredRows(_score_block(critic, rows), rows.datum))
        num_samples -= len(rows.z)
    return scored


def _score_block(critic: nn.Module, rows: _Rows) -> PairScores:
    return score_all(critic, rows.x[None], rows.z[None, None])


def _estimate(
    bound: Bound, scored: Sequence[_ScoredRows], counted: Bool[np.ndarray, " data"]
) -> Float[Tensor, ""]:
    """The mean of the bound over blocks of rows, of which only some data count."""
    estimates, sizes = [], []
    for scores, datum in scored:
        weights = torch.as_tensor(counted).to(datum.device)[datum].to(scores.joint)
        estimates.append(bound_information(bound, scores, weights[None, None]).estimate)
        sizes.append(weights.sum())
    return (torch.stack(estimates) * torch.stack(sizes)).sum() / torch.stack(sizes).sum()
