"""Pseudonyms: a keyed hash in place of a text that names a person, the same on every pull with the same key.

A plain hash would hide nothing, as anybody can hash a guess and look for it; without the key nobody can. All columns
share one namespace: equal texts get equal pseudonyms wherever they stand, so every join, group and owner of a session
is the same with pseudonyms as without. What is needed to join rows (`usage_event_id`, `request_id`) stays as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from replay.errors import ReplayError

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("session_id", "consumer_sha", "caller")
"""The columns of `calls` that get pseudonyms."""

KEY_VARIABLE = "REPLAY_PSEUDONYM_KEY"
"""The environment variable that holds the key where no file is given."""

_LEAST_KEY_BYTES = 16
_DIGEST_BYTES = 16


class Pseudonyms:
    """Gives each text its pseudonym: keyed BLAKE2b, 32 hex digits.

    The key is any 16 bytes or more; shorter ones can be tried out and are refused with a ReplayError. It is never
    stored or shown: `fingerprint` tells one key from another and reveals neither.

    >>> names = Pseudonyms(b"sixteen bytes or more")
    >>> names.of("alice"), names.of(""), names.of(None)
    ('24b073f6a950116949dfd1d9fed94666', '', None)
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _LEAST_KEY_BYTES:
            raise ReplayError(
                f"The key for pseudonyms has {len(key)} bytes; expected at least {_LEAST_KEY_BYTES}, as a short one "
                "can be guessed. Make one with: openssl rand -hex 32"
            )
        self._key = hashlib.sha256(key).digest()  # BLAKE2b takes at most 64 bytes

    def __repr__(self) -> str:
        return f"Pseudonyms(fingerprint={self.fingerprint!r})"

    @property
    def fingerprint(self) -> str:
        """Which key this is, as 16 hex digits that may be stored."""
        return hashlib.blake2b(key=self._key, digest_size=8, person=b"fingerprint").hexdigest()

    def of(self, text: str | None) -> str | None:
        """Return a text's pseudonym; None and the empty text stand for nobody and stay."""
        if not text:
            return text
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=_DIGEST_BYTES).hexdigest()

    def table(self, texts: Iterable[str | None]) -> dict[str, str]:
        """Return the pseudonym of each distinct text among these, for a join; None and "" are left out."""
        return {text: self.of(text) or "" for text in dict.fromkeys(texts) if text}

    def series(self, texts: pl.Series) -> pl.Series:
        """Return a Polars text column with pseudonyms in place of its values, each distinct one hashed once.

        >>> import polars as pl
        >>> names = Pseudonyms(b"sixteen bytes or more")
        >>> names.series(pl.Series("caller", ["alice", None, "", "alice"])).to_list()[1:3]
        [None, '']
        """
        known = self.table(texts.unique().to_list())
        return texts.replace(list(known), list(known.values())) if known else texts


def read_key(file: Path | None = None) -> bytes:
    """Return the key from a file (spaces around it do not count), else from `REPLAY_PSEUDONYM_KEY`.

    Raises ReplayError where there is none. A key is never an argument: other users of a machine can read those.
    """
    if file is not None:
        try:
            return file.read_bytes().strip()
        except OSError as error:
            raise ReplayError(
                f"The key for pseudonyms cannot be read from {file} ({error.strerror or error}); give a file that "
                "exists, made for example with: openssl rand -hex 32"
            ) from error
    given = os.environ.get(KEY_VARIABLE, "")
    if not given.strip():
        raise ReplayError(
            f"Pseudonyms need a key and there is none: set the environment variable {KEY_VARIABLE}, or give a file "
            "that holds it (--key-file). Make one with: openssl rand -hex 32"
        )
    return given.strip().encode()
