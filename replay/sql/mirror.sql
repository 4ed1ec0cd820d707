-- The workbench's DuckDB mirror: production's tables with the same columns and types (see schema.sql),
-- without what DuckDB has no word for (identity, transaction ids, advisory locks), and the mirror's own
-- tables at the end. Every statement may be run again. The two large tables have no PRIMARY KEY: DuckDB keeps it as an
-- index in memory, which would cost a pull a tenth of its time; whoever writes them leaves out what is there already.

CREATE TABLE IF NOT EXISTS calls (
    id                BIGINT NOT NULL,      -- its key; see above
    ts                BIGINT NOT NULL,      -- seconds, when the call ended
    usage_event_id    TEXT,
    session_id        TEXT,
    consumer_sha      TEXT,
    caller            TEXT,
    route_key         TEXT,
    provider_id       TEXT,
    model_family      TEXT,
    served_model_id   TEXT,
    requested_model   TEXT,
    status            INTEGER,              -- HTTP
    error_type        TEXT,
    latency_ms        DOUBLE,
    tokens_in         BIGINT,               -- includes the cached ones
    tokens_out        BIGINT,
    tokens_total      BIGINT,
    tokens_cached     BIGINT,
    cost_usd          DOUBLE,
    served_by         TEXT,
    cost_basis        TEXT,                 -- reported, computed, subscription or null
    decided_at        BIGINT,               -- ms, when the route was chosen
    evidence_at       BIGINT,               -- ms, the instant passed to the stamping queries
    request           TEXT,                 -- JSON: what the core saw
    policy_id         TEXT,
    settings_id       TEXT,
    replica           TEXT,
    replica_seq       BIGINT,
    evidence_snapshot TEXT,                 -- pg_current_snapshot() as text, xmin:xmax:xip,…
    evidence_state    TEXT,                 -- ok, unavailable or null
    txid              BIGINT
);

CREATE TABLE IF NOT EXISTS route_observations (
    id                 BIGINT NOT NULL,     -- its key; see above
    ts                 BIGINT NOT NULL,     -- milliseconds, when the attempt ended
    provider_id        TEXT,
    model_family       TEXT,
    served_by          TEXT,
    ok                 BOOLEAN NOT NULL,
    latency_ms         DOUBLE,
    error_kind         TEXT,
    http_status        INTEGER,
    tools_requested    BOOLEAN,
    tool_calls_emitted BOOLEAN,
    started_at         BIGINT,              -- ms
    request_id         TEXT,                -- = calls.usage_event_id
    attempt            INTEGER,             -- 1, 2, … over the whole call
    candidate_attempt  INTEGER,             -- 1, 2, … on that candidate
    replica            TEXT,
    replica_seq        BIGINT,
    txid               BIGINT
);

CREATE TABLE IF NOT EXISTS provider_prices (
    provider_id     TEXT NOT NULL,
    model_family    TEXT NOT NULL,
    price_in        DOUBLE,                 -- USD per million tokens, as all prices here
    price_out       DOUBLE,
    price_cached_in DOUBLE,
    updated_at      BIGINT,                 -- ms
    PRIMARY KEY (provider_id, model_family)
);

CREATE TABLE IF NOT EXISTS peer_offers (
    peer_id         TEXT NOT NULL,
    service         TEXT NOT NULL,
    price_in        DOUBLE,
    price_out       DOUBLE,
    price_cached_in DOUBLE,
    max_concurrency INTEGER,
    reputation      DOUBLE,
    last_seen       BIGINT,                 -- ms
    observed_at     BIGINT,                 -- ms
    first_seen      BIGINT,                 -- ms
    fetched_at      BIGINT,                 -- ms
    PRIMARY KEY (peer_id, service)
);

CREATE TABLE IF NOT EXISTS offer_history (
    id                  BIGINT PRIMARY KEY,
    valid_from          BIGINT NOT NULL,    -- ms, inclusive
    valid_to            BIGINT,             -- ms, exclusive; null: still valid
    position            INTEGER NOT NULL,   -- candidate order, which breaks ties
    provider_id         TEXT,
    model_family        TEXT,
    served_model_id     TEXT,
    peer_id             TEXT,
    scope               TEXT,
    tier                TEXT,
    price_in            DOUBLE,
    price_out           DOUBLE,
    price_cached_in     DOUBLE,
    price_multiplier    DOUBLE,             -- for ranking only
    capabilities        TEXT,               -- JSON object: supports_tools, supports_vision, …
    context             BIGINT,
    tok_s               DOUBLE,
    has_tee             BOOLEAN,
    no_log              BOOLEAN,
    declared            TEXT                -- JSON object: the declared fields' values
);

CREATE TABLE IF NOT EXISTS policies (
    policy_id       TEXT PRIMARY KEY,
    term            TEXT NOT NULL,          -- JSON
    declared_fields TEXT NOT NULL,          -- JSON object: field → {"sort", "default"}
    tiers           TEXT NOT NULL,          -- JSON array, lowest first
    recorded_at     BIGINT                  -- ms
);

CREATE TABLE IF NOT EXISTS settings (
    settings_id TEXT PRIMARY KEY,
    settings    TEXT NOT NULL,              -- JSON
    recorded_at BIGINT                      -- ms
);

-- The mirror's own: what was imported, and what could not be.

CREATE TABLE IF NOT EXISTS mirror_imports (
    source_sha256 TEXT NOT NULL,            -- of the file's bytes
    target        TEXT NOT NULL,            -- the table the rows went to
    mapping       TEXT NOT NULL,            -- native, litellm, or the mapping's name
    source_name   TEXT NOT NULL,            -- the file's name without its folders
    rows_read     BIGINT NOT NULL,
    rows_added    BIGINT NOT NULL,
    rows_present  BIGINT NOT NULL,          -- already there
    rows_rejected BIGINT NOT NULL,
    PRIMARY KEY (source_sha256, target, mapping)
);

CREATE TABLE IF NOT EXISTS mirror_rejects (
    source_sha256 TEXT NOT NULL,
    target        TEXT NOT NULL,
    mapping       TEXT NOT NULL,
    row_number    BIGINT NOT NULL,          -- from 1, the header not counted
    reason        TEXT NOT NULL,
    source        TEXT NOT NULL,            -- the row as read, JSON
    PRIMARY KEY (source_sha256, target, mapping, row_number)
);

-- What was pulled from PostgreSQL, and how far. An older mirror gets these when it is next written.

CREATE TABLE IF NOT EXISTS mirror_source (
    database      TEXT NOT NULL,            -- the cluster's system identifier (empty: hidden) / the database's oid
    pseudonym_key TEXT                      -- the fingerprint of the key of the pseudonyms; null: real names
);

CREATE TABLE IF NOT EXISTS mirror_pulls (
    target   TEXT PRIMARY KEY,              -- the table
    last_id  BIGINT NOT NULL,               -- all rows up to here that the snapshot saw are in the mirror,
    snapshot TEXT NOT NULL,                 -- pg_current_snapshot() as text,
    since_ms BIGINT,                        -- of those that ended at this instant or later; null: all
    way      TEXT NOT NULL,                 -- how late commits are found: txid, row version, overlap or whole
    complete BOOLEAN NOT NULL               -- false: the last pull stopped before the table's end
);
