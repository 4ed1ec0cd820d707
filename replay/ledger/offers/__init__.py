"""Price lists become `offer_history`: what each candidate cost, and from when, as far as a list knows.

`load_price_list` reads a list, `fill_offers` joins its names to the ledger's routes and writes the offers.
"""

from replay.ledger.offers.coverage import Coverage, Covered, FamilyMatch
from replay.ledger.offers.fill import FillReport, fill_offers, offer_id, route_periods
from replay.ledger.offers.frames import cost_frames
from replay.ledger.offers.names import WAYS, Asked, Match, Matcher, NamingRules, load_rules, parse_rules
from replay.ledger.offers.pricelist import Listing, Period, PriceList, Terms, list_from_events, make_periods
from replay.ledger.offers.sources import GENAI_PRICES, load_price_list, read_genai_prices, read_price_file

__all__ = [
    "GENAI_PRICES",
    "WAYS",
    "Asked",
    "Coverage",
    "Covered",
    "FamilyMatch",
    "FillReport",
    "Listing",
    "Match",
    "Matcher",
    "NamingRules",
    "Period",
    "PriceList",
    "Terms",
    "cost_frames",
    "fill_offers",
    "list_from_events",
    "load_price_list",
    "load_rules",
    "make_periods",
    "offer_id",
    "parse_rules",
    "read_genai_prices",
    "read_price_file",
    "route_periods",
]
