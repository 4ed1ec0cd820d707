-- name: candidates_at(at_ms)
-- The candidates that a decision at at_ms could have seen, in the order that breaks ties.
--
-- An offer is valid from valid_from, inclusive, to valid_to, exclusive; without valid_to it still is. Prices are in USD
-- per million tokens, price_multiplier is for ranking only, capabilities and declared are JSON objects as text; what
-- the offer does not say is null. served_by is the peer, or the provider itself where there is none.
-- Parameter: at_ms, in ms.
-- Order: position, then id. Neutral value on error: no candidates.
SELECT
    id::bigint AS id,
    valid_from::bigint AS valid_from,
    valid_to::bigint AS valid_to,
    position::integer AS position,
    provider_id::text AS provider_id,
    model_family::text AS model_family,
    served_model_id::text AS served_model_id,
    peer_id::text AS peer_id,
    CASE WHEN coalesce(peer_id, '') = '' THEN coalesce(provider_id, '') ELSE peer_id END::text AS served_by,
    scope::text AS scope,
    tier::text AS tier,
    price_in::float8 AS price_in,
    price_out::float8 AS price_out,
    price_cached_in::float8 AS price_cached_in,
    price_multiplier::float8 AS price_multiplier,
    capabilities::text AS capabilities,
    context::bigint AS context,
    tok_s::float8 AS tok_s,
    has_tee::boolean AS has_tee,
    no_log::boolean AS no_log,
    declared::text AS declared
FROM offer_history
WHERE valid_from <= $1::bigint AND (valid_to IS NULL OR valid_to > $1::bigint)
ORDER BY position ASC NULLS LAST, id ASC NULLS LAST
