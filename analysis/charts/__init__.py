"""Charts: one registry of pictures, each drawn from a small documented frame.

>>> sorted(CHARTS)
['cost', 'differences', 'flips', 'latency', 'reliability', 'stamped', 'tools']
"""

from __future__ import annotations

from analysis.charts import load
from analysis.charts.cost import COLUMNS as _COST
from analysis.charts.cost import cost
from analysis.charts.differences import COLUMNS as _DIFFERENCES
from analysis.charts.differences import differences
from analysis.charts.flips import flips
from analysis.charts.over_time import latency, reliability
from analysis.charts.spec import ChartSpec
from analysis.charts.stamped import stamped
from analysis.charts.theme import AnyChart
from analysis.charts.tools import tools
from analysis.series import FLIPS_OVER_TIME_SCHEMA, RULES_OVER_TIME_SCHEMA, STAMPED_SCHEMA, TOOLS_SCHEMA

__all__ = [
    "CHARTS",
    "AnyChart",
    "ChartSpec",
    "cost",
    "differences",
    "flips",
    "latency",
    "reliability",
    "stamped",
    "tools",
]

CHARTS: dict[str, ChartSpec] = {
    spec.name: spec
    for spec in (
        ChartSpec(
            "reliability",
            "One route's success rate over time as each rule predicted it, over what happened.",
            RULES_OVER_TIME_SCHEMA,
            load.reliability,
            reliability,
            ("route",),
        ),
        ChartSpec(
            "latency",
            "One route's latency over time as each rule predicted it, over what happened.",
            RULES_OVER_TIME_SCHEMA,
            load.latency,
            latency,
            ("route",),
        ),
        ChartSpec(
            "flips",
            "The decisions that flip between two settings, over time and by cause.",
            FLIPS_OVER_TIME_SCHEMA,
            load.flips,
            flips,
            ("against",),
        ),
        ChartSpec(
            "differences",
            "Which of two settings predicts better, per route, with intervals.",
            _DIFFERENCES,
            load.differences,
            differences,
            ("against", "metric"),
        ),
        ChartSpec(
            "stamped",
            "The share of attempts each rule had a figure for, by traffic class.",
            STAMPED_SCHEMA,
            load.stamped,
            stamped,
        ),
        ChartSpec(
            "tools",
            "What a tools rule has to go by on each route, with its threshold.",
            TOOLS_SCHEMA,
            load.tools_evidence,
            tools,
            ("setting",),
            mirror_is_enough=True,
        ),
        ChartSpec(
            "cost",
            "What each provider charged against its list price, with signal and volume.",
            _COST,
            load.cost_drift,
            cost,
            mirror_is_enough=True,
        ),
    )
}
"""Every chart by name, in the order a report shows them."""
