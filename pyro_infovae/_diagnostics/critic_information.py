# SPDX-License-Identifier: MIT
"""What the code knows of the data, from a critic trained for the question."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from pyro_infovae._core.progress import with_progress
from pyro_infovae._traces.critic_data import DataSource, critic_data
from pyro_infovae._traces.fresh_draws import FreshDraws, datum_of_rows, parameters_untouched
from pyro_infovae._traces.runs import Program
from pyro_infovae.critics import ConcatCritic
from pyro_infovae.mutual_information import Bound, get_bound
from pyro_infovae.negatives import PairScores, bound_information, score_all

_ASKER = "mutual_information"
_GROUPS = 20
_MAX_GRADIENT_NORM = 1.0
_MAX_RUNS = 100


@dataclass(frozen=True)
class MutualInformationReport:
    """An estimate of I(x; z) in nats.

    Attributes:
        estimate: the bound on data that the critic was not trained on.
        standard_error: its standard error over these data and the draws of their codes; how far
            the critic is from the best one is not in it.
        bound: the name of the bound.
        num_data: the data that the critic was not trained on.
    """

    estimate: float
    standard_error: float
    bound: str
    num_data: int


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
    r"""Estimate what the code knows of the data, by a critic of its own.

    .. math:: I(x; z) = E \log \frac{q(z \mid x)}{q(z)}

    Model and guide stay as they are. A fresh critic is trained on codes of one part of the data,
    and the bound is evaluated on fresh codes of the other part, so that the critic cannot pass off
    what it has memorised: with ``"nwj"`` the estimate is, in expectation, a lower bound on the
    information about data like these. How tight it is depends on the critic: take more steps, a
    larger network, more data. Beyond a few nats only :func:`aggregated_posterior` is any good.

    Args:
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        critic: an untrained critic, of which a copy is trained; by default a
            :class:`~pyro_infovae.critics.ConcatCritic` of two layers of 64 units, on standardised
            data and codes.
        bound: a bound of :mod:`pyro_infovae.mutual_information`, by name, or a function like them.
        num_steps: steps of Adam.
        learning_rate: its learning rate.
        batch_size: most rows to be compared with one another, in training and after it.
        num_samples: rows to evaluate on, at least: codes are drawn afresh until there are enough.
        held_out: the fraction of the data to evaluate on.
        data: the data the critic sees: an observed site, or a function of the model's arguments,
            as in :class:`~pyro_infovae.TraceInfoMax_ELBO`.
        sites: the latents, by name, in one stack of plates; their joint distribution counts. By
            default every reparameterised latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The estimate and its standard error. A progress bar is shown where tqdm is installed.

    Raises:
        ValueError: for a fraction outside (0, 1), fewer than 2 rows in a part of the data, or
            what :class:`~pyro_infovae.TraceInfoMax_ELBO` refuses.

    References:
        Poole et al., *On Variational Bounds of Mutual Information*, arXiv 1905.06922.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = torch.randn(500)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
        >>> report = mutual_information(model, guide, x, num_steps=50)
        >>> abs(report.estimate) < 0.2  # the code ignores the data
        True
    """
    if not 0 < held_out < 1:
        raise ValueError(f"Expected held_out between 0 and 1; got {held_out}")
    if num_steps < 0 or batch_size < 2 or num_samples < 2:
        raise ValueError(
            "Expected num_steps >= 0, batch_size >= 2 and num_samples >= 2; got "
            f"num_steps={num_steps}, batch_size={batch_size}, num_samples={num_samples}"
        )
    score_bound = get_bound(bound)
    with parameters_untouched():
        draws = FreshDraws(_ASKER, model, guide, args, kwargs, sites)
        total = draws.draw().posterior.total
        order = torch.randperm(total)
        is_held_out = torch.zeros(total, dtype=torch.bool)
        is_held_out[order[: round(held_out * total)]] = True
        seen, unseen = (_Part(draws, data, kept) for kept in (~is_held_out, is_held_out))
        first, _ = seen.draw(), unseen.draw()
        fresh = _standardised_critic(first) if critic is None else copy.deepcopy(critic)
        _train(fresh, score_bound, seen.batches(batch_size), num_steps, learning_rate)
        scored = _score(fresh, unseen.batches(batch_size), num_samples)
    estimate, error = _estimate_and_error(score_bound, scored, group=order.argsort() % _GROUPS)
    return MutualInformationReport(
        estimate=estimate,
        standard_error=error,
        bound=bound if isinstance(bound, str) else getattr(bound, "__name__", repr(bound)),
        num_data=len(torch.cat([block.datum for block in scored]).unique()),
    )


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
        for _ in range(_MAX_RUNS):
            rows = self._draw()
            if len(rows.z) > 1:
                return rows
        raise ValueError(
            f"{_ASKER} takes at least 2 rows of each run to train the critic on, and 2 to "
            f"evaluate it on; got {len(rows.z)}: use more data, or a larger minibatch"
        )

    def _draw(self) -> _Rows:
        """One run's rows of this part that are not masked."""
        group = self.draws.draw()
        rows = group.posterior
        x = critic_data(self.data, group, len(rows.values), asker=_ASKER)
        drawn = _Rows(x, rows.values, datum_of_rows(group))
        kept = self.kept.to(drawn.datum.device)[drawn.datum]
        if rows.weights is not None:
            kept = kept & (rows.weights > 0)
        return drawn.take(kept)

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
        nn.utils.clip_grad_norm_(critic.parameters(), _MAX_GRADIENT_NORM)
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


def _estimate_and_error(
    bound: Bound, scored: Sequence[_ScoredRows], group: Int[Tensor, " data"]
) -> tuple[float, float]:
    """The bound, and its standard error by a jackknife that leaves out one group of data."""
    estimate = _estimate(bound, scored, torch.ones_like(group, dtype=torch.bool))
    groups = group.unique()
    left_out = torch.stack([_estimate(bound, scored, group != g) for g in groups])
    variance = (len(groups) - 1) * left_out.var(correction=0)
    return float(estimate), float(variance.sqrt())


def _estimate(
    bound: Bound, scored: Sequence[_ScoredRows], counted: Bool[Tensor, " data"]
) -> Float[Tensor, ""]:
    """The mean of the bound over blocks of rows, of which only some data count."""
    estimates, sizes = [], []
    for scores, datum in scored:
        weights = counted.to(datum.device)[datum].to(scores.joint)
        estimates.append(bound_information(bound, scores, weights[None, None]).estimate)
        sizes.append(weights.sum())
    return (torch.stack(estimates) * torch.stack(sizes)).sum() / torch.stack(sizes).sum()
