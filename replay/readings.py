"""Reading an estimator at many instants: what was seen is what has a smaller key, and tracks keep the state.

The reading is compiled (`replay.kernel.tracks`); `read_many_streaming` and `read_tools_streaming` say the same with
the streaming forms, one observation and one read at a time. They are the definition, and what the tests hold the
compiled reading against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from replay.estimators import Rule, ToolsRule
from replay.kernel.compiled import without_arrays
from replay.kernel.layout import all_rows, lay_out, ordered, tools_values, track_on
from replay.kernel.tracks import Rows, Track, advance, read
from replay.timeline import Bools, Floats, Ints


@dataclass(frozen=True)
class Facts:
    """Observations as arrays of one length: key, end of the attempt, tie-breaking identity, group (whose state).

    `like` are others that ended at the same instants and have the same identities: their order of time serves.
    """

    key: Ints
    at_ms: Ints
    identity: Ints
    group: Ints
    like: Facts | None = None

    @cached_property
    def by_time(self) -> Rows:
        """The rows by (at_ms, identity)."""
        if self.like is not None:
            return self.like.by_time
        return ordered(ordered(all_rows(self.key), self.identity), self.at_ms)


@dataclass(frozen=True)
class Reads:
    """Questions as arrays of one length: the reader's key, the instant, and the group that is asked."""

    key: Ints
    at_ms: Ints
    group: Ints


def read_many(rule: Rule, facts: Facts, values: Floats, reads: Reads) -> tuple[Floats, Ints, Bools]:
    """Fold `values` and answer every read: estimates (nan: none), observations behind each, and "ever observed".

    A fact whose value is nan is not counted, as if it were not there.

    >>> from replay.estimators import Window
    >>> facts = Facts(*(np.array(column) for column in ([5, 3], [1, 1], [10, 11], [0, 0])))
    >>> reads = Reads(*(np.array(column) for column in ([5, 6], [9, 9], [0, 0])))
    >>> [answer.tolist() for answer in read_many(Window(100), facts, np.array([1.0, 0.0]), reads)]
    [[0.0, 0.5], [1, 2], [True, True]]
    """
    groups = int(facts.group.max()) + 1 if len(facts.group) else 0
    return answer(track_on(rule, lay_out(facts, groups, facts.group, groups), values), reads)


def read_tools(rule: ToolsRule, facts: Facts, requested: Bools, emitted: Bools, reads: Reads) -> tuple[Bools, Ints]:
    """Fold tools evidence and answer every read: capable or not, and the requests behind each verdict."""
    groups = int(facts.group.max()) + 1 if len(facts.group) else 0
    layout = lay_out(facts, groups, facts.group, groups)
    return capable(track_on(rule, layout, tools_values(requested, emitted)), reads)


def answer(track: Track, reads: Reads) -> tuple[Floats, Ints, Bools]:
    """Answer every read on a track whose slots are processes of their own, as `read_many` does.

    A slot's state moves only when it is asked, as a stream's does. A track may be read several times, if no read's key
    is smaller than one of an earlier time.
    """
    estimates = np.full(len(reads.key), np.nan)
    counts = np.zeros(len(reads.key), dtype=np.int64)
    known = np.zeros(len(reads.key), dtype=np.bool_)
    order = ordered(all_rows(reads.key), reads.key)
    key, at_ms, group = (np.require(column, np.int64, ["C", "W"]) for column in (reads.key, reads.at_ms, reads.group))
    _answer(track, order, key, at_ms, group, estimates, counts, known)
    return estimates, counts, known


def capable(track: Track, reads: Reads) -> tuple[Bools, Ints]:
    """Answer every read on a track of tools evidence, as `read_tools` does."""
    verdicts, requests, _ = answer(track, reads)
    return verdicts != 0.0, requests


@without_arrays
def _answer(
    track: Track, order: Rows, key: Ints, at_ms: Ints, group: Ints, estimates: Floats, counts: Ints, known: Bools
) -> None:
    """Answer reads in an order of theirs, each into its row; groups that the track does not have are left out."""
    for place in range(len(order)):
        row = order[place]
        slot = group[row]
        if 0 <= slot < len(track.tally):
            advance(track, slot, key[row], at_ms[row])
            estimates[row], counts[row], known[row] = read(track, slot, at_ms[row])


def merged(facts: Facts, reads: Reads) -> Iterator[tuple[bool, int]]:
    """Yield (is a read, index) in the order of time: an observation comes before a read iff its key is smaller.

    Observations that become visible together are folded by (end, identity), so that no order of rows in a file,
    no chunk and no thread can matter.

    >>> facts = Facts(*(np.array(column) for column in ([5, 3], [1, 1], [10, 11], [0, 0])))
    >>> reads = Reads(*(np.array(column) for column in ([5, 6], [9, 9], [0, 0])))
    >>> list(merged(facts, reads))
    [(False, 1), (True, 0), (False, 0), (True, 1)]
    """
    order = np.lexsort((facts.identity, facts.at_ms, facts.key))
    keys = facts.key[order].tolist()
    rows = order.tolist()
    done = 0
    for question in np.argsort(reads.key, kind="stable").tolist():
        until = reads.key[question]
        while done < len(rows) and keys[done] < until:
            yield False, rows[done]
            done += 1
        yield True, question


def read_many_streaming(rule: Rule, facts: Facts, values: Floats, reads: Reads) -> tuple[Floats, Ints, Bools]:
    """Answer as `read_many`, with the streaming forms: the definition, slowly."""
    streams = {group: rule.start() for group in np.unique(facts.group).tolist()}
    observed = dict.fromkeys(streams, False)
    estimates = np.full(len(reads.key), np.nan)
    counts = np.zeros(len(reads.key), dtype=np.int64)
    known = np.zeros(len(reads.key), dtype=np.bool_)
    fact_at, fact_id, fact_group = facts.at_ms.tolist(), facts.identity.tolist(), facts.group.tolist()
    read_at, read_group, fact_values = reads.at_ms.tolist(), reads.group.tolist(), values.tolist()
    for is_read, index in merged(facts, reads):
        if not is_read and fact_values[index] != fact_values[index]:
            continue  # not counted
        if not is_read:
            group = fact_group[index]
            streams[group].fold(fact_at[index], fact_id[index], fact_values[index])
            observed[group] = True
        elif (stream := streams.get(read_group[index])) is not None:
            value, counts[index] = stream.read(read_at[index])
            known[index] = observed[read_group[index]]
            if value is not None:
                estimates[index] = value
    return estimates, counts, known


def read_tools_streaming(
    rule: ToolsRule, facts: Facts, requested: Bools, emitted: Bools, reads: Reads
) -> tuple[Bools, Ints]:
    """Answer as `read_tools`, with the streaming forms: the definition, slowly."""
    streams = {group: rule.start() for group in np.unique(facts.group).tolist()}
    capable = np.ones(len(reads.key), dtype=np.bool_)
    requests = np.zeros(len(reads.key), dtype=np.int64)
    for is_read, index in merged(facts, reads):
        if not is_read:
            stream = streams[int(facts.group[index])]
            stream.fold(int(facts.at_ms[index]), bool(requested[index]), bool(emitted[index]))
        elif (asked := streams.get(int(reads.group[index]))) is not None:
            capable[index], requests[index], _ = asked.read(int(reads.at_ms[index]))
    return capable, requests
