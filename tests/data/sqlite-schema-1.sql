-- Tasks, their output and attempts, and the counters of the fair queue.

CREATE TABLE tasks (
    id                   TEXT PRIMARY KEY,
    tenant               TEXT NOT NULL,
    model                TEXT NOT NULL,
    state                TEXT NOT NULL,
    priority             INTEGER NOT NULL,
    idempotency_key      TEXT,
    deadline_at          REAL,
    estimated_cost       INTEGER NOT NULL,
    prompt_cost          INTEGER NOT NULL,
    cost_per_token       INTEGER NOT NULL,
    charged_cost         INTEGER NOT NULL,
    settled_cost         INTEGER NOT NULL,
    charged_virtual_time INTEGER NOT NULL,
    attempt              INTEGER NOT NULL,
    fence                INTEGER NOT NULL,
    runner               TEXT,
    replica              TEXT,
    lease_expires_at     REAL,
    num_chunks           INTEGER NOT NULL,
    num_tokens           INTEGER NOT NULL,
    accepted_at          REAL NOT NULL,
    first_claimed_at     REAL,
    first_chunk_at       REAL,
    finished_at          REAL,
    result               TEXT,
    error                TEXT
);

-- "deadline_at IS NULL" sorts tasks without a deadline behind those with one.
CREATE INDEX tasks_head ON tasks (
    model, tenant, priority DESC, deadline_at IS NULL, deadline_at, id
) WHERE state = 'queued';
CREATE INDEX tasks_lease ON tasks (lease_expires_at) WHERE state = 'leased';
CREATE INDEX tasks_runner ON tasks (runner) WHERE state = 'leased';
CREATE INDEX tasks_deadline ON tasks (deadline_at)
    WHERE deadline_at IS NOT NULL AND state IN ('queued', 'leased');
CREATE UNIQUE INDEX tasks_idempotency ON tasks (tenant, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_tenant ON tasks (tenant, id);

-- Apart from tasks, because a task's row is rewritten with every chunk and a prompt can be long.
CREATE TABLE documents (
    task_id  TEXT PRIMARY KEY,
    document TEXT NOT NULL
);

CREATE TABLE journal (
    task_id   TEXT NOT NULL,
    seq       INTEGER NOT NULL,
    token_ids TEXT NOT NULL,
    text      TEXT NOT NULL,
    PRIMARY KEY (task_id, seq)
) WITHOUT ROWID;

CREATE TABLE attempts (
    task_id           TEXT NOT NULL,
    number            INTEGER NOT NULL,
    fence             INTEGER NOT NULL,
    runner            TEXT NOT NULL,
    replica           TEXT NOT NULL,
    started_at        REAL NOT NULL,
    num_tokens_before INTEGER NOT NULL,
    ended_at          REAL,
    outcome           TEXT NOT NULL,
    reason            TEXT NOT NULL,
    PRIMARY KEY (task_id, number)
) WITHOUT ROWID;

CREATE TABLE flows (
    model        TEXT NOT NULL,
    tenant       TEXT NOT NULL,
    virtual_time INTEGER NOT NULL,
    num_queued   INTEGER NOT NULL CHECK (num_queued >= 0),
    charged_cost INTEGER NOT NULL,
    PRIMARY KEY (model, tenant)
) WITHOUT ROWID;
CREATE INDEX flows_next ON flows (model, virtual_time, tenant) WHERE num_queued > 0;

CREATE TABLE pools (
    model         TEXT PRIMARY KEY,
    virtual_floor INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE weights (
    tenant          TEXT PRIMARY KEY,
    weight_permille INTEGER NOT NULL CHECK (weight_permille > 0)
) WITHOUT ROWID;

CREATE TABLE desired_replicas (
    model        TEXT PRIMARY KEY,
    num_replicas INTEGER NOT NULL CHECK (num_replicas >= 0)
) WITHOUT ROWID;
