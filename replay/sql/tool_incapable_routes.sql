-- name: tool_incapable_routes(since_ms, until_ms, min_samples)
-- The routes that ignore tools: enough requests for them in a window, and not one tool call.
--
-- At least min_samples attempts that ended in [since_ms, until_ms) asked for tools, and none emitted a call.
-- Capable is the default, any tool call in the window clears a route, and failed attempts count as requests.
-- A route is provider_id, model_family, served_by; a null part and an empty part are the same part.
--   requests  attempts that asked for tools
-- Parameters: since_ms inclusive and until_ms exclusive, in ms; production passes the largest bigint as until_ms;
-- min_samples in attempts (production: 20 in 30 minutes).
-- Order: the route's parts, by bytes. Neutral value on error: the empty set, every route stays capable.
WITH attempts AS (
    SELECT
        coalesce(provider_id, '')::text AS provider_id,
        coalesce(model_family, '')::text AS model_family,
        coalesce(served_by, '')::text AS served_by,
        tools_requested,
        tool_calls_emitted
    FROM route_observations
    WHERE ts >= $1::bigint AND ts < $2::bigint AND (tools_requested OR tool_calls_emitted)
)
SELECT
    provider_id::text AS provider_id,
    model_family::text AS model_family,
    served_by::text AS served_by,
    count(*) FILTER (WHERE tools_requested)::bigint AS requests
FROM attempts
GROUP BY provider_id, model_family, served_by
HAVING
    count(*) FILTER (WHERE tools_requested) >= $3::bigint
    AND count(*) FILTER (WHERE tool_calls_emitted) = 0
ORDER BY
    provider_id COLLATE "C" ASC NULLS FIRST,
    model_family COLLATE "C" ASC NULLS FIRST,
    served_by COLLATE "C" ASC NULLS FIRST
