"""Estimators: how a route is measured from its attempts.

Each rule is a small frozen value that can be written in a settings file; `rule.start()` gives its streaming
form, which folds one observation and reads at an instant. The streaming form is the definition and the oracle
of every faster path (`replay.kernel.tracks`). Observations are folded in the order they become visible; `at_ms` of
an observation is when its attempt ended.

    members     rows that count now: the last W ms (`Window`), or the last n (`Count`)
    members     and what is said of them: their mean; `Wilson`, a lower bound; `Quantile`, one of them
    folds       `Ema`, `TimeEma`, `PeakEma`, `Beta`, `Consecutive`: one state a route, never unfolded
    tools       `ToolsWindow`, `ToolsSticky`, `ToolsNever`: a verdict instead of a number
"""

from __future__ import annotations

from replay.estimators.base import DoubleDouble, Reading, Rule, Stream, ToolsReading, ToolsRule, ToolsStream
from replay.estimators.folds import Beta, Consecutive, Ema, PeakEma, TimeEma
from replay.estimators.members import Count, Quantile, Wilson, Window, quantile_place, wilson_lower
from replay.estimators.tools import ToolsNever, ToolsSticky, ToolsWindow

__all__ = [
    "Beta",
    "Consecutive",
    "Count",
    "DoubleDouble",
    "Ema",
    "PeakEma",
    "Quantile",
    "Reading",
    "Rule",
    "Stream",
    "TimeEma",
    "ToolsNever",
    "ToolsReading",
    "ToolsRule",
    "ToolsSticky",
    "ToolsStream",
    "ToolsWindow",
    "Wilson",
    "Window",
    "quantile_place",
    "wilson_lower",
]
