"""Headless Chromium for tests: Debian's chromium and chromedriver, never a download."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from absent import absent
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
ARTIFACTS = ROOT / ".ci" / "artifacts"
WAIT_S = 60.0

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
# Every name but this machine's own resolves to nothing: a page that needs the network fails in the test, too.
_NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"

Found = TypeVar("Found")


def require_chromium() -> tuple[str, str]:
    """Return the paths of Chromium and its driver; without them the test is skipped, and fails where CI is set."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        missing = "chromedriver" if browser else "Chromium and chromedriver"
        absent(f"{missing} not found; on Debian: apt-get install chromium chromium-driver")
    return browser, driver


@contextmanager
def chromium(width: int = 1200, height: int = 900, downloads: Path | None = None) -> Iterator[webdriver.Chrome]:
    """Start a browser without a network and with an empty profile; its console is kept for `console_errors`."""
    browser, driver = require_chromium()
    with tempfile.TemporaryDirectory(prefix="replay-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*_FLAGS, _NO_NETWORK, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if downloads is not None:
            options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        session = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield session
        finally:
            session.quit()


def console_errors(session: webdriver.Chrome) -> list[str]:
    """Return what the browser's console called severe since it was last asked."""
    return [entry["message"] for entry in session.get_log("browser") if entry["level"] == "SEVERE"]


def set_media(session: webdriver.Chrome, *, dark: bool = False, width: int | None = None, height: int = 900) -> None:
    """Show the page in a colour scheme, at a width."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if width is not None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def screenshot(session: webdriver.Chrome, name: str) -> Path:
    """Keep a picture of the whole page in `.ci/artifacts`."""
    import base64

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTIFACTS / f"{name}.png"
    taken: dict[str, Any] = session.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(taken["data"]))
    return path


def until(found: Callable[[], Found], what: str, wait_s: float = WAIT_S) -> Found:
    """Return what `found` returns once that is true of anything; fails the test after a bounded wait."""
    end_s = time.monotonic() + wait_s
    while True:
        result = found()
        if result:
            return result
        if time.monotonic() > end_s:
            pytest.fail(f"waited {wait_s:.0f} s for {what}")
        time.sleep(0.1)
