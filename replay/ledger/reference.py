"""What is recorded beside calls and attempts: the candidates and their validity, policies, measurement settings.

Each is taken down when it is recorded, and written later by a transaction of its own, which may be repeated: it finds
what is there and adds what is not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Final

from replay.core import Policy
from replay.ledger.postgres import Connection, bounded
from replay.ledger.rows import OfferRow, columns
from replay.settings import Settings

_OFFER_LOCK: Final = 491496240230
"""Advisory lock under which the candidate list changes: the one after the schema's."""

_SAID: Final = tuple(name for name in columns(OfferRow) if name not in ("id", "valid_from", "valid_to"))
_INSERTED: Final = ("valid_from", *_SAID)
_what_it_says = attrgetter(*_SAID)


class RefusedError(Exception):
    """What was recorded contradicts what the ledger holds; it is not written. The message says how."""


@dataclass(frozen=True, slots=True)
class Offers:
    """The whole candidate list as it is from an instant (ms) on."""

    table: ClassVar = "offer_history"
    offers: tuple[OfferRow, ...]
    at_ms: int

    @classmethod
    def of(cls, offers: Sequence[OfferRow], at_ms: int) -> Offers:
        """Take down a list; ids and validity of the given rows do not matter."""
        return cls(tuple(offers), at_ms)

    @property
    def name(self) -> str:
        """There is one list at a time."""
        return "offers"

    def says(self) -> tuple[tuple[Any, ...], ...]:
        """Return what the list says, apart from when: two lists that say the same are one."""
        return tuple(map(_what_it_says, self.offers))

    def write(self, connection: Connection) -> None:
        """Close what is no longer so and insert what is new; nothing is written for what stays as it is.

        Raises RefusedError where the ledger already knows of a later change: history is not rewritten.
        """
        with bounded(connection):
            connection.execute("SELECT pg_advisory_xact_lock($1)", [_OFFER_LOCK])
            still = connection.execute(f"SELECT id, {', '.join(_SAID)} FROM offer_history WHERE valid_to IS NULL")
            wanted = Counter(self.says())
            closing: list[int] = []
            for row in still.fetchall():
                said = tuple(row[name] for name in _SAID)
                if wanted[said] > 0:
                    wanted[said] -= 1
                else:
                    closing.append(row["id"])
            new = list(wanted.elements())
            if closing or new:
                self._change(connection, closing, new)

    def _change(self, connection: Connection, closing: list[int], new: list[tuple[Any, ...]]) -> None:
        latest = connection.execute("SELECT max(greatest(valid_from, valid_to)) AS at_ms FROM offer_history").fetchone()
        latest_ms = (latest or {}).get("at_ms")
        if latest_ms is not None and latest_ms > self.at_ms:
            raise RefusedError(
                f"a candidate list of {self.at_ms} ms came after one of {latest_ms} ms; expected lists in the order of "
                "their instants: it is left out"
            )
        connection.execute("UPDATE offer_history SET valid_to = $1 WHERE id = ANY ($2)", [self.at_ms, closing])
        places = ", ".join(f"${place}" for place in range(1, len(_INSERTED) + 1))
        insert = f"INSERT INTO offer_history ({', '.join(_INSERTED)}) VALUES ({places})"
        with connection.cursor() as cursor:
            cursor.executemany(insert, [(self.at_ms, *said) for said in new])


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A policy with the declared fields and the tier order it was admitted with, all as JSON."""

    table: ClassVar = "policies"
    policy_id: str
    term: str
    declared_fields: str
    tiers: str
    recorded_at: int

    @classmethod
    def of(cls, policy: Policy, at_ms: int) -> PolicyRecord:
        """Take down a policy."""
        declared, tiers = json.dumps(policy.schema.declared, sort_keys=True), json.dumps(policy.schema.tiers)
        return cls(policy.identity, json.dumps(policy.term), declared, tiers, at_ms)

    @property
    def name(self) -> str:
        """Return what it is known by."""
        return f"policy {self.policy_id}"

    def says(self) -> tuple[str, ...]:
        """Return what it says, apart from when."""
        return self.declared_fields, self.tiers

    def write(self, connection: Connection) -> None:
        """Insert it once; raises RefusedError where the same identity was recorded with other fields or tiers."""
        with bounded(connection):
            connection.execute(
                "INSERT INTO policies (policy_id, term, declared_fields, tiers, recorded_at) "
                "VALUES ($1, $2, $3, $4, $5) ON CONFLICT (policy_id) DO NOTHING",
                [self.policy_id, self.term, self.declared_fields, self.tiers, self.recorded_at],
            )
        there = connection.execute(
            "SELECT declared_fields, tiers FROM policies WHERE policy_id = $1", [self.policy_id]
        ).fetchone()
        for name, ours in (("declared_fields", self.declared_fields), ("tiers", self.tiers)):
            if there is not None and json.loads(there[name]) != json.loads(ours):
                raise RefusedError(
                    f"policy {self.policy_id} is in the ledger with {name} {there[name]}, now it came with {ours}; "
                    "expected the same, since its calls would not replay: the recorded one stays. Declare the fields "
                    "alike everywhere, or give the policy another term"
                )


@dataclass(frozen=True, slots=True)
class SettingsRecord:
    """Measurement settings under their identity, as canonical JSON."""

    table: ClassVar = "settings"
    settings_id: str
    settings: str
    recorded_at: int

    @classmethod
    def of(cls, settings: Settings, at_ms: int) -> SettingsRecord:
        """Take down settings."""
        return cls(settings.identity, settings.to_json(), at_ms)

    @property
    def name(self) -> str:
        """Return what they are known by."""
        return f"settings {self.settings_id}"

    def says(self) -> str:
        """Return what they say, apart from when."""
        return self.settings

    def write(self, connection: Connection) -> None:
        """Insert them once; the identity is the hash of the JSON, so there is nothing to contradict."""
        with bounded(connection):
            connection.execute(
                "INSERT INTO settings (settings_id, settings, recorded_at) VALUES ($1, $2, $3) "
                "ON CONFLICT (settings_id) DO NOTHING",
                [self.settings_id, self.settings, self.recorded_at],
            )


Reference = Offers | PolicyRecord | SettingsRecord
