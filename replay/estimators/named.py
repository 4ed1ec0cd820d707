"""The names rules have in a settings file, and which measure each can make."""

from __future__ import annotations

from replay.errors import ReplayError
from replay.estimators.folds import Beta, Consecutive, Ema, PeakEma, TimeEma
from replay.estimators.members import Count, Quantile, Wilson, Window
from replay.estimators.tools import ToolsNever, ToolsSticky, ToolsWindow

RULES: dict[str, type] = {
    "window": Window,
    "count": Count,
    "ema": Ema,
    "time_ema": TimeEma,
    "peak_ema": PeakEma,
    "beta": Beta,
    "wilson": Wilson,
    "quantile": Quantile,
    "consecutive": Consecutive,
}

TOOLS_RULES: dict[str, type] = {"window": ToolsWindow, "sticky": ToolsSticky, "never": ToolsNever}

EXAMPLES = {
    "window": '"15m"',
    "n": "20",
    "alpha": "0.2",
    "gamma": "0.95",
    "a0": "1.0",
    "b0": "1.0",
    "q": "0.95",
    "min_samples": "20",
    "horizon": '"30m"',
}
"""What to say for a parameter that has no default."""

_ONLY: dict[str, tuple[str, str]] = {
    "peak_ema": ("latency", "of outcomes it would jump to 1 at every success"),
    "quantile": ("latency", "a quantile of outcomes is 0 or 1"),
    "beta": ("reliability", "it counts successes and failures"),
    "wilson": ("reliability", "it bounds a share of successes"),
    "consecutive": ("reliability", "it counts failures in a row"),
}


def name_of(rule: object) -> str:
    """Return the name of a rule.

    >>> name_of(Ema(0.2)), name_of(ToolsNever())
    ('ema', 'never')
    """
    return next(name for table in (RULES, TOOLS_RULES) for name, kind in table.items() if type(rule) is kind)


def require_meaning(rule: object, measure: str) -> None:
    """Refuse a rule that says nothing of this measure, `reliability` or `latency`, with a ReplayError.

    >>> require_meaning(Wilson(n=20), "reliability")
    """
    name = name_of(rule)
    only, because = _ONLY.get(name, (measure, ""))
    if only != measure:
        allowed = ", ".join(other for other in RULES if _ONLY.get(other, (measure, ""))[0] == measure)
        raise ReplayError(
            f"settings.{measure}.rule is {name!r}, which is for {only} alone ({because}); expected one of {allowed}"
        )
