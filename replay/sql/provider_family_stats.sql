-- name: provider_family_stats(since_ms, until_ms)
-- Per provider and family: success rate, mean latency and counts, the roll-up of route_stats.
--
-- Over the attempts that ended in [since_ms, until_ms).
-- success_rate is the routes' rates weighted by their count, the mean latency the routes' means weighted by their
-- latency_count (not by count: a failed attempt has no say in a latency). Both are computed from the attempts,
-- ok_count / count and the mean over all successful attempts with a latency: the same numbers, without the rounding
-- of the routes' means in between.
--   success_rate     share of attempts that succeeded, ok_count / count, exactly
--   latency_mean_ms  mean latency in ms of the successful attempts that have one; null if none has
--   latency_ms       that mean as an integer, half to even; null without a finite mean below 2^52
--   count            attempts, failed ones included
--   ok_count         successful attempts
--   latency_count    successful attempts with a latency
-- Parameters: since_ms inclusive and until_ms exclusive, in ms; production passes the largest bigint as until_ms.
-- Order: provider, family, by bytes. An empty window gives no rows. Neutral value on error: no provider, {}.
WITH attempts AS (
    SELECT
        coalesce(provider_id, '')::text AS provider_id,
        coalesce(model_family, '')::text AS model_family,
        ok,
        latency_ms
    FROM route_observations
    WHERE ts >= $1::bigint AND ts < $2::bigint
),
stats AS (
    SELECT
        provider_id,
        model_family,
        avg(latency_ms) FILTER (WHERE ok AND latency_ms IS NOT NULL) AS mean_ms,
        count(*)::bigint AS attempts,
        count(*) FILTER (WHERE ok)::bigint AS ok_count,
        count(*) FILTER (WHERE ok AND latency_ms IS NOT NULL)::bigint AS latency_count
    FROM attempts
    GROUP BY provider_id, model_family
),
floors AS (
    SELECT
        provider_id,
        model_family,
        mean_ms,
        attempts,
        ok_count,
        latency_count,
        -- round() is half to even in one engine and half away from zero in the other; floor is the same in both.
        CASE WHEN mean_ms > -4503599627370496 AND mean_ms < 4503599627370496 THEN floor(mean_ms) END AS floor_ms
    FROM stats
)
SELECT
    provider_id::text AS provider_id,
    model_family::text AS model_family,
    (ok_count::float8 / attempts::float8)::float8 AS success_rate,
    mean_ms::float8 AS latency_mean_ms,
    CASE
        WHEN mean_ms - floor_ms > 0.5::float8 THEN floor_ms + 1::float8
        WHEN mean_ms - floor_ms = 0.5::float8 THEN 2::float8 * floor((floor_ms + 1::float8) / 2::float8)
        ELSE floor_ms
    END::bigint AS latency_ms,
    attempts::bigint AS count,
    ok_count::bigint AS ok_count,
    latency_count::bigint AS latency_count
FROM floors
ORDER BY
    provider_id COLLATE "C" ASC NULLS FIRST,
    model_family COLLATE "C" ASC NULLS FIRST
