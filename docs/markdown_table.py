"""Rows of a file of results as a table in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Column(NamedTuple):
    """A column to show: its name in the file, its heading, and the format of its numbers."""

    name: str
    heading: str
    form: str | None = None


def markdown_table(rows: Iterable[Mapping[str, str]], columns: Sequence[Column]) -> list[str]:
    """The lines of a table; rows that agree in the first column become one, mean ± deviation."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(row[columns[0].name], []).append(row)
    cells = [[_cell(group, column) for column in columns] for group in groups.values()]
    head = [[column.heading for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
    return [f"| {' | '.join(line)} |" for line in (*head, *cells)]


def _cell(group: Sequence[Mapping[str, str]], column: Column) -> str:
    if column.form is None:
        return group[0][column.name]
    values = [float(row[column.name]) for row in group]
    parts = (mean(values), stdev(values)) if len(values) > 1 else (values[0],)
    return " ± ".join(format(part, column.form) for part in parts)
