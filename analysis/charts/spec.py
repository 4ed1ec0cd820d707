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
    """

    name: str
    documentation: str
    columns: Mapping[str, Any]
    load: Callable[..., pl.DataFrame]
    draw: Callable[..., AnyChart]
    options: tuple[str, ...] = ()

    def frame(self, run_folder: Path, mirror: Path | None = None, **options: Any) -> pl.DataFrame:
        """Return the chart's frame; raises ReplayError on an option it does not have.

        `mirror` stands in for the file the run was made from, if that moved. Options that are None are left out.
        """
        given = {name: value for name, value in options.items() if value is not None}
        unknown = [name for name in given if name not in self.options]
        if unknown:
            takes = f"takes {', '.join(self.options)}" if self.options else "takes none"
            raise ReplayError(f"The {self.name} chart was given the option {unknown[0]}; it {takes}. Leave it out.")
        return self.load(run_folder, mirror, **given)
