from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from pulling import add_call, held

from replay.cli import run_cli
from replay.errors import ReplayError
from replay.ledger.pseudonyms import Pseudonyms, read_key
from replay.ledger.pull import pull

Production = psycopg.Connection[Any]
KEY = b"a key of more than sixteen bytes"
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(texts))
def test_a_column_gets_the_same_pseudonyms_as_its_values(values: list[str | None]) -> None:
    """At once or one by one; nobody stays nobody, and equal texts stay equal."""
    names = Pseudonyms(KEY)
    column = names.series(pl.Series("caller", values, dtype=pl.String)).to_list()
    assert column == [names.of(value) for value in values]
    assert len(set(column)) == len(set(values))
    assert all(re.fullmatch("[0-9a-f]{32}", new) for old, new in zip(values, column, strict=True) if old)


def test_another_key_gives_other_pseudonyms() -> None:
    """And another fingerprint, which tells nothing of the key."""
    ours, theirs = Pseudonyms(KEY), Pseudonyms(KEY + b"!")
    assert ours.of("alice") != theirs.of("alice")
    assert ours.fingerprint != theirs.fingerprint
    assert Pseudonyms(KEY).of("alice") == ours.of("alice")
    assert "key of more" not in repr(ours)


def test_a_key_that_can_be_guessed_is_refused() -> None:
    """Fifteen bytes are too few; the key is not shown."""
    with pytest.raises(ReplayError, match="has 15 bytes; expected at least 16") as failure:
        Pseudonyms(b"fifteen letters")
    assert "fifteen" not in str(failure.value)


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is taken first; without either the error says how to make one."""
    monkeypatch.delenv("REPLAY_PSEUDONYM_KEY", raising=False)
    with pytest.raises(ReplayError, match="openssl rand -hex 32"):
        read_key()
    with pytest.raises(ReplayError, match="cannot be read"):
        read_key(tmp_path / "none")
    monkeypatch.setenv("REPLAY_PSEUDONYM_KEY", "from the environment")
    assert read_key() == b"from the environment"
    file = tmp_path / "key"
    file.write_bytes(b"from the file\n")
    assert read_key(file) == b"from the file"


def test_names_are_hidden_and_stay_the_same_over_pulls(production: Production, postgres_url: str, mirror: Path) -> None:
    """All three columns, and nothing else; a session keeps its calls together."""
    names = Pseudonyms(KEY)
    add_call(production, ts=1, session_id="s1", consumer_sha="sha", caller="alice", usage_event_id="u1")
    add_call(production, ts=2, session_id="", consumer_sha=None, caller="alice", usage_event_id="alice")
    pull(postgres_url, mirror, pseudonyms=names)
    add_call(production, ts=3, session_id="s1", caller="bob")
    pull(postgres_url, mirror, pseudonyms=Pseudonyms(KEY))
    rows = held(mirror, "calls")
    assert [row["caller"] for row in rows] == [repr(names.of(one)) for one in ("alice", "alice", "bob")]
    assert [row["session_id"] for row in rows] == [repr(names.of("s1")), "''", repr(names.of("s1"))]
    assert [row["consumer_sha"] for row in rows] == [repr(names.of("sha")), "None", "None"]
    assert [row["usage_event_id"] for row in rows] == ["'u1'", "'alice'", "None"]


def test_real_names_and_pseudonyms_are_never_mixed(production: Production, postgres_url: str, mirror: Path) -> None:
    """Nor the pseudonyms of two keys; the mirror stays as it was."""
    add_call(production, caller="alice")
    pull(postgres_url, mirror, pseudonyms=Pseudonyms(KEY))
    add_call(production, caller="bob")
    with pytest.raises(ReplayError, match="another key was given"):
        pull(postgres_url, mirror, pseudonyms=Pseudonyms(KEY + b"!"))
    with pytest.raises(ReplayError, match="would bring real names"):
        pull(postgres_url, mirror)
    assert len(held(mirror, "calls")) == 1
    other = mirror.with_name("real.duckdb")
    pull(postgres_url, other)
    with pytest.raises(ReplayError, match="holds real names"):
        pull(postgres_url, other, pseudonyms=Pseudonyms(KEY))


@pytest.fixture
def secret_url(production: Production, postgres_url: str) -> Iterator[str]:
    """A connection string whose user and password are found wherever they end up."""
    user = "zz_user_" + postgres_url.split("replay_test_")[1][:8]
    production.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD 'zz_password'")
    try:
        yield make_conninfo(postgres_url, user=user, password="zz_password")
    finally:
        production.execute(f"DROP ROLE {user}")


def test_no_secret_ends_up_anywhere(
    production: Production,
    secret_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No user, password, key or name: not in a file, not on the screen, whether it goes well or not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPLAY_PSEUDONYM_KEY", "zz_key_that_is_long_enough")
    monkeypatch.setenv("DATABASE_URL", secret_url)
    add_call(production, caller="zz_alice", session_id="zz_session", consumer_sha="zz_sha")
    assert run_cli(["pull", "m.duckdb", "--pseudonymise"]) == 0
    assert run_cli(["verify", "m.duckdb"]) == 0
    production.execute("UPDATE calls SET status = 500")
    assert run_cli(["verify", "m.duckdb"]) in (0, 1)
    monkeypatch.setenv("DATABASE_URL", f"{secret_url} connect_timeout=1 port=1 host=/tmp/zz_host")
    assert run_cli(["pull", "m.duckdb", "--pseudonymise"]) == 2
    monkeypatch.setenv("DATABASE_URL", "postgresql://zz_user:zz_password@host name/x?zz=1")
    assert run_cli(["pull", "m.duckdb"]) == 2
    monkeypatch.setenv("DATABASE_URL", make_conninfo(secret_url, dbname="zz_none"))
    assert run_cli(["pull", "m.duckdb"]) == 2
    shown = capfd.readouterr()
    assert "zz_" not in shown.out + shown.err
    assert shown.err.count("replay: ") == 3
    for file in tmp_path.rglob("*"):
        assert b"zz_" not in file.read_bytes(), file
