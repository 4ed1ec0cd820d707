-- name: tool_evidence(since_ms, until_ms)
-- Per route: requests for tools and tool calls in a window, the counts behind tool_incapable_routes.
--
-- Over the attempts that ended in [since_ms, until_ms).
-- A route is provider_id, model_family, served_by; a null part and an empty part are the same part.
--   requests         attempts that asked for tools, failed ones included, as production counts them
--   failed_requests  those of them that failed
--   emitted          attempts that emitted a tool call, asked for or not: any tool call is evidence
-- Parameters: since_ms inclusive and until_ms exclusive, in ms; production passes the largest bigint as until_ms.
-- Only routes with a request or a tool call are listed. Order: the route's parts, by bytes.
-- Neutral value on error: no route.
WITH attempts AS (
    SELECT
        coalesce(provider_id, '')::text AS provider_id,
        coalesce(model_family, '')::text AS model_family,
        coalesce(served_by, '')::text AS served_by,
        ok,
        tools_requested,
        tool_calls_emitted
    FROM route_observations
    WHERE ts >= $1::bigint AND ts < $2::bigint AND (tools_requested OR tool_calls_emitted)
)
SELECT
    provider_id::text AS provider_id,
    model_family::text AS model_family,
    served_by::text AS served_by,
    count(*) FILTER (WHERE tools_requested)::bigint AS requests,
    count(*) FILTER (WHERE tools_requested AND NOT ok)::bigint AS failed_requests,
    count(*) FILTER (WHERE tool_calls_emitted)::bigint AS emitted
FROM attempts
GROUP BY provider_id, model_family, served_by
ORDER BY
    provider_id COLLATE "C" ASC NULLS FIRST,
    model_family COLLATE "C" ASC NULLS FIRST,
    served_by COLLATE "C" ASC NULLS FIRST
