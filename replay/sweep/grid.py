"""Grids of settings: ranges as people write them, dotted keys over a base, and a readable name for every point."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from replay import settings as settings_room
from replay.durations import duration_ms, human
from replay.errors import ReplayError
from replay.estimators.named import RULES, TOOLS_RULES
from replay.settings import Settings

MOST = 10_000
"""Points of a grid; more is a slip of the pen."""

WHOLE_SECONDS_FROM_MS = 10_000
_RANGE = re.compile(r"\s*([^,]+?)\s*\.\.\s*([^,:]+?)\s*:\s*([0-9]+)\s*")


def values(text: str) -> list[Any]:
    """Return the values of a list such as `0.05,0.1,0.2`, in which `FROM..TO:N` stands for N values, ends included.

    Durations and decimal fractions are spaced evenly in ratio (windows of 1m and 2m differ as those of 30m and 1h do),
    whole numbers evenly in difference. Durations come out as texts in whole seconds (below 10 s: ms), fractions with
    three digits. Raises ReplayError for what is no range, and where rounding would make two values one.

    >>> values("1m..16m:5"), values("0.05,0.1"), values("0..3:4"), values("0.01..1.0:3")
    (['1m', '2m', '4m', '8m', '16m'], [0.05, 0.1], [0, 1, 2, 3], [0.01, 0.1, 1.0])
    """
    found: list[Any] = []
    for part in text.split(","):
        spread = _RANGE.fullmatch(part)
        if spread is None and ".." in part:
            raise _no_range(text, part)
        found += [_value(part.strip())] if spread is None else _spread(text, *spread.groups())
    if "" in found:
        raise ReplayError(f"{text!r} has an empty value; expected values with commas between, such as 1m,5m,15m")
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _spread(text: str, first: str, last: str, count: str) -> list[Any]:
    low, high, n = _value(first), _value(last), int(count)
    if not 2 <= n <= MOST:
        raise ReplayError(f"{text!r} asks for {n} values; expected 2 to {MOST:,}; for one value leave the range out")
    made: list[Any]
    if isinstance(low, int) and isinstance(high, int):
        made = [round(low + (high - low) * place / (n - 1)) for place in range(n)]
    elif isinstance(low, str) and isinstance(high, str):
        spaced = _in_ratio(text, duration_ms(low), duration_ms(high), n)
        made = [human(_readable_ms(value)) for value in spaced]
    elif isinstance(low, str) or isinstance(high, str):
        raise _no_range(text, f"{first}..{last}:{count}")
    else:
        made = [float(f"{value:.3g}") for value in _in_ratio(text, float(low), float(high), n)]
    if len(set(made)) < n:
        raise ReplayError(f"{text!r} asks for {n} values, of which some are the same once rounded; ask for fewer")
    return made


def _in_ratio(text: str, low: float, high: float, n: int) -> list[float]:
    if not (0 < low < float("inf") and 0 < high < float("inf")):
        raise ReplayError(
            f"{text!r} is spaced in ratio, so both ends have to be more than 0; give 0 as a value of its own, before "
            "the range, as in 0,1s..16s:5"
        )
    return [low, *(low * (high / low) ** (place / (n - 1)) for place in range(1, n - 1)), high]


def _readable_ms(value: float) -> int:
    return round(value / 1000) * 1000 if value >= WHOLE_SECONDS_FROM_MS else round(value)


def _no_range(text: str, part: str) -> ReplayError:
    return ReplayError(f"{text!r} has {part!r}, which is no range; expected FROM..TO:N, such as 1m..60m:12")


def other_rule(measure: Mapping[str, Any], **rule: Any) -> dict[str, Any]:
    """Return a measure's table with another rule: whatever belongs to the old one is left out.

    >>> other_rule({"rule": "wilson", "n": 20, "z": 1.96, "state": "shared"}, rule="ema", alpha=0.1)
    {'state': 'shared', 'rule': 'ema', 'alpha': 0.1}
    """
    names = [item.name for kind in (*RULES.values(), *TOOLS_RULES.values()) for item in fields(kind)]
    old = {"rule", *names, *(name.removesuffix("_ms") for name in names)}
    return {key: value for key, value in measure.items() if key not in old} | rule


def load(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Read a grid's file: the bases it names (presets, or files beside it) and its points as {dotted key: value}.

        base = "production-now"              # or several
        [grid]
        reliability.window = "1m..60m:12"    # a list, or text as in `values`
        tools.min_samples = [10, 20, 40]
        latency = [{ rule = "ema", alpha = 0.3 }, { rule = "window", window = "15m" }]

    The points are the product of all keys, the last key varying fastest.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReplayError(f"{path} cannot be read ({error.strerror}); expected a grid in TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path} is not TOML: {error}; see docs/sweep.md for a grid that is") from error
    unknown = sorted(set(data) - {"base", "grid"})
    if unknown or not isinstance(data.get("grid"), dict) or not data["grid"]:
        raise ReplayError(
            f"{path} has {f'the key {unknown[0]!r}' if unknown else 'no [grid] with keys'}; expected base and [grid], "
            "which names settings' keys and their values"
        )
    base = data.get("base", [])
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ReplayError(f"{path} has base = {base!r}; expected a preset's or a file's name, or a list of them")
    axes = dict(_flat(data["grid"], path))
    points = [dict(zip(axes, point, strict=True)) for point in _product(list(axes.values()))]
    return [_beside(name, path) for name in names], points


def _beside(name: str, path: Path) -> str:
    return str(path.parent / name) if (path.parent / name).is_file() else name


def _flat(table: Mapping[str, Any], path: Path, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, path, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield prefix + key, values(value)
        elif isinstance(value, list) and value:
            yield prefix + key, value
        else:
            raise ReplayError(
                f'{path} has {prefix}{key} = {value!r}; expected a list of values, or a range such as "1m..60m:12"'
            )


def _product(axes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    total = 1
    for axis in axes:
        total *= len(axis)
    if total > MOST:
        raise ReplayError(f"the grid has {total:,} points; expected at most {MOST:,}; give fewer values")
    return list(product(*axes))


def combinations(alternatives: Mapping[str, Sequence[Any]], **axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the product of all axes; the keys of `alternatives` form one axis together, as each excludes the others.

    >>> combinations({"window": ["1m"], "alpha": [0.1, 0.2]}, tools_min=[5])
    [{'window': '1m', 'tools_min': 5}, {'alpha': 0.1, 'tools_min': 5}, {'alpha': 0.2, 'tools_min': 5}]
    """
    first = [{key: value} for key, some in alternatives.items() for value in some] or [{}]
    others = [[{key: value} for value in some] for key, some in axes.items() if some]
    return [{key: value for part in point for key, value in part.items()} for point in _product([first, *others])]


def at_point(base: Settings, point: Mapping[str, Any]) -> Settings:
    """Return settings with a point's dotted keys put into them; their name says which.

    >>> at_point(settings_room.PRODUCTION_NOW, {"reliability.window": "5m"}).name
    'production-now reliability.window=5m'
    """
    table = base.to_dict()
    for path, value in point.items():
        *outer, key = path.split(".")
        inner = table
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ReplayError(f"the grid has the key {path!r}, but {name!r} is no table; check the spelling")
        if isinstance(value, Mapping) and isinstance(inner.get(key), dict):
            inner[key] = other_rule(inner[key], **value) if "rule" in value else inner[key] | value
        elif key == "rule":
            kept = other_rule(inner, rule=value)
            inner.clear()
            inner |= kept
        else:
            inner.pop(f"{key}_ms", None)
            inner[key] = value
    words = [f"{path}={_word(value)}" for path, value in point.items()]
    return replace(settings_room.from_dict(table), name=" ".join([base.name, *words]))


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{key}={_word(inner)}" for key, inner in value.items()) + "}"
    return ",".join(map(_word, value)) if isinstance(value, list) else str(value)


def require_unique_names(settings: Sequence[Settings]) -> None:
    """Raise ReplayError where two settings have one name."""
    seen: set[str] = set()
    for one in settings:
        if one.name in seen:
            raise ReplayError(f"two points of the grid are called {one.name!r}; give each value, and each base, once")
        seen.add(one.name)
