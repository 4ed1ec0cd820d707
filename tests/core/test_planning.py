from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from replay.core import (
    SHIPPED_FIELDS,
    SHIPPED_POLICIES,
    AdmissionError,
    Candidate,
    Plan,
    Request,
    Schema,
    State,
    admit,
    load_policy,
    plan,
)
from replay.errors import ReplayError

A = Candidate("a", "m", fields={"price_in": 4.0})
B = Candidate("b", "m", fields={"price_in": 2.0})
B2 = Candidate("b", "m", peer_id="x", fields={"price_in": 1.0})
CHEAP = ["neg", ["field", "price_in"]]


def pin(provider: str, model: str) -> Request:
    """Return a request pinned to a provider and family."""
    return Request({"pin": {"provider": provider, "model": model}})


def test_a_pin_skips_the_filter_and_is_scored_alone(make: Any) -> None:
    """The first matching candidate wins over a filter that refuses it and over cheaper ones; nobody is rejected."""
    policy = make(["bot"], ["add", CHEAP, ["normalize", ["field", "price_in"]]], ["argmax"])
    assert plan(policy, [A, B, B2], pin("b", "m")) == Plan((1,), (-1.0,), (), None)


def test_a_pin_that_matches_nothing_says_so(make: Any) -> None:
    """Provider and family must both match."""
    assert plan(make(), [A, B], pin("b", "n")) == Plan((), (), (), "pin_not_found")
    assert plan(make(), [], pin("b", "m")).reason == "pin_not_found"


def test_a_pin_can_still_be_dropped_by_the_selector(make: Any) -> None:
    """A chain without it keeps nothing."""
    policy = make(selector=["chain", [{"provider": "a", "model": "m"}]])
    assert plan(policy, [A, B], pin("b", "m")) == Plan((), (), (), "no_candidates")


def test_an_envelope_narrows_the_filter(make: Any) -> None:
    """Both must hold, and the reason is the first failing child's in normal-form order of the joined filter."""
    policy = make(["cmp", "price_in", "le", 3])
    request = Request(envelope=["and", ["not", ["provider_eq", "b"]], ["top"]])
    decided = plan(policy, [A, B], request)
    assert decided == Plan((), (), ((0, "cmp:price_in:le"), (1, "not")), "no_candidates")


def test_an_envelope_is_sorted_with_the_filter(make: Any) -> None:
    """(cmp …) of the envelope comes before the policy's (provider_eq …), so its reason is the one given."""
    decided = plan(make(["provider_eq", "z"]), [A], Request(envelope=["cmp", "price_in", "le", 3]))
    assert decided.rejected == ((0, "cmp:price_in:le"),)


def test_an_envelope_never_widens(make: Any) -> None:
    """`top` changes nothing, `or` with everything changes nothing."""
    policy = make(["provider_eq", "a"])
    for envelope in (["top"], ["or", ["top"], ["provider_eq", "b"]]):
        assert plan(policy, [A, B], Request(envelope=envelope)) == plan(policy, [A, B])


def test_a_malformed_envelope_is_refused(make: Any) -> None:
    """An envelope is admitted against the policy's schema like any Pred."""
    with pytest.raises(AdmissionError, match=r"^\$\.is\[1\]: undeclared field 'nope'"):
        plan(make(), [A], Request(envelope=["is", "nope"]))


def test_the_multiplier_scales_the_ranking_price_only(make: Any) -> None:
    """Both prices as the policy sees them, in filter and score; the raw price stays beside them."""
    dear = Candidate("c", "m", fields={"price_in": 1.5, "price_out": 3.0, "tok_s": 5}, price_multiplier=2.0)
    policy = make(["cmp", "price_out", "le", 6], ["add", ["field", "price_in"], ["field", "tok_s"]])
    assert plan(policy, [dear]).scores == (8.0,)
    assert plan(make(["cmp", "price_out", "lt", 6]), [dear]).rejected == ((0, "cmp:price_out:lt"),)
    assert dear.fields["price_in"] == 1.5


def test_a_multiplier_of_zero_leaves_an_absent_price_infinite(make: Any) -> None:
    """A default is not scaled: 0 × inf would be NaN."""
    free = Candidate("c", "m", price_multiplier=0.0)
    assert plan(make(scorer=["field", "price_in"]), [free]).scores == (float("inf"),)


def test_normalize_sees_the_surviving_population_only(make: Any) -> None:
    """The refused 4.0 does not stretch the scale."""
    policy = make(["cmp", "price_in", "lt", 4], ["normalize", ["field", "price_in"]])
    assert plan(policy, [A, B, B2]).scores == (1.0, 0.0)


def test_no_candidates(make: Any) -> None:
    """Neither an empty list nor one that is filtered whole is an error."""
    assert plan(make(), []) == Plan((), (), (), "no_candidates")
    assert plan(make(["bot"]), [A]) == Plan((), (), ((0, "bot"),), "no_candidates")


@pytest.mark.parametrize(
    "requirements",
    [
        {"pin": "b/m"},
        {"pin": {"provider": "b"}},
        {"pin": {"provider": 1, "model": "m"}},
        {"pin": {}},
        {"needs": "tools"},
        {"needs": [1]},
        {"min_context": "8k"},
        {"min_tok_s": True},
        {"model_family": 3},
    ],
)
def test_malformed_requirements_are_refused(requirements: dict[str, Any]) -> None:
    """A request is checked when it is made, so that planning cannot fail on it."""
    with pytest.raises(ReplayError, match="expected"):
        Request(requirements)


@pytest.mark.parametrize(
    "record",
    [
        3,
        {},
        {"provider_id": "p"},
        {"provider_id": "p", "model_family": "m", "price_in": "cheap"},
        {"provider_id": "p", "model_family": "m", "price_in": 10**400},
        {"provider_id": "p", "model_family": "m", "capabilities": 3},
        {"provider_id": "p", "model_family": "m", "capabilities": {"context": "8k"}},
        {"provider_id": "p", "model_family": "m", "price_multiplier": True},
    ],
)
def test_a_malformed_candidate_is_refused(record: Any) -> None:
    """With what was given and what was expected."""
    with pytest.raises(ReplayError, match="expected"):
        Candidate.from_record(record)


@pytest.mark.parametrize("record", [3, {"breakers": "p"}, {"disabled": [1]}, {"credits": {"p": "much"}}])
def test_a_malformed_state_is_refused(record: Any) -> None:
    """As for candidates."""
    with pytest.raises(ReplayError, match="expected"):
        State.from_record(record)


def test_a_route_key_writes_missing_parts_empty() -> None:
    """`p|m|peer` on a marketplace, the provider itself on a direct route, never None."""
    assert [c.route_key for c in (A, B2, Candidate("", ""))] == ["a|m|a", "b|m|x", "||"]


def test_stamping_sets_and_removes() -> None:
    """A None stamp removes what was there, so that the default is read; tools is only ever taken away."""
    capable = {"supports_tools": True, "context": 8}
    measured = Candidate(
        "p", "m", peer_id="x", tier="partner", capabilities=capable, fields={"latency_ms": 9, "tok_s": 1}
    )
    stamped = measured.stamped(0.5, None, False)
    assert stamped.fields == {"tok_s": 1, "success_rate": 0.5}
    assert stamped.capabilities == {"context": 8}
    assert (stamped.route_key, stamped.tier) == ("p|m|x", "partner")
    assert measured.stamped(None, 7, True).capabilities == capable
    assert measured.fields == {"latency_ms": 9, "tok_s": 1}


@pytest.mark.parametrize("name", SHIPPED_POLICIES)
def test_shipped_policies_are_admitted(name: str) -> None:
    """Each with the fields that ship beside it."""
    policy = admit(load_policy(name), Schema.declare(SHIPPED_FIELDS))
    assert policy.action("stream_interrupted").action in ("abort", "next_candidate")


def test_only_productions_policies_need_declared_fields() -> None:
    """`cheapest`, `balanced` and `exploring` observe core fields alone."""
    core_only = []
    for name in SHIPPED_POLICIES:
        try:
            admit(load_policy(name))
        except AdmissionError:
            continue
        core_only.append(name)
    assert core_only == ["cheapest", "balanced", "exploring"]


def test_loading_what_is_no_policy(tmp_path: Any) -> None:
    """A wrong name, a file that is no JSON, and one nested too deeply to read are errors that help."""
    with pytest.raises(ReplayError, match="one of default, agent"):
        load_policy("defualt")
    for content in (b"{", b"\xff", b"[" * 200_000):
        (tmp_path / "p.json").write_bytes(content)
        with pytest.raises(ReplayError, match="no JSON"):
            load_policy(tmp_path / "p.json")


def test_the_core_needs_the_standard_library_only() -> None:
    """Production shares it: importing it pulls in nothing that is not Python's own."""
    code = (
        "import sys; import replay.core, replay.core.vectors, replay.core.explain; "
        "own = {m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names - {'replay', '__main__'}; "
        "print(sorted(m for m in own if m in ('numpy', 'duckdb', 'polars', 'rich', 'typer', 'psycopg', 'pyarrow')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
