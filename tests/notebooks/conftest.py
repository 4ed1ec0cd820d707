from __future__ import annotations

from pathlib import Path

import pytest

from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror


@pytest.fixture(scope="session")
def demo_ledger(demo_mirror: Path) -> Ledger:
    """The demo's ledger, loaded."""
    with open_mirror(demo_mirror) as connection:
        return load_ledger(connection)
