"""Markdown tables whose columns are aligned in the source, so that they can be read in a terminal."""

from collections.abc import Iterable, Sequence

from prettytable import PrettyTable, TableStyle


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A Markdown table.

    Args:
        columns: titles, all different.
        rows: cells, converted with `str`; a line break in a cell becomes `<br>`.
        align: "l", "c" or "r" for each column; all "l" if empty.
    """
    titles = [_cell(title) for title in columns]
    table = PrettyTable(titles)
    table.set_style(TableStyle.MARKDOWN)
    for title, side in zip(titles, align or "l" * len(titles), strict=True):
        table.align[title] = side
    table.add_rows([list(map(_cell, row)) for row in rows])
    return table.get_string()


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|").replace("\n", "<br>")
