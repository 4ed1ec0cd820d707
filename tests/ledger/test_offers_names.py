from __future__ import annotations

import pytest

from replay.errors import ReplayError
from replay.ledger.offers import Asked, Match, Matcher, load_rules, parse_rules

LISTED = [
    "anthropic/claude-3.7-sonnet",
    "anthropic/claude-3.7-sonnet:thinking",
    "anthropic/claude-3.5-sonnet-20240620",
    "deepseek/deepseek-chat",
    "deepseek/deepseek-r1:free",
    "google/gemini-pro-1.5",
    "google/gemini-2.5-pro-preview-03-25",
    "openai/o1-preview-2024-09-12",
    "openai/gpt-4o",
    "openrouter/quasar-alpha",
]


def matcher(*listed: str) -> Matcher:
    """Return a matcher for the OpenRouter list with these listed names."""
    return Matcher(load_rules("openrouter_price_events"), dict.fromkeys(listed or LISTED, ()))


@pytest.mark.parametrize(
    ("provider", "name", "listed", "way"),
    [
        ("deepseek", "deepseek/deepseek-chat", "deepseek/deepseek-chat", "exact"),
        ("deepseek", "deepseek-chat", "deepseek/deepseek-chat", "rules"),
        ("openai", "GPT-4o", "openai/gpt-4o", "rules"),
        ("openai", "gpt-4o-2024-08-06", "openai/gpt-4o", "rules"),
        ("anthropic", "anthropic/claude-3-7-sonnet-20250219", "anthropic/claude-3.7-sonnet", "rules"),
        ("anthropic", "claude-3-7-sonnet-20250219:thinking", "anthropic/claude-3.7-sonnet:thinking", "rules"),
        ("anthropic", "claude-3-5-sonnet-20240620", "anthropic/claude-3.5-sonnet-20240620", "rules"),
        ("gemini", "gemini/gemini-2.5-pro-preview-03-25", "google/gemini-2.5-pro-preview-03-25", "rules"),
        ("openrouter", "openrouter/anthropic/claude-3.7-sonnet", "anthropic/claude-3.7-sonnet", "rules"),
        ("openrouter", "openrouter/openrouter/quasar-alpha", "openrouter/quasar-alpha", "rules"),
        ("gemini", "gemini/gemini-1.5-pro-002", "google/gemini-pro-1.5", "alias"),
    ],
)
def test_name_is_joined_and_says_how(provider: str, name: str, listed: str, way: str) -> None:
    """A name is joined to the listed one, and the match says whether by name, by rules or by alias."""
    match = matcher().match(Asked(provider, name))
    assert match is not None
    assert (match.listed, match.way) == (listed, way)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openrouter", "openrouter/REDACTED"),
        ("anthropic", "anthropic/claude-3-7-sonnet-20250219:free"),  # a free variant is not the paid model
        ("deepseek", "deepseek/deepseek-r1"),  # nor is the paid model the free variant
        ("openai", "o1-preview"),  # an undated name may mean another version than the dated listing
        ("fireworks_ai", "fireworks_ai/accounts/fireworks/models/deepseek-chat"),  # a host's price is its own
        ("groq", "gpt-4o"),
        ("openrouter", "gpt-4o"),  # a gateway sells many vendors' models: whose?
        ("anthropic", "claude-3-7-sonne"),
        ("", ""),
    ],
)
def test_name_that_is_not_listed_stays_unmatched(provider: str, name: str) -> None:
    """What no rule or alias joins gets no listed name, however similar it looks."""
    assert matcher().match(Asked(provider, name)) is None


def test_exact_name_goes_before_rules() -> None:
    """A name that is listed as it stands is never normalised away."""
    both = matcher("openai/gpt-4o", "openai/gpt-4o-2024-08-06")
    assert both.match(Asked("openai", "openai/gpt-4o-2024-08-06")) == Match("openai/gpt-4o-2024-08-06", "exact")


def test_fewer_rules_go_before_more() -> None:
    """With a dated and an undated listing, a dated name is joined to the dated one, before its date is dropped."""
    both = matcher("anthropic/claude-3.5-sonnet", "anthropic/claude-3.5-sonnet-20240620")
    match = both.match(Asked("anthropic", "claude-3-5-sonnet-20240620"))
    assert match == Match("anthropic/claude-3.5-sonnet-20240620", "rules", ("vendor_prefix", "version_dots"))


def test_two_listed_names_of_one_spelling_match_neither() -> None:
    """A normal form that two listed names share says nothing about which one is meant."""
    both = matcher("x/Model-A", "x/model-a")
    assert both.match(Asked("x", "x/MODEL-A")) is None


def test_further_names_of_a_listing_are_its_own() -> None:
    """A name that the list itself gives a model is as good as its first one, but not better than another's first."""
    rules = load_rules("genai-prices")
    further = Matcher(rules, {"openai/gpt-5": ("openai/gpt-5-codex", "openai/o3"), "openai/o3": ()})
    assert further.match(Asked("openai", "openai/gpt-5-codex")) == Match("openai/gpt-5", "exact")
    assert further.match(Asked("openai", "o3")) == Match("openai/o3", "rules", ("vendor_prefix",))


def test_unknown_list_gets_the_default_rules() -> None:
    """A price list the alias table does not know is joined by the general rules, without vendors or aliases."""
    rules = load_rules("my_own_prices")
    assert rules.vendors == {}
    match = Matcher(rules, {"acme/m-1.5": ()}).match(Asked("acme", "acme/m-1-5-20250101"))
    assert match == Match("acme/m-1.5", "rules", ("version_dots", "date_suffix"))


def test_unknown_rule_is_refused() -> None:
    """An alias table cannot bring rules of its own: the set is closed."""
    with pytest.raises(ReplayError, match="names the rule 'nearest'"):
        parse_rules({"version": 1, "sources": {"default": {"rules": ["nearest"]}}}, "default")
