from __future__ import annotations

from pathlib import Path

import browser
import pytest

from analysis.charts import CHARTS

DRAWN = """
return [...document.querySelectorAll('figure.chart')].map(figure => {
  const seen = [...figure.querySelectorAll('img')].filter(image => image.getClientRects().length);
  return seen.map(image => [image.className, image.complete, image.naturalWidth, image.clientHeight, image.alt]);
});
"""


@pytest.mark.parametrize(("width", "size"), [(1200, "wide"), (700, "half"), (390, "phone")])
def test_the_report_opens_without_a_network(written: Path, width: int, size: str) -> None:
    """One picture per chart is drawn, of the fitting size and scheme; no error, no sideways scroll."""
    with browser.chromium() as session:
        session.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        session.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        session.get(written.as_uri())
        for theme in ("light", "dark"):
            browser.set_media(session, dark=theme == "dark", width=width)
            figures = session.execute_script(DRAWN)
            assert len(figures) == len(CHARTS)
            for ((style, complete, natural_width, height, alt),) in figures:
                assert style == f"{size} {theme}"
                assert complete
                assert natural_width > 200
                assert height > 50
                assert len(alt) > 20
            browser.screenshot(session, f"report-{width}-{theme}")
            wide = session.execute_script("return document.documentElement.scrollWidth")
            assert wide == width
        assert browser.console_errors(session) == []


TABLES = """
return [...document.querySelectorAll('#figures .scroll')].map(box => [box.scrollWidth, box.clientWidth]);
"""


def test_the_tables_of_figures_fit_a_narrow_window(written: Path) -> None:
    """At 1,100 pixels no column is cut: words wrap, numbers do not have to."""
    with browser.chromium() as session:
        session.get(written.as_uri())
        browser.set_media(session, dark=False, width=1100)
        found = session.execute_script(TABLES)
        assert len(found) > 2
        assert all(whole <= shown for whole, shown in found)


def test_the_report_prints_light_pictures(written: Path) -> None:
    """On paper every chart is the wide, light one, whatever the screen shows."""
    with browser.chromium() as session:
        session.get(written.as_uri())
        browser.set_media(session, dark=True, width=390)
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
        assert {figure[0][0] for figure in session.execute_script(DRAWN)} == {"wide light"}
