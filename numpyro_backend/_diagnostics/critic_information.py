# SPDX-License-Identifier: MIT
"""What the code knows of the data, from a critic trained for the question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._diagnostics.critic_batches import CodedBatch, CodedRows, DataPart, draw_rows
from numpyro_backend._objectives.critic_parameters import CriticParameters, critic_parameters
from numpyro_backend._traces.critic_data import DataSource
from numpyro_backend._traces.fresh_draws import FreshDraws, numpy_generator, set_up
from numpyro_backend._traces.runs import Program
from numpyro_backend.critics import ConcatCritic, Critic
from numpyro_backend.mutual_information import Bound, get_bound
from numpyro_backend.negatives import PairScores, bound_information, score_all
from pyro_infovae._core.progress import with_progress

_ASKER = "mutual_information"
_GROUPS = 20
_MAX_GRADIENT_NORM = 1.0


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
    r"""Estimate what the code knows of the data, by a critic of its own.

    .. math:: I(x; z) = E \log \frac{q(z \mid x)}{q(z)}

    A fresh critic is trained on codes of one part of the data, and the bound is evaluated on fresh
    codes of the other part, so that the critic cannot pass off what it has memorised: with
    ``"nwj"`` the estimate is, in expectation, a lower bound on the information about data like
    these. How tight it is depends on the critic: take more steps, a larger network, more data.
    Beyond a few nats only :func:`aggregated_posterior` is any good.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        critic: an untrained critic: one of :mod:`numpyro_backend.critics`, a module of flax.linen,
            flax.nnx or equinox, or an object with ``init(rng_key)`` and ``bind(params)``; by
            default a :class:`~numpyro_backend.critics.ConcatCritic` of two layers of 64 units, on
            standardised data and codes.
        bound: a bound of :mod:`numpyro_backend.mutual_information`, by name, or a function like
            them.
        num_steps: steps of Adam.
        learning_rate: its learning rate.
        batch_size: most rows to be compared with one another, in training and after it.
        num_samples: rows to evaluate on, at least: codes are drawn afresh until there are enough.
        held_out: the fraction of the data to evaluate on.
        data: the data the critic sees: an observed site, or a function of the model's arguments,
            as in :class:`~numpyro_backend.TraceInfoMax_ELBO`.
        sites: the latents, by name, in one stack of plates; their joint distribution counts. By
            default every reparameterised latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The estimate and its standard error. A progress bar is shown where tqdm is installed.

    Raises:
        ValueError: for a fraction outside (0, 1), fewer than 2 rows in a part of the data, or
            what :class:`~numpyro_backend.TraceInfoMax_ELBO` refuses.

    References:
        Poole et al., *On Variational Bounds of Mutual Information*, arXiv 1905.06922.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> x = jax.random.normal(jax.random.key(0), (500,))
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> report = mutual_information(jax.random.key(1), {}, model, guide, x, num_steps=50)
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
    set_up(rng_key, guide, args, kwargs)
    draws = FreshDraws(_ASKER, model, guide, args, kwargs, sites)
    draw = partial(shared_jit(partial(draw_rows, draws, data)), params)
    rng = numpy_generator(rng_key)
    order = rng.permutation(draws.outline(rng_key, params).rows.total)
    is_held_out = np.isin(np.arange(len(order)), order[: round(held_out * len(order))])
    seen, unseen = (DataPart(_ASKER, draw, kept, rng) for kept in (~is_held_out, is_held_out))
    first, _ = seen.draw_kept(), unseen.draw_kept()
    fresh = critic_parameters(_standardised_critic(first) if critic is None else critic)
    start = shared_jit(lambda key: fresh.init(key, lambda: (first.x, first.z)))(rng_key)
    trained = fresh.bind(
        _train(fresh, start, score_bound, seen.batches(batch_size), num_steps, learning_rate)
    )
    scored = _score(trained, unseen.batches(batch_size), num_samples)
    estimate, error = _estimate_and_error(score_bound, scored, group=np.argsort(order) % _GROUPS)
    return MutualInformationReport(
        estimate=estimate,
        standard_error=error,
        bound=bound if isinstance(bound, str) else getattr(bound, "__name__", repr(bound)),
        num_data=len(np.unique(scored.datum[scored.weights > 0])),
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


def _standardised_critic(rows: CodedRows) -> ConcatCritic:
    x_encoder, z_encoder = (_Standardised.of(part, rows.z.dtype) for part in (rows.x, rows.z))
    widths = len(x_encoder.mean), len(z_encoder.mean)
    return ConcatCritic(*widths, (64, 64), x_encoder=x_encoder, z_encoder=z_encoder)


def _train(
    critic: CriticParameters,
    start: Any,
    bound: Bound,
    batches: Iterator[CodedBatch],
    num_steps: int,
    learning_rate: float,
) -> Any:
    """The critic's parameters after so many steps."""
    optimiser = numpyro.optim.Adam(learning_rate)

    @shared_jit
    def step(state: Any, batch: CodedBatch) -> Any:
        def loss(params: Any) -> Float[Array, ""]:
            scores = _score_batch(critic.bind(params), batch)
            return -bound_information(bound, scores, batch.weights[None]).surrogate

        gradient = jax.grad(loss)(optimiser.get_params(state))
        clipped = clip_grads(gradient, _MAX_GRADIENT_NORM)  # type: ignore[no-untyped-call]
        return optimiser.update(clipped, state)

    state = optimiser.init(start)
    for batch in with_progress(islice(batches, num_steps), total=num_steps, label="critic"):
        state = step(state, batch)
    return optimiser.get_params(state)


def _score(critic: Critic, batches: Iterator[CodedBatch], num_samples: int) -> _ScoredRows:
    """The scores of at least so many rows."""
    score = shared_jit(partial(_score_batch, critic))
    scored: list[_ScoredRows] = []
    while num_samples > 0:
        batch = next(batches)
        scored.append(_ScoredRows(score(batch), batch.datum, batch.weights))
        num_samples -= int(np.count_nonzero(batch.weights))
    return jax.tree.map(lambda *parts: np.stack(parts), *scored)


def _score_batch(critic: Critic, batch: CodedBatch) -> PairScores:
    return score_all(jax.random.key(0), critic, batch.x[None], batch.z[None])


def _estimate_and_error(
    bound: Bound, scored: _ScoredRows, group: Int[np.ndarray, " data"]
) -> tuple[float, float]:
    """The bound, and its standard error by a jackknife that leaves out one group of data."""
    groups = np.unique(group)
    counted = np.concatenate([np.ones((1, len(group)), bool), group != groups[:, None]])
    estimate = shared_jit(lambda scored: jax.lax.map(partial(_estimate, bound, scored), counted))
    first, *left_out = np.asarray(estimate(scored))
    variance = (len(groups) - 1) * np.var(left_out)
    return float(first), float(np.sqrt(variance))


def _estimate(bound: Bound, scored: _ScoredRows, counted: Bool[Array, " data"]) -> Float[Array, ""]:
    """The mean of the bound over batches of rows, of which only some data count."""

    def one(scores: PairScores, weights: Float[Array, " batch"]) -> Float[Array, ""]:
        return bound_information(bound, scores, weights[None]).estimate

    weights = scored.weights * counted[scored.datum]
    sizes = weights.sum(1)
    return (jax.vmap(one)(scored.scores, weights) * sizes).sum() / sizes.sum()
