"""The report: a document of plain blocks, written as one HTML file and as Markdown with PNGs."""

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
)
from analysis.report.html import to_html
from analysis.report.markdown import to_markdown

__all__ = [
    "Block",
    "Column",
    "Command",
    "Document",
    "Listing",
    "Paragraph",
    "Picture",
    "Points",
    "Section",
    "Table",
    "to_html",
    "to_markdown",
]
