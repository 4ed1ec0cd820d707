"""What a test needs and a machine may lack: skipped for its reason by hand, a failure where CI is set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

_CHECKOUT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
SHARED = _CHECKOUT.parent / "shared"


def absent(reason: str) -> NoReturn:
    """End the test: something is missing. CI has everything, so there a test that cannot run has failed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def shared(path: str) -> Path:
    """Return a file or folder of the shared folder beside the checkout; without it the test ends."""
    found = SHARED / path
    if not found.exists():
        absent(f"../shared/{path} is not beside this checkout")
    return found
