"""Markdown tables."""

from collections.abc import Iterable, Sequence

from prettytable import PrettyTable, TableStyle


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A Markdown table.

    Args:
        columns: titles.
        rows: cells, shown by `str`.
        align: "l", "c" or "r" for each column; all "l" when empty.
    """
    table = PrettyTable(list(columns))
    table.set_style(TableStyle.MARKDOWN)
    for title, side in zip(columns, align or "l" * len(columns), strict=True):
        table.align[title] = side
    table.add_rows([list(map(str, row)) for row in rows])
    return table.get_string()
