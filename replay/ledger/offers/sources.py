"""Where price lists come from: a mapped file of price events, or the genai-prices package's bundled data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from replay.errors import ReplayError
from replay.ledger.offers.pricelist import Listing, PriceList, Terms, list_from_events, make_periods

GENAI_PRICES = "genai-prices"


def load_price_list(source: str, mapping: str | None) -> PriceList:
    """Return the list named `genai-prices`, or read a file of price events through a mapping."""
    if source == GENAI_PRICES:
        if mapping is not None:
            raise ReplayError(
                f"A mapping ({mapping}) was given with --from genai-prices, which needs none. Leave --mapping out."
            )
        return read_genai_prices()
    if mapping is None:
        raise ReplayError(
            f"--from {source} was given without --mapping; a file of price events needs one. "
            "Give for example --mapping openrouter_price_events, or use --from genai-prices."
        )
    return read_price_file(Path(source), mapping)


def read_price_file(path: Path, mapping: str) -> PriceList:
    """Return the price list in a file, read through a mapping whose target is price_events.

    The naming rules are those of the mapping's name (without its folder and .toml).
    """
    from replay.ledger.importers import read_mapped

    frame, rejects = read_mapped(path, mapping, target="price_events")
    reasons = Counter(f"unusable row: {reject.reason}" for reject in rejects)
    return list_from_events(Path(mapping).stem, frame.iter_rows(named=True), path.name, reasons)


def read_genai_prices() -> PriceList:
    """Return the price list bundled with the installed genai-prices package; nothing is fetched.

    Listed names are `provider/model`. Prices that start on a date become periods. Where a price depends on the
    prompt's length or the hour of the day, the base price is taken, and the models concerned are counted.
    Of the package's own name patterns only whole names are used as other names: a prefix would be a guess.
    """
    try:
        from genai_prices.data import providers
    except ImportError as error:
        raise ReplayError(
            "--from genai-prices was given, but the package genai-prices is not installed. "
            "Install the extra: pip install 'route-replay[workbench]'."
        ) from error
    notes: Counter[str] = Counter()
    listings: dict[str, Listing] = {}
    for provider in providers:
        for model in provider.models:
            name = f"{provider.id}/{model.id}"
            others = tuple(sorted({f"{provider.id}/{other}" for other in _whole_names(model.match)} - {name}))
            listings[name] = Listing(name, make_periods(_genai_changes(model, notes)), others)
    return PriceList(GENAI_PRICES, package_version(GENAI_PRICES), listings, Counter(), +notes)


def _whole_names(clause: Any) -> Iterable[str]:
    """Return the names a match clause gives in full: `equals` alone, or among the alternatives of an `or`."""
    if hasattr(clause, "equals"):
        yield clause.equals
    for alternative in getattr(clause, "or_", ()):
        yield from _whole_names(alternative)


def _genai_changes(model: Any, notes: Counter[str]) -> list[tuple[int | None, Terms]]:
    conditional = model.prices if isinstance(model.prices, list) else None
    prices: list[tuple[Any, Any]] = [(None, model.prices)]
    if conditional is not None:
        prices = [(c.constraint, c.prices) for c in conditional]
    if any(hasattr(constraint, "start_time") for constraint, _ in prices):
        notes["models priced by the hour of the day (base price taken)"] += 1
    if any(_has_tiers(price) for _, price in prices):
        notes["models with tiers by prompt length (base price taken)"] += 1
    if model.price_variants:
        notes["models with variants by request, such as batch or priority (standard price taken)"] += 1
    dated = [(c, price) for c, price in prices if not hasattr(c, "start_time")] or prices[:1]
    starts: list[date | None] = [None, *sorted({c.start_date for c, _ in dated if hasattr(c, "start_date")})]
    return [(_midnight_ms(start), _genai_terms(_active(dated, start), model)) for start in starts]


def _active(dated: list[tuple[Any, Any]], start: date | None) -> Any:
    """Return the price in force from `start`: the last whose condition holds, else the first (the package's rule)."""
    for constraint, price in reversed(dated):
        begins = getattr(constraint, "start_date", None)
        if constraint is None or begins is None or (start is not None and begins <= start):
            return price
    return dated[0][1]


def _midnight_ms(day: date | None) -> int | None:
    return None if day is None else int(datetime.combine(day, time(), UTC).timestamp()) * 1000


def _has_tiers(price: Any) -> bool:
    return any(hasattr(getattr(price, key), "tiers") for key in ("input_mtok", "output_mtok", "cache_read_mtok"))


def _genai_terms(price: Any, model: Any) -> Terms:
    return Terms(
        price_in=_base(price.input_mtok),
        price_out=_base(price.output_mtok),
        price_cached_in=_base(price.cache_read_mtok),
        context=model.context_window,
    )


def _base(price: Any) -> float | None:
    base: Decimal | None = getattr(price, "base", price)
    return None if base is None else float(base)
