"""The encoding of terms: one text per normal form, and its hash, the policy's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from replay.core.signature import SIGNATURE, TERM_SORTS

PREFIX = "sigma-pol/v2:"

_EXACT_INTEGERS = 2**53
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def encode(term: Any) -> str:
    """Return the encoding of an admitted term, prefix included.

    >>> encode(["top_k", 2, ["chain", [{"provider": "p", "model": "m"}]]])
    'sigma-pol/v2:(top_k 2 (chain [{"model":"m","provider":"p"}]))'
    """
    return PREFIX + encode_term(term)


def identity(encoding: str) -> str:
    """Return the SHA-256 of an encoding, as hex."""
    return hashlib.sha256(encoding.encode("utf-8")).hexdigest()


def encode_term(term: Any, encode_subterm: Callable[[Any], str] | None = None) -> str:
    """Return the encoding of a term or subterm, without the prefix; another encoder of subterms may be given."""
    op, *arguments = term
    parts = [
        encode_argument(op, position, argument, encode_subterm) for position, argument in enumerate(arguments, start=1)
    ]
    return f"({' '.join([op, *parts])})"


def encode_argument(op: str, position: int, argument: Any, encode_subterm: Callable[[Any], str] | None = None) -> str:
    """Return the encoding of an operation's argument (counted from 1): a subterm or a parameter, by the signature."""
    if SIGNATURE[op].argument_sort(position) in TERM_SORTS:
        return (encode_subterm or encode_term)(argument)
    return encode_value(argument)


def encode_value(value: Any) -> str:
    """Return the encoding of a parameter.

    >>> encode_value({"b": [1.5, 200], "a": "x\\n"}), encode_value({})
    ('{"a":"x\\\\n","b":[1.5,200]}', '[]')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return encode_number(value)
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, Mapping) and value:
        # Code point order is the byte order of UTF-8.
        return "{" + ",".join(f"{encode_value(key)}:{encode_value(value[key])}" for key in sorted(value)) + "}"
    return "[" + ",".join(encode_value(item) for item in value) + "]"


def encode_number(value: float) -> str:
    """Return a finite number's encoding.

    >>> encode_number(-0.0), encode_number(5.0), encode_number(2**53 + 2), encode_number(0.1), encode_number(1e-7)
    ('0', '5', '9007199254740994', '0.10000000000000001', '9.9999999999999995e-08')
    """
    if abs(value) <= _EXACT_INTEGERS and value == int(value):
        return str(int(value))
    return "%.17g" % float(value)  # noqa: UP031 (the page's own words for this format)
