"""Benchmarks run in turn, and what came of them with the machine they ran on: as data, as JSON, as a README's table."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import replay
from replay.bench import Figure, Say
from replay.errors import ReplayError

FORMAT = 1
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
"""Between these lines of a page stands the table."""

_PACKAGES = ("duckdb", "numba", "numpy", "polars", "psycopg", "pyarrow")


@dataclass(frozen=True)
class Options:
    """How benchmarks run: `quick` only shows that they work, `full` adds the largest sizes, `dsn` names a server."""

    quick: bool = False
    full: bool = False
    dsn: str | None = None


@dataclass(frozen=True)
class Result:
    """What came of one benchmark: its figures, or why it cannot run here."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    cannot: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything that came of a run. Values of `machine` and `versions` are text, as they are shown."""

    machine: Mapping[str, str]
    versions: Mapping[str, str]
    quick: bool
    results: list[Result]


def _of(module: str) -> Any:
    return getattr(import_module(f"replay.bench.{module}"), f"bench_{module}")


BENCHES: Mapping[str, Callable[[Say, Options], list[Figure]]] = {
    "store": lambda say, options: _of("store")(say, options.quick, options.dsn),
    "pull": lambda say, options: _of("pull")(say, options.quick, options.dsn),
    "estimators": lambda say, options: _of("estimators")(say, options.quick),
    "decisions": lambda say, options: _of("decisions")(say, options.quick),
    "replays": lambda say, options: _of("replays")(say, options.quick, options.full),
}
"""All benchmarks, in the order in which they run."""


def run(names: list[str], options: Options, say: Say) -> Iterator[Result]:
    """Run benchmarks in turn; one that cannot run here says why, and the next goes on.

    Raises ReplayError, before anything runs, for a name that is none.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ReplayError(
            f"there is no benchmark {unknown[0]!r}; expected some of {', '.join(BENCHES)}, or none for all"
        )
    return (_result(name, options, say) for name in names or BENCHES)


def _result(name: str, options: Options, say: Say) -> Result:
    try:
        return Result(name, BENCHES[name](say, options))
    except ReplayError as error:
        return Result(name, cannot=str(error))
    except ImportError as error:
        return Result(name, cannot=f"{error.name or 'a package'} cannot be imported here; install route-replay[test]")
    except OSError as error:
        return Result(name, cannot=f"the machine refused ({error.strerror or type(error).__name__})")
    except Exception as error:
        # psycopg may be missing, so its errors are known by their module; a message may quote the connection string.
        if not type(error).__module__.startswith("psycopg"):
            raise
        return Result(name, cannot=f"the database did not do it ({type(error).__name__}); check --dsn and its rights")


def about(results: list[Result], options: Options) -> Report:
    """Put results together with the machine and the versions they were measured with."""
    return Report(machine(), versions(), options.quick, results)


def machine() -> dict[str, str]:
    """Return what the figures depend on most: processor, cores, memory, system."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count() or "unknown"),
        "memory": f"{memory_gb:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def versions() -> dict[str, str]:
    """Return the versions of this project, of Python and of what does the work; what is not installed is left out."""
    found = {"route-replay": replay.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def to_json(report: Report) -> str:
    """Write a report as JSON; a figure that is no finite number (never reached, say) is null.

    >>> told = Report({}, {}, True, [Result("store", [Figure("rows", 2.0, "rows/s")])])
    >>> from_json(to_json(told)) == told
    True
    """
    data = {"format": FORMAT, **asdict(report)}
    for result in data["results"]:
        for figure in result["figures"]:
            figure |= {name: _finite(figure[name]) for name in ("value", "ratio")}
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def from_json(text: str) -> Report:
    """Read a report back; a null value reads as inf. Raises ReplayError for anything else than a report."""
    try:
        data = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        results = [
            Result(one["name"], [_figure(figure) for figure in one["figures"]], one["cannot"])
            for one in data["results"]
        ]
        return Report(data["machine"], data["versions"], data["quick"], results)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReplayError(
            f"this is no benchmark report ({error}); expected a file written by replay bench --json; run it again"
        ) from error


def _figure(data: dict[str, Any]) -> Figure:
    return Figure(**{**data, "value": math.inf if data["value"] is None else data["value"]})


# As a page shows it


def shown(value: float) -> str:
    """Write a number with three digits that count, or as a whole one.

    >>> shown(1234567.8), shown(0.012345), shown(45.678), shown(0.0), shown(float("inf"))
    ('1,234,568', '0.0123', '45.7', '0', 'never')
    """
    if not math.isfinite(value):
        return "never"
    if value == 0 or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def verdict(figure: Figure) -> str:
    """Say whether what was aimed at was reached.

    >>> verdict(Figure("f", 1.0, "s", aim="≤ 2 s", reached=True)), verdict(Figure("f", 1.0, "s"))
    ('yes', '')
    """
    return "" if figure.aim is None else {True: "yes", False: "no", None: "not judged"}[figure.reached]


def markdown(report: Report) -> str:
    """Return the README's table: the figures that something was aimed at, and where they were measured."""
    lines = ["| measured | | against | ratio | aim | reached |", "|---|--:|---|--:|---|---|"]
    for result in report.results:
        for one in result.figures:
            if one.aim is not None:
                ratio = "" if one.ratio is None else f"{shown(one.ratio)}×"
                value = f"{shown(one.value)} {one.unit}"
                lines.append(
                    f"| {one.name.strip()} | {value} | {one.against or ''} | {ratio} | {one.aim} | {verdict(one)} |"
                )
        if result.cannot is not None:
            lines.append(f"| {result.name}: not measured | | | | | |")
    return "\n".join([*lines, "", f"Measured with `replay bench` on {measured_on(report)}."])


def measured_on(report: Report) -> str:
    """Say where and with what a report was measured, in one line."""
    known = report.machine
    used = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return f"{known['processor']}, {known['cores']} cores, {known['memory']}, {known['system']}; {used}"


def into_page(page: Path, report: Report) -> None:
    """Put the table between a page's markers, in place of what stands there."""
    before, after = _around(page)
    page.write_text(f"{before}{BEGIN}\n{markdown(report)}\n{END}{after}", encoding="utf-8")


def require_markers(page: Path) -> None:
    """Refuse a page without markers, before hours are spent."""
    _around(page)


def _around(page: Path) -> tuple[str, str]:
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ReplayError(f"{page} cannot be read; expected a page with the lines {BEGIN} and {END}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ReplayError(f"{page} has no lines {BEGIN} and {END}, one after the other; put them where the table goes")
    return before, after
