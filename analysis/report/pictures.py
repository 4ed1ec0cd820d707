"""Charts as pictures for a report: SVG in three widths and both themes, PNG for Markdown."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from analysis.report.document import SIZES_PX, Picture

PNG_SCALE = 2
_CLIP = re.compile(r'(?<= id=")clip\d+(?=")|(?<="url\(#)clip\d+(?=\)")')


def picture(name: str, draw: Callable[[int, str], Any], command: str, note: str = "") -> Picture:
    """Draw a chart for a report; `draw` takes a width in px and a theme and returns an Altair chart.

    The alt text is the chart's own description.
    """
    svg = {}
    for size, width in SIZES_PX.items():
        for theme in ("light", "dark"):
            svg[size, theme] = _svg(draw(width, theme))
    light = draw(SIZES_PX["wide"], "light")
    png = io.BytesIO()
    light.save(png, format="png", scale_factor=PNG_SCALE)
    return Picture(name, str(light.description), svg, png.getvalue(), command, note)


def _svg(chart: Any) -> str:
    """Return a chart as SVG. Its clip paths are numbered from 1: Vega counts on from one chart to the next."""
    text = io.StringIO()
    chart.save(text, format="svg")
    names: dict[str, str] = {}
    return _CLIP.sub(lambda found: names.setdefault(found[0], f"clip{len(names) + 1}"), text.getvalue())


def archive(charts: Mapping[str, Any]) -> bytes:
    """Return a ZIP file with a PNG and an SVG of every chart, under its name; the same charts give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, chart in charts.items():
            png = io.BytesIO()
            chart.save(png, format="png", scale_factor=PNG_SCALE)
            for suffix, content in (("png", png.getvalue()), ("svg", _svg(chart).encode())):
                file.writestr(zipfile.ZipInfo(f"{name}.{suffix}"), content)  # ZipInfo's date is fixed: 1980
    return packed.getvalue()
