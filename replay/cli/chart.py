"""`replay chart`: one picture of a run, as a file for a review or a page."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.table import Table

from replay.cli.options import MirrorOfRuns
from replay.cli.show import console, plain
from replay.errors import ReplayError

if TYPE_CHECKING:  # Altair takes half a second to import, which no other command should pay
    from analysis.charts import ChartSpec
    from analysis.charts.theme import AnyChart

Format = Literal["png", "svg", "pdf", "html", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
PNG_SCALE = 2


class Look(StrEnum):
    """The background a chart is made for."""

    light = "light"
    dark = "dark"


def chart(
    name: Annotated[str | None, typer.Argument(help="Which chart; left out, the charts are listed.")] = None,
    run: Annotated[
        Path | None,
        typer.Argument(help="A run's folder, as written by replay run; cost and tools do with --mirror alone."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write: .png, .svg, .pdf, .html or .json.")
    ] = None,
    mirror: MirrorOfRuns = None,
    route: Annotated[
        str | None, typer.Option(help="reliability, latency: the route key; default: the most disputed route.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="flips, differences: the other setting; default: the second.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="differences: brier (the default), log loss, log latency error, or a pinball loss by its name."
        ),
    ] = None,
    setting: Annotated[
        str | None,
        typer.Option(help="tools: whose rule; default: the first setting with one; without RUN, a preset or TOML."),
    ] = None,
    width: Annotated[int, typer.Option(help="Width in pixels; PNG files have twice as many.")] = 600,
    theme: Annotated[Look, typer.Option(help="For a light or a dark background.")] = Look.light,
) -> None:
    """Draw one chart of a run into a PNG, SVG, PDF, offline HTML or Vega-Lite JSON file; alone, list the charts.

    Example: replay chart reliability runs/both --width 1200 -o reliability.png
    """
    if name is None:
        _print_charts()
        return
    spec = _spec(name)
    if out is None or (run is None and not (spec.mirror_is_enough and mirror)):
        instead = f", or: replay chart {name} --mirror FILE -o {name}.png" if spec.mirror_is_enough else ""
        raise ReplayError(f"replay chart {name} needs a run's folder and -o FILE; expected: {_example(name)}{instead}")
    require_format(out)
    frame = spec.frame(run, mirror, route=route, against=against, metric=metric, setting=setting)
    drawn = spec.draw(frame, width=width, theme=theme.value)
    write_chart(drawn, out)
    plain(console(), f"Written to {out}")
    plain(console(), f"Alt text: {drawn.to_dict()['description']}")


def require_format(path: Path) -> Format:
    """Return the format a file name asks for, or refuse it."""
    asked = path.suffix.lower().removeprefix(".")
    for known in FORMATS:
        if asked == known:
            return known
    raise ReplayError(
        f"{path} asks for the format {asked or '(none)'}; expected one of {', '.join(FORMATS)}. Name it, for example, "
        f"{path.with_suffix('.png').name}."
    )


def write_chart(drawn: AnyChart, path: Path) -> None:
    """Write a chart in the format its file name asks for; nothing is fetched, now or when it is opened.

    Raises ReplayError where the name asks for no known format, or the file cannot be written.
    """
    asked = require_format(path)
    try:
        if asked == "json":
            text = json.dumps(drawn.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
        else:
            drawn.save(str(path), format=asked, scale_factor=PNG_SCALE if asked == "png" else 1, inline=asked == "html")
    except OSError as error:
        raise ReplayError(
            f"{path} could not be written: {error.strerror or error}. Name a file in a folder."
        ) from error


def _spec(name: str) -> ChartSpec:
    from analysis.charts import CHARTS

    if name not in CHARTS:
        raise ReplayError(f"There is no chart {name!r}; expected one of {', '.join(CHARTS)}. Give one of these.")
    return CHARTS[name]


def _example(name: str) -> str:
    return f"replay chart {name} RUN -o {name}.png"


def _print_charts() -> None:
    from analysis.charts import CHARTS

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("chart", "shows", "options"):
        table.add_column(heading)
    for spec in CHARTS.values():
        table.add_row(spec.name, spec.documentation, " ".join(f"--{option}" for option in spec.options))
    console().print(table)
    plain(console(), f"Draw one: {_example('reliability')}")


def register(app: typer.Typer) -> None:
    """Add `chart` to the command line."""
    app.command("chart")(chart)
