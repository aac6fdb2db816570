# SPDX-License-Identifier: MIT
"""What the code knows of the data, from the guide's own densities: no critic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Distribution

from pyro_infovae._core import information
from pyro_infovae._core.data_runs import first_of_each
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.information import AggregatedPosterior
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import Site
from pyro_infovae._diagnostics.data_runs import (
    check_densities,
    minibatches,
    to_numpy,
)
from pyro_infovae._traces.fresh_draws import FreshDraws, datum_of_rows, parameters_untouched
from pyro_infovae.groups import Group

_CALLER = "aggregated_posterior"
_ELEMENTS_PER_CHUNK = 2**23


@documented(information.AGGREGATED_POSTERIOR, scored_data="all N data")
def aggregated_posterior(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> AggregatedPosterior:
    """Split the KL of the guide into what the code knows of the data, and how far it is off.

    Example:
        $programs
        >>> x = torch.tensor([-90.0, -30.0, 30.0, 90.0])
        >>> report = aggregated_posterior(model, guide, x)
        >>> round(report.mutual_information, 4)  # log 4
        1.3863
    """
    information.check_chunks(num_samples, chunk_size)
    with parameters_untouched():
        draws = FreshDraws(_CALLER, model, guide, args, kwargs, sites)
        first = draws.draw()
        check_densities(_CALLER, first)
        parts = minibatches(_CALLER, first)
        runs = [[_Codes.of(draws.draw(batch)) for batch in parts] for _ in range(num_samples)]
        for pair in zip(*runs[:2], strict=True):
            _check_conditionals(*pair)
        mixture = _Mixture(runs[0], chunk_size)
        posterior, prior, aggregated = (
            torch.stack([torch.cat([log_prob(codes) for codes in run]) for run in runs])
            for log_prob in (_Codes.log_posterior, _Codes.log_prior, mixture.log_prob)
        )
    terms = (to_numpy(term)[:, mixture.kept] for term in (posterior, prior, aggregated))
    return AggregatedPosterior.of(*terms)


@dataclass(frozen=True, eq=False)
class _Codes:
    """The codes of one minibatch, and the conditionals they were drawn from, by site.

    Attributes:
        values: the draws, of the plates' shape and the site's event shape.
        conditionals: q(z | x) for the data of the minibatch.
        prior: log p(z), in the space that the guide draws in.
        counts: whether the datum is not masked.
        datum: which datum each code belongs to.
    """

    values: dict[str, Tensor]
    conditionals: dict[str, Distribution]
    prior: Float[Tensor, " rows"]
    counts: Bool[Tensor, " rows"]
    datum: Int[Tensor, " rows"]

    @classmethod
    def of(cls, group: Group) -> _Codes:
        """The codes of a single draw."""
        (run,) = group.runs
        drawn = {name: site for name, site in run.guide.items() if name in run.selected}
        prior = _log_prob(run.model, group.names)
        for name in group.names:
            if drawn[name].kind == "Delta":
                # Its density is the Jacobian of the map from the unconstrained space.
                prior = prior - _log_prob(drawn, [name])
                del drawn[name]
        return cls(
            values={name: site.value for name, site in drawn.items()},
            conditionals={name: site.fn for name, site in drawn.items()},
            prior=prior,
            counts=group.posterior.dense_weights > 0,
            datum=datum_of_rows(group),
        )

    def log_posterior(self) -> Float[Tensor, " rows"]:
        """The density of each code given its own datum."""
        return self.log_prob(self.values).flatten()

    def log_prior(self) -> Float[Tensor, " rows"]:
        """The density of each code under its prior."""
        return self.prior

    def log_prob(self, values: dict[str, Tensor]) -> Float[Tensor, " *shape"]:
        """The joint density of codes given the data of the minibatch."""
        terms = [fn.log_prob(values[name]) for name, fn in self.conditionals.items()]
        return torch.stack(terms).sum(0)

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Some of the codes at a time, with dims of size 1 for the data to condition on."""
        rows = {
            name: self.values[name].reshape(-1, *[1] * len(fn.batch_shape), *fn.event_shape)
            for name, fn in self.conditionals.items()
        }
        for start in range(0, len(self.prior), size):
            yield {name: value[start : start + size] for name, value in rows.items()}


class _Mixture:
    """q(z): the mixture of the conditionals of all data that count.

    Args:
        parts: codes of minibatches that cover the data, some perhaps twice.
        chunk_size: codes to be scored under all conditionals at once.
    """

    def __init__(self, parts: Sequence[_Codes], chunk_size: int | None) -> None:
        self.parts = parts
        datum, counts = (
            np.concatenate([to_numpy(part) for part in column])
            for column in zip(*((part.datum, part.counts) for part in parts), strict=True)
        )
        self.kept = first_of_each(datum, counts)
        features = sum(fn.event_shape.numel() for fn in parts[0].conditionals.values())
        self.chunk_size = chunk_size or max(1, _ELEMENTS_PER_CHUNK // (len(counts) * features))

    def log_prob(self, codes: _Codes) -> Float[Tensor, " rows"]:
        """The density of each code under the mixture."""
        return torch.cat([self._log_prob(chunk) for chunk in codes.chunks(self.chunk_size)])

    def _log_prob(self, values: dict[str, Tensor]) -> Float[Tensor, " codes"]:
        per_datum = torch.cat([part.log_prob(values).flatten(1) for part in self.parts], 1)
        per_datum = per_datum[:, self.kept]
        return per_datum.logsumexp(1) - math.log(per_datum.shape[1])


def _check_conditionals(first: _Codes, second: _Codes) -> None:
    """Refuse q(z | x) that another run would not have drawn from."""
    for name, fn in first.conditionals.items():
        values = first.values[name]
        if not torch.allclose(
            fn.log_prob(values), second.conditionals[name].log_prob(values), rtol=1e-4, atol=1e-4
        ):
            raise ValueError(
                f"{_CALLER}: q({name} | x) changes from run to run, so that it is not a function "
                "of the data alone: it depends on another latent that the guide draws, or on "
                "dropout (call eval() on the encoder)"
            )


def _log_prob(sites: Mapping[str, Site], names: Iterable[str]) -> Float[Tensor, " rows"]:
    """The joint log density of a draw, per row."""
    terms = [sites[name].fn.log_prob(sites[name].value) for name in names]
    return torch.stack(terms).sum(0).flatten()
