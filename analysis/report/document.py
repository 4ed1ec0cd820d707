"""What a report says, without how it looks: sections of blocks. All text is plain; the writers escape it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["plain", "lead", "good", "bad", "note"]
"""How a sentence is meant: `lead` opens a section, `good` and `bad` are proofs that held or did not."""


SIZES_PX = {"wide": 960, "half": 560, "phone": 328}
"""The widths a chart is drawn in: the page's text at a desk, half of it, and a phone's; style.css chooses."""


@dataclass(frozen=True)
class Paragraph:
    """One or more sentences."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Points:
    """Sentences as a list, each with its tone."""

    items: Sequence[Paragraph]

    @classmethod
    def of(cls, sentences: Sequence[str], tone: Tone = "plain") -> Points:
        """Return sentences of one tone as a list.

        >>> Points.of(["one", "two"]).items[1].text
        'two'
        """
        return cls([Paragraph(sentence, tone) for sentence in sentences])


@dataclass(frozen=True)
class Command:
    """A command line that makes what stands above it."""

    line: str


@dataclass(frozen=True)
class Listing:
    """A file to keep, with its name."""

    name: str
    text: str


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers are set flush right with figures of one width."""

    heading: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table of ready texts; `command` makes it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    command: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A chart, drawn: SVG text per (size, theme) for HTML, PNG bytes for Markdown; `name` names its file.

    `alt` says in words what it shows. `svg` holds every pair of a size in `SIZES_PX` and "light" or "dark".
    """

    name: str
    alt: str
    svg: Mapping[tuple[str, str], str]
    png: bytes
    command: str | None = None
    note: str = ""


Block = Paragraph | Points | Command | Listing | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading, the anchor it has, and its blocks."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report. `facts` are the few short figures that stand above everything, as (label, value, tone)."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str, Tone]]
    sections: Sequence[Section]
    made_by: str = field(default="route-replay")

    @property
    def pictures(self) -> list[Picture]:
        """Every chart in it, in order."""
        return [block for part in self.sections for block in part.blocks if isinstance(block, Picture)]
