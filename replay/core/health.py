"""Breakers and disabled providers of one process: state that a ranking reads and every attempt's end changes."""

from __future__ import annotations

from dataclasses import dataclass

from replay.core.policy import Action

CLIENT_ERROR_KINDS = frozenset({"bad_request", "content_filter", "context_overflow"})
"""The client's own failures: they say nothing of the provider and touch no breaker."""


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    opened_ms: float | None = None
    open_for_ms: float = 0.0

    def is_open(self, now_ms: float) -> bool:
        return self.opened_ms is not None and now_ms - self.opened_ms < self.open_for_ms


class Health:
    """The breakers and disabled providers of one process.

    `threshold` consecutive failures open a provider's breaker for `open_ms`; a disabled provider is out for
    `disable_ms`. Production opens for `open_ms` whatever an Action's `open_breaker_ms` says;
    `honour_open_breaker_ms` opens for what the Action says instead.

    >>> health = Health()
    >>> for now_ms in (1_000, 1_100, 1_200):
    ...     health.observe("p", False, "timeout", Action("next_candidate"), now_ms)
    >>> health.open_breakers(31_199), health.open_breakers(31_200)
    (frozenset({'p'}), frozenset())
    """

    def __init__(
        self,
        threshold: int = 3,
        open_ms: float = 30_000,
        disable_ms: float = 300_000,
        honour_open_breaker_ms: bool = False,
    ) -> None:
        self.threshold = threshold
        self.open_ms = open_ms
        self.disable_ms = disable_ms
        self.honour_open_breaker_ms = honour_open_breaker_ms
        self._breakers: dict[str, _Breaker] = {}
        self._disabled_ms: dict[str, float] = {}

    def rank(self, now_ms: float) -> tuple[frozenset[str], frozenset[str]]:
        """Return (open breakers, disabled providers) for a ranking, which resets every recovered breaker."""
        for breaker in self._breakers.values():
            if breaker.opened_ms is not None and not breaker.is_open(now_ms):
                breaker.failures, breaker.opened_ms = 0, None
        return self.open_breakers(now_ms), self.disabled(now_ms)

    def observe(self, provider_id: str, ok: bool, error_kind: str | None, action: Action | None, now_ms: float) -> None:
        """Take in the end of one attempt; `action` is the one picked for the failure, None after a success."""
        if ok:
            self._breakers.pop(provider_id, None)
            return
        if action is not None and action.action == "disable_provider":
            self._disabled_ms[provider_id] = now_ms
        if error_kind in CLIENT_ERROR_KINDS:
            return
        breaker = self._breakers.setdefault(provider_id, _Breaker())
        breaker.failures += 1
        asked_ms = None if action is None else action.open_breaker_ms
        if breaker.failures >= self.threshold or asked_ms is not None:
            honoured = self.honour_open_breaker_ms and asked_ms is not None
            breaker.opened_ms = now_ms
            breaker.open_for_ms = asked_ms if honoured and asked_ms is not None else self.open_ms

    def is_disabled(self, provider_id: str, now_ms: float) -> bool:
        """Tell whether a provider is disabled at this instant; it is back from exactly `disable_ms` on."""
        disabled_ms = self._disabled_ms.get(provider_id)
        return disabled_ms is not None and now_ms - disabled_ms < self.disable_ms

    def open_breakers(self, now_ms: float) -> frozenset[str]:
        """Return the providers whose breaker is open at this instant, changing nothing."""
        return frozenset(provider for provider, breaker in self._breakers.items() if breaker.is_open(now_ms))

    def disabled(self, now_ms: float) -> frozenset[str]:
        """Return the providers that are disabled at this instant."""
        return frozenset(provider for provider in self._disabled_ms if self.is_disabled(provider, now_ms))
