-- name: all_session_totals()
-- The totals of every session: session_totals for all of them at once.
--
-- Calls without a session belong to none.
--   session_id                           not null, not empty
--   calls                                calls, failed ones included
--   tokens_in, tokens_out, tokens_cached tokens; tokens_in includes the cached ones; a missing figure counts as 0
--   cost_usd                             cost in USD, 6 decimals
--   cost_micro_usd                       the same in millionths of a dollar, exact
-- Costs are added and rounded as in session_totals.
-- No parameters. Order: session_id, by bytes. Neutral value on error: no session, {}.
WITH totals AS (
    SELECT
        session_id,
        count(*)::bigint AS calls,
        coalesce(sum(tokens_in), 0)::bigint AS tokens_in,
        coalesce(sum(tokens_out), 0)::bigint AS tokens_out,
        coalesce(sum(tokens_cached), 0)::bigint AS tokens_cached,
        coalesce(
            sum(
                CASE
                    WHEN cost_usd > -1000000::float8 AND cost_usd < 1000000::float8
                        THEN floor(cost_usd * 1e12::float8 + 0.5::float8)::bigint
                END
            ),
            0
        )::numeric(26, 0) AS cost_pico_usd
    FROM calls
    WHERE session_id <> ''
    GROUP BY session_id
),
rounded AS (
    SELECT
        session_id,
        calls,
        tokens_in,
        tokens_out,
        tokens_cached,
        (cost_pico_usd * 0.000001::numeric(6, 6))::bigint AS cost_micro_usd
    FROM totals
)
SELECT
    session_id::text AS session_id,
    calls::bigint AS calls,
    tokens_in::bigint AS tokens_in,
    tokens_out::bigint AS tokens_out,
    tokens_cached::bigint AS tokens_cached,
    (cost_micro_usd::float8 / 1000000::float8)::float8 AS cost_usd,
    cost_micro_usd::bigint AS cost_micro_usd
FROM rounded
ORDER BY session_id COLLATE "C" ASC NULLS FIRST
