"""Tables for docs, model cards and terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, without a newline at the end.

    Args:
        titles (`Sequence[str]`): Of the columns.
        rows (`Iterable[Sequence[object]]`): A cell for each column, written as `str` does.
    """
    return "\n".join([_row(titles), "|---" * len(titles) + "|", *map(_row, rows)])


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
