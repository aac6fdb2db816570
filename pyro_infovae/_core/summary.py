# SPDX-License-Identifier: MIT
"""All diagnostics of a model and guide in one table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

from pyro_infovae._core.evidence import Evidence
from pyro_infovae._core.progress import with_progress

# JAX adds a note on tracebacks to every error.
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


SUMMARISE = r"""
Each quantity is that of the diagnostic of its name, with $settings. What cannot be computed for
this model and guide has a row that says why.

Args:
    kernel: the kernel of MMD²; ``RBF()`` by default.
    num_samples: draws of z per datum, at least 4.
    num_importance_samples: draws of z per datum for log p(x).
    sites: the latents, by name, in one stack of plates; log p(x) has all of them. By default
        every reparameterised latent in plates of data.

Returns:
    The table. A progress bar is shown where tqdm is installed.

Raises:
    ValueError: for too few samples, latents that cannot be selected, fewer than 2 data, or
        codes that are not finite.
"""


def check_summarise(num_samples: int, num_importance_samples: int) -> None:
    """Refuse numbers out of range."""
    if num_samples < 4 or num_importance_samples < 2:
        raise ValueError(
            f"Expected num_samples >= 4 and num_importance_samples >= 2; got "
            f"num_samples={num_samples}, num_importance_samples={num_importance_samples}"
        )


def ask_all(
    diagnostics: Iterable[Callable[..., Any]],
    ask: Callable[..., Any],
    *,
    kernel: Any,
    num_samples: int,
    num_importance_samples: int,
    sites: Iterable[str] | None,
) -> Summary:
    """Ask a half's diagnostics, each with the settings that concern it."""
    drawn = {"num_samples": num_samples, "sites": sites}
    compared = {"kernel": kernel, "sites": sites}
    settings: Mapping[str, Mapping[str, Any]] = {
        "active_units": drawn,
        "kl_by_dimension": drawn,
        "aggregated_posterior": drawn,
        "mmd_test": compared,
        "log_evidence": {"num_samples": num_importance_samples},
        "suggest_lambd": compared,
    }
    rows: list[SummaryRow] = []
    for one in with_progress(diagnostics, total=len(settings), label="summarise"):
        rows += _rows(_QUANTITIES[one.__name__], partial(ask, one, **settings[one.__name__]))
    return Summary(tuple(rows))


class _Quantity(NamedTuple):
    """A row of the table, and how its value, error and unit are read from the answer."""

    name: str
    meaning: str
    read: Callable[[Any], tuple[float, float, str]]


def _log_evidence(evidence: Evidence[Any]) -> tuple[float, float, str]:
    counted = _counted(evidence)
    errors = counted.standard_error
    unit = "nats per datum" if evidence.log_weights.ndim > 1 else "nats, all data"
    return float(counted.log_evidence.mean()), float((errors**2).sum()) ** 0.5 / len(errors), unit


def _counted(evidence: Evidence[Any]) -> Evidence[Any]:
    """The rows that are not masked, for a masked row has weights of 1."""
    per_row = evidence.log_weights.reshape(len(evidence.log_weights), -1)
    return Evidence(per_row[:, (per_row != 0).any(0)])


_QUANTITIES: Mapping[str, Sequence[_Quantity]] = {
    "active_units": [
        _Quantity(
            "active_units",
            "dimensions of z whose mean depends on the data",
            lambda units: (units.num_active, math.nan, f"of {len(units.dimensions)}"),
        )
    ],
    "kl_by_dimension": [
        _Quantity(
            "kl",
            "KL(q(z|x) ‖ p(z)): how far each code is from the prior",
            lambda kl: (kl.mean, kl.mean_error, "nats per datum"),
        )
    ],
    "aggregated_posterior": [
        _Quantity(
            "mutual_information",
            "I(x; z): what the code knows of the data, at most log N",
            lambda kl: (kl.mutual_information, kl.mutual_information_error, "nats per datum"),
        ),
        _Quantity(
            "marginal_kl",
            "KL(q(z) ‖ p(z)): how far all codes together are from the prior",
            lambda kl: (kl.marginal_kl, kl.marginal_kl_error, "nats per datum"),
        ),
    ],
    "mmd_test": [
        _Quantity(
            "mmd_squared",
            "the same by a kernel, without densities",
            lambda test: (test.mmd_squared, test.standard_error, ""),
        ),
        _Quantity(
            "mmd_p_value",
            "below 0.05: q(z) is not p(z)",
            lambda test: (test.p_value, math.nan, ""),
        ),
    ],
    "log_evidence": [
        _Quantity(
            "log_evidence",
            "log p(x): how probable the data are",
            _log_evidence,
        ),
        _Quantity(
            "effective_sample_size",
            "of the datum whose log p(x) is known worst",
            lambda evidence: (
                float(_counted(evidence).effective_sample_size.min()),
                math.nan,
                f"of {len(evidence.log_weights)}",
            ),
        ),
        _Quantity(
            "pareto_k",
            "the largest; above 0.7: do not believe log p(x)",
            lambda evidence: (float(_counted(evidence).pareto_k.max()), math.nan, ""),
        ),
    ],
    "suggest_lambd": [
        _Quantity(
            "lambd",
            "at which the MMD weighs a tenth of the reconstruction (alpha=0)",
            lambda suggested: (suggested.lambd, suggested.standard_error, ""),
        )
    ],
}


def _rows(quantities: Sequence[_Quantity], ask: Callable[[], Any]) -> list[SummaryRow]:
    try:
        with warnings.catch_warnings():
            # The table has the numbers that these warn of.
            warnings.filterwarnings("ignore", message="log_evidence: ")
            answer = ask()
        return [SummaryRow(name, *read(answer), meaning) for name, meaning, read in quantities]
    except Exception as error:
        # The programs have run before: what fails now is this question, whatever it raises.
        notes = [note for note in getattr(error, "__notes__", []) if _OF_JAX not in note]
        said = [str(error) or type(error).__name__, *notes]
        reason = "not computed: " + " ".join(" ".join(said).split())
        return [SummaryRow(one.name, math.nan, math.nan, "", reason) for one in quantities]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
