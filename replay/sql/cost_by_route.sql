-- name: cost_by_route(since_s, until_s)
-- Per provider and family: calls, tokens and measured cost of the calls of known cost in a window.
--
-- The measured side of cost drift, over the calls that ended in [since_s, until_s).
-- A null part and an empty part are the same part. A cost is known when it is a number of less than a million USD.
--   calls                                calls of known cost
--   tokens_in, tokens_out, tokens_cached their tokens; tokens_in includes the cached ones; a missing figure counts as 0
--   cost_usd                             their cost in USD, to 10^-12 a call, added as integers: not rounded further
--   reported                             those whose cost is the provider's own figure (cost_basis = reported)
-- Parameters: since_s inclusive and until_s exclusive, in seconds, as calls.ts is; production passes the largest bigint
-- as until_s.
-- Order: provider, family, by bytes. An empty window gives no rows. Neutral value on error: no rows.
WITH known AS (
    SELECT
        coalesce(provider_id, '')::text AS provider_id,
        coalesce(model_family, '')::text AS model_family,
        tokens_in,
        tokens_out,
        tokens_cached,
        cost_usd,
        cost_basis
    FROM calls
    WHERE
        ts >= $1::bigint
        AND ts < $2::bigint
        AND cost_usd > -1000000::float8
        AND cost_usd < 1000000::float8
)
SELECT
    provider_id::text AS provider_id,
    model_family::text AS model_family,
    count(*)::bigint AS calls,
    coalesce(sum(tokens_in), 0)::bigint AS tokens_in,
    coalesce(sum(tokens_out), 0)::bigint AS tokens_out,
    coalesce(sum(tokens_cached), 0)::bigint AS tokens_cached,
    (sum(floor(cost_usd * 1e12::float8 + 0.5::float8)::bigint)::float8 / 1e12::float8)::float8 AS cost_usd,
    count(*) FILTER (WHERE cost_basis = 'reported')::bigint AS reported
FROM known
GROUP BY provider_id, model_family
ORDER BY
    provider_id COLLATE "C" ASC NULLS FIRST,
    model_family COLLATE "C" ASC NULLS FIRST
