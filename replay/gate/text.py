"""A report as plain text, for a terminal and for the failure of a test."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.report.document import Block, Command, Document, Paragraph, Points, Section, Table

_MARKS = {"good": "✓ ", "bad": "✗ ", "note": "· ", "plain": "", "lead": ""}


def to_text(document: Document) -> str:
    """Return a document of sentences, tables and commands as text.

    >>> print(to_text(Document("A title", "", [], [])), end="")
    A title
    """
    parts = [document.title, *(section_text(part) for part in document.sections)]
    return "\n\n".join(parts) + "\n"


def section_text(section: Section) -> str:
    """Return a section as text, its heading underlined."""
    return "\n\n".join([f"{section.title}\n{'=' * len(section.title)}", *(_block(block) for block in section.blocks)])


def _block(block: Block) -> str:
    match block:
        case Paragraph(text, tone):
            return _MARKS[tone] + text
        case Points(items):
            return "\n".join(f"{_MARKS[item.tone] or '- '}{item.text}" for item in items)
        case Command(line):
            return f"Reproduce: {line}"
        case Table():
            return _table(block)
        case _:
            raise TypeError(f"a text report has no {type(block).__name__}")


def _table(table: Table) -> str:
    cells = [[column.heading for column in table.columns], *table.rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(table.columns))]
    lines = [table.caption]
    lines += [_line(row, widths, [column.number for column in table.columns]) for row in cells]
    lines += [f"  {table.note}"] if table.note else []
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if number else cell.ljust(width)
        for cell, width, number in zip(row, widths, numbers, strict=True)
    )
    return ("  " + "  ".join(padded)).rstrip()
