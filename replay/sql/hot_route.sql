-- name: hot_route(session_id)
-- The route of the session's latest call that succeeded and says who served it.
--
-- Succeeded means an HTTP status below 400; a call without a status does not count, nor one whose served_by is null
-- or empty. Latest is by ts, then id, both descending.
--   provider_id, model_family, served_by  the route's parts, a missing one empty
--   route_key                             the parts joined with |
--   ts, id                                the call's end in seconds and its id
-- Parameter: session_id; the empty one is no session.
-- At most one row. Neutral value on error: no row, None.
SELECT
    coalesce(provider_id, '')::text AS provider_id,
    coalesce(model_family, '')::text AS model_family,
    served_by::text AS served_by,
    (coalesce(provider_id, '') || '|' || coalesce(model_family, '') || '|' || served_by)::text AS route_key,
    ts::bigint AS ts,
    id::bigint AS id
FROM calls
WHERE
    session_id = $1::text
    AND session_id <> ''
    AND status < 400
    AND served_by <> ''
ORDER BY ts DESC NULLS LAST, id DESC NULLS LAST
LIMIT 1
