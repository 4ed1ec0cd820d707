"""What the registry knows of a chart: its name, its sentence, where its frame comes from, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analysis.charts.theme import AnyChart
from replay.errors import ReplayError


@dataclass(frozen=True)
class ChartSpec:
    """One chart: `frame` makes its small frame from a run's folder, `draw` makes the picture from such a frame.

    `options` are the words `frame` understands beside the run and the mirror; `columns` the frame's columns.
    `mirror_is_enough`: the frame can be made from a mirror without any run.
    """

    name: str
    documentation: str
    columns: Mapping[str, Any]
    load: Callable[..., pl.DataFrame]
    draw: Callable[..., AnyChart]
    options: tuple[str, ...] = ()
    mirror_is_enough: bool = False

    def frame(self, run_folder: Path | None, mirror: Path | None = None, **options: Any) -> pl.DataFrame:
        """Return the chart's frame; raises ReplayError on an option it does not have, or without what it needs.

        `mirror` stands in for the file the run was made from, if that moved, or for
        the run itself where a mirror is enough (`run_folder` None). Options that are None are left out.
        """
        given = {name: value for name, value in options.items() if value is not None}
        unknown = [name for name in given if name not in self.options]
        if unknown:
            takes = f"takes {', '.join(self.options)}" if self.options else "takes none"
            raise ReplayError(f"The {self.name} chart was given the option {unknown[0]}; it {takes}. Leave it out.")
        if run_folder is None and not (self.mirror_is_enough and mirror is not None):
            also = " or --mirror FILE" if self.mirror_is_enough else ""
            raise ReplayError(f"The {self.name} chart was given no run; it needs a run's folder{also}. Name one.")
        return self.load(run_folder, mirror, **given)
