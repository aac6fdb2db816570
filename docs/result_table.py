"""A directive: some columns of a file of results as a table."""

import csv
from pathlib import Path

from docutils.nodes import Node
from markdown_table import Column, markdown_table
from sphinx.util.docutils import SphinxDirective


class ResultTable(SphinxDirective):
    """``result-table FILE``, and below it a line ``name | heading | format`` for each column.

    Rows that agree in the first column become one, with mean ± standard deviation.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[Node]:
        """The table."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        with Path(path).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = [Column(*map(str.strip, line.split("|"))) for line in self.content]
        return self.parse_text_to_nodes("\n".join(markdown_table(rows, columns)))
