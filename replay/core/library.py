"""The policies that ship with the package, and reading a policy from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from replay.errors import ReplayError

SHIPPED_POLICIES = ("default", "agent", "cheapest", "balanced", "exploring")
"""`default` and `agent` are production's; the others need core fields only."""

SHIPPED_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "bench_intelligence": {"sort": "Num", "default": 0},
    "bench_intelligence_rank": {"sort": "Num", "default": 1e9},
    "cap_tools": {"sort": "Bool", "default": False},
    "reputation_score": {"sort": "Num", "default": 0},
    "cache_hot": {"sort": "Bool", "default": False},
}
"""The declared fields that the shipped policies observe; give them to `Schema.declare`."""


def load_policy(name_or_path: str | Path) -> Any:
    """Return a policy's term as JSON: a shipped one by name, else a file's. It is not admitted yet.

    Raises `ReplayError` if there is no such policy or file, or the file is no JSON.

    >>> load_policy("cheapest")[0]
    'policy'
    """
    if str(name_or_path) in SHIPPED_POLICIES:
        shipped = resources.files("replay.core").joinpath("policies", f"{name_or_path}.json")
        return json.loads(shipped.read_text(encoding="utf-8"))
    return read_json(
        name_or_path, f"expected a policy file or one of {', '.join(SHIPPED_POLICIES)}; check the name or the path"
    )


def read_json(path: str | Path, expected: str) -> Any:
    """Return a JSON file's value; `expected` completes the `ReplayError` for a file that cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReplayError(f"{path}: {error.strerror or 'cannot be read'}; {expected}") from error
    except (ValueError, RecursionError) as error:
        fault = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ReplayError(f"{path}: no JSON ({fault}); {expected}") from error
