from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from replay.core.vectors import check_file
from replay.errors import ReplayError


def load(path: Path) -> dict[str, Any]:
    """Return a vector file's content."""
    return json.loads(gzip.decompress(path.read_bytes()))


def test_every_plan_and_reject_vector_is_reproduced(vectors: Path) -> None:
    """All 441 decisions and 42 refusals of production come out exactly."""
    tally = check_file(vectors / "plan.json.gz")
    assert tally.first_miss is None
    assert tally.reproduced == tally.total == {"plan": 441, "reject": 42}


def test_every_failover_vector_is_reproduced(vectors: Path) -> None:
    """All 120 failover runs of production come out exactly, state included."""
    tally = check_file(vectors / "failover.json.gz")
    assert tally.first_miss is None
    assert tally.reproduced == tally.total == {"failover": 120}


@pytest.mark.parametrize(
    ("file", "kind", "spoil", "what"),
    [
        ("plan", "plan", lambda v: v["scores"].__setitem__(0, v["scores"][0] + 1e-9), "scores"),
        ("plan", "plan", lambda v: v.__setitem__("ordered", v["ordered"][1:]), "ordered"),
        ("plan", "plan", lambda v: v.__setitem__("rejected", [[99, "bot"]]), "rejected"),
        ("plan", "plan", lambda v: v.__setitem__("identity", "0" * 64), "identity"),
        ("plan", "plan", lambda v: v.__setitem__("term", ["nonsense"]), "admission"),
        ("plan", "reject", lambda v: v.__setitem__("error", v["error"] + "!"), "error"),
        ("failover", "failover", lambda v: v["steps"][0]["path"].pop(), "step 0, path"),
        ("failover", "failover", lambda v: v["steps"][-1].__setitem__("end_ms", 0), "end_ms"),
        ("failover", "failover", lambda v: v["steps"][-1].__setitem__("disabled_after", ["x"]), "disabled_after"),
    ],
)
def test_a_spoiled_vector_is_a_miss(vectors: Path, tmp_path: Path, file: str, kind: str, spoil: Any, what: str) -> None:
    """Each compared part, when changed, is found and named; the vector before it still counts."""
    document = load(vectors / f"{file}.json.gz")
    chosen = [v for v in document["vectors"] if v["kind"] == kind and (kind != "plan" or len(v["ordered"]) > 1)][:2]
    document["vectors"] = [chosen[0], copy.deepcopy(chosen[1])]
    spoil(document["vectors"][1])
    path = tmp_path / "spoiled.json"
    path.write_text(json.dumps(document))
    tally = check_file(path)
    assert tally.total == {kind: 2}
    assert tally.reproduced == {kind: 1}
    assert tally.first_miss is not None
    assert tally.first_miss.vector == chosen[1]["id"]
    assert tally.first_miss.what.endswith(what)


def test_minus_zero_is_not_zero_in_a_score(vectors: Path, tmp_path: Path) -> None:
    """Scores are compared to the bit."""
    document = load(vectors / "plan.json.gz")
    vector = next(v for v in document["vectors"] if v["kind"] == "plan" and 0.0 in v["scores"])
    vector["scores"] = [-0.0 if s == 0 and not str(s).startswith("-") else s for s in vector["scores"]]
    document["vectors"] = [vector]
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(document))
    miss = check_file(path).first_miss
    assert miss is not None
    assert miss.what == "scores"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"vectors": 3}',
        b'{"vectors": [3]}',
        b'{"vectors": [{"kind": "odd"}]}',
        b'{"vectors": [{"kind": "plan"}]}',
        b'{"vectors": [{"kind": "failover", "term": 3, "candidates": 3}], "extensions": 3}',
        b"\x1f\x8b\x08\x00broken",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_file_that_holds_no_vectors_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, the answer is a ReplayError that says what was expected."""
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ReplayError, match=r"expected|form"):
        check_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path without a file is an error, not a traceback."""
    with pytest.raises(ReplayError, match=r"absent\.json"):
        check_file(tmp_path / "absent.json")
