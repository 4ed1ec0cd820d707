"""Measurement settings: which rule makes each stamp, from which attempts, and where its state lives.

Settings are data. They are written as TOML, recorded as canonical JSON, and identified by its hash; their name is
not part of the identity. Every default is production's behaviour today.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from replay.durations import duration_ms, instant_ms
from replay.errors import ReplayError
from replay.estimators import Quantile, Rule, ToolsNever, ToolsRule, ToolsWindow, Window
from replay.estimators.named import EXAMPLES, RULES, TOOLS_RULES, name_of, require_meaning

PRESETS = ("production-now", "production-before")

StateIn = Literal["shared", "process"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How one number (a route's reliability, or its latency) is measured.

    `state` is `shared` (derived from the ledgers, all replicas agree) or `process` (each process has its own).
    `exclude_kinds` are error kinds that do not count as observations. `when_cold` is stamped on a route that was
    never observed, `when_empty` on one that was, but has nothing in its window; None stamps nothing. For latency
    only: `failed_latency_ms` counts a failed attempt as that many ms (None: failed attempts are left out), and
    `zero_latency` says whether a recorded 0 is a value or unknown.
    """

    rule: Rule
    state: StateIn = "shared"
    exclude_kinds: tuple[str, ...] = ()
    when_cold: float | None = None
    when_empty: float | None = None
    failed_latency_ms: float | None = None
    zero_latency: Literal["value", "unknown"] = "value"


@dataclass(frozen=True, kw_only=True)
class Tools:
    """How tool capability is judged; `failed` says whether failed attempts count as having ignored the tools."""

    rule: ToolsRule
    state: StateIn = "shared"
    failed: Literal["counted", "excluded"] = "counted"


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Which prices candidates carry: `recorded` ones, those of one instant (`at`), scaled per provider, or measured.

    `measured` scales a route's list price by what reported calls of its (provider, family) cost against their list
    price in the last `window_ms`, where at least `min_calls` did: a what-if only, production never does it.
    """

    mode: Literal["recorded", "at", "scaled", "measured"] = "recorded"
    at_ms: int | None = None
    scale: Mapping[str, float] = field(default_factory=dict)
    window_ms: int = 86_400_000
    min_calls: int = 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a replay may vary about measuring.

    `memo_ms` is how long a process reuses the stamps it read; None keeps the recorded evidence instants. `lag_ms`
    is the write lag assumed where visibility is not recorded: one number, or several of which each row draws one
    by the hash of (`seed`, row). `visibility` "best" uses recorded visibility where the ledger has it. `replicas`
    and `restarts` put in-process state where the ledger does not say: calls are assigned to that many processes by
    the hash of (`seed`, call), and all of their state is lost at each restart.
    """

    name: str = "unnamed"
    reliability: Measure = Measure(rule=Window(900_000))
    latency: Measure = Measure(rule=Window(900_000))
    tools: Tools = Tools(rule=ToolsWindow(20, 1_800_000))
    prices: Prices = Prices()
    memo_ms: int | None = None
    visibility: Literal["best", "lagged"] = "best"
    lag_ms: tuple[int, ...] = (0,)
    replicas: int | None = None
    restarts: tuple[int, ...] = ()
    honour_open_breaker_ms: bool = False
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data, the form that `from_dict` reads."""
        return {"name": self.name, **_plain(self, skip=("name",))}

    def to_json(self) -> str:
        """Return the canonical JSON that is recorded and hashed (keys sorted, no name)."""
        return json.dumps(_plain(self, skip=("name",)), sort_keys=True, separators=(",", ":"))

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of the canonical JSON: two settings that measure alike have the same identity.

        >>> from dataclasses import replace
        >>> PRODUCTION_NOW.identity == replace(PRODUCTION_NOW, name="other").identity
        True
        """
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def longest_window_ms(self) -> int:
        """The longest window any rule looks back (0 where none does).

        >>> PRODUCTION_NOW.longest_window_ms
        1800000
        """
        rules: tuple[object, ...] = (self.reliability.rule, self.latency.rule, self.tools.rule)
        return max(getattr(rule, "window_ms", None) or 0 for rule in rules)

    @property
    def windows_only(self) -> bool:
        """Whether every rule is a window: then what was seen decides, and nothing older than the longest window.

        >>> PRODUCTION_NOW.windows_only, PRODUCTION_BEFORE.windows_only
        (True, False)
        """
        measures = (self.reliability.rule, self.latency.rule)
        windows = all(getattr(rule, "window_ms", None) is not None for rule in measures)
        return windows and isinstance(self.tools.rule, ToolsWindow | ToolsNever)

    @property
    def latency_quantile(self) -> float | None:
        """The quantile of latency that is measured, None where the rule measures another figure.

        >>> PRODUCTION_NOW.latency_quantile is None
        True
        """
        return self.latency.rule.q if isinstance(self.latency.rule, Quantile) else None


def quantiles(settings: Iterable[Settings]) -> dict[str, float]:
    """Return the quantile of every setting that measures one, by name: what `analysis.prequential` asks for.

    >>> quantiles([PRODUCTION_NOW])
    {}
    """
    return {one.name: one.latency_quantile for one in settings if one.latency_quantile is not None}


def _plain(value: Any, skip: tuple[str, ...] = ()) -> Any:
    """Turn a settings value into JSON data; a rule carries its name beside its parameters."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    plain: dict[str, Any] = {}
    for item in fields(value):
        if item.name in skip:
            continue
        inner = getattr(value, item.name)
        if item.name == "rule":
            plain |= {"rule": name_of(inner), **_plain(inner)}
        else:
            plain[item.name] = _plain(inner)
    return plain


def from_dict(data: Mapping[str, Any], name: str = "unnamed") -> Settings:
    """Read settings from plain data (TOML or JSON); durations may carry a unit, instants may be ISO times.

    >>> from_dict({"reliability": {"rule": "ema", "alpha": 0.1}}).reliability.rule
    Ema(alpha=0.1)
    """
    reader = _Reader(data, "settings")
    settings = Settings(
        name=reader.text("name", name),
        reliability=_measure(reader, "reliability"),
        latency=_measure(reader, "latency"),
        tools=_tools(reader),
        prices=_prices(reader),
        memo_ms=reader.take_duration("memo", None),
        visibility=reader.choice("visibility", ("best", "lagged"), "best"),
        lag_ms=_lag(reader),
        replicas=reader.whole("replicas", None),
        restarts=tuple(sorted({instant_ms(at) for at in reader.several("restarts", "instants")})),
        honour_open_breaker_ms=reader.flag("honour_open_breaker_ms", False),
        seed=reader.whole("seed", 0),
    )
    reader.done()
    if settings.replicas is not None and settings.replicas < 1:
        raise ReplayError(f"replicas is {settings.replicas}; expected at least 1; leave it out for the recorded ones")
    return settings


class _Reader:
    """Takes known keys out of a table and refuses what is left, so that a misspelt key is never a silent default."""

    def __init__(self, data: Mapping[str, Any], path: str) -> None:
        if not isinstance(data, Mapping):
            raise ReplayError(f"{path} is {data!r}; expected a table of keys")
        self.left = dict(data)
        self.known: list[str] = []
        self.path = path

    def take(self, key: str, default: Any) -> Any:
        self.known.append(key)
        value = self.left.pop(key, None)
        return default if value is None else value

    def take_duration(self, key: str, default: int | None) -> Any:
        """Read `key` with a unit ("15m") or `key_ms` as an integer."""
        text, number = self.take(key, None), self.take(f"{key}_ms", None)
        if number is not None and type(number) is not int:
            raise self._refused(f"{key}_ms", number, "a whole number of ms")
        given = number if text is None else text
        value = None if given is None else duration_ms(given)
        if value is not None and value < 0:
            raise self._refused(key, given, "a duration of 0 or more, such as 15m")
        return default if value is None else value

    def text(self, key: str, default: str) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self._refused(key, value, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self._refused(key, value, "true or false")
        return value

    def whole(self, key: str, default: int | None) -> Any:
        value = self.take(key, default)
        if value is not None and type(value) is not int:
            raise self._refused(key, value, "a whole number")
        return value

    def number(self, key: str) -> float | None:
        value = self.take(key, None)
        if value is None:
            return None
        if type(value) not in (int, float) or not abs(value) < 2**1023:
            raise self._refused(key, value, "a finite number")
        return float(value)

    def several(self, key: str, what: str) -> list[Any]:
        value = self.take(key, ())
        if not isinstance(value, list | tuple):
            raise self._refused(key, value, f"a list of {what}")
        return list(value)

    def _refused(self, key: str, value: object, expected: str) -> ReplayError:
        return ReplayError(f"{self.path}.{key} is {value!r}; expected {expected}; correct the settings")

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> Any:
        value = self.take(key, default)
        if value not in allowed:
            raise ReplayError(f"{self.path}.{key} is {value!r}; expected one of {', '.join(allowed)}")
        return value

    def table(self, key: str) -> _Reader:
        return _Reader(self.take(key, {}), f"{self.path}.{key}")

    def done(self) -> None:
        if self.left:
            keys = ", ".join(sorted(dict.fromkeys(self.known)))
            raise ReplayError(f"{self.path} has no key {sorted(self.left)[0]!r}; it knows {keys}: check the spelling")


def _rule(reader: _Reader, rules: Mapping[str, type], default: str) -> Any:
    name = reader.choice("rule", tuple(rules), default)
    kind = rules[name]
    values = {}
    for item in fields(kind):
        key = item.name.removesuffix("_ms")
        if item.name.endswith("_ms"):
            value: Any = reader.take_duration(key, None)
        else:
            value = reader.number(key) if item.type == "float" else reader.whole(key, None)
        if value is not None:
            values[item.name] = value
        elif item.default is MISSING:
            raise ReplayError(
                f"{reader.path} has rule {name!r} without {key!r}; say {key} = {EXAMPLES[key]}, for example"
            )
    return kind(**values)


def _measure(outer: _Reader, key: str) -> Measure:
    if key not in outer.left:
        return getattr(Settings, key)  # type: ignore[no-any-return]
    reader = outer.table(key)
    measure = Measure(
        rule=_rule(reader, RULES, "window"),
        state=reader.choice("state", ("shared", "process"), "shared"),
        exclude_kinds=tuple(sorted({str(kind) for kind in reader.several("exclude_kinds", "error kinds")})),
        when_cold=reader.number("when_cold"),
        when_empty=reader.number("when_empty"),
        failed_latency_ms=reader.number("failed_latency_ms"),
        zero_latency=reader.choice("zero_latency", ("value", "unknown"), "value"),
    )
    reader.done()
    require_meaning(measure.rule, key)
    stands_in = [value for value in (measure.when_cold, measure.when_empty) if value is not None]
    if key == "reliability" and not all(0 <= value <= 1 for value in stands_in):
        raise ReplayError(f"{reader.path} stamps {stands_in} on unmeasured routes; expected success rates from 0 to 1")
    return measure


def _tools(outer: _Reader) -> Tools:
    if "tools" not in outer.left:
        return Settings.tools
    reader = outer.table("tools")
    tools = Tools(
        rule=_rule(reader, TOOLS_RULES, "window"),
        state=reader.choice("state", ("shared", "process"), "shared"),
        failed=reader.choice("failed", ("counted", "excluded"), "counted"),
    )
    reader.done()
    return tools


def _prices(outer: _Reader) -> Prices:
    reader = outer.table("prices")
    at, at_ms = reader.take("at", None), reader.take("at_ms", None)
    at = at_ms if at is None else at
    scale = reader.table("scale")
    prices = Prices(
        mode=reader.choice("mode", ("recorded", "at", "scaled", "measured"), "recorded"),
        at_ms=None if at is None else instant_ms(at),
        scale={provider: scale.number(provider) or 0.0 for provider in list(scale.left)},
        window_ms=reader.take_duration("window", 86_400_000),
        min_calls=reader.whole("min_calls", 20),
    )
    reader.done()
    if min(prices.scale.values(), default=0.0) < 0:
        raise ReplayError(f"settings.prices.scale is {dict(prices.scale)}; expected factors of 0 or more; correct it")
    if prices.window_ms <= 0 or prices.min_calls < 1:
        raise ReplayError(
            f"settings.prices has a window of {prices.window_ms} ms and min_calls {prices.min_calls}; expected both "
            'more than 0; give for example window = "24h" and min_calls = 20'
        )
    if prices.mode == "at" and prices.at_ms is None:
        raise ReplayError(
            'settings.prices has mode "at" without an instant; say for example at = "2026-03-02T00:00:00Z"'
        )
    if prices.mode == "scaled" and not prices.scale:
        raise ReplayError('settings.prices has mode "scaled" without factors; say for example scale = { openai = 1.2 }')
    return prices


def _lag(reader: _Reader) -> tuple[int, ...]:
    lag, lag_in_ms = reader.take("lag", None), reader.take("lag_ms", None)
    given = lag_in_ms if lag is None else lag
    if given is None:
        return (0,)
    lags = tuple(duration_ms(item) for item in (given if isinstance(given, list | tuple) else [given]))
    if not lags or min(lags) < 0:
        raise ReplayError(f"settings.lag is {given!r}; expected a duration of 0 or more, or several to draw from")
    return lags


def load(name_or_path: str) -> Settings:
    """Load a preset by name or a settings file by path.

    >>> load("production-before").reliability.rule
    Ema(alpha=0.2)
    """
    if name_or_path in PRESETS:
        text = (resources.files("replay") / "presets" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise ReplayError(f"no settings {name_or_path!r}; expected a TOML file or a preset: {', '.join(PRESETS)}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ReplayError(f"{path} cannot be read ({error}); expected a TOML file in UTF-8") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ReplayError(
            f"{name_or_path} is not TOML: {error}; see `replay settings production-now` for one that is"
        ) from error
    return from_dict(data, name=Path(name_or_path).stem)


PRODUCTION_NOW = load("production-now")
PRODUCTION_BEFORE = load("production-before")
