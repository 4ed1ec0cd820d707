-- name: session_warm(session_id)
-- Per family, the route of the session's latest successful call in it.
--
-- Successful means an HTTP status below 400; a call without a status does not count. Latest is by ts, then id, both
-- descending. A null family and an empty one are the same family.
--   model_family, provider_id  a missing one is empty
--   served_by                  who served it: the marketplace peer, or the provider itself where none is recorded
--   ts, id                     the call's end in seconds and its id
-- Parameter: session_id; the empty one is no session.
-- Order: family, by bytes. Neutral value on error: no family, {}.
WITH ranked AS (
    SELECT
        coalesce(model_family, '')::text AS model_family,
        coalesce(provider_id, '')::text AS provider_id,
        coalesce(served_by, '')::text AS served_by,
        ts,
        id,
        row_number() OVER (
            PARTITION BY coalesce(model_family, '')
            ORDER BY ts DESC NULLS LAST, id DESC NULLS LAST
        ) AS place
    FROM calls
    WHERE session_id = $1::text AND session_id <> '' AND status < 400
)
SELECT
    model_family::text AS model_family,
    provider_id::text AS provider_id,
    CASE WHEN served_by = '' THEN provider_id ELSE served_by END::text AS served_by,
    ts::bigint AS ts,
    id::bigint AS id
FROM ranked
WHERE place = 1
ORDER BY model_family COLLATE "C" ASC NULLS FIRST
