# SPDX-License-Identifier: MIT
"""Runs of guide and model that go over all data, each datum that counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from pyro_infovae._core.progress import with_progress
from pyro_infovae._core.sites import Run, Site

Quantity: TypeAlias = Callable[[Any], Any]
"""What is asked of a draw: arrays with a row per datum, by themselves or in a tuple."""


@dataclass(frozen=True, eq=False)
class DataRuns:
    """A model and a guide to run over all data.

    Attributes:
        caller: who asks, for messages.
        run: makes of a quantity a function of a seed, which runs every minibatch and gives the
            quantity of each in NumPy arrays.
        array: the framework's array of one of NumPy's, where the codes are.
        first: what is known of every run.
        num_data: the number N of data.
        kept: of the rows of all minibatches, one for each datum that is not masked.
        datum: which datum of the data set each of these is, in increasing order.
        features: a name for each feature: its site's, and its number where there are several.

    Raises:
        ValueError: for fewer than 2 data that count.
    """

    caller: str
    run: Callable[[Quantity], Callable[[Any], Sequence[Any]]]
    array: Callable[[np.ndarray], Any]
    first: Any
    num_data: int
    kept: Int[np.ndarray, " data"]
    datum: Int[np.ndarray, " data"]
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.kept) < 2:
            raise ValueError(
                f"{self.caller}: Expected at least 2 data that are not masked; got {len(self.kept)}"
            )

    def draw(self, quantity: Quantity, seed: Any) -> Any:
        """A quantity of each datum in one run."""
        return self.per_datum(self.run(quantity)(seed))

    def repeat(
        self, quantity: Quantity, seeds: Iterable[Any], *, times: int
    ) -> Float[np.ndarray, "times data ..."]:
        """A quantity of each datum in so many runs; in two, where nothing in it is random."""
        run = self.run(quantity)
        first, second, *others = seeds
        values = [self.per_datum(run(seed)) for seed in (first, second)]
        if not np.array_equal(*values):
            more = with_progress(others, total=times - 2, label=self.caller)
            values += [self.per_datum(run(seed)) for seed in more]
        return np.stack(values)

    def per_datum(self, parts: Sequence[Any]) -> Any:
        """The rows of the data that count, from those of each minibatch."""
        if isinstance(parts[0], tuple):
            return tuple(map(self.per_datum, zip(*parts, strict=True)))
        return np.concatenate(parts)[self.kept]

    def check_finite(self, codes: Float[np.ndarray, "... data features"], source: str) -> None:
        """Refuse codes that are not finite, of what ``source`` says."""
        check_finite(np.isfinite(codes), self.features, caller=self.caller, source=source)


def first_of_each(
    datum: Int[np.ndarray, " rows"], counts: Bool[np.ndarray, " rows"]
) -> Int[np.ndarray, " data"]:
    """The first row that counts of each datum, in the order of the data.

    Example:
        >>> first_of_each(np.array([2, 0, 0, 1]), np.array([True, False, True, False]))
        array([2, 0])
    """
    rows = np.flatnonzero(counts)
    _, first = np.unique(datum[rows], return_index=True)
    return rows[first]


def minibatches(
    caller: str, plates: Iterable[tuple[str, int, int]]
) -> list[dict[str, Int[np.ndarray, " rows"]]]:
    """Minibatches of the subsampled plate that cover the data, the last one filled from the start.

    Args:
        caller: who needs them, for messages.
        plates: the name, the size and the full size of each plate of the data.

    Returns:
        The rows of each, by the name of the plate; a single one without any where no plate is
        subsampled.

    Raises:
        ValueError: for several subsampled plates.

    Example:
        >>> minibatches("a test", [("data", 2, 3)])
        [{'data': array([0, 1])}, {'data': array([2, 0])}]
    """
    subsampled = [plate for plate in plates if plate[1] != plate[2]]
    if not subsampled:
        return [{}]
    if len(subsampled) > 1:
        raise ValueError(
            f"{caller} runs all minibatches of one plate; got several that are subsampled, "
            f"{[name for name, _, _ in subsampled]}: leave all but one whole"
        )
    ((name, size, full_size),) = subsampled
    starts = range(0, full_size, size)
    return [{name: np.arange(start, start + size) % full_size} for start in starts]


def check_all_drawn(caller: str, run: Run, names: Sequence[str]) -> None:
    """Refuse a prior that may depend on a latent of the model's own.

    Args:
        caller: who needs it, for messages.
        run: a run of guide and model.
        names: the latents whose priors are needed, in the order of the model.

    Raises:
        ValueError: naming the latent.
    """
    for name, site in run.model.items():
        if site.is_latent and name not in run.guide:
            raise ValueError(
                f"{caller}: the guide does not draw '{name}', on which the prior of "
                f"{list(names)} may depend: draw it in the guide"
            )
        if name == names[-1]:
            break


def check_density(caller: str, name: str, source: Site) -> None:
    """Refuse a latent that a guide draws as a point mass.

    Args:
        caller: who needs its density, for messages.
        name: the latent's name.
        source: the guide's site that its density sits in.

    Raises:
        ValueError: naming the latent.
    """
    if source.kind == "Delta":
        raise ValueError(
            f"{caller}: the guide draws '{name}' as a point mass, which has no density: "
            "choose others by sites"
        )


def check_finite(
    is_finite: Bool[np.ndarray, "... data features"],
    features: Sequence[str],
    *,
    caller: str,
    source: str,
) -> None:
    """Refuse codes that hold nan or infinity.

    Args:
        is_finite: whether they do not.
        features: the names of their features.
        caller: who needs them, for messages.
        source: what they come from, for messages: "guide draws" or the like.

    Raises:
        ValueError: naming the features.
    """
    unfit = ~is_finite.reshape(-1, is_finite.shape[-1])
    if unfit.any():
        names = [features[feature] for feature in np.flatnonzero(unfit.any(0)).tolist()]
        raise ValueError(
            f"{caller}: Expected finite codes; the {source} nan or infinity in "
            f"{int(unfit.any(1).sum())} of {len(unfit)} rows of {names}: look at its parameters"
        )


def feature_names(latents: Mapping[str, Any]) -> tuple[str, ...]:
    """A name for each feature: that of its site, and its number where the site has several.

    Example:
        >>> feature_names({"w": np.zeros((5, 1)), "z": np.zeros((5, 2))})
        ('w', 'z[0]', 'z[1]')
    """
    return tuple(
        name if values.shape[1] == 1 else f"{name}[{feature}]"
        for name, values in latents.items()
        for feature in range(values.shape[1])
    )
