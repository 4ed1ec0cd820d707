"""One decision by the compiled core, in the interpreter's terms: what the two are compared by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replay.core import Candidate, Plan, Policy, Request, State
from replay.core.candidates import NO_REQUEST, NO_STATE
from replay.core.planning import Reason, narrowed
from replay.estimators import ToolsNever, Window
from replay.kernel.layout import make_track
from replay.kernel.loop import QUESTION, Asked, Measures, decide, new_found, new_patterns
from replay.kernel.population import populate
from replay.kernel.ranking import new_work
from replay.kernel.requests import NOT_ASKED, Requests
from replay.kernel.truth import Stamped, World
from replay.offerbook import Segment
from replay.readings import Facts


def plan(
    policy: Policy,
    candidates: Sequence[Candidate],
    request: Request = NO_REQUEST,
    state: State = NO_STATE,
    seed: int = 0,
) -> Plan:
    """Decide as `replay.core.plan` does, with the compiled core: the same order, rejects and scores to the bit.

    The measured fields are taken from the candidates; `supports_tools` as it stands. Raises `AdmissionError` for an
    envelope that is no Pred.

    >>> from replay.core import admit
    >>> cheap = admit(["policy", ["cmp", "price_in", "le", 5], ["neg", ["field", "price_in"]], ["argmax"], ["id"],
    ...                ["always", {"action": "next_candidate"}]])
    >>> plan(cheap, [Candidate("p", "m", fields={"price_in": price}) for price in (3, 9, 2)])
    Plan(ordered=(2, 0), scores=(-1.0, -2.0), rejected=((1, 'cmp:price_in:le'),), reason=None)
    """
    requests = Requests()
    number = requests.number(policy, request, state.credits)
    if number == NOT_ASKED:
        narrowed(policy, request)  # raises what is wrong with the envelope
    asking, code = requests.layout()
    keys = [str(place) for place in range(len(candidates))]  # every candidate has measurements of its own
    everyone = np.arange(len(candidates), dtype=np.int64)
    population = populate(
        [Segment(tuple(candidates), everyone, (None,) * len(candidates))], keys, requests.providers, requests.names
    )
    opened, disabled = (
        np.array([[one in providers for one in requests.providers]], dtype=np.bool_).reshape(1, -1)
        for providers in (state.open_breakers, state.disabled)
    )
    world = World(code, population, asking, opened, disabled)
    rates, latencies = _field(candidates, "success_rate"), _field(candidates, "latency_ms")
    stamped = Stamped(rates, latencies, np.ones(len(candidates) + 1, dtype=np.bool_))
    question = np.array([(random_start(seed), number, -1)], dtype=QUESTION)
    zero = np.zeros(1, dtype=np.int64)
    asked = Asked(
        *(zero,) * 5, np.zeros(1, dtype=np.bool_), zero, zero, zero - 1, np.zeros(1, dtype=np.int32), question
    )
    work, found = new_work(population, code, 1), new_found(1)
    patterns, versions = new_patterns(len(requests.names.reasons)), np.zeros(2, dtype=np.int64)
    decide(
        zero,
        zero,
        0,
        1,
        0,
        asked,
        nothing_measured(),
        versions,
        world,
        stamped,
        work,
        patterns,
        found,
    )
    text = list(requests.names.reasons)
    length = int(work.entry[0]["length"])
    rejected = tuple((place, text[why]) for place, why in enumerate(work.reason[0, : len(candidates)].tolist()) if why)
    empty: Reason = "pin_not_found" if request.pin is not None and not work.entry[0]["count"] else "no_candidates"
    return Plan(
        tuple(work.ranked[0, :length].tolist()),
        tuple(work.score[0, :length].tolist()),
        rejected,
        None if length else empty,
    )


def nothing_measured() -> Measures:
    """Measures of no attempt: what is stamped already stays."""
    nothing = np.empty(0, dtype=np.int64)
    rates, tools = (
        make_track(rule, Facts(nothing, nothing, nothing, nothing), np.empty(0), 1, nothing, 1)
        for rule in (Window(1), ToolsNever())
    )
    none = np.full(3, np.nan)
    return Measures(rates, rates, tools, np.zeros(3, dtype=np.bool_), 1, none, none)


def random_start(seed: int) -> int:
    """Return the generator's state before its first step (`replay.core.interpreter.random_numbers`).

    >>> random_start(0), random_start(5), random_start(-5)
    (2147483646, 5, 2147483641)
    """
    s = seed % 2147483647 if seed >= 0 else -(-seed % 2147483647)
    return s + 2147483646 if s <= 0 else s


def _field(candidates: Sequence[Candidate], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = [one.fields.get(name) for one in candidates]
    return np.array([*(np.nan if value is None else float(value) for value in values), np.nan])
