"""Window tuning: two rules on a slice of a ledger, moved by sliders.

Open it with `replay notebook window_tuning [MIRROR]`.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Window tuning")

with app.setup:
    import html
    import os
    from pathlib import Path

    import marimo as mo

    from analysis import series
    from analysis.charts import CHARTS
    from analysis.report.pictures import archive
    from replay import engine, tuning
    from replay.cli.show import audit_said, reproduction_said
    from replay.errors import ReplayError
    from replay.record import make_record

    WINDOWS_MIN = [1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 240, 480, 1440]
    ALPHAS = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0]
    FLOORS = [0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0]
    WIDTH_PX = 820


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Window tuning

    A window forgets at its edge, a moving average forgets by weight. Move both over the same hours of a ledger: what
    each rule knew of a route, where the two would have sent requests elsewhere, and which predicted better.
    """)
    return


@app.cell(hide_code=True)
def _():
    mirror_field = mo.ui.text(
        value=str(mo.cli_args().get("mirror") or os.environ.get("REPLAY_MIRROR") or ""),
        label="Mirror (a DuckDB file; empty: the demo's ledger)",
        full_width=True,
    )
    mo.vstack([mirror_field])
    return (mirror_field,)


@app.cell(hide_code=True)
def _(mirror_field):
    mirror = Path(mirror_field.value) if mirror_field.value else None
    return (mirror,)


@app.cell(hide_code=True)
def _():
    def paragraph(text):
        """Show a sentence as it is, whatever signs it holds."""
        return mo.Html(f"<p>{html.escape(text)}</p>")

    def into(spinner):
        """Return what tells a spinner how far long work is."""
        return lambda what, done, total: spinner.update(subtitle=f"{what}: {done:,} of {total:,}")

    def refused(error):
        """Show an error's paragraph, and stop what rests on it."""
        mo.stop(True, mo.callout(paragraph(str(error)), kind="danger"))

    return into, paragraph, refused


@app.cell(hide_code=True)
def _(into, mirror, paragraph, refused):
    with mo.status.spinner(title="Reading the ledger", remove_on_exit=True) as _spinner:
        try:
            ledger, _said = tuning.read_ledger(mirror, into(_spinner))
        except ReplayError as error:
            refused(error)
    paragraph(_said)
    return (ledger,)


@app.cell(hide_code=True)
def _(ledger):
    _first, _last, _days = tuning.dates(ledger)
    _policies = tuning.policy_names(ledger)
    days_field = mo.ui.date_range(start=_first, stop=_last, value=_days, label="Days (UTC), both included")
    policy_field = mo.ui.dropdown(_policies, value=_policies[0], label="Policy")
    mo.hstack([days_field, policy_field], justify="start", gap=2, wrap=True)
    return days_field, policy_field


@app.cell(hide_code=True)
def _(days_field, policy_field):
    since_ms, until_ms = tuning.instants(*days_field.value)
    policy = tuning.policy_named(policy_field.value)
    return policy, since_ms, until_ms


@app.cell(hide_code=True)
def _():
    window_slider = mo.ui.slider(steps=WINDOWS_MIN, value=15, label="Window, minutes", show_value=True, full_width=True)
    alpha_slider = mo.ui.slider(
        steps=ALPHAS, value=0.2, label="EMA: α of reliability", show_value=True, full_width=True
    )
    latency_alpha_slider = mo.ui.slider(
        steps=ALPHAS, value=0.3, label="EMA: α of latency", show_value=True, full_width=True
    )
    floor_slider = mo.ui.slider(
        steps=FLOORS, value=0.0, label="Reliability floor (0: none)", show_value=True, full_width=True
    )
    mo.vstack([window_slider, alpha_slider, latency_alpha_slider, floor_slider])
    return alpha_slider, floor_slider, latency_alpha_slider, window_slider


@app.cell(hide_code=True)
def _(alpha_slider, floor_slider, latency_alpha_slider, window_slider):
    window_ms, floor = window_slider.value * 60_000, floor_slider.value
    alpha, latency_alpha = alpha_slider.value, latency_alpha_slider.value
    return alpha, floor, latency_alpha, window_ms


@app.cell(hide_code=True)
def _(floor, into, ledger, policy, refused, since_ms, until_ms, window_ms):
    with mo.status.spinner(title="Replaying the window", remove_on_exit=True) as _spinner:
        try:
            window_look = tuning.look(
                ledger, tuning.window_settings(window_ms), policy, since_ms, until_ms, floor, into(_spinner)
            )
        except ReplayError as error:
            refused(error)
    return (window_look,)


@app.cell(hide_code=True)
def _(alpha, floor, into, latency_alpha, ledger, policy, refused, since_ms, until_ms):
    with mo.status.spinner(title="Replaying the moving average", remove_on_exit=True) as _spinner:
        try:
            ema_look = tuning.look(
                ledger, tuning.ema_settings(alpha, latency_alpha), policy, since_ms, until_ms, floor, into(_spinner)
            )
        except ReplayError as error:
            refused(error)
    return (ema_look,)


@app.cell(hide_code=True)
def _(ema_look, refused, window_look):
    try:
        held = tuning.contrast(window_look, ema_look)
    except ReplayError as error:
        refused(error)
    return (held,)


@app.cell(hide_code=True)
def _(ema_look, floor, held, paragraph, window_look):
    _turned = (
        ""
        if floor == 0
        else f"The floor of {floor:g} turns {window_look.turned_by_floor:,} decisions of {window_look.settings.name} "
        f"and {ema_look.turned_by_floor:,} of {ema_look.settings.name}. It is part of the policy, not of the "
        "measuring, so the predictions stay as they are."
    )
    mo.vstack(
        [
            mo.md("## What changes"),
            *(paragraph(sentence) for sentence in held.verdict if sentence),
            *([paragraph(_turned)] if _turned else []),
        ]
    )
    return


@app.cell(hide_code=True)
def _(ema_look, held, window_look):
    _leading = held.leading().filter(scope="all")
    _flips = held.flip_summary.filter(group="all")
    _row = _leading.row(0, named=True) if len(_leading) else {}
    _flip = _flips.row(0, named=True) if len(_flips) else {}
    _span = "no interval" if _row.get("low") is None else f"[{_row['low']:+.4f}, {_row['high']:+.4f}]"
    mo.hstack(
        [
            mo.stat(
                "–" if _row.get("difference") is None else f"{_row['difference']:+.4f}",
                label=f"Brier difference, {window_look.settings.name} − {ema_look.settings.name}",
                caption=_row.get("reason") or f"{_span}, {_row.get('attempts', 0):,} attempts, as read",
                bordered=True,
            ),
            mo.stat(
                f"{_flip.get('flips', 0):,}",
                label="Decisions that flip",
                caption=f"of {_flip.get('decisions', 0):,}; {_flip.get('ties', 0):,} ties apart",
                bordered=True,
            ),
        ],
        widths="equal",
        gap=1,
    )
    return


@app.cell(hide_code=True)
def _(ledger, since_ms, until_ms):
    _routes = tuning.routes(ledger, since_ms, until_ms)
    route_field = mo.ui.dropdown(_routes, value=_routes[0] if _routes else None, label="Route", searchable=True)
    mo.vstack([mo.md("## A route as each rule sees it"), route_field])
    return (route_field,)


@app.cell(hide_code=True)
def _(route_field):
    route = route_field.value
    return (route,)


@app.cell(hide_code=True)
def _():
    def draw(name, frame):
        """Draw a chart for the notebook's own theme."""
        theme = "dark" if mo.app_meta().theme == "dark" else "light"
        return CHARTS[name].draw(frame, width=WIDTH_PX, theme=theme)

    return (draw,)


@app.cell(hide_code=True)
def _(draw, ema_look, route, window_look):
    predictions = window_look.predictions.vstack(ema_look.predictions)
    reliability = series.rules_over_time(predictions, route=route)
    latency = series.rules_over_time(predictions, route=route, latency=True)
    route_charts = {"reliability": draw("reliability", reliability), "latency": draw("latency", latency)}
    mo.vstack(route_charts.values())
    return latency, predictions, reliability, route_charts


@app.cell(hide_code=True)
def _(draw, ema_look, floor, held, into, ledger, policy, window_look):
    with mo.status.spinner(title="Looking for causes", remove_on_exit=True) as _spinner:
        flips = tuning.with_causes(held.flips, ledger, (window_look, ema_look), policy, floor, into(_spinner))
    decisions = window_look.decisions.vstack(ema_look.decisions)
    setting_charts = {
        "flips": draw("flips", series.flips_over_time(decisions, flips)),
        "differences": draw("differences", held.leading()),
    }
    mo.vstack([mo.md("## Where they part"), *setting_charts.values()])
    return decisions, flips, setting_charts


@app.cell(hide_code=True)
def _(paragraph):
    prove_button = mo.ui.run_button(label="Prove these settings")
    mo.vstack(
        [
            mo.md("## Proof"),
            paragraph(
                "What moves with the sliders is not audited. This replays the slice again with reproduction and audit, "
                "without the floor (some seconds per thousand decisions)."
            ),
            prove_button,
        ]
    )
    return (prove_button,)


@app.cell(hide_code=True)
def _(prove_button):
    prove = prove_button.value
    return (prove,)


@app.cell(hide_code=True)
def _(ema_look, into, ledger, paragraph, policy, prove, since_ms, until_ms, window_look):
    mo.stop(not prove, None)
    with mo.status.spinner(title="Proving", remove_on_exit=True) as _spinner:
        _both = [window_look.settings, ema_look.settings]
        proof = engine.run(ledger, _both, policy, since_ms, until_ms, into(_spinner))
    _made = make_record(proof, ledger.identity, policy, [], since_ms, until_ms)
    proof_said = [reproduction_said(_made["reproduction"]), *map(audit_said, _made["replayed"])]
    mo.callout(mo.vstack(map(paragraph, proof_said)), kind="success" if proof.passed else "danger")
    return proof, proof_said


@app.cell(hide_code=True)
def _(ema_look, floor, route_charts, setting_charts, window_look):
    _note = "tuned with the notebook window_tuning; replay it with: replay run MIRROR --settings THIS_FILE -o RUN"
    if floor:
        _note += f"\nseen under a reliability floor of {floor:g}, which belongs to the policy and is not in this file"
    exports = {
        f"{look.settings.name.replace(', ', '-').replace(' ', '-')}.toml": tuning.to_toml(look.settings, _note)
        for look in (window_look, ema_look)
    }
    mo.vstack(
        [
            mo.md("## Keep it"),
            mo.hstack(
                [
                    *(
                        mo.download(
                            data=text.encode(), filename=name, mimetype="application/toml",
                            label=f"Export these settings: {name}",
                        )
                        for name, text in exports.items()
                    ),
                    mo.download(
                        data=lambda: archive(route_charts | setting_charts), filename="window-tuning-charts.zip",
                        label="Export these charts (PNG and SVG)",
                    ),
                ],
                justify="start", gap=1, wrap=True,
            ),
        ]
    )  # fmt: skip
    return (exports,)


if __name__ == "__main__":
    app.run()
