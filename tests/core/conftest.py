from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absent import shared
from hypothesis import HealthCheck, settings

from replay.core import Policy, Schema, admit

# A slow machine is no failure, and the same examples are tried everywhere.
settings.register_profile(
    "core", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.load_profile("core")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of production's vectors, beside the checkout."""
    return shared("vectors")


@pytest.fixture(scope="session")
def make() -> Callable[..., Policy]:
    """Admit a policy from the parts that matter to a test."""

    def build(
        filter_: Any = ("top",),
        scorer: Any = ("zero",),
        selector: Any = ("ordered",),
        plan: Any = ("always", {"action": "next_candidate"}),
        declared: dict[str, Any] | None = None,
    ) -> Policy:
        return admit(["policy", filter_, scorer, selector, ["id"], plan], Schema.declare(declared or {}))

    return build
