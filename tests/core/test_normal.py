from __future__ import annotations

import hashlib
from typing import Any

import pytest

from replay.core import admit, admit_pred
from replay.core.encoding import encode, encode_number, encode_value
from replay.core.normal import normal_form

A, B, C = ["is", "has_tee"], ["is", "no_log"], ["provider_eq", "p"]
S, T = ["field", "price_in"], ["lit", 2]


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (["and", ["and", A, B], C], ["and", A, B, C]),
        (["and", C, B, A], ["and", A, B, C]),
        (["and", A, ["top"]], A),
        (["and", ["top"], ["top"]], ["top"]),
        (["and", A, ["not", ["top"]]], ["bot"]),
        (["or", A, ["or", ["not", ["bot"]], B]], ["top"]),
        (["or", ["bot"]], ["bot"]),
        (["and", A, A], ["and", A, A]),
        (["and", ["and", ["top"], A], ["top"]], A),
        (["not", ["not", A]], A),
        (["not", ["not", ["not", A]]], ["not", A]),
        (["not", ["bot"]], ["top"]),
        (["add", T, S, ["add", ["zero"], S]], ["add", S, S, T]),
        (["add", ["zero"]], ["zero"]),
        (["scale", 0, S], ["zero"]),
        (["scale", -0.0, S], ["zero"]),
        (["scale", 1.0, S], S),
        (["scale", 2, ["zero"]], ["zero"]),
        (["scale", 2, ["scale", 3, S]], ["scale", 2, ["scale", 3, S]]),
        (["gate", ["top"], S], S),
        (["gate", ["bot"], S], ["zero"]),
        (["gate", A, ["scale", 0, S]], ["zero"]),
        (["normalize", ["normalize", ["normalize", S]]], ["normalize", S]),
        (["neg", ["neg", S]], ["neg", ["neg", S]]),
        (["neg", ["zero"]], ["neg", ["zero"]]),
        (["clamp", 0, 1, ["zero"]], ["clamp", 0, 1, ["zero"]]),
        (["seq", ["custom", "b"], ["seq", ["custom", "a"], ["id"]]], ["seq", ["custom", "b"], ["custom", "a"]]),
        (["when", ["not", ["not", A]], ["seq", ["id"]]], ["when", A, ["id"]]),
        (["top_k", 2, ["prefer", ["or", B, A], ["argmax"]]], ["top_k", 2, ["prefer", ["or", A, B], ["argmax"]]]),
    ],
)
def test_normal_form(term: Any, expected: Any) -> None:
    """Each rule of the page, and nothing beyond them."""
    assert encode(normal_form(term)) == encode(expected)


NEXT, ABORT, RETRY = {"action": "next_candidate"}, {"action": "abort"}, {"action": "retry_same", "attempts": 2.0}


def test_overrides_are_sorted_by_kind_and_the_outermost_wins() -> None:
    """The smallest kind in byte order ends up innermost; an override equal to the base is dropped."""
    term: Any = ["always", NEXT]
    for kind, action in [("b", ABORT), ("z", RETRY), ("Z", ABORT), ("b", RETRY), ("c", ABORT), ("c", NEXT)]:
        term = ["override", term, kind, action]
    retry = '{"action":"retry_same","attempts":2}'
    assert encode(normal_form(term)) == (
        'sigma-pol/v2:(override (override (override (always {"action":"next_candidate"}) '
        f'"Z" {{"action":"abort"}}) "b" {retry}) "z" {retry})'
    )


def test_kinds_sort_by_bytes_not_by_utf_16() -> None:
    """U+FFFF comes before U+10000 in UTF-8, unlike in UTF-16."""
    term = ["override", ["override", ["always", NEXT], "\U00010000", ABORT], "\uffff", ABORT]
    assert [normal_form(term)[2], normal_form(term)[1][2]] == ["\U00010000", "\uffff"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (3.0, "3"),
        (-17, "-17"),
        (0.1, "0.10000000000000001"),
        (2**53, "9007199254740992"),
        (float(-(2**53)), "-9007199254740992"),
        (2**53 + 2, "9007199254740994"),
        (2**53 + 1, "9007199254740992"),
        (1e17, "1e+17"),
        (1e100, "1e+100"),
        (1e-7, "9.9999999999999995e-08"),
        (5e-324, "4.9406564584124654e-324"),
        (-1.5e300, "-1.5000000000000001e+300"),
        (123456789012345678, "1.2345678901234568e+17"),
    ],
)
def test_numbers_are_encoded_as_c_does(number: float, text: str) -> None:
    """Integral up to 2⁵³: no point, no exponent; else %.17g with at least two exponent digits and its sign."""
    assert encode_number(number) == text


def test_strings_escape_five_characters_only() -> None:
    """Every other character, control characters too, stands for itself."""
    assert encode_value('a\\"\n\r\t\b\x00é/') == '"a\\\\\\"\\n\\r\\t\b\x00é/"'


def test_records_sort_keys_by_bytes_and_empty_ones_are_arrays() -> None:
    """Capitals before small letters before accents; `{}` is written `[]`."""
    assert encode_value({"é": 1, "b": True, "A": [{}, []]}) == '{"A":[[],[]],"b":true,"é":1}'


def test_identity_is_the_sha256_of_the_encoding() -> None:
    """Computed by hand from the encoding's bytes, prefix included."""
    policy = admit(["policy", ["provider_eq", "é"], ["zero"], ["argmax"], ["id"], ["always", ABORT]])
    text = 'sigma-pol/v2:(policy (provider_eq "é") (zero) (argmax) (id) (always {"action":"abort"}))'
    assert policy.encoding == text
    assert policy.identity == hashlib.sha256(text.encode()).hexdigest()


def test_the_term_is_kept_as_given() -> None:
    """`.term` is the term that arrived; `.normal` is another."""
    term = ["policy", ["not", ["not", A]], ["zero"], ["argmax"], ["id"], ["always", ABORT]]
    policy = admit(term)
    assert policy.term is term
    assert policy.normal[1] == ("is", "has_tee")


def test_a_normal_form_can_be_admitted_again() -> None:
    """Nested tuples are as good as JSON arrays."""
    assert admit_pred(admit_pred(["and", B, A])) == ("and", ("is", "has_tee"), ("is", "no_log"))
