# SPDX-License-Identifier: MIT
"""What the code knows of the data: from the guide's own densities, and from a critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

NUM_GROUPS = 20
"""The parts of the data that the jackknife leaves out, one at a time."""

MAX_GRADIENT_NORM = 1.0
"""The norm that a critic's gradient is clipped to."""

MAX_RUNS = 100
"""Most runs that may in sequence draw too few rows of a part of the data."""


@dataclass(frozen=True)
class AggregatedPosterior:
    """The divergence of guide and prior, taken apart; all in nats per datum.

    Attributes:
        mutual_information: I(x; z), between 0 and log ``num_data``.
        mutual_information_error: its standard error, over the draws of z.
        kl: E KL(q(z | x) ‖ p(z)), the sum of the two others.
        kl_error: its standard error.
        marginal_kl: KL(q(z) ‖ p(z)).
        marginal_kl_error: its standard error.
        num_data: the data that count.
    """

    mutual_information: float
    mutual_information_error: float
    kl: float
    kl_error: float
    marginal_kl: float
    marginal_kl_error: float
    num_data: int

    @classmethod
    def of(
        cls,
        posterior: Float[np.ndarray, "draws data"],
        prior: Float[np.ndarray, "draws data"],
        aggregated: Float[np.ndarray, "draws data"],
    ) -> AggregatedPosterior:
        """The averages of log q(z | x), log p(z) and log q(z) against one another."""
        return cls(
            *_mean_and_error(posterior - aggregated),
            *_mean_and_error(posterior - prior),
            *_mean_and_error(aggregated - prior),
            num_data=posterior.shape[1],
        )


AGGREGATED_POSTERIOR = r"""
.. math::
    E_x \, \mathrm{KL}(q(z \mid x) \| p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \| p(z)),
    \qquad q(z) = \frac1N \sum_{j=1}^N q(z \mid x_j)

q(z) is evaluated in full, all N data for each draw of z, so nothing but the draws is random:
the estimates are unbiased. They are about these N data alone: a code that tells all of them
apart has I = log N nats, however much more it could tell of further data. A plate with a
``subsample_size`` is run over all its minibatches.

Args:
    num_samples: draws of z per datum, at least 2.
    sites: the latents, by name, in one stack of plates; their joint distribution counts. By
        default every reparameterised latent in plates of data.
    chunk_size: codes to be scored at once under the conditionals of $scored_data; by default so
        many that no more than 2²³ numbers are held.

Returns:
    The three terms and their standard errors.

Raises:
    ValueError: for a point mass in the guide, a latent of the model that the guide does not
        draw, a conditional that changes from run to run (it depends on other latents, or on
        dropout), or more than one subsampled plate$one_code.

References:
    Hoffman, Johnson, *ELBO surgery: yet another way to carve up the variational evidence lower
    bound*, NIPS 2016 workshop on approximate Bayesian inference.
"""


def check_chunks(num_samples: int, chunk_size: int | None) -> None:
    """Refuse numbers out of range."""
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")


def _mean_and_error(terms: Float[np.ndarray, "draws data"]) -> tuple[float, float]:
    """The mean, and its standard error over the draws."""
    variance = terms.var(0, ddof=1).mean() / terms.size
    return float(terms.mean()), float(np.sqrt(variance))


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

    @classmethod
    def of(
        cls,
        estimates: Float[np.ndarray, " groups_and_1"],
        bound: str | Callable[..., Any],
        num_data: int,
    ) -> MutualInformationReport:
        """The estimate, with a standard error by a jackknife.

        Args:
            estimates: that from all data, and those that leave out one group of data each.
            bound: the bound, or its name.
            num_data: the data that the critic was not trained on.
        """
        first, *left_out = estimates
        variance = (len(left_out) - 1) * np.var(left_out)
        name = bound if isinstance(bound, str) else getattr(bound, "__name__", repr(bound))
        return cls(float(first), float(np.sqrt(variance)), name, num_data)


MUTUAL_INFORMATION = r"""
.. math:: I(x; z) = E \log \frac{q(z \mid x)}{q(z)}

Model and guide stay as they are. A fresh critic is trained on codes of one part of the data,
and the bound is evaluated on fresh codes of the other part, so that the critic cannot pass off
what it has memorised: with ``"nwj"`` the estimate is, in expectation, a lower bound on the
information about data like these. How tight it is depends on the critic: take more steps, a
larger network, more data. Beyond a few nats only :func:`aggregated_posterior` is any good.

Args:
    critic: $critic; by default a :class:`~$package.critics.ConcatCritic` of two layers of 64
        units, on standardised data and codes.
    bound: a bound of :mod:`$package.mutual_information`, by name, or a function like them.
    num_steps: steps of Adam.
    learning_rate: its learning rate.
    batch_size: most rows to be compared with one another, in training and after it.
    num_samples: rows to evaluate on, at least: codes are drawn afresh until there are enough.
    held_out: the fraction of the data to evaluate on.
    data: the data the critic sees: an observed site, or a function of the model's arguments,
        as in :class:`~$package.TraceInfoMax_ELBO`.
    sites: the latents, by name, in one stack of plates; their joint distribution counts. By
        default every reparameterised latent in plates of data.

Returns:
    The estimate and its standard error. A progress bar is shown where tqdm is installed.

Raises:
    ValueError: for a fraction outside (0, 1), fewer than 2 rows in a part of the data, or
        what :class:`~$package.TraceInfoMax_ELBO` refuses.

References:
    Poole et al., *On Variational Bounds of Mutual Information*, arXiv 1905.06922.
"""


def check_training(held_out: float, num_steps: int, batch_size: int, num_samples: int) -> None:
    """Refuse numbers out of range."""
    if not 0 < held_out < 1:
        raise ValueError(f"Expected held_out between 0 and 1; got {held_out}")
    if num_steps < 0 or batch_size < 2 or num_samples < 2:
        raise ValueError(
            "Expected num_steps >= 0, batch_size >= 2 and num_samples >= 2; got "
            f"num_steps={num_steps}, batch_size={batch_size}, num_samples={num_samples}"
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Data to train a critic on, and data to evaluate it on.

    Attributes:
        is_held_out: whether a datum is evaluated on.
        counted: rows of data that count: all, and then all but one group each.
    """

    is_held_out: Bool[np.ndarray, " data"]
    counted: Bool[np.ndarray, "groups_and_1 data"]

    @classmethod
    def of(cls, num_data: int, held_out: float, rng: np.random.Generator) -> Split:
        """A random split, with so large a fraction held out, and random groups."""
        order = rng.permutation(num_data)
        group: Int[np.ndarray, " data"] = np.argsort(order) % NUM_GROUPS
        left_out = group != np.unique(group)[:, None]
        is_held_out = np.isin(np.arange(num_data), order[: round(held_out * num_data)])
        return cls(is_held_out, np.concatenate([np.ones((1, num_data), bool), left_out]))


def check_rows(caller: str, num_rows: int) -> None:
    """Refuse a part of the data of which no run has drawn 2 rows."""
    if num_rows < 2:
        raise ValueError(
            f"{caller} takes at least 2 rows of each run to train the critic on, and 2 to "
            f"evaluate it on; got {num_rows}: use more data, or a larger minibatch"
        )
