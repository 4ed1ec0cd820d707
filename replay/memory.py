"""The most memory that this process has had."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_mb() -> float:
    """Return it in MB, since the process became this program.

    `getrusage` also counts what the process that started it had by then.

    >>> peak_mb() > 1
    True
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
