"""One 64-bit number for a whole ranking, the same on every machine, ledger slice and core.

    hash = mix(Σ mix(word_k) mod 2⁶⁴),   word_k = (route_hash_k + k · GOLDEN) xor (score_bits_k · ODD),   k = 1, 2, …

Every place is mixed on its own, so a compiled core computes it at the rate of its multiplier, not of a chain.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
ODD = 0xD6E8FEB86659FD93
NAN_BITS = 0x7FF8000000000000


def route_hash(route_key: str) -> int:
    """Return the first eight bytes of a route key's SHA-256, so that a route's number on a timeline never matters.

    >>> hex(route_hash("p|m|p"))
    '0x566390d895a00f0'
    """
    return int.from_bytes(hashlib.sha256(route_key.encode()).digest()[:8], "little")


def mix(word: int) -> int:
    """Spread a 64-bit word: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def mix_all(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread many words at once.

    >>> int(mix_all(np.array([1], dtype=np.uint64))[0]) == mix(1)
    True
    """
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


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
    total = 0
    for place, (route_key, score) in enumerate(ranking, start=1):
        word = (route_hash(route_key) + place * GOLDEN & MASK) ^ (score_bits(score) * ODD & MASK)
        total += mix(word)
    return mix(total & MASK)
