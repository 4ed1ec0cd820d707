"""One 64-bit number for a whole ranking, the same on every machine, ledger slice and core."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable

MASK = 2**64 - 1
START = 0x9E3779B97F4A7C15
NAN_BITS = 0x7FF8000000000000


def route_hash(route_key: str) -> int:
    """Return the first eight bytes of a route key's SHA-256, so that a route's number on a timeline never matters.

    >>> hex(route_hash("p|m|p"))
    '0x566390d895a00f0'
    """
    return int.from_bytes(hashlib.sha256(route_key.encode()).digest()[:8], "little")


def mix(state: int, word: int) -> int:
    """Take one 64-bit word into the hash: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (state ^ word) + START & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def score_bits(score: float) -> int:
    """Return the bits of a score; every NaN has the same ones.

    >>> hex(score_bits(1.0)), score_bits(float("nan")) == score_bits(-float("nan"))
    ('0x3ff0000000000000', True)
    """
    return NAN_BITS if math.isnan(score) else int.from_bytes(struct.pack("<d", score), "little")


def order_hash(ranking: Iterable[tuple[str, float]]) -> int:
    """Return the hash of (route key, score), best first.

    >>> order_hash([("p|m|p", 1.0)]) == order_hash([("p|m|p", 1.0 + 2**-52)])
    False
    """
    state = START
    for route_key, score in ranking:
        state = mix(mix(state, route_hash(route_key)), score_bits(score))
    return state
