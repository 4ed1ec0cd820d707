"""How much memory this process has had, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path


def peak_mb() -> float:
    """Return the most memory in MB that this process has had since it became this program.

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


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc); elsewhere nothing happens.

    Threads that allocate in turns leave holes that the library keeps: a long run would grow by them.

    >>> give_back()
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
