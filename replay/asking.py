"""What every recorded call asked of the core, and the policy it is decided with: each distinct one read once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from replay.core import Policy, Request, Schema, State, admit
from replay.errors import ReplayError
from replay.timeline import Ints, Texts, Timeline


@dataclass(frozen=True)
class Asked:
    """What a recorded call asked of the core."""

    request: Request | None  # None: the core refuses it, as it did when it was made
    seed: int
    credits: Mapping[str, float]
    hot_route: str | None
    kind: str  # tools, vision, json or plain


class Asking:
    """The calls of a timeline by what they ask: `codes[call]` is the place in `distinct`."""

    def __init__(self, timeline: Timeline) -> None:
        calls = timeline.calls
        texts, labels = calls.request, calls.requested_model
        pairs = texts.codes.astype(np.int64) * (len(labels.values) + 1) + labels.codes
        _, first, codes = np.unique(pairs, return_index=True, return_inverse=True)
        self.codes: Ints = codes.astype(np.int64)
        self.distinct = [_asked(texts[call], labels[call]) for call in first.tolist()]

    def __getitem__(self, call: int) -> Asked:
        return self.distinct[int(self.codes[call])]

    @cached_property
    def kinds(self) -> Texts:
        """The kind of each of the distinct ones."""
        return Texts.of(pl.Series([asked.kind for asked in self.distinct], dtype=pl.String))


class Policies:
    """The policy of every call: one for all, or the recorded ones by identity."""

    def __init__(self, timeline: Timeline, given: Policy | None = None) -> None:
        self.given = given
        self._by_id: dict[str, Policy] = {}
        for row in timeline.ledger.policies.to_dicts():
            try:
                schema = Schema.declare(json.loads(row["declared_fields"]), json.loads(row["tiers"]))
                self._by_id[row["policy_id"]] = admit(json.loads(row["term"]), schema)
            except (ValueError, TypeError, AttributeError, RecursionError, ReplayError) as error:
                raise ReplayError(
                    f"the ledger's policy {row['policy_id']} cannot be read ({error}); expected a term, its declared "
                    "fields and tiers as JSON that the core admits; correct it in the table policies, or delete it: "
                    "its calls then count as decided with an unknown policy"
                ) from error
        self._of_call = timeline.calls.policy_id

    def recorded(self, call: int) -> Policy | None:
        """Return the policy a call was decided with, None where the ledger does not know it."""
        return self._by_id.get(self._of_call[call] or "")

    def any_recorded(self, calls: Ints) -> bool:
        """Say whether the ledger knows the policy of any of the calls."""
        known = [code for code, identity in enumerate(self._of_call.values) if identity in self._by_id]
        return bool(np.isin(self._of_call.codes[calls], known).any())

    def of(self, call: int) -> Policy | None:
        """Return the policy to decide a call with."""
        return self.given or self.recorded(call)

    def in_force(self, call: int) -> Policy | None:
        """Return the policy whose failover walked a recorded call; where unrecorded, the given one stands for it."""
        return self.recorded(call) or self.given

    def numbered(
        self, calls: Ints | None = None, *, recorded: bool = False, in_force: bool = False
    ) -> tuple[Ints, list[Policy | None]]:
        """Return the policy of some calls (all, if not given) as a number, and the policies.

        They are those to decide with, unless others are asked for. The number after the last is that of no policy.
        """
        known = [self._by_id.get(identity) for identity in [*self._of_call.values, ""]]
        if in_force:
            known = [policy or self.given for policy in known]
        elif self.given is not None and not recorded:
            known = [self.given for _ in known]
        codes = (self._of_call.codes if calls is None else self._of_call.codes[calls]).astype(np.int64)
        return np.where(codes < 0, len(known) - 1, codes), known


def _asked(text: str | None, label: str | None) -> Asked:
    try:
        record: dict[str, Any] = json.loads(text) if text else _from_label(label)
        request = Request.from_record(record)
        seed = int(record.get("seed") or 0)
        credits = State.from_record({"credits": record.get("credits")}).credits
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, ReplayError):
        return Asked(None, 0, {}, None, "refused")
    return Asked(request, seed, credits, record.get("hot_route"), _kind(request))


def _from_label(label: str | None) -> dict[str, Any]:
    """Infer a request from `requested_model`, all that an old ledger says of it."""
    if label and label.startswith("family:"):
        return {"requirements": {"model_family": label.removeprefix("family:")}}
    if label and label.startswith("pin:") and "/" in label:
        provider, family = label.removeprefix("pin:").split("/", 1)
        return {"requirements": {"pin": {"provider": provider, "model": family}}}
    return {}


def _kind(request: Request) -> str:
    kinds: tuple[tuple[str, Callable[[tuple[str, ...]], bool]], ...] = (
        ("tools", lambda needs: "tools" in needs),
        ("vision", lambda needs: "vision" in needs),
        ("json", lambda needs: "json_mode" in needs),
    )
    return next((name for name, holds in kinds if holds(request.needs)), "plain")
