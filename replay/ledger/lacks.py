"""What a ledger lacks, and what a replay of it will therefore infer: counted in SQL, said in whole sentences."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

_CALLS = """SELECT count(*) AS calls,
    count(*) - count(decided_at) AS undecided,
    count_if(decided_at IS NULL AND coalesce(latency_ms, 0) = 0) AS instantless,
    count_if(decided_at IS NOT NULL AND evidence_at IS NULL) AS evidence_instant,
    count(*) - count(request) AS request,
    count(*) - count(policy_id) AS policy,
    count_if(policy_id IS NOT NULL AND policy_id NOT IN (SELECT policy_id FROM policies)) AS policy_term,
    count(*) - count(settings_id) AS settings,
    count_if(settings_id IS NOT NULL AND settings_id NOT IN (SELECT settings_id FROM settings))
        AS settings_text,
    count(*) - count(evidence_snapshot) AS snapshot,
    count_if(evidence_state = 'unavailable') AS unavailable,
    count_if(replica IS NULL OR replica_seq IS NULL) AS replica,
    count_if(tokens_cached > tokens_in) AS overcached,
    count(cost_usd) AS priced,
    count_if(cost_usd IS NOT NULL AND cost_basis = 'reported') AS reported
    FROM calls"""

_ATTEMPTS = """SELECT count(*) AS attempts,
    count(*) - count(request_id) AS request_id,
    count_if(started_at IS NULL AND coalesce(latency_ms, 0) > 0) AS started_by_latency,
    count_if(started_at IS NULL AND coalesce(latency_ms, 0) = 0) AS unstarted,
    count_if(ok) AS succeeded,
    count_if(ok AND latency_ms IS NULL) AS latency,
    count_if(latency_ms = 0) AS zero_latency,
    count_if(latency_ms > 0) AS timed,
    count_if(latency_ms > 0 AND latency_ms % 1000 = 0) AS whole_seconds,
    count(*) - count(tools_requested) AS tools,
    count_if(replica IS NULL OR replica_seq IS NULL) AS replica,
    count(*) - count(txid) AS txid
    FROM route_observations"""

_ORPHANS = """SELECT count(*) AS orphan FROM route_observations WHERE request_id IS NOT NULL
    AND request_id NOT IN (SELECT usage_event_id FROM calls WHERE usage_event_id IS NOT NULL)"""

Counts = dict[str, int]


@dataclass
class Counted:
    """What was counted in a mirror, by table, and what its pulls left open.

    `orphans`: attempts whose request is no call's. Matching them takes long, and who reads the ledger finds them too.
    """

    calls: Counts
    attempts: Counts
    offers: int
    prices: int
    of_pulls: list[str]
    orphans: int = 0

    def sentences(self) -> list[str]:
        """Return what `lacks` does."""
        attempts = self.attempts | {"orphan": self.orphans}
        found = [*_of_calls(self.calls), *_of_attempts(attempts, self.calls["calls"])]
        return [*found, *_of_offers(self.offers, self.prices), *self.of_pulls]


def lacks(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return one sentence per thing that a replay of this mirror has to infer or cannot know, counts included.

    An empty list means that every decision can be replayed from what was recorded.
    """
    counted = count(connection)
    counted.orphans = _counts(connection, _ORPHANS)["orphan"]
    return counted.sentences()


def count(connection: duckdb.DuckDBPyConnection) -> Counted:
    """Count all that a replay has to infer or cannot know, but for the orphans."""
    return Counted(
        calls=_counts(connection, _CALLS),
        attempts=_counts(connection, _ATTEMPTS),
        offers=_counts(connection, "SELECT count(*) AS n FROM offer_history")["n"],
        prices=_counts(connection, "SELECT count(*) AS n FROM provider_prices")["n"],
        of_pulls=_of_pulls(connection),
    )


def _counts(connection: duckdb.DuckDBPyConnection, query: str) -> Counts:
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or []]
    row = cursor.fetchone()
    assert row is not None
    return dict(zip(names, (int(value or 0) for value in row), strict=True))  # of no rows, count_if is null


def _said(findings: list[tuple[int, int, str]]) -> list[str]:
    """Return "COUNT of TOTAL text" for every finding (count, total, text) that occurs at all."""
    return [
        f"{'all' if count == total else f'{count:,} of'} {total:,} {text}" for count, total, text in findings if count
    ]


def _of_calls(n: Counts) -> list[str]:
    total = n["calls"]
    if total == 0:
        return ["no calls: attempts alone tell how routes did, but no decision can be replayed"]
    said = _said(
        [
            (
                n["undecided"],
                total,
                "calls lack decided_at: the decision is placed at ts·1000 − latency_ms (whole seconds)",
            ),
            (
                n["instantless"],
                total,
                "calls lack decided_at and a latency too: they are taken as decided when they ended",
            ),
            (n["evidence_instant"], total, "calls lack evidence_at: their stamps are taken as read at decided_at"),
            (n["request"], total, "calls lack request: requirements, tools, seed and credits are taken as none"),
            (n["policy"], total, "calls lack policy_id: the policy is the one the replay is given"),
            (n["policy_term"], total, "calls name a policy that the table policies does not hold"),
            (n["settings"], total, "calls lack settings_id: the measurement settings are the ones the replay is given"),
            (n["settings_text"], total, "calls name settings that the table settings does not hold"),
            (n["snapshot"], total, "calls lack evidence_snapshot: visibility is inferred from ts and the write lag"),
            (
                n["unavailable"],
                total,
                "calls were decided while the evidence could not be read: every stamp was neutral",
            ),
            (n["replica"], total, "calls lack replica or replica_seq: one process is assumed, its order inferred"),
            (n["overcached"], total, "calls have more tokens_cached than tokens_in, which should include them"),
        ]
    )
    if n["priced"] and not n["reported"]:
        said.append(
            f"none of {n['priced']:,} known costs is reported by a provider: a comparison with list prices is circular"
        )
    return said


def _of_attempts(n: Counts, calls: int) -> list[str]:
    total = n["attempts"]
    if total == 0:
        return ["no attempts: nothing can be measured, so no route is ever stamped"]
    said = _said(
        [
            (
                n["request_id"],
                total,
                "attempts lack request_id: only final-route agreement, not reproduction, can be shown",
            ),
            (n["orphan"] if calls else 0, total, "attempts name a call that is not in the ledger"),
            (n["started_by_latency"], total, "attempts lack started_at: they are taken as begun at ts − latency_ms"),
            (
                n["unstarted"],
                total,
                "attempts lack started_at and a latency: their start is unknown, they are scored apart",
            ),
            (n["latency"], n["succeeded"], "successful attempts lack a latency"),
            (n["zero_latency"], total, "attempts have a latency of 0, which is read as unknown"),
            (n["tools"], total, "attempts lack tools_requested: they are no evidence for the tools rule"),
            (n["replica"], total, "attempts lack replica or replica_seq: breakers are folded as in one process"),
            (n["txid"], total, "attempts lack txid: which decision saw them is inferred"),
        ]
    )
    if n["timed"] and n["whole_seconds"] == n["timed"]:
        said.append("every latency is a whole number of seconds: short ones are known only roughly")
    return said


def _of_offers(offers: int, prices: int) -> list[str]:
    if offers:
        return []
    known = "prices from provider_prices" if prices else "no prices, as provider_prices is empty too"
    return [f"no offer_history: the candidates are the routes seen in the ledger, with {known}"]


def _of_pulls(connection: duckdb.DuckDBPyConnection) -> list[str]:
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'mirror_pulls'").fetchone():
        return []  # a mirror of before pulls
    pulls = connection.execute("SELECT target, way, complete FROM mirror_pulls ORDER BY 1").fetchall()
    stopped = [
        f"{target} was not pulled to its end, as the last pull was stopped: run it again"
        for target, _, complete in pulls
        if not complete
    ]
    uncertain = [
        f"{target} was pulled from a source that does not tell which rows committed late: some may be missing; "
        "replay verify finds them"
        for target, way, _ in pulls
        if way == "overlap"
    ]
    return [*stopped, *uncertain]
