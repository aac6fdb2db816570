"""Tables in the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def text_table(
    title: str, headings: Iterable[str], rows: Iterable[Iterable[str]], **style: Any
) -> Table:
    """A table whose first column names the rows."""
    table = Table(title=title, box=SIMPLE_HEAD, **style)
    first, *others = headings
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
