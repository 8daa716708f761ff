"""Tables, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, its columns aligned to the right."""
    widths = _widths(rows)
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: its columns behind the first to the right."""
    first, *others = _widths(rows)
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in rows]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
    for line in lines:
        yield f"| {' | '.join(line)} |"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
