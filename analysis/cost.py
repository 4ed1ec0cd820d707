"""Cost drift: what calls cost against what their tokens cost at the list price of that moment.

Input are plain Polars frames. `calls`: the ledger's columns provider_id, model_family, served_by, ts (s),
decided_at (ms), latency_ms, tokens_in, tokens_out, tokens_cached, cost_usd, cost_basis. `prices`: provider_id,
model_family, valid_from_ms, valid_to_ms (null: still), price_in, price_out, price_cached_in in USD per million
tokens, with served_by and position where routes of one family differ in price. `constant_prices`: provider_id,
model_family and prices without validity.

The expectation leaves out cache writes, request fees and failed attempts' cost. A ranking-only price multiplier
never enters. Money is added as integer nano-dollars, so totals do not depend on the order of rows, and is given in
integer micro-dollars.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from replay.prices import CACHED_SHARE_OF_INPUT_PRICE, cost_usd

LEFT_OUT = ("cache writes", "request fees", "failed attempts' cost")
"""What the expectation does not contain."""

WARN_CALLS = 20
WARN_PERCENT = 15
REPORTED_SHARE = 0.5

FAMILY = ("provider_id", "model_family")
PROVIDER = ("provider_id",)

_ROUTE = [*FAMILY, "served_by"]
_NANO_PER_USD = 1e9
_NANO_PER_MICRO = 1_000
# A cost is known when it is a number of less than a million USD: cost_by_route's rule, kept the same.
_KNOWN_BELOW_USD = 1_000_000.0
# Beyond this a latency is a fault, and more than an instant can hold.
_KNOWN_BELOW_MS = 1e15
# A recorded figure may have been rounded to six decimals, and computed with other operations.
_ROUNDING_USD = 1e-6
_ROUNDING_SHARE = 1e-6

_PRICES = ("price_in", "price_out", "price_cached_in")


def price_calls(calls: pl.DataFrame, prices: pl.DataFrame, constant_prices: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return one row per call with its expected cost, or the reason why there is none.

    The price is that of the call's route at its decided instant (decided_at, else the end minus the latency). Where
    periods overlap, the one that began last counts; of those that began together, the lowest position. The
    constant price stands in only for a (provider, family) that no period ever prices, never for a moment at which
    a known list says nothing.

    Columns: provider_id, model_family (missing parts empty), month (UTC, YYYY-MM), decided_ms, tokens, known
    (its cost is a number), reported, cost_nano, expected_nano, skipped (a reason, or null if compared),
    computed_elsewhere (basis `computed`, yet not the list price: computed by another rule).
    """
    dated = _periods(prices)
    constant = _constant(dated, constant_prices)
    frame = (
        _calls(calls)
        .sort("decided_ms", maintain_order=True)
        .join_asof(
            dated,
            left_on="decided_ms",
            right_on="valid_from_ms",
            by=_ROUTE,
            strategy="backward",
            check_sortedness=False,  # both are sorted above; Polars cannot see it within groups
        )
        .join(constant, on=list(FAMILY), how="left", maintain_order="left")
    )
    valid = pl.col("valid_from_ms").is_not_null() & (
        pl.col("valid_to_ms").is_null() | (pl.col("decided_ms") < pl.col("valid_to_ms"))
    )
    frame = frame.with_columns(
        pl.when(pl.col("constant_price_in").is_not_null())
        .then(pl.col(f"constant_{name}"))
        .when(valid)
        .then(pl.col(name))
        .alias(name)
        for name in _PRICES
    )
    return frame.with_columns(skipped=_skip_reason()).with_columns(_expected()).select(_PRICED_COLUMNS)


_PRICED_COLUMNS = [
    *FAMILY,
    "month",
    "decided_ms",
    "tokens",
    "known",
    "reported",
    "cost_nano",
    "expected_nano",
    "skipped",
    "computed_elsewhere",
]


def _text(name: str) -> pl.Expr:
    return pl.col(name).fill_null("")


def _served_by() -> pl.Expr:
    """The peer, or the provider itself for a direct route."""
    served = _text("served_by")
    return pl.when(served == "").then(_text("provider_id")).otherwise(served).alias("served_by")


def _calls(calls: pl.DataFrame) -> pl.DataFrame:
    latency = pl.col("latency_ms").cast(pl.Float64)
    known_latency = (latency > 0) & (latency < _KNOWN_BELOW_MS)
    inferred = pl.col("ts") * 1000 - pl.when(known_latency).then(latency.round()).otherwise(0.0).cast(pl.Int64)
    decided = pl.coalesce(pl.col("decided_at").cast(pl.Int64), inferred)
    cost = pl.col("cost_usd").cast(pl.Float64)
    known = (cost.abs() < _KNOWN_BELOW_USD).fill_null(False)
    return calls.select(
        _text("provider_id"),
        _text("model_family"),
        _served_by(),
        decided.alias("decided_ms"),
        pl.from_epoch(decided, time_unit="ms").dt.strftime("%Y-%m").alias("month"),
        (pl.col("tokens_in").fill_null(0) + pl.col("tokens_out").fill_null(0)).cast(pl.Int64).alias("tokens"),
        pl.col("tokens_in").cast(pl.Int64),
        pl.col("tokens_out").cast(pl.Int64),
        pl.col("tokens_cached").cast(pl.Int64).fill_null(0),
        cost.alias("cost_usd"),
        known.alias("known"),
        pl.when(known).then(_nano(cost)).otherwise(None).alias("cost_nano"),
        pl.col("cost_basis").cast(pl.String).fill_null("").alias("cost_basis"),
        (pl.col("cost_basis").cast(pl.String) == "reported").fill_null(False).alias("reported"),
    )


def _nano(usd: pl.Expr) -> pl.Expr:
    return (usd * _NANO_PER_USD).round().cast(pl.Int64, strict=False)


def _periods(prices: pl.DataFrame) -> pl.DataFrame:
    """Return each route's periods, one at most per instant of beginning, sorted for the as-of join."""
    if "served_by" not in prices.columns:
        prices = prices.with_columns(served_by=pl.lit(None, pl.String))
    if "position" not in prices.columns:
        prices = prices.with_columns(position=pl.lit(0))
    return (
        prices.select(
            _text("provider_id"),
            _text("model_family"),
            _served_by(),
            pl.col("valid_from_ms").cast(pl.Int64),
            pl.col("valid_to_ms").cast(pl.Int64),
            pl.col("position"),
            *(pl.col(name).cast(pl.Float64) for name in _PRICES),
        )
        .sort(*_ROUTE, "valid_from_ms", "position", *_PRICES, nulls_last=True)
        .unique([*_ROUTE, "valid_from_ms"], keep="first", maintain_order=True)
        .sort("valid_from_ms", maintain_order=True)
        .drop("position")
    )


def _constant(dated: pl.DataFrame, constant_prices: pl.DataFrame | None) -> pl.DataFrame:
    """Return the constant prices of the families that no period prices, as constant_price_in and so on."""
    columns: dict[str, type[pl.DataType]] = {**dict.fromkeys(FAMILY, pl.String), **dict.fromkeys(_PRICES, pl.Float64)}
    source = pl.DataFrame(schema=columns) if constant_prices is None else constant_prices
    priced = dated.filter(pl.col("price_in").is_not_null() & pl.col("price_out").is_not_null())
    return source.select(
        _text("provider_id"),
        _text("model_family"),
        *(pl.col(name).cast(pl.Float64).alias(f"constant_{name}") for name in _PRICES),
    ).join(priced, on=list(FAMILY), how="anti")


def _skip_reason() -> pl.Expr:
    """The first reason that applies, or null: the call can be compared."""
    cost, listed = pl.col("cost_usd"), [pl.col(name) for name in _PRICES]
    reasons = [
        ("unknown cost", cost.is_null()),
        ("infinite cost", ~pl.col("known")),
        ("negative cost", cost < 0),
        ("subscription", pl.col("cost_basis") == "subscription"),
        ("unknown tokens", pl.col("tokens_in").is_null() | pl.col("tokens_out").is_null()),
        (
            "impossible tokens",
            pl.min_horizontal("tokens_in", "tokens_out", "tokens_cached") < 0,
        ),
        ("more cached tokens than tokens", pl.col("tokens_cached") > pl.col("tokens_in")),
        ("no list price", pl.col("price_in").is_null() | pl.col("price_out").is_null()),
        ("negative list price", pl.any_horizontal(*(price < 0 for price in listed))),
        ("infinite list price", pl.any_horizontal(*(~price.is_finite() for price in listed))),
    ]
    return pl.coalesce(pl.when(holds.fill_null(False)).then(pl.lit(reason)) for reason, holds in reasons)


def _expected() -> list[pl.Expr]:
    cached = pl.coalesce("price_cached_in", pl.col("price_in") * CACHED_SHARE_OF_INPUT_PRICE)
    expected = cost_usd(
        pl.col("tokens_in"),
        pl.col("tokens_cached"),
        pl.col("tokens_out"),
        pl.col("price_in"),
        pl.col("price_out"),
        cached,
    )
    compared = pl.col("skipped").is_null()
    apart = (pl.col("cost_usd") - expected).abs() > _ROUNDING_USD + _ROUNDING_SHARE * expected
    return [
        pl.when(compared).then(_nano(expected)).otherwise(None).alias("expected_nano"),
        (compared & (pl.col("cost_basis") == "computed") & apart).fill_null(False).alias("computed_elsewhere"),
    ]


def roll_up(priced: pl.DataFrame, by: Sequence[str] = PROVIDER) -> pl.DataFrame:
    """Return cost drift per provider, or per (provider, family), worst first.

    Columns: the keys; calls, tokens, cost_micro (all calls of known cost, as cost_by_route counts them); compared
    (the calls behind the rest), measured_micro, expected_micro, deviation (measured ÷ expected; null where nothing
    is expected), signal (`reported` when at least half of the compared are, else `derived`; null when nothing was
    compared), reported_share, warn, skipped and computed_elsewhere (calls).

    It warns when the signal is reported, at least 20 calls were compared, and the deviation is 0.15 or more from
    1, or money was charged where the list says free. A derived deviation comes from the list price itself: never
    an alarm.
    """
    keys = list(by)
    return (
        priced.group_by(keys)
        .agg(_sums())
        .with_columns(_judged())
        .with_columns(warn=_warns())
        .select(*keys, *_ROLLED)
        .sort(
            "warn",
            pl.col("deviation").is_null() & (pl.col("measured_micro") > 0),
            (pl.col("deviation") - 1).abs(),
            "calls",
            *keys,
            descending=[True, True, True, True, *([False] * len(keys))],
            nulls_last=True,
        )
    )


_ROLLED = [
    "calls",
    "tokens",
    "cost_micro",
    "compared",
    "measured_micro",
    "expected_micro",
    "deviation",
    "signal",
    "reported_share",
    "warn",
    "skipped",
    "computed_elsewhere",
]


def _sums() -> list[pl.Expr]:
    known, compared = pl.col("known"), pl.col("skipped").is_null()
    return [
        known.sum().cast(pl.Int64).alias("calls"),
        pl.col("tokens").filter(known).sum().alias("tokens"),
        _micro(pl.col("cost_nano").filter(known)).alias("cost_micro"),
        compared.sum().cast(pl.Int64).alias("compared"),
        _micro(pl.col("cost_nano").filter(compared)).alias("measured_micro"),
        _micro(pl.col("expected_nano")).alias("expected_micro"),
        pl.col("cost_nano").filter(compared).sum().alias("_measured"),
        pl.col("expected_nano").sum().alias("_expected"),
        (pl.col("reported").filter(compared).sum() / _above_zero(compared.sum())).alias("reported_share"),
        (~compared).sum().cast(pl.Int64).alias("skipped"),
        pl.col("computed_elsewhere").sum().cast(pl.Int64).alias("computed_elsewhere"),
    ]


def _micro(nano: pl.Expr) -> pl.Expr:
    return (nano.sum() + _NANO_PER_MICRO // 2) // _NANO_PER_MICRO


def _above_zero(value: pl.Expr) -> pl.Expr:
    return pl.when(value > 0).then(value)


def _judged() -> list[pl.Expr]:
    share = pl.col("reported_share")
    signal = pl.when(share >= REPORTED_SHARE).then(pl.lit("reported")).when(share.is_not_null()).then(pl.lit("derived"))
    deviation = pl.col("_measured") / _above_zero(pl.col("_expected"))
    return [deviation.alias("deviation"), signal.alias("signal")]


def _warns() -> pl.Expr:
    # in integers: 1.15 − 1 is less than 0.15 in doubles
    off = (pl.col("_measured") - pl.col("_expected")).abs()
    drifts = (pl.col("_expected") > 0) & (off * 100 >= pl.col("_expected") * WARN_PERCENT)
    charged_for_free = (pl.col("_expected") == 0) & (pl.col("_measured") > 0)
    enough = (pl.col("signal") == "reported") & (pl.col("compared") >= WARN_CALLS)
    return (enough & (drifts | charged_for_free)).fill_null(False)


def skipped(priced: pl.DataFrame) -> pl.DataFrame:
    """Return what could not be compared: reason, routes (provider, family), calls, tokens, cost_micro; most first."""
    return (
        priced.filter(pl.col("skipped").is_not_null())
        .group_by(pl.col("skipped").alias("reason"))
        .agg(
            pl.struct(FAMILY).n_unique().cast(pl.Int64).alias("routes"),
            pl.len().cast(pl.Int64).alias("calls"),
            pl.col("tokens").sum(),
            _micro(pl.col("cost_nano")).alias("cost_micro"),
        )
        .sort("calls", "reason", descending=[True, False])
    )


def by_month(priced: pl.DataFrame, by: Sequence[str] = PROVIDER) -> pl.DataFrame:
    """Return drift per month, in order, with the price really paid: one row per key and month.

    Beside the columns of `roll_up`: month, usd_per_mtok (cost of the calls of known cost ÷ their tokens, per million;
    null without tokens) and change: this month's cost ÷ what the same tokens would have cost at the usd_per_mtok of
    each family's previous month that cost something. A change of 2 means twice the price, like for like: another
    mix of models does not show, another share of output tokens does. It needs no list price, so it shows a step even
    where no list does. Null for a family's first month.
    """
    keys = list(by)
    rolled = roll_up(priced, [*keys, "month"])
    paid = pl.col("cost_micro") / _above_zero(pl.col("tokens"))
    return (
        rolled.with_columns(usd_per_mtok=paid)
        .join(_like_for_like(priced, keys), on=[*keys, "month"], how="left", nulls_equal=True)
        .sort(*keys, "month")
    )


def _like_for_like(priced: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Return the change of the paid price per key and month, over the families that cost something before."""
    known = pl.col("known")
    family_months = (
        priced.group_by(*FAMILY, "month")
        .agg(
            pl.col("tokens").filter(known).sum(),
            _micro(pl.col("cost_nano").filter(known)).alias("cost_micro"),
        )
        .filter(pl.col("tokens") > 0, pl.col("cost_micro") > 0)
        .sort(*FAMILY, "month")
        .with_columns(paid=pl.col("cost_micro") / pl.col("tokens"))
        .with_columns(before=pl.col("paid").shift(1).over(FAMILY, order_by="month"))
        .drop_nulls("before")
        .sort(*FAMILY, "month")  # floats are added below: always in this order
    )
    return family_months.group_by(*keys, "month", maintain_order=True).agg(
        (pl.col("cost_micro").sum() / (pl.col("tokens") * pl.col("before")).sum()).alias("change")
    )
