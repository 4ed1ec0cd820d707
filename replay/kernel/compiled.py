"""How functions are compiled: with Numba, kept on disk, and with arithmetic that no optimiser may reorder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., Any])

njit: Any = numba.njit  # its stubs do not know every option

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_SOURCES = ("kernel", "estimators")
_DAY_S = 86_400


def compiled(function: Function) -> Function:
    """Compile on first use, once for all processes.

    No `fastmath`: what is compiled gives the very doubles that the same lines give in Python; a division by zero gives
    inf or nan.
    """
    return _made(function)


def without_arrays(function: Function) -> Function:
    """Compile what is given arrays and makes none: no references are counted.

    Counting them, for every array of every record passed at every call, takes many times what a step itself takes.
    """
    return _made(function, _nrt=False)


def inner(function: Function) -> Function:
    """Compile what only compiled code calls, and what makes no arrays.

    Half of the time to compile would go into ways in from Python.
    """
    return _made(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)


def inlined(function: Function) -> Function:
    """Compile as a part of whatever calls it: for small steps that pass a whole track and make no arrays."""
    return _made(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)


def _made(function: Function, **options: Any) -> Function:
    # Numba notices a change in the function's own file only, and would run a caller with what its callees once were.
    # So the folder is named after everything that is compiled.
    options_of: Any = config
    usual, options_of.CACHE_DIR = options_of.CACHE_DIR, str(_folder())
    try:
        return cast(Function, njit(**_OPTIONS, **options)(function))
    finally:
        options_of.CACHE_DIR = usual


@cache
def _folder() -> Path:
    """Return where compiled code of these very sources is kept: beside them, or where the user may write."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for room in _SOURCES:
        for source in sorted((here.parent / room).glob("*.py")):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    wanted = [Path(chosen)] if chosen else [here / "__pycache__", Path.home() / ".cache" / "route-replay"]
    for base in wanted:
        folder = base / f"compiled-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            _forget_older(base, folder)
            return folder
    return Path(tempfile.gettempdir()) / "route-replay"


def _forget_older(base: Path, kept: Path) -> None:
    """Remove what earlier sources were compiled to, once a day has passed since it was made."""
    for folder in base.glob("compiled-*"):
        if folder != kept and time.time() - folder.stat().st_mtime > _DAY_S:
            shutil.rmtree(folder, ignore_errors=True)
