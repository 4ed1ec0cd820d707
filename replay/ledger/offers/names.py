"""Joining a ledger's model names to a price list's: exact, then rules, then explicit aliases, never a guess."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from replay.errors import ReplayError

WAYS = ("exact", "rules", "alias")
"""How a name can be joined, best first."""

_DATE_SUFFIX = re.compile(r"-20\d\d(?:\d{4}|-\d\d-\d\d)$")
_VERSION_DASH = re.compile(r"(?<=-)(\d)-(\d)(?=-|$)")


@dataclass(frozen=True)
class Match:
    """A listed name and how it was found: `way` is one of WAYS, `rules` the rules applied up to there."""

    listed: str
    way: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A name as a ledger has it, with the provider that was asked."""

    provider: str
    name: str


def _on_base(name: str, change: Callable[[str], str]) -> str:
    """Change a name before its variant: what follows a colon (`:free`, `:beta`) is another product, and stays."""
    base, colon, variant = name.partition(":")
    return change(base) + colon + variant


@dataclass(frozen=True)
class NamingRules:
    """The rules, vendors, gateways and aliases for one price list; see aliases.toml for what each means.

    >>> rules = load_rules("openrouter_price_events")
    >>> rules.forms(Asked("anthropic", "claude-3-7-sonnet-20250219"))[-1]
    ('date_suffix', 'anthropic/claude-3.7-sonnet')
    """

    version: int
    rules: tuple[str, ...]
    gateways: tuple[str, ...]
    vendors: Mapping[str, str]
    aliases: Mapping[str, str]

    def forms(self, asked: Asked) -> list[tuple[str, str]]:
        """Return the asked name after each rule, as (rule, name): what each rule added to the ones before it."""
        name, found = asked.name, []
        for rule in self.rules:
            name = _RULES[rule](self, asked.provider, name)
            found.append((rule, name))
        return found

    def spelled(self, name: str) -> str:
        """Return a listed name with its spelling evened out: two names that are equal then differ in nothing else."""
        return self.listed_form(name, self.rules[-1])

    def listed_form(self, name: str, rule: str) -> str:
        """Return a listed name as the rules up to `rule` leave it.

        Only spelling is evened out here (case, version dots). A listed name keeps its date: a dated entry is one
        version, and an undated name may mean another.
        """
        for applied in self.rules[: self.rules.index(rule) + 1]:
            if applied in _SPELLING:
                name = _RULES[applied](self, "", name)
        return name


def _lower_case(_: NamingRules, provider: str, name: str) -> str:
    return name.lower()


def _gateway_prefix(rules: NamingRules, provider: str, name: str) -> str:
    """openrouter/anthropic/x → anthropic/x, for a provider that is a gateway."""
    gateway = provider.lower()
    return name.removeprefix(gateway + "/") if gateway in rules.gateways else name


def _vendor_prefix(rules: NamingRules, provider: str, name: str) -> str:
    """gemini/x or a bare x asked of gemini → google/x. A gateway sells many vendors: its names keep theirs."""
    own = provider.lower()
    if not own or own in rules.gateways:
        return name
    vendor = rules.vendors.get(own, own)
    name = name.removeprefix(own + "/")
    return name if name.startswith(vendor + "/") else f"{vendor}/{name}"


def _version_dots(_: NamingRules, provider: str, name: str) -> str:
    """claude-3-7-sonnet → claude-3.7-sonnet; only between single digits, so dates and sizes stay."""
    return _on_base(name, lambda base: _VERSION_DASH.sub(r"\1.\2", base))


def _date_suffix(_: NamingRules, provider: str, name: str) -> str:
    """x-20250219 or x-2024-08-06 → x."""
    return _on_base(name, lambda base: _DATE_SUFFIX.sub("", base))


_RULES: Mapping[str, Callable[[NamingRules, str, str], str]] = {
    "lower_case": _lower_case,
    "gateway_prefix": _gateway_prefix,
    "vendor_prefix": _vendor_prefix,
    "version_dots": _version_dots,
    "date_suffix": _date_suffix,
}
_SPELLING = ("lower_case", "version_dots")


class Matcher:
    """Finds listed names. `listed` maps each listed name to the further names the list itself gives that model.

    >>> matcher = Matcher(load_rules("openrouter_price_events"), {"anthropic/claude-3.7-sonnet": ()})
    >>> matcher.match(Asked("anthropic", "anthropic/claude-3-7-sonnet-20250219"))
    Match(listed='anthropic/claude-3.7-sonnet', way='rules', rules=('version_dots', 'date_suffix'))
    >>> matcher.match(Asked("openrouter", "openrouter/anthropic/claude-3.7-sonnet:free")) is None
    True
    """

    def __init__(self, rules: NamingRules, listed: Mapping[str, Iterable[str]]) -> None:
        self._rules = rules
        self._exact = self._index(listed, lambda name: name)
        self._by_rule = {rule: self._index(listed, partial(rules.listed_form, rule=rule)) for rule in rules.rules}

    @staticmethod
    def _index(listed: Mapping[str, Iterable[str]], form: Callable[[str], str]) -> dict[str, str]:
        """Return form → listed name. A name goes before a further name; what equals share is nobody's."""
        owners: dict[str, set[str]] = {}
        further: dict[str, set[str]] = {}
        for name, others in listed.items():
            owners.setdefault(form(name), set()).add(name)
            for other in others:
                further.setdefault(form(other), set()).add(name)
        return {key: min(names) for key, names in (further | owners).items() if len(names) == 1}

    def match(self, asked: Asked) -> Match | None:
        """Return the listed name that `asked` is, or None: exact, then rule upon rule, then aliases."""
        if not asked.name:
            return None
        if asked.name in self._exact:
            return Match(self._exact[asked.name], "exact")
        forms = self._rules.forms(asked)
        applied: list[str] = []
        before = asked.name
        for rule, name in forms:
            if name != before:
                applied.append(rule)
            if name in self._by_rule[rule]:
                return Match(self._by_rule[rule][name], "rules", tuple(applied))
            before = name
        for name in (asked.name, *(name for _, name in forms)):
            alias = self._rules.aliases.get(name)
            if alias is not None and alias in self._exact:
                return Match(self._exact[alias], "alias")
        return None


def load_rules(source: str) -> NamingRules:
    """Return the naming rules for a price list from aliases.toml; a list it does not know gets the default ones."""
    text = files("replay.ledger").joinpath("aliases.toml").read_text(encoding="utf-8")
    return parse_rules(tomllib.loads(text), source)


def parse_rules(table: Mapping[str, Any], source: str) -> NamingRules:
    """Return the rules for `source` from a parsed alias table; an unknown rule is refused."""
    entry = table["sources"].get(source, table["sources"]["default"])
    unknown = [rule for rule in entry["rules"] if rule not in _RULES]
    if unknown:
        raise ReplayError(
            f"The alias table names the rule {unknown[0]!r} for {source}; known rules are {', '.join(_RULES)}. "
            "Use one of these, or write an explicit alias."
        )
    return NamingRules(
        version=int(table["version"]),
        rules=tuple(entry["rules"]),
        gateways=tuple(entry.get("gateways", ())),
        vendors=dict(entry.get("vendors", {})),
        aliases=dict(entry.get("aliases", {})),
    )
