"""The example host: what an OpenAI client sees, and what its calls leave in PostgreSQL."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import openai
import pytest

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def test_a_completion_is_answered_and_recorded(serve: Any) -> None:
    """The cheapest route serves it; the headers say so, and the ledger holds the call and its attempt."""
    with serve() as client:
        answer = client.say("one two three", extra_headers={"x-session-id": "s"})
        completion = answer.parse()
        told = {name: value for name, value in answer.headers.items() if name.startswith("x-route-")}
        (call,), (attempt,) = client.rows("calls"), client.rows("route_observations")
        (policy,), (settings,) = client.rows("policies"), client.rows("settings")
        offers = client.rows("offer_history")
    assert completion.choices[0].message.content == "atlas-1 of peer-fig heard: one two three"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 7)
    # 3 × 1 + 7 × 4 = 31 millionths
    assert told == {
        "x-route-chosen": "bazaar|atlas|peer-fig",
        "x-route-attempts": "1",
        "x-route-policy-id": policy["policy_id"],
        "x-route-cost-usd": "3.1e-05",
        "x-route-cost-basis": "computed",
        "x-route-session-calls": "1",
        "x-route-session-tokens-in": "3",
        "x-route-session-tokens-out": "7",
        "x-route-session-tokens-cached": "0",
        "x-route-session-cost-usd": "3.1e-05",
    }
    assert (call["route_key"], call["status"], call["evidence_state"]) == ("bazaar|atlas|peer-fig", 200, "ok")
    assert (call["policy_id"], call["settings_id"]) == (policy["policy_id"], settings["settings_id"])
    assert (attempt["request_id"], attempt["ok"]) == (call["usage_event_id"], True)
    assert [offer["provider_id"] for offer in offers] == ["bazaar", "meadow", "summit"]


def test_a_failing_route_is_left_for_the_next(serve: Any, upstream: Any) -> None:
    """The client sees one answer; the header counts two attempts."""
    with serve(bazaar=upstream(0, ["rate_limit"])) as client:
        answer = client.say()
        assert answer.headers["x-route-attempts"] == "2"
        assert answer.headers["x-route-chosen"] == "meadow|atlas|meadow"
        assert [row["error_kind"] for row in client.rows("route_observations")] == ["rate_limit", None]


def test_a_stream_comes_word_by_word_and_its_last_chunk_tells_the_route(serve: Any, upstream: Any) -> None:
    """A route that fails before its first word is not heard at all."""
    with serve(bazaar=upstream(0, ["timeout"])) as client:
        stream = client.of("k").chat.completions.create(
            model="atlas", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        chunks = list(stream)
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert words == ["atlas-1 ", "of ", "meadow ", "heard: ", "hello "]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 6
    assert (chunks[-1].route["chosen"], chunks[-1].route["attempts"]) == ("meadow|atlas|meadow", 2)


def test_a_stream_that_breaks_off_is_an_error_for_the_client(serve: Any, upstream: Any) -> None:
    """What was heard cannot be taken back, so nothing is tried again."""
    with serve(bazaar=upstream(0, ["stream_interrupted"])) as client:
        stream = client.of("k").chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        with pytest.raises(openai.APIError, match="stream_interrupted"):
            list(stream)
        (call,) = client.rows("calls")
    assert (call["status"], call["error_type"]) == (502, "stream_interrupted")


def test_a_client_that_hangs_up_leaves_a_cancelled_call(serve: Any, upstream: Any) -> None:
    """Its socket is closed after the first word; the host notices when it writes on."""

    class Endless(upstream):  # type: ignore[misc]
        def __call__(self, candidate: Any, request: Any) -> Any:
            while True:
                yield {"content": "word " * 1000}

    with serve(bazaar=Endless()) as client:
        stream = client.of("k").chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        next(iter(stream))
        stream.close()
        for _ in range(500):
            if calls := client.rows("calls"):
                break
            time.sleep(0.01)
        (call,) = calls
    assert (call["status"], call["error_type"]) == (499, "cancelled")


def test_tools_are_passed_on_and_their_calls_come_back(serve: Any) -> None:
    """Whole and streamed; the attempt says that tools were asked for and called."""
    with serve() as client:
        choice = client.say(tools=[TOOL]).parse().choices[0]
        stream = client.of("k").chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "hello"}], tools=[TOOL], stream=True
        )
        streamed = [call for chunk in stream if chunk.choices for call in chunk.choices[0].delta.tool_calls or ()]
        attempts = client.rows("route_observations")
    assert (choice.finish_reason, choice.message.tool_calls[0].function.name) == ("tool_calls", "look_up")
    assert [call.function.name for call in streamed] == ["look_up"]
    assert [(row["tools_requested"], row["tool_calls_emitted"]) for row in attempts] == [(True, True)] * 2


def test_a_peer_that_ignores_tools_is_no_longer_asked_for_them(serve: Any, upstream: Any) -> None:
    """After 20 silent requests its marketplace offer loses its tools; without tools it is still the cheapest."""
    with serve(bazaar=upstream(0, ignores_tools=True)) as client:
        served = []
        for _ in range(20):
            served.append(client.say(tools=[TOOL]).headers["x-route-chosen"])
            client.store.drain(10)
        assert set(served) == {"bazaar|atlas|peer-fig"}
        assert client.say(tools=[TOOL]).headers["x-route-chosen"] == "meadow|atlas|meadow"
        assert client.say().headers["x-route-chosen"] == "bazaar|atlas|peer-fig"


def test_a_session_stays_with_its_cache_and_shows_its_meter_to_its_owner_alone(serve: Any) -> None:
    """Ann's session began at meadow and stays there, cached; for Bob the same session id is a new session."""
    asked = [("key-ann", "meadow/atlas"), ("key-ann", "auto"), ("key-bob", "auto"), ("key-bob", "auto")]
    with serve() as client:
        told = []
        for key, model in asked:
            answer = client.say(key=key, model=model, extra_headers={"x-session-id": "s"})
            client.store.drain(10)
            cached = answer.parse().usage.prompt_tokens_details.cached_tokens
            told.append((answer.headers["x-route-chosen"], cached, answer.headers["x-route-session-calls"]))
        calls = client.rows("calls")
    assert told == [
        ("meadow|atlas|meadow", 0, "1"),
        ("meadow|atlas|meadow", 2, "2"),
        ("bazaar|atlas|peer-fig", 0, "1"),
        ("bazaar|atlas|peer-fig", 2, "2"),
    ]
    assert [call["session_id"].partition("~")[0] for call in calls] == ["s"] * 4
    assert len({(call["caller"], call["session_id"]) for call in calls}) == 2


def test_a_key_is_recorded_as_its_hash_alone(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a row nor a log line holds it."""
    with serve() as client:
        client.say(key="sk-very-secret")
        recorded = json.dumps([client.rows("calls"), client.rows("route_observations")])
    assert "key-" in recorded
    assert "sk-very-secret" not in recorded + caplog.text


def test_models_are_listed_pinned_and_refused(serve: Any) -> None:
    """auto and the families; provider/family pins; what nobody offers is refused as OpenAI's clients expect."""
    with serve() as client:
        models = [model.id for model in client.of("k").models.list()]
        pinned = client.say(model="summit/atlas").headers["x-route-chosen"]
        with pytest.raises(openai.NotFoundError):
            client.say(model="summit/quill")
        with pytest.raises(openai.InternalServerError, match="no_candidates"):
            client.say(model="quill")
        labels = [row["requested_model"] for row in client.rows("calls")]
    assert (models, pinned) == (["auto", "atlas"], "summit|atlas|summit")
    assert labels == ["pin:summit/atlas", "pin:summit/quill", "family:quill"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model": 3, "messages": []}', b'{"model": "a", "messages": 1}'])
def test_a_body_that_is_no_completion_is_a_bad_request(serve: Any, body: bytes) -> None:
    """400, in JSON, whatever arrives."""
    with serve() as client, pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{client.url}/v1/chat/completions", data=body)
    with refused.value as answer:
        assert (answer.code, json.loads(answer.read())["error"]["code"]) == (400, "bad_request")


def test_a_monitor_reads_the_store_s_counters(serve: Any) -> None:
    """Numbers by name, for whatever collects them."""
    with serve() as client:
        client.say()
        client.store.drain(10)
        with urllib.request.urlopen(f"{client.url}/health") as answer:
            counters = json.loads(answer.read())
    assert (counters["written_calls"], counters["written_route_observations"], counters["connected"]) == (1, 1, 1)
