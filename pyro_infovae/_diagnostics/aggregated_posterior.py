# SPDX-License-Identifier: MIT
"""What the code knows of the data, from the guide's own densities: no critic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from pyro_infovae._diagnostics.data_runs import check_all_drawn, first_of_each, minibatches
from pyro_infovae._traces.fresh_draws import FreshDraws, datum_of_rows, parameters_untouched
from pyro_infovae._traces.runs import Program
from pyro_infovae.groups import Group
from pyro_infovae.sites import Messages, undecorated

_ASKER = "aggregated_posterior"
_ELEMENTS_PER_CHUNK = 2**23


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


def aggregated_posterior(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> AggregatedPosterior:
    r"""Split the KL of the guide into what the code knows of the data, and how far it is off.

    .. math::
        E_x \, \mathrm{KL}(q(z \mid x) \| p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \| p(z)),
        \qquad q(z) = \frac1N \sum_{j=1}^N q(z \mid x_j)

    q(z) is evaluated in full, all N data for each draw of z, so nothing but the draws is random:
    the estimates are unbiased. They are about these N data alone: a code that tells all of them
    apart has I = log N nats, however much more it could tell of further data. A plate with a
    ``subsample_size`` is run over all its minibatches.

    Args:
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        num_samples: draws of z per datum, at least 2.
        sites: the latents, by name, in one stack of plates; their joint distribution counts. By
            default every reparameterised latent in plates.
        chunk_size: codes to be scored under all N conditionals at once; by default so many that
            no more than 2²³ numbers are held.
        **kwargs: keyword arguments of both.

    Returns:
        The three terms and their standard errors.

    Raises:
        ValueError: for a point mass in the guide, a latent of the model that the guide does not
            draw, a conditional that changes from run to run (it
            depends on other latents, or on dropout), or more than one subsampled plate.

    References:
        Hoffman, Johnson, *ELBO surgery: yet another way to carve up the variational evidence lower
        bound*, NIPS 2016 workshop on approximate Bayesian inference.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = torch.tensor([-9.0, -3.0, 3.0, 9.0])
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x, 0.1))
        >>> round(aggregated_posterior(model, guide, x).mutual_information, 4)  # log 4
        1.3863
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")
    with parameters_untouched():
        draws = FreshDraws(_ASKER, model, guide, args, kwargs, sites)
        first = draws.draw()
        check_all_drawn(_ASKER, first)
        parts = minibatches(_ASKER, first)
        runs = [[_Codes.of(draws.draw(batch)) for batch in parts] for _ in range(num_samples)]
        for pair in zip(*runs[:2], strict=True):
            _check_conditionals(*pair)
        mixture = _Mixture(runs[0], chunk_size)
        posterior, prior, aggregated = (
            torch.stack([torch.cat([log_prob(codes) for codes in run]) for run in runs])
            for log_prob in (_Codes.log_posterior, _Codes.log_prior, mixture.log_prob)
        )
    kept = mixture.kept
    return AggregatedPosterior(
        *_mean_and_error((posterior - aggregated)[:, kept]),
        *_mean_and_error((posterior - prior)[:, kept]),
        *_mean_and_error((aggregated - prior)[:, kept]),
        num_data=len(kept),
    )


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
        drawn = {name: msg for name, msg in run.guide.items() if name in run.selected}
        prior = _log_prob(run.model, group.names)
        for name in group.names:
            if not isinstance(undecorated(drawn[name]["fn"]), Delta):
                continue
            if f"{name}_unconstrained" not in drawn:
                raise ValueError(
                    f"{_ASKER}: the guide draws '{name}' as a point mass, which has no density: "
                    "choose others by sites"
                )
            # Its density is the Jacobian of the map from the unconstrained space.
            prior = prior - _log_prob(drawn, [name])
            del drawn[name]
        weights = group.posterior.weights
        return cls(
            values={name: msg["value"] for name, msg in drawn.items()},
            conditionals={name: msg["fn"] for name, msg in drawn.items()},
            prior=prior,
            counts=torch.ones_like(prior, dtype=torch.bool) if weights is None else weights > 0,
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
        counts = torch.cat([part.counts for part in parts])
        self.kept = first_of_each(torch.cat([part.datum for part in parts]), counts)
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
                f"{_ASKER}: q({name} | x) changes from run to run, so that it is not a function "
                "of the data alone: it depends on another latent that the guide draws, or on "
                "dropout (call eval() on the encoder)"
            )


def _log_prob(messages: Messages, names: Iterable[str]) -> Float[Tensor, " rows"]:
    """The joint log density of a draw, per row."""
    terms = [messages[name]["fn"].log_prob(messages[name]["value"]) for name in names]
    return torch.stack(terms).sum(0).flatten()


def _mean_and_error(terms: Float[Tensor, "draws data"]) -> tuple[float, float]:
    """The mean, and its standard error over the draws."""
    variance = terms.var(0).mean() / terms.numel()
    return float(terms.mean()), float(variance.sqrt())
