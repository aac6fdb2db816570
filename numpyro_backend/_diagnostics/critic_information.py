# SPDX-License-Identifier: MIT
"""What the code knows of the data, from a critic trained for the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
from jax import Array
from jax.example_libraries.optimizers import clip_grads
from jaxtyping import Bool, Float, Int, Key, Shaped

from numpyro_backend._arrays.negatives import PairScores, bound_information, score_all
from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._objectives.critic_parameters import CriticParameters, critic_parameters
from numpyro_backend._traces.critic_data import DataSource, critic_rows
from numpyro_backend._traces.fresh_draws import FreshDraws, datum_of_rows, numpy_generator, set_up
from numpyro_backend.critics import ConcatCritic, Critic
from numpyro_backend.mutual_information import Bound, get_bound
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

_CALLER = "mutual_information"


@documented(
    information.MUTUAL_INFORMATION,
    critic=(
        "an untrained critic: one of :mod:`numpyro_backend.critics`, a module of flax.linen,\n"
        "        flax.nnx or equinox, or an object with ``init(rng_key)`` and ``bind(params)``"
    ),
)
def mutual_information(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    critic: Any = None,
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
        >>> x = jax.random.normal(jax.random.key(1), (500,))
        >>> report = mutual_information(key, {}, model, lambda x: guide(0 * x), x, num_steps=50)
        >>> abs(report.estimate) < 0.2  # the code ignores the data
        True
    """
    information.check_training(held_out, num_steps, batch_size, num_samples)
    score_bound = get_bound(bound)
    set_up(rng_key, guide, args, kwargs)
    draws = FreshDraws(_CALLER, model, guide, args, kwargs, sites)
    draw = partial(shared_jit(partial(_draw_rows, draws, data)), params)
    rng = numpy_generator(rng_key)
    split = Split.of(draws.outline(rng_key, params).rows.num_data, held_out, rng)
    seen, unseen = (
        _DataPart(_CALLER, draw, kept, rng) for kept in (~split.is_held_out, split.is_held_out)
    )
    first, _ = seen.draw_kept(), unseen.draw_kept()
    fresh = critic_parameters(_standardised_critic(first) if critic is None else critic)
    start = shared_jit(lambda key: fresh.init(key, lambda: (first.x, first.z)))(rng_key)
    trained = fresh.bind(
        _train(fresh, start, score_bound, seen.batches(batch_size), num_steps, learning_rate)
    )
    scored = _score(trained, unseen.batches(batch_size), num_samples)
    estimate = partial(_estimate, score_bound, scored)
    estimates = shared_jit(lambda scored: jax.lax.map(estimate, split.counted))(scored)
    return MutualInformationReport.of(
        np.asarray(estimates), bound, num_data=len(np.unique(scored.datum[scored.weights > 0]))
    )


class _ScoredRows(NamedTuple):
    """The scores of batches with one another's codes."""

    scores: PairScores
    datum: Int[Array, "batches batch"]
    weights: Float[Array, "batches batch"]


@dataclass(frozen=True)
class _Standardised:
    """An encoder to features in units of their standard deviation."""

    mean: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]

    @classmethod
    def of(cls, values: Shaped[Array, " rows *event"], dtype: Any) -> _Standardised:
        """Take mean and standard deviation from some rows."""
        features = np.asarray(values, dtype).reshape(len(values), -1)
        scale = features.std(0, ddof=1)
        return cls(features.mean(0), np.where(scale > 0, scale, 1).astype(dtype))

    def init(self, rng_key: Key[Array, ""]) -> dict[str, Any]:
        """There are no parameters."""
        return {}

    def apply(
        self, params: Mapping[str, Any], values: Shaped[Array, " rows *event"]
    ) -> Float[Array, "rows features"]:
        """Standardise rows."""
        features = values.reshape(len(values), -1).astype(self.mean.dtype)
        return (features - self.mean) / self.scale


def _standardised_critic(rows: _Rows) -> ConcatCritic:
    x_encoder, z_encoder = (_Standardised.of(part, rows.z.dtype) for part in (rows.x, rows.z))
    widths = len(x_encoder.mean), len(z_encoder.mean)
    return ConcatCritic(*widths, (64, 64), x_encoder=x_encoder, z_encoder=z_encoder)


def _train(
    critic: CriticParameters,
    start: Any,
    bound: Bound,
    batches: Iterator[_Batch],
    num_steps: int,
    learning_rate: float,
) -> Any:
    """The critic's parameters after so many steps."""
    optimiser = numpyro.optim.Adam(learning_rate)

    @shared_jit
    def step(state: Any, batch: _Batch) -> Any:
        def loss(params: Any) -> Float[Array, ""]:
            scores = _score_batch(critic.bind(params), batch)
            return -bound_information(bound, scores, batch.weights[None]).surrogate

        gradient = jax.grad(loss)(optimiser.get_params(state))
        clipped = clip_grads(gradient, MAX_GRADIENT_NORM)  # type: ignore[no-untyped-call]
        return optimiser.update(clipped, state)

    state = optimiser.init(start)
    for batch in with_progress(islice(batches, num_steps), total=num_steps, label="critic"):
        state = step(state, batch)
    return optimiser.get_params(state)


def _score(critic: Critic, batches: Iterator[_Batch], num_samples: int) -> _ScoredRows:
    """The scores of at least so many rows."""
    score = shared_jit(partial(_score_batch, critic))
    scored: list[_ScoredRows] = []
    while num_samples > 0:
        batch = next(batches)
        scored.append(_ScoredRows(score(batch), batch.datum, batch.weights))
        num_samples -= int(np.count_nonzero(batch.weights))
    return jax.tree.map(lambda *parts: np.stack(parts), *scored)


def _score_batch(critic: Critic, batch: _Batch) -> PairScores:
    return score_all(jax.random.key(0), critic, batch.x[None], batch.z[None])


def _estimate(bound: Bound, scored: _ScoredRows, counted: Bool[Array, " data"]) -> Float[Array, ""]:
    """The mean of the bound over batches of rows, of which only some data count."""

    def one(scores: PairScores, weights: Float[Array, " batch"]) -> Float[Array, ""]:
        return bound_information(bound, scores, weights[None]).estimate

    weights = scored.weights * counted[scored.datum]
    sizes = weights.sum(1)
    return (jax.vmap(one)(scored.scores, weights) * sizes).sum() / sizes.sum()


class _Rows(NamedTuple):
    """Data of a run, their codes, which of the data set they are, and whether they count."""

    x: Shaped[Array, " rows *event"]
    z: Float[Array, "rows features"]
    datum: Int[Array, " rows"]
    counts: Bool[Array, " rows"]


class _Batch(NamedTuple):
    """Some rows of a run, filled up with copies of weight 0 to a number that is always the same."""

    x: Shaped[Array, " batch *event"]
    z: Float[Array, "batch features"]
    datum: Int[Array, " batch"]
    weights: Float[Array, " batch"]


def _draw_rows(
    draws: FreshDraws, data: DataSource, params: Mapping[str, Any], rng_key: Key[Array, ""]
) -> _Rows:
    """The rows of one run.

    Args:
        draws: the model and the guide.
        data: what the critic sees.
        params: the values of parameters and mutable sites, by name.
        rng_key: the key to draw with.
    """
    group = draws.draw(rng_key, params).group
    rows = critic_rows(data, group, caller=draws.caller)
    return _Rows(rows.data["x"], rows.values, datum_of_rows(group), rows.dense_weights > 0)


@dataclass(frozen=True)
class _DataPart:
    """A part of the data, to draw codes of.

    Attributes:
        caller: who needs them, for messages.
        draw: a run's rows for a key.
        kept: whether a datum belongs to the part.
        rng: chooses keys and orders, in NumPy, for JAX would compile those of every length.
    """

    caller: str
    draw: Callable[[Key[Array, ""]], _Rows]
    kept: Bool[np.ndarray, " data"]
    rng: np.random.Generator

    def draw_kept(self) -> _Rows:
        """The rows of a run that are of this part, and are not masked: 2 at least.

        Raises:
            ValueError: for fewer in every run.
        """
        rows, index = self._draw()
        return jax.tree.map(lambda part: np.asarray(part)[index], rows)

    def batches(self, batch_size: int) -> Iterator[_Batch]:
        """Rows in random order, drawn afresh when they are used up."""
        while True:
            rows, kept = self._draw()
            size = min(batch_size, len(rows.z))
            order = self.rng.permutation(kept)
            for index in np.array_split(order, math.ceil(len(order) / size)):
                if len(index) > 1:
                    filled = np.pad(index, (0, size - len(index)), mode="edge")
                    yield _take(rows, filled, np.arange(size) < len(index))

    def _draw(self) -> tuple[_Rows, Int[np.ndarray, " kept"]]:
        """The rows of a run, which may draw a minibatch without any, that has 2 at least."""
        for _ in range(MAX_RUNS):
            rows = self.draw(jax.random.key(self.rng.integers(2**32)))
            kept = np.flatnonzero(self.kept[np.asarray(rows.datum)] & np.asarray(rows.counts))
            if len(kept) > 1:
                break
        check_rows(self.caller, len(kept))
        return rows, kept


@jax.jit
def _take(rows: _Rows, index: Int[Array, " batch"], counts: Bool[Array, " batch"]) -> _Batch:
    x, z, datum, _ = (part[index] for part in rows)
    return _Batch(x, z, datum, counts.astype(z.dtype))
