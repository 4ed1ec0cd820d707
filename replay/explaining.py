"""One recorded decision, explained: what the core was given, and why it came out as it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from replay import offerbook, timeline
from replay.asking import Policies
from replay.core import Policy
from replay.core.explain import Explanation, explain
from replay.deciding import Decider
from replay.errors import ReplayError
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.measuring import Measuring
from replay.settings import Settings


def explain_call(mirror: Path, call_id: int, settings: Settings, policy: Policy | None = None) -> Explanation:
    """Explain a mirror's call as these settings would have stamped it; `policy` None takes the recorded one.

    Raises ReplayError where the mirror has no such decision, or its policy or request is not known.
    """
    with open_mirror(mirror) as connection:
        ledger = load_ledger(connection, whole=False)
    axis = timeline.build(ledger)
    found = np.flatnonzero(axis.calls.id == call_id)
    if not len(found):
        raise ReplayError(f"{mirror} has no decision with id {call_id}; expected the id of one of its calls")
    call = int(found[0])
    decider = Decider(axis, offerbook.build(axis), Policies(axis, policy), found.astype(np.int64))
    chosen, asked = decider.policies.of(call), decider.asked[call]
    if chosen is None:
        raise ReplayError(f"the policy of call {call_id} is not in the ledger; name one instead of 'recorded'")
    if asked.request is None:
        raise ReplayError(f"the request of call {call_id} is one that the core refuses; there is nothing to explain")
    candidates, state = decider.inputs(call, decider.parts(Measuring(axis, settings)), chosen)
    return explain(chosen, candidates, asked.request, state, asked.seed)
