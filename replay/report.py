"""The report of one run or several: what their records and their comparison say, put in a reviewer's order."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

import replay
from analysis import decisions as deciding
from analysis import prequential, series
from analysis.charts import CHARTS, AnyChart, ChartSpec
from analysis.charts.theme import instant
from analysis.prequential import ALL, AS_READ, BRIER, OVER_ALL, percent
from analysis.report import (
    Block,
    Column,
    Command,
    Document,
    Listing,
    Paragraph,
    Picture,
    Points,
    Section,
    Table,
    content,
    to_html,
    to_markdown,
)
from analysis.report.content import DASH
from analysis.report.document import SIZES_PX, Tone
from analysis.report.pictures import picture
from replay import settings as settings_room
from replay.comparison import Comparison, Side, compare
from replay.core import SHIPPED_FIELDS, SHIPPED_POLICIES, Schema, admit, load_policy
from replay.durations import iso
from replay.engine import Progress
from replay.errors import ReplayError
from replay.record import StoredRun
from replay.sentences import audit_said, reproduction_said
from replay.settings import PRESETS, Settings
from replay.tuning import to_toml


def gather(runs: Sequence[StoredRun], mirror: Path | None = None, progress: Progress | None = None) -> Comparison:
    """Return the comparison a report rests on; of a single run with a single setting, its own figures alone.

    Raises as `replay.comparison.compare`.
    """
    if len(runs) > 1 or len(runs[0].settings) > 1:
        return compare(runs, mirror, progress)
    (run,) = runs
    only = Side(run, run.settings[0], run.settings[0].name)
    figures = prequential.score(run.predictions, settings_room.quantiles(run.settings))
    differences = pl.DataFrame(schema=prequential.DIFFERENCES_SCHEMA)
    agreed = deciding.agreement(run.decisions, window_ms=only.settings.longest_window_ms)
    verdict = deciding.verdict(figures, differences, None, agreed)
    return Comparison(
        sides=[only],
        figures=figures,
        differences=differences,
        flips=pl.DataFrame(),
        flip_summary=pl.DataFrame(),
        agreement=agreed,
        process_range=pl.DataFrame(),
        verdict=verdict,
    )


@dataclass(frozen=True)
class Words:
    """The command lines that make each part of a report, and the files they read."""

    run: list[str]
    compare: str
    mirror: str
    policy: str
    files: list[Listing]

    def explain(self, call: int) -> str:
        """Return the command that explains one call."""
        return _line("replay", "policy", "explain", self.policy, "--mirror", self.mirror, "--call", str(call))


def words(runs: Sequence[StoredRun], mirror: Path | None) -> Words:
    """Return the commands; settings and policies that ship with the package go by name, others as files to save."""
    files: dict[str, str] = {}
    run_lines = []
    known = _shown_path(mirror or runs[0].mirror)
    policy = "recorded"
    for run in runs:
        parts = ["replay", "run", _shown_path(run.mirror or mirror)]
        if run.policy is not None:
            policy = _policy_name(run, files)
            parts += ["--policy", policy]
            if policy.endswith(".json"):
                parts += ["--declared", policy.replace(".json", "-fields.json")]
        for one in run.settings:
            parts += ["-s", _settings_name(one, files)]
        for flag in ("since", "until"):
            at_ms = run.input[f"{flag}_ms"]
            parts += [] if at_ms is None else [f"--{flag}", iso(at_ms)]
        run_lines.append(_line(*parts, "-o", _shown_path(run.folder)))
    compared = _line("replay", "compare", *(_shown_path(run.folder) for run in runs))
    return Words(run_lines, compared, known, policy, [Listing(name, text) for name, text in sorted(files.items())])


def _line(*parts: str) -> str:
    return shlex.join(parts)


def _shown_path(path: Path | None) -> str:
    """Write a path as a reader beside it would type it: relative where it lies under the working folder."""
    if path is None:
        return "LEDGER.duckdb"
    whole = path.resolve()
    here = Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(path)


def _slug(text: str) -> str:
    """Make a file's name of any text.

    >>> _slug("production-now window=5m")
    'production-now-window-5m'
    """
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in text).split()) or "unnamed"


def _settings_name(one: Settings, files: dict[str, str]) -> str:
    for preset in PRESETS:
        if one == settings_room.load(preset):
            return preset
    name = f"{_slug(one.name)}.toml"
    files[name] = to_toml(one)
    return name


def _policy_name(run: StoredRun, files: dict[str, str]) -> str:
    given = run.record["policy"]
    for name in SHIPPED_POLICIES:
        if admit(load_policy(name), Schema.declare(SHIPPED_FIELDS)).identity == given["identity"]:
            return name
    name = f"policy-{given['identity'][:12]}.json"
    files[name] = json.dumps(given["term"]) + "\n"
    files[name.replace(".json", "-fields.json")] = json.dumps(given["declared_fields"]) + "\n"
    return name


def draw(
    runs: Sequence[StoredRun], compared: Comparison, mirror: Path | None = None, progress: Progress | None = None
) -> tuple[list[Picture], list[str]]:
    """Return every chart that can be drawn, and a sentence for each that cannot.

    Stores the comparison in the first run's folder, as `replay compare` does: the charts' commands read it there.
    """
    say = progress or (lambda what, done, total: None)
    folder, pictures, missing = runs[0].folder, [], []
    if len(compared.sides) > 1:
        compared.write(folder / "compare")
    joint = _joint_frames(compared.sides) if len(runs) > 1 else {}
    for number, (name, spec) in enumerate(CHARTS.items()):
        say(f"drawing {name}", number, len(CHARTS))
        try:
            frame = joint[name] if name in joint else spec.frame(folder, mirror)
        except ReplayError as error:
            missing.append(f"The {name} chart is not here: {error}")
            continue
        size = ("--width", str(SIZES_PX["wide"]))
        command = _line("replay", "chart", name, _shown_path(folder), *size, "-o", f"{name}.png")
        note = "" if name not in joint else "Drawn from all runs of this report; the command draws the first run alone."

        def drawn(width: int, theme: str, spec: ChartSpec = spec, frame: pl.DataFrame = frame) -> AnyChart:
            return spec.draw(frame, width=width, theme=theme)

        pictures.append(picture(name, drawn, command, note))
    return pictures, missing


def _joint_frames(sides: Sequence[Side]) -> dict[str, pl.DataFrame]:
    """Return the frames of the charts that show every setting, over several runs."""
    predictions, decisions = (
        pl.concat(
            getattr(side.run, kind).filter(setting=side.settings.name).with_columns(setting=pl.lit(side.name))
            for side in sides
        )
        for kind in ("predictions", "decisions")
    )
    return {
        "reliability": series.rules_over_time(predictions),
        "latency": series.rules_over_time(predictions, latency=True),
        "stamped": series.stamped_shares(predictions, decisions),
    }


def build(
    runs: Sequence[StoredRun],
    compared: Comparison,
    pictures: Sequence[Picture],
    mirror: Path | None = None,
    missing: Sequence[str] = (),
) -> Document:
    """Return the report: verdict, proofs, what was inferred, figures, charts, tables, limits, and its inputs."""
    said = words(runs, mirror)
    names = [side.name for side in compared.sides]
    frames = (compared.figures, compared.differences, compared.flip_summary, compared.agreement)
    charts: list[Block] = [*pictures, *([Points.of(missing, "note")] if missing else [])]
    return Document(
        title=_title(names),
        subtitle=_subtitle(runs[0]),
        facts=_facts(runs, compared),
        sections=[
            content.verdict_section(compared.verdict, names, said.compare),
            _proofs(runs, said),
            _inferred(runs, compared.notes),
            content.figures_section(*frames, compared.process_range, said.compare),
            Section("charts", "Charts", charts),
            content.tables_section(
                compared.differences, compared.flips, compared.flip_summary, said.compare, said.explain
            ),
            content.limits_section(_limits(runs)),
            _inputs(runs, compared.sides, said),
        ],
        made_by=f"Made by route-replay {replay.__version__} from what the runs recorded.",
    )


def _title(names: Sequence[str]) -> str:
    return " against ".join([names[0], ", ".join(names[1:])]) if len(names) > 1 else names[0]


def _subtitle(run: StoredRun) -> str:
    tables = run.input["tables"]
    calls, attempts = tables["calls"], tables["route_observations"]
    first, last = run.input["since_ms"], run.input["until_ms"]
    ends = [at for at in (calls["first_ms"], attempts["first_ms"], calls["last_ms"], attempts["last_ms"]) if at]
    span = f"{instant(min(ends))} to {instant(max(ends))}" if ends else "no traffic"
    part = "" if first is None and last is None else (
        f" Replayed from {'the beginning' if first is None else iso(first)} to "
        f"{'the end' if last is None else iso(last)}."
    )  # fmt: skip
    return f"A replay of {calls['rows']:,} recorded calls and {attempts['rows']:,} attempts, {span}.{part}"


def _facts(runs: Sequence[StoredRun], compared: Comparison) -> list[tuple[str, str, Tone]]:
    facts: list[tuple[str, str, Tone]] = []
    first = runs[0].record["reproduction"]
    if first["kind"] != "none" and first["compared"]:
        share = first["agreed"] / first["compared"]
        whole = first["kind"] == "reproduction"
        tone: Tone = ("good" if share == 1 else "bad") if whole else "plain"
        facts.append(("Reproduction" if whole else "Final-route agreement (no reproduction)", percent(share), tone))
    audits = [one["audit"] for run in runs for one in run.record["replayed"]]
    if any(audit["decisions"] for audit in audits):
        wrong = sum(audit["mismatches"] for audit in audits)
        facts.append(("Audit mismatches", f"{wrong:,}", "bad" if wrong else "good"))
    for row in (
        compared.flip_summary.filter(pl.col("group") == "all").iter_rows(named=True)
        if len(compared.flip_summary)
        else []
    ):
        pair = "" if len(compared.sides) == 2 else f", {row['setting_b']}"
        facts.append((f"Decisions that flip{pair}", DASH if row["share"] is None else percent(row["share"]), "plain"))
    leading = compared.differences.filter(
        (pl.col("question") == AS_READ)
        & (pl.col("metric") == BRIER)
        & (pl.col("over") == OVER_ALL)
        & (pl.col("scope") == ALL)
    )
    for row in leading.iter_rows(named=True):
        if row["difference"] is not None:
            span = "no interval" if row["low"] is None else f"[{_signed(row['low'])}, {_signed(row['high'])}]"
            pair = "" if len(compared.sides) == 2 else f", {row['setting_b']}"
            facts.append((f"Brier difference as read{pair} {span}", _signed(row["difference"]), "plain"))
    return facts


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _proofs(runs: Sequence[StoredRun], said: Words) -> Section:
    points: list[Paragraph] = []
    for run in runs:
        made, prefix = run.record, f"{run.folder.name}: " if len(runs) > 1 else ""
        result = made["reproduction"]
        tone: Tone = "note"
        if result["kind"] == "reproduction":
            tone = "good" if result["agreed"] == result["compared"] else "bad"
        points.append(Paragraph(prefix + reproduction_said(result), tone))
        for one in made["replayed"]:
            audited: Tone = "bad" if one["audit"]["mismatches"] else "good" if one["audit"]["decisions"] else "note"
            points.append(Paragraph(prefix + audit_said(one), audited))
        points += [Paragraph(prefix + _visibility_said(one), "note") for one in made["replayed"]]
    return Section("proof", "Reproduction and audit", [Points(points), *map(Command, said.run)])


def _visibility_said(one: dict[str, Any]) -> str:
    lag, total = one["lag_flips"], one["decisions"]
    if not total:
        effect = "no decisions"
    elif lag is None:
        effect = "no write lag is recorded or assumed"
    else:
        effect = f"{lag:,} of {total:,} decisions flip without any write lag"
    undecided = f"; {one['undecided']:,} calls have no known policy and were not decided" if one["undecided"] else ""
    return f"Visibility of {one['setting']}: {one['visibility']}; {effect}{undecided}."


def _inferred(runs: Sequence[StoredRun], notes: Sequence[str]) -> Section:
    inferred = list(dict.fromkeys(text for run in runs for text in run.record["inferred"]))
    warnings = list(dict.fromkeys(text for run in runs for text in run.record["warnings"]))
    blocks: list[Block] = []
    if inferred:
        blocks += [Paragraph("The ledger does not record these, so the replay assumes them:"), Points.of(inferred)]
    else:
        blocks.append(Paragraph("Nothing: the ledger records all that a replay needs."))
    more = [*(f"Warning: {text}." for text in warnings), *(f"Note: {text}." for text in notes)]
    blocks += [Points.of(more)] if more else []
    return Section("inferred", "What was inferred", blocks)


def _limits(runs: Sequence[StoredRun]) -> list[str]:
    kinds = {run.record["reproduction"]["kind"] for run in runs}
    if "final-route agreement" in kinds:
        return [
            "This ledger cannot show reproduction: it lacks what a decision saw. Final-route agreement says only how "
            "often the given policy would have ended where the call did, for whatever reason."
        ]
    if "none" in kinds:
        return ["The ledger holds attempts alone: nothing here is about decisions."]
    return []


def _inputs(runs: Sequence[StoredRun], sides: Sequence[Side], said: Words) -> Section:
    tables = runs[0].input["tables"]
    rows = [
        [name, f"{table['rows']:,}", *(DASH if at is None else iso(at) for at in (table["first_ms"], table["last_ms"])),
         table["content"]]
        for name, table in sorted(tables.items())
    ]  # fmt: skip
    columns = [Column("Table"), Column("Rows", True), Column("First"), Column("Last"), Column("Content")]
    made = [
        [side.name, side.settings.identity[:16], _hash_of(side), _policy_said(side.run)] for side in sides
    ]  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in sorted(runs[0].record["versions"].items()))
    blocks: list[Block] = [
        Table("What was read", columns, rows, _line("replay", "info", said.mirror),
              "Two runs are compared only where these contents are the same."),
        Table("What was replayed",
              [Column("Setting"), Column("Settings"), Column("Decisions"), Column("Policy")], made, None,
              "Identities: the same inputs and settings give the same hashes on every machine."),
        *said.files,
        Paragraph(f"Versions: {versions}.", "note"),
    ]  # fmt: skip
    return Section("inputs", "Inputs and settings", blocks)


def _hash_of(side: Side) -> str:
    mine = [one for one in side.run.record["replayed"] if one["setting"] == side.settings.name]
    return str(mine[0]["decision_hash"])[:16]


def _policy_said(run: StoredRun) -> str:
    given = run.record["policy"]
    return "as recorded with each call" if given is None else str(given["identity"])[:16]


def require_html(out: Path) -> None:
    """Refuse a name that is not an HTML file's: the twin and the pictures take their names from it."""
    if out.suffix != ".html":
        raise ReplayError(f"the report was to go to {out}; expected a name that ends in .html, such as report.html")


def write(document: Document, out: Path) -> list[Path]:
    """Write the HTML file, its Markdown twin and the twin's PNGs beside it; return what was written.

    The HTML is written last, so that where it stands the others do. Raises ReplayError where a file cannot be written.
    """
    require_html(out)
    text, images = to_markdown(document, out.stem)
    files = {out.with_name(name): content for name, content in images.items()}
    files[out.with_suffix(".md")] = text.encode()
    files[out] = to_html(document).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, content_bytes in files.items():
            path.write_bytes(content_bytes)
    except OSError as error:
        raise ReplayError(f"the report could not be written to {out}: {error.strerror or error}") from error
    return list(files)
