from __future__ import annotations

from html.parser import HTMLParser

from analysis.report import (
    Column,
    Command,
    Document,
    Listing,
    Paragraph,
    Picture,
    Points,
    Section,
    Table,
    to_html,
    to_markdown,
)
from analysis.report.document import SIZES_PX

EVIL = '<script>alert("1")</script> & <img src=x onerror=y> | `a` *b* [c](http://d) \'"'
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def everything(text: str) -> Document:
    """Return a document with every block, each saying `text`."""
    picture = Picture(
        "one", text, {(size, theme): SVG for size in SIZES_PX for theme in ("light", "dark")}, b"png", text, text
    )
    blocks = [
        Paragraph(text, "lead"), Points.of([text], "bad"), Command(text), Listing(text, text),
        Table(text, [Column(text), Column(text, True)], [[text, text]], text, text), picture,
    ]  # fmt: skip
    return Document(text, text, [(text, text, "good")], [Section("a", text, blocks)], text)


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.said += data


def test_html_escapes_what_comes_from_data() -> None:
    """Markup in any text stays text: no tag and no handler of it appears, and it reads as it was written."""
    page = Page(to_html(everything(EVIL)))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.said.count(EVIL) >= 12
    assert {attributes["alt"] for tag, attributes in page.tags if tag == "img"} == {EVIL}


def test_html_loads_nothing() -> None:
    """Every source is data inside the page, no link leaves it, and its policy forbids the rest."""
    page = Page(to_html(everything("x")))
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "srcset")]
    links = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name == "href"]
    assert sources
    assert all((source or "").startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(link.startswith(("#", "data:")) for link in links)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert "default-src 'none'" in str(policies[0])
    assert "url(" not in to_html(everything("x"))


def test_markdown_keeps_data_as_text() -> None:
    """Outside code, no sign of the text is read as Markdown or HTML, and a table keeps its columns."""
    text, files = to_markdown(everything(EVIL), "report")
    assert files == {"report-one.png": b"png"}
    plain = [line for line in text.split("\n") if not line.startswith(("`", "$")) and line != EVIL]
    assert not any("<script" in line.replace(r"\<script", "") for line in plain)
    (row,) = [line for line in text.split("\n") if line.startswith("| \\<script") and line.count("alert") == 2][1:2]
    assert row.replace(r"\|", "").count("|") == 3


def test_a_fence_is_longer_than_what_it_holds() -> None:
    """Backticks inside a listing cannot end it."""
    text, _ = to_markdown(Document("t", "", [], [Section("a", "a", [Listing("f", "````\nx")])]), "r")
    assert "`````toml\n````\nx\n`````" in text


def test_the_same_document_gives_the_same_bytes() -> None:
    """Nothing in a writer depends on a clock, chance or order."""
    assert to_html(everything("x")) == to_html(everything("x"))
    assert to_markdown(everything("x"), "r") == to_markdown(everything("x"), "r")
