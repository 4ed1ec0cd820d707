-- name: route_stats(since_ms, until_ms)
-- Per route: success rate, mean latency and counts of the attempts that ended in a window.
--
-- The window is [since_ms, until_ms).
-- A route is provider_id, model_family, served_by; a null part and an empty part are the same part.
--   success_rate     share of attempts that succeeded, ok_count / count, exactly
--   latency_mean_ms  mean latency in ms of the successful attempts that have one; null if none has
--   latency_ms       that mean as an integer, half to even; null without a finite mean below 2^52
--   count            attempts, failed ones included
--   ok_count         successful attempts
--   latency_count    successful attempts with a latency, the ones behind latency_ms
-- Parameters: since_ms inclusive and until_ms exclusive, in ms; production passes the largest bigint as until_ms.
-- Order: the route's parts, by bytes. An empty window gives no rows. Neutral value on error: no route, {}.
WITH attempts AS (
    SELECT
        coalesce(provider_id, '')::text AS provider_id,
        coalesce(model_family, '')::text AS model_family,
        coalesce(served_by, '')::text AS served_by,
        ok,
        latency_ms
    FROM route_observations
    WHERE ts >= $1::bigint AND ts < $2::bigint
),
stats AS (
    SELECT
        provider_id,
        model_family,
        served_by,
        avg(latency_ms) FILTER (WHERE ok AND latency_ms IS NOT NULL) AS mean_ms,
        count(*)::bigint AS attempts,
        count(*) FILTER (WHERE ok)::bigint AS ok_count,
        count(*) FILTER (WHERE ok AND latency_ms IS NOT NULL)::bigint AS latency_count
    FROM attempts
    GROUP BY provider_id, model_family, served_by
),
floors AS (
    SELECT
        provider_id,
        model_family,
        served_by,
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
    served_by::text AS served_by,
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
    model_family COLLATE "C" ASC NULLS FIRST,
    served_by COLLATE "C" ASC NULLS FIRST
