"""Check a vector file: how many of each kind this core reproduces exactly, and the first miss.

A file holds `extensions` (declared fields), `breaker` (in failover files) and `vectors`, each of kind `plan`,
`reject` or `failover` as the contract describes them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replay.core.admission import AdmissionError
from replay.core.candidates import Candidate, Request, State
from replay.core.fields import Schema
from replay.core.health import Health
from replay.core.machine import Attempt, Outcome, Walk, failover
from replay.core.planning import plan
from replay.core.policy import Policy, admit
from replay.errors import ReplayError


@dataclass(frozen=True, slots=True)
class Miss:
    """A vector that is not reproduced: which one, in what, and both values."""

    vector: str
    what: str
    expected: Any
    got: Any


@dataclass(slots=True)
class Tally:
    """Per kind, how many vectors were reproduced of how many; and the first miss of the file, if any."""

    reproduced: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    first_miss: Miss | None = None


def check_file(path: str | Path) -> Tally:
    """Check every vector of a file (JSON, gzip too). Raises `ReplayError` for a file that is no vector file."""
    document = _load(Path(path))
    tally = Tally()
    for position, vector in enumerate(document["vectors"]):
        name = f"{Path(path).name}: vector {position}"
        if not isinstance(vector, Mapping) or vector.get("kind") not in _CHECKS:
            raise ReplayError(f"{name} is of no known kind; expected {', '.join(_CHECKS)}; correct the file")
        kind = vector["kind"]
        name = str(vector.get("id", name))
        try:
            miss = _CHECKS[kind](vector, document)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            fault = f"{type(error).__name__}: {error}"
            raise ReplayError(
                f"{name} does not have the form of a {kind} vector ({fault}); correct the file"
            ) from error
        tally.total[kind] = tally.total.get(kind, 0) + 1
        tally.reproduced[kind] = tally.reproduced.get(kind, 0) + (miss is None)
        if miss is not None and tally.first_miss is None:
            tally.first_miss = Miss(name, *miss)
    return tally


_Difference = tuple[str, Any, Any]
"""(what, expected, got)."""


def _load(path: Path) -> dict[str, Any]:
    expected = "expected a vector file, JSON or JSON in gzip, with a list `vectors`; give such a file"
    try:
        content = path.read_bytes()
        document = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except (OSError, EOFError, zlib.error) as error:
        raise ReplayError(f"{path}: {error}; {expected}") from error
    except (ValueError, RecursionError) as error:
        raise ReplayError(f"{path}: no JSON ({error}); {expected}") from error
    if not isinstance(document, dict) or not isinstance(document.get("vectors"), list):
        raise ReplayError(f"{path}: no list of vectors; {expected}")
    return document


def _schema(document: Mapping[str, Any]) -> Schema:
    return Schema.declare(document.get("extensions") or {}, document.get("tiers"))


def _first_difference(pairs: list[_Difference]) -> _Difference | None:
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def _bits(scores: Any) -> list[str]:
    """Write doubles so that equal texts mean equal bits (minus zero differs from zero, NaN equals itself)."""
    return [float(score).hex() for score in scores]


def _check_plan(vector: Mapping[str, Any], document: Mapping[str, Any]) -> _Difference | None:
    try:
        policy = admit(vector["term"], _schema(document))
    except AdmissionError as refused:
        return ("admission", "admitted", str(refused))
    candidates = [Candidate.from_record(record) for record in vector["candidates"]]
    request, state = Request.from_record(vector["request"]), State.from_record(vector["state"])
    got = plan(policy, candidates, request, state, vector["seed"])
    return _first_difference(
        [
            ("encoding", vector["encoding"], policy.encoding),
            ("identity", vector["identity"], policy.identity),
            ("rejected", [list(pair) for pair in vector["rejected"]], [list(pair) for pair in got.rejected]),
            ("ordered", vector["ordered"], list(got.ordered)),
            ("scores", _bits(vector["scores"]), _bits(got.scores)),
        ]
    )


def _check_reject(vector: Mapping[str, Any], document: Mapping[str, Any]) -> _Difference | None:
    try:
        admit(vector["term"], _schema(document))
    except AdmissionError as refused:
        return _first_difference([("error", vector["error"], str(refused))])
    return ("error", vector["error"], "admitted")


def _check_failover(vector: Mapping[str, Any], document: Mapping[str, Any]) -> _Difference | None:
    try:
        policy = admit(vector["term"], _schema(document))
    except AdmissionError as refused:
        return ("admission", "admitted", str(refused))
    candidates = [Candidate.from_record(record) for record in vector["candidates"]]
    breaker = document.get("breaker") or {}
    health = Health(
        threshold=breaker.get("threshold", 3),
        open_ms=breaker.get("open_ms", 30_000),
        disable_ms=breaker.get("disable_ttl_ms", 300_000),
    )
    for number, step in enumerate(vector["steps"]):
        difference = _check_step(step, policy, candidates, health)
        if difference is not None:
            return (f"step {number}, {difference[0]}", difference[1], difference[2])
    return None


def _check_step(
    step: Mapping[str, Any], policy: Policy, candidates: list[Candidate], health: Health
) -> _Difference | None:
    outcomes = step["outcomes"]
    walk, end_ms, used = _run_script(step["at_ms"], outcomes, policy, candidates, health)
    if walk is None:
        return ("attempts", len(outcomes), f"{used} and another one")
    chosen = walk.chosen and [
        walk.chosen.provider_id,
        walk.chosen.model_family,
        walk.chosen.served_model_id,
        walk.chosen.served_by,
    ]
    return _first_difference(
        [
            ("path", step["path"], list(walk.path)),
            ("attempts", len(outcomes), used),
            ("ok", step["ok"], walk.ok),
            ("error", step["error"], walk.error),
            ("chosen", step["chosen"], chosen),
            ("end_ms", step["end_ms"], end_ms),
            ("breakers_open_after", sorted(step["breakers_open_after"]), sorted(health.open_breakers(end_ms))),
            ("disabled_after", sorted(step["disabled_after"]), sorted(health.disabled(end_ms))),
        ]
    )


def _run_script(
    now_ms: float, outcomes: list[Mapping[str, Any]], policy: Policy, candidates: list[Candidate], health: Health
) -> tuple[Walk | None, float, int]:
    """Drive one walk with scripted outcomes; return it (None if the script was too short), its end and the attempts."""
    open_breakers, disabled = health.rank(now_ms)
    decided = plan(policy, candidates, state=State(open_breakers, disabled))
    machine = failover(policy, decided, candidates, health, now_ms)
    used = 0
    try:
        step = next(machine)
        while True:
            outcome = None
            if isinstance(step, Attempt):
                if used == len(outcomes):
                    return None, now_ms, used
                scripted = outcomes[used]
                used += 1
                now_ms += scripted["latency_ms"]
                outcome = Outcome(scripted["ok"], scripted.get("error_kind"))
            else:
                now_ms += step.backoff_ms
            step = machine.send((outcome, now_ms))
    except StopIteration as finished:
        return finished.value, now_ms, used


_CHECKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], _Difference | None]] = {
    "plan": _check_plan,
    "reject": _check_reject,
    "failover": _check_failover,
}
