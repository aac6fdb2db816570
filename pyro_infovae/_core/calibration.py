# SPDX-License-Identifier: MIT
"""Ranks of latents among a guide's draws, and whether they are uniform: a chi-square test."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, Shaped

A = TypeVar("A", bound=Any)

MOST_BINS = 21
FEWEST_PER_BIN = 5


@dataclass(frozen=True, eq=False)
class Calibration(Generic[A]):
    """Ranks of latents among the guide's draws, uniform for an exact posterior.

    For a plot of dimension ``d`` with simultaneous 94% bands in ArviZ::

        uniform = scipy.stats.randint(0, calibration.num_samples + 1)
        arviz.plot_ecdf(
            numpy.asarray(calibration.ranks[:, d]),
            eval_points=numpy.arange(calibration.num_samples + 1),
            cdf=uniform.cdf,
            rvs=uniform.rvs,
            confidence_bands=True,
        )

    A curve below the diagonal on the left and above it on the right is that of a guide that is too
    wide, the other way round of one that is too narrow.

    Attributes:
        ranks: how many of the guide's draws are below the latent that the data were drawn from;
            a row per datum and simulation.
        num_samples: the draws, which is the largest rank.
        dimensions: the name of each dimension: its site's, and a number where there are several.
    """

    ranks: Int[A, "ranks dims"]
    num_samples: int
    dimensions: tuple[str, ...]

    @property
    def p_values(self) -> tuple[float, ...]:
        """For each dimension, how often ranks as uneven are met where the guide is exact.

        By a chi-square test that takes the rows to be independent. Latents outside their plates
        make them dependent, and the p-values too small.
        """
        columns = np.array(self.ranks.tolist()).T
        return tuple(chi_square_p_value(ranks, self.num_samples + 1) for ranks in columns)


SIMULATION_BASED_CALIBRATION = r"""
.. math::
    (z, x) \sim p(z) \, p(x \mid z), \qquad z_1, \dots, z_L \sim q(z \mid x), \qquad
    r_u = \#\{l : z_{l, u} < z_u\}

Where q(z | x) is the posterior, every rank 0, ..., L is equally probable. A guide that is too
narrow has too many of the lowest and the highest, one that is too wide too many in the middle,
one that is off to a side too many of the other. The data are the model's, not the user's: it
is the guide that is tested. A guide that ignores the data and draws from the prior passes: see
:func:`~$package.diagnostics.active_units`.

Args:
    model: the model. What it observes is drawn instead, in plates of the same sizes.
    guide: an amortised guide, a function of the data.
    num_simulations: data sets to draw; each datum of each has ranks.
    num_samples: the draws L from the guide for each datum.
    data_args: a function of the data drawn, a dictionary by site name, to the arguments
        ``(args, kwargs)`` of model and guide$rebuilt. By default each $array among the arguments
        that equals what a site observes is replaced; of a plate with a ``subsample_size``, the
        rows of the minibatch.

Returns:
    The ranks, and their p-values. A progress bar is shown where tqdm is installed.

Raises:
    ValueError: for a number out of range, a model that observes nothing or what is none of the
        arguments, latents that cannot be selected, or codes that are not finite.

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman, *Validating Bayesian Inference Algorithms with
    Simulation-Based Calibration*, arXiv 1804.06788.
"""


def check_calibration(num_simulations: int, num_samples: int) -> None:
    """Refuse numbers out of range."""
    if num_simulations < 1 or num_samples < 2:
        raise ValueError(
            f"Expected num_simulations >= 1 and num_samples >= 2; got "
            f"num_simulations={num_simulations}, num_samples={num_samples}"
        )


def check_simulation(caller: str, factors: Iterable[str], observed: Collection[str]) -> None:
    """Refuse a model that no data can be drawn from.

    Args:
        caller: who draws them, for messages.
        factors: the names of its factors.
        observed: the names of the sites that it observes.
    """
    for name in factors:
        raise ValueError(
            f"{caller}: the model holds the factor '{name}', so that nothing can be drawn from "
            "it: leave the factor out"
        )
    if not observed:
        raise ValueError(
            f"{caller}: the model observes nothing, so that there are no data to draw: observe "
            "them by obs="
        )


class Observed(NamedTuple):
    """What a site observes.

    Attributes:
        values: the user's data.
        shape: the shape of data that are drawn in their place.
        rows: which data they are, by the dim of a subsampled plate.
    """

    values: Shaped[np.ndarray, ...]
    shape: tuple[int, ...]
    rows: Mapping[int, Int[np.ndarray, " batch"]]


class Place(NamedTuple):
    """The site whose data an array holds, and the dim of its rows if it holds those of all data."""

    site: str
    dim: int | None


def find_places(
    caller: str, kind: str, observed: Mapping[str, Observed], arguments: Sequence[Any]
) -> dict[int, Place]:
    """Find the arguments that hold what sites observe.

    Args:
        caller: who needs them, for messages.
        kind: what the framework calls an array, for messages.
        observed: by site, what it observes.
        arguments: NumPy arrays, and None for what is no array of numbers.

    Returns:
        What an argument holds, by its number.

    Raises:
        ValueError: for a site that observes none of them.
    """
    places: dict[int, Place] = {}
    for name, data in observed.items():
        found = {
            number: place
            for number, argument in enumerate(arguments)
            if argument is not None and number not in places
            if (place := _place_in(argument, name, data)) is not None
        }
        if not found:
            raise ValueError(
                f"{caller}: what the site '{name}' observes is none of the arguments: pass "
                f"data_args, a function of {{'{name}': {kind}}} to (args, kwargs) that hold it"
            )
        places |= found
    return places


def _place_in(argument: Shaped[np.ndarray, ...], name: str, data: Observed) -> Place | None:
    if argument.size == math.prod(data.shape) and _are_equal(argument.ravel(), data.values.ravel()):
        return Place(name, None)
    for dim, rows in data.rows.items():
        holds_rows = argument.ndim == len(data.shape) and argument.shape[dim] > rows.max()
        if holds_rows and _are_equal(argument.take(rows, dim), data.values):
            return Place(name, dim)
    return None


def _are_equal(x: Shaped[np.ndarray, ...], y: Shaped[np.ndarray, ...]) -> bool:
    return np.array_equal(x, y, equal_nan=True)


def chi_square_p_value(ranks: Int[np.ndarray, " ranks"], num_ranks: int) -> float:
    r"""Test that independent ranks 0, ..., ``num_ranks`` - 1 are equally probable.

    The ranks are counted in bins, an odd number of them, at most 21 and of at least 5 expected
    ranks, so that the distribution function is a finite sum: with 2 m degrees of freedom

    .. math::
        \chi^2 = \sum_b \frac{(n_b - e_b)^2}{e_b}, \qquad
        P(X > \chi^2) = e^{-\chi^2 / 2} \sum_{j < m} \frac{(\chi^2 / 2)^j}{j!}

    Args:
        ranks: the ranks.
        num_ranks: how many there can be.

    Raises:
        ValueError: for fewer than 15 ranks, or fewer than 3 that there can be.

    Example:
        >>> chi_square_p_value(np.arange(100), 100)
        1.0
        >>> chi_square_p_value(np.arange(100) // 2, 100) < 1e-9
        True
    """
    few = {"simulations": len(ranks) < 3 * FEWEST_PER_BIN, "samples": num_ranks < 3}
    if any(few.values()):
        more = " and ".join(name for name, is_few in few.items() if is_few)
        raise ValueError(
            f"Expected at least {3 * FEWEST_PER_BIN} ranks, of at least 3 that there can be; got "
            f"{len(ranks)} of {num_ranks}: use more {more}"
        )
    most = min(MOST_BINS, num_ranks, len(ranks) // FEWEST_PER_BIN)
    num_bins = most - 1 + most % 2
    edges = np.round(np.linspace(0, num_ranks, num_bins + 1)).astype(int)
    expected = len(ranks) * np.diff(edges) / num_ranks
    observed, _ = np.histogram(ranks, bins=edges - 0.5)
    half = float((np.square(observed - expected) / expected).sum()) / 2
    terms = (half**j / math.factorial(j) for j in range((num_bins - 1) // 2))
    return math.exp(-half) * sum(terms)
