"""A report as Markdown for a pull request, its charts as PNG files beside it."""

from __future__ import annotations

import re

from analysis.report.document import Block, Command, Document, Listing, Paragraph, Picture, Points, Table, Tone

_MARKS = {"good": "✅ ", "bad": "❌ ", "note": "", "plain": "", "lead": ""}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&@])")


def to_markdown(document: Document, stem: str) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown text and the PNG files it links to, by name; `stem` begins each name.

    >>> to_markdown(Document("a_b", "", [("x", "1", "plain")], []), "report")[0].splitlines()[0]
    '# a\\\\_b'
    """
    files = {f"{stem}-{picture.name}.png": picture.png for picture in document.pictures}
    parts = [f"# {_t(document.title)}"]
    if document.subtitle:
        parts.append(_t(document.subtitle))
    if document.facts:
        names = " | ".join(_t(label) for label, _, _ in document.facts)
        values = " | ".join(_marked(value, tone) for _, value, tone in document.facts)
        parts.append(f"| {names} |\n|{' --- |' * len(document.facts)}\n| {values} |")
    for section in document.sections:
        parts.append(f"## {_t(section.title)}")
        parts += [_block(block, stem) for block in section.blocks]
    parts.append(f"<sub>{_t(document.made_by)}</sub>")
    return "\n\n".join(parts) + "\n", files


def _t(text: str) -> str:
    """Escape what Markdown would read as more than text, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _marked(text: str, tone: Tone) -> str:
    return _MARKS[tone] + _t(text)


def _block(block: Block, stem: str) -> str:
    match block:
        case Paragraph(text, tone):
            return f"**{_t(text)}**" if tone == "lead" else _marked(text, tone)
        case Points(items):
            return "\n".join(f"- {_marked(item.text, item.tone)}" for item in items)
        case Command(line):
            return _fenced(line, "sh")
        case Listing(name, text):
            return f"`{_code(name)}`\n\n{_fenced(text.rstrip(), 'toml')}"
        case Table():
            return _table(block)
        case Picture(name, alt):
            parts = [f"![{_t(alt)}](<{stem}-{name}.png>)"]
            parts += [_t(block.note)] if block.note else []
            parts += [_fenced(block.command, "sh")] if block.command else []
            return "\n\n".join(parts)


def _table(table: Table) -> str:
    head = " | ".join(_t(column.heading) or " " for column in table.columns)
    rule = " | ".join("---:" if column.number else "---" for column in table.columns)
    rows = "\n".join(f"| {' | '.join(_t(cell) or ' ' for cell in row)} |" for row in table.rows)
    parts = [f"**{_t(table.caption)}**", f"| {head} |\n| {rule} |\n{rows}".rstrip()]
    parts += [_t(table.note)] if table.note else []
    parts += [_fenced(table.command, "sh")] if table.command else []
    return "\n\n".join(parts)


def _fenced(text: str, language: str) -> str:
    """Fence code so that no run of backticks inside it ends the fence."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    return text.replace("`", "'")
