"""A report as one HTML file: no script, no network, charts as SVG images that follow width and colour scheme.

Why SVG images and not Vega in the page: they need no script (the page forbids it, and every connection, in its
Content-Security-Policy), print sharply, are a tenth of the bundle's size, and cannot fail to draw. As `<img>` their
ids and styles do not meet (inline SVGs of several charts would share `clip0`), and each carries its alt text.
"""

from __future__ import annotations

import base64
import html
from importlib import resources

from analysis.report.document import (
    Block,
    Column,
    Command,
    Document,
    Listing,
    Paragraph,
    Picture,
    Points,
    Section,
    Table,
    Tone,
)

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What the page may load: nothing but what it holds."""

_MARKS = {"good": "Holds: ", "bad": "Does not hold: ", "note": "", "plain": "", "lead": ""}


def to_html(document: Document) -> str:
    """Return the document as HTML; the same document gives the same bytes. Everything from data is escaped.

    >>> page = to_html(Document("A & B", "", [], []))
    >>> "<title>A &amp; B</title>" in page, "<script" in page
    (True, False)
    """
    style = (resources.files("analysis.report") / "style.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{_t(part.anchor)}">{_t(part.title)}</a></li>' for part in document.sections)
    facts = "".join(_fact(*fact) for fact in document.facts)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f'<meta name="generator" content="{_t(document.made_by)}">',
            # Without this a browser asks the server for /favicon.ico.
            '<link rel="icon" href="data:,">',
            f"<title>{_t(document.title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{_t(document.title)}</h1><p>{_t(document.subtitle)}</p></header>",
            f'<dl class="facts">{facts}</dl>' if facts else "",
            f'<nav aria-label="Sections"><ol>{links}</ol></nav>',
            "<main>",
            *(_section(part) for part in document.sections),
            "</main>",
            f"<footer>{_t(document.made_by)}</footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _t(text: str) -> str:
    return html.escape(text, quote=True)


def _fact(label: str, value: str, tone: Tone) -> str:
    return f'<div class="{tone}"><dt>{_t(label)}</dt><dd>{_t(value)}</dd></div>'


def _section(part: Section) -> str:
    blocks = "\n".join(map(_block, part.blocks))
    return f'<section id="{_t(part.anchor)}">\n<h2>{_t(part.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Paragraph(text, tone):
            return f'<p class="{tone}">{_marked(text, tone)}</p>'
        case Points(items):
            rows = "".join(f'<li class="{item.tone}">{_marked(item.text, item.tone)}</li>' for item in items)
            return f"<ul>{rows}</ul>"
        case Command(line):
            return _command(line)
        case Listing(name, text):
            return f'<figure class="listing"><figcaption>{_t(name)}</figcaption><pre>{_t(text)}</pre></figure>'
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)


def _marked(text: str, tone: Tone) -> str:
    """Say good and bad to those who do not see the colour, too."""
    mark = _MARKS[tone]
    return f'<span class="aside">{mark}</span>{_t(text)}' if mark else _t(text)


def _command(line: str) -> str:
    return f'<pre class="command" tabindex="0" title="Click to select, then copy"><code>{_t(line)}</code></pre>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_class(column)}>{_t(column.heading)}</th>' for column in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(f"<td{_class(column)}>{_t(cell)}</td>" for column, cell in zip(table.columns, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="small">{_t(table.note)}</p>' if table.note else ""
    made = _command(table.command) if table.command else ""
    return (
        f'<figure class="table"><figcaption>{_t(table.caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_t(table.caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}{made}</figure>"
    )


def _class(column: Column) -> str:
    return ' class="number"' if column.number else ""


def _picture(picture: Picture) -> str:
    """Hold every size in both themes; the style shows the one that fits.

    Not `<picture>`: a browser prints the source that it chose for the screen, dark ones on white paper.
    """
    images = "".join(
        f'<img class="{size} {theme}" src="{_data(picture.svg[size, theme])}" alt="{_t(picture.alt)}">'
        for size, theme in picture.svg
    )
    note = f"<figcaption>{_t(picture.note)}</figcaption>" if picture.note else ""
    made = _command(picture.command) if picture.command else ""
    return (
        f'<figure class="chart" id="chart-{_t(picture.name)}"><div class="scroll" tabindex="0">{images}</div>'
        f"{note}{made}</figure>"
    )


def _data(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
