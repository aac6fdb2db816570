# SPDX-License-Identifier: MIT
"""All diagnostics of a model and guide in one table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Key

from numpyro_backend._diagnostics.active_units import ActiveUnits, active_units
from numpyro_backend._diagnostics.aggregated_posterior import (
    AggregatedPosterior,
    aggregated_posterior,
)
from numpyro_backend._diagnostics.data_runs import DataRuns
from numpyro_backend._diagnostics.evidence import Evidence, log_evidence
from numpyro_backend._diagnostics.kl_by_dimension import KLByDimension, kl_by_dimension
from numpyro_backend._diagnostics.mmd_test import MMDTest, mmd_test
from numpyro_backend._diagnostics.suggested_lambd import SuggestedLambd, suggest_lambd
from numpyro_backend._traces.runs import Program
from numpyro_backend.kernels import Kernel
from pyro_infovae._core.progress import with_progress

_ASKER = "summarise"
# It adds a note on tracebacks to every error.
_OF_JAX = "JAX has removed its internal frames"


@dataclass(frozen=True)
class SummaryRow:
    """One quantity of a summary.

    Attributes:
        name: what it is called.
        value: its estimate; nan where it could not be computed.
        standard_error: that of the estimate; nan where none is known.
        unit: its unit.
        meaning: what it says, or why it could not be computed.
    """

    name: str
    value: float
    standard_error: float
    unit: str
    meaning: str


@dataclass(frozen=True)
class Summary:
    """Quantities of a model and guide, by name; ``str`` gives a table.

    Attributes:
        rows: the quantities.
    """

    rows: tuple[SummaryRow, ...]

    def __getitem__(self, name: str) -> SummaryRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"Expected one of {[row.name for row in self.rows]}; got {name!r}")

    def to_dict(self) -> dict[str, dict[str, float | str]]:
        """The value, standard error, unit and meaning of each quantity, by name."""
        fields = {row.name: asdict(row) for row in self.rows}
        return {name: {k: v for k, v in row.items() if k != "name"} for name, row in fields.items()}

    def __str__(self) -> str:
        header = ("quantity", "value", "error", "unit", "what it says")
        cells = [header] + [
            (row.name, _number(row.value), _number(row.standard_error), row.unit, row.meaning)
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}  {value:>{widths[1]}}  {error:>{widths[2]}}  "
            f"{unit:<{widths[3]}}  {meaning}"
            for name, value, error, unit, meaning in cells
        )


def summarise(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    kernel: Kernel | None = None,
    num_samples: int = 10,
    num_importance_samples: int = 1000,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> Summary:
    r"""Answer all questions at once: is the code used, does q(z) match p(z), what is log p(x).

    Each quantity is that of the diagnostic of its name, with the same key and its default settings.
    What cannot be computed for this model and guide has a row that says why.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        kernel: the kernel of MMD²; ``RBF()`` by default.
        num_samples: draws of z per datum, at least 4.
        num_importance_samples: draws of z per datum for log p(x).
        sites: the latents, by name, in one stack of plates; log p(x) has all of them. By default
            every reparameterised latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The table. A progress bar is shown where tqdm is installed.

    Raises:
        ValueError: for too few samples, latents that cannot be selected, fewer than 2 data, or
            codes that are not finite.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> x = jax.random.normal(jax.random.key(0), (200,))
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Delta(x))
        >>> summary = summarise(jax.random.key(1), {}, model, guide, x)
        >>> summary["active_units"].value, summary["active_units"].unit
        (1, 'of 1')
        >>> print(summary["mutual_information"].meaning[:71])
        not computed: aggregated_posterior: the guide draws 'z' as a point mass
    """
    if num_samples < 4 or num_importance_samples < 2:
        raise ValueError(
            f"Expected num_samples >= 4 and num_importance_samples >= 2; got "
            f"num_samples={num_samples}, num_importance_samples={num_importance_samples}"
        )
    sites = (sites,) if isinstance(sites, str) else None if sites is None else tuple(sites)
    # What is refused here would be refused in every row.
    DataRuns.of(_ASKER, rng_key, params, model, guide, args, kwargs, sites)

    def ask(diagnostic: Callable[..., Any], **settings: Any) -> Any:
        return diagnostic(rng_key, params, model, guide, *args, **settings, **kwargs)

    @cache
    def evidence() -> Evidence:
        return ask(log_evidence, num_samples=num_importance_samples)

    drawn = {"num_samples": num_samples, "sites": sites}
    compared = {"kernel": kernel, "sites": sites}
    questions: dict[tuple[str, ...], Callable[[], list[_Answer]]] = {
        ("active_units",): lambda: _active_units(ask(active_units, **drawn)),
        ("kl",): lambda: _kl(ask(kl_by_dimension, **drawn)),
        ("mutual_information", "marginal_kl"): lambda: _split_kl(
            ask(aggregated_posterior, **drawn)
        ),
        ("mmd_squared", "mmd_p_value"): lambda: _mmd(ask(mmd_test, **compared)),
        ("log_evidence", "effective_sample_size"): lambda: _evidence(evidence()),
        # It takes ArviZ, which may not be installed.
        ("pareto_k",): lambda: _pareto_k(evidence()),
        ("lambd",): lambda: _lambd(ask(suggest_lambd, **compared)),
    }
    asked = with_progress(questions.items(), total=len(questions), label=_ASKER)
    return Summary(tuple(row for names, answer in asked for row in _rows(names, answer)))


_MEANINGS = {
    "active_units": "dimensions of z whose mean depends on the data",
    "kl": "KL(q(z|x) ‖ p(z)): how far each code is from the prior",
    "mutual_information": "I(x; z): what the code knows of the data, at most log N",
    "marginal_kl": "KL(q(z) ‖ p(z)): how far all codes together are from the prior",
    "mmd_squared": "the same by a kernel, without densities",
    "mmd_p_value": "below 0.05: q(z) is not p(z)",
    "log_evidence": "log p(x): how probable the data are",
    "effective_sample_size": "of the datum whose log p(x) is known worst",
    "pareto_k": "the largest; above 0.7: do not believe log p(x)",
    "lambd": "at which the MMD weighs a tenth of the reconstruction (alpha=0)",
}


class _Answer(NamedTuple):
    value: float
    standard_error: float
    unit: str


def _active_units(units: ActiveUnits) -> list[_Answer]:
    return [_Answer(units.num_active, math.nan, f"of {len(units.dimensions)}")]


def _kl(kl: KLByDimension) -> list[_Answer]:
    return [_Answer(kl.mean, kl.mean_error, "nats per datum")]


def _split_kl(split: AggregatedPosterior) -> list[_Answer]:
    return [
        _Answer(split.mutual_information, split.mutual_information_error, "nats per datum"),
        _Answer(split.marginal_kl, split.marginal_kl_error, "nats per datum"),
    ]


def _mmd(test: MMDTest) -> list[_Answer]:
    return [
        _Answer(test.mmd_squared, test.standard_error, ""),
        _Answer(test.p_value, math.nan, ""),
    ]


def _evidence(evidence: Evidence) -> list[_Answer]:
    counted = _counted(evidence)
    error = float(np.linalg.norm(counted.standard_error)) / len(counted.standard_error)
    unit = "nats per datum" if evidence.log_weights.ndim > 1 else "nats, all data"
    num_samples = len(evidence.log_weights)
    return [
        _Answer(float(counted.log_evidence.mean()), error, unit),
        _Answer(float(counted.effective_sample_size.min()), math.nan, f"of {num_samples}"),
    ]


def _pareto_k(evidence: Evidence) -> list[_Answer]:
    return [_Answer(float(_counted(evidence).pareto_k.max()), math.nan, "")]


def _counted(evidence: Evidence) -> Evidence:
    per_row = evidence.log_weights.reshape(len(evidence.log_weights), -1)
    # A masked row has weights of 1.
    return Evidence(per_row[:, (per_row != 0).any(0)])


def _lambd(suggested: SuggestedLambd) -> list[_Answer]:
    return [_Answer(suggested.lambd, suggested.standard_error, "")]


def _rows(names: tuple[str, ...], answer: Callable[[], list[_Answer]]) -> list[SummaryRow]:
    try:
        with warnings.catch_warnings():
            # The table has the numbers that these warn of.
            warnings.filterwarnings("ignore", message="log_evidence: ")
            answers = answer()
    except Exception as error:
        # The programs have run before: what fails now is this question, whatever it raises.
        notes = [note for note in getattr(error, "__notes__", []) if _OF_JAX not in note]
        said = [str(error) or type(error).__name__, *notes]
        reason = " ".join(" ".join(said).split())
        return [
            SummaryRow(name, math.nan, math.nan, "", f"not computed: {reason}") for name in names
        ]
    return [
        SummaryRow(name, *answer, meaning=_MEANINGS[name])
        for name, answer in zip(names, answers, strict=True)
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
