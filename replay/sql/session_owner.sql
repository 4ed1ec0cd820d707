-- name: session_owner(session_id)
-- The caller of the session's earliest call: the first writer owns the session.
--
-- Earliest is by ts, then id, both ascending; failed calls count.
--   caller  null where that call recorded none: the owner is unknown, and no later caller takes its place
--   ts, id  the call's end in seconds and its id
-- Parameter: session_id; the empty one is no session.
-- At most one row, none for a session without calls. Neutral value on error: no row, None.
SELECT
    caller::text AS caller,
    ts::bigint AS ts,
    id::bigint AS id
FROM calls
WHERE session_id = $1::text AND session_id <> ''
ORDER BY ts ASC NULLS LAST, id ASC NULLS LAST
LIMIT 1
