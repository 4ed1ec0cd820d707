-- name: session_totals(session_id)
-- What the session has used so far: calls, tokens and cost.
--
-- All its calls count, failed ones too, and a missing figure counts as 0.
--   calls                                calls
--   tokens_in, tokens_out, tokens_cached tokens; tokens_in includes the cached ones
--   cost_usd                             cost in USD, 6 decimals
--   cost_micro_usd                       the same in millionths of a dollar, exact
-- Costs are taken to 10^-12 USD each, added as integers (the same sum in any order), and rounded once, half away from
-- zero. A cost that is not a number of less than a million USD is no known cost.
-- Parameter: session_id; the empty one is no session.
-- Always one row, zeros for a session without calls. Neutral value on error: zeros.
WITH totals AS (
    SELECT
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
    WHERE session_id = $1::text AND session_id <> ''
),
rounded AS (
    SELECT
        calls,
        tokens_in,
        tokens_out,
        tokens_cached,
        (cost_pico_usd * 0.000001::numeric(6, 6))::bigint AS cost_micro_usd
    FROM totals
)
SELECT
    calls::bigint AS calls,
    tokens_in::bigint AS tokens_in,
    tokens_out::bigint AS tokens_out,
    tokens_cached::bigint AS tokens_cached,
    (cost_micro_usd::float8 / 1000000::float8)::float8 AS cost_usd,
    cost_micro_usd::bigint AS cost_micro_usd
FROM rounded
