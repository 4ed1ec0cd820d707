"""Calling a function in a process of its own, so that its highest memory, or its first compilation, is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from replay.errors import ReplayError

_CALL = """
import importlib, json, sys
module, function, given = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(given))))
"""


def alone(module: str, function: str, *given: str | int, environment: Mapping[str, str] | None = None) -> Any:
    """Return what a function returns for what it is given, both plain data; `environment` is added to ours.

    Raises ReplayError, with the end of what it said, where it fails.

    >>> alone("math", "factorial", 5)
    120
    """
    words = [sys.executable, "-c", _CALL, module, function, json.dumps(given)]
    added = {**os.environ, **(environment or {})}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=added)
    if done.returncode:
        raise ReplayError(
            f"{module}.{function}, to be measured, failed: {done.stderr.strip()[-300:]}; please report this"
        )
    return json.loads(done.stdout.splitlines()[-1])  # a library may have printed something before
