-- A store of schema 1, as Plait wrote it: tasks in every state it knew.
PRAGMA user_version = 1;
BEGIN TRANSACTION;
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
INSERT INTO "attempts" VALUES('01HF0000000000000000000000',1,1,'r1','demo__r0',1700000002.0,0,1700000003.0,'succeeded','');
INSERT INTO "attempts" VALUES('01HF0000000000000000000001',1,1,'r1','demo__r0',1700000005.0,0,1700000005.0,'failed','too long');
INSERT INTO "attempts" VALUES('01HF0000000000000000000002',1,1,'r1','demo__r0',1700000007.0,0,1700000008.0,'lost','machine 0 died');
INSERT INTO "attempts" VALUES('01HF0000000000000000000002',2,2,'r1','demo__r0',1700000009.0,1,1700000010.0,'lost','machine 1 died');
INSERT INTO "attempts" VALUES('01HF0000000000000000000005',1,1,'r1','demo__r0',1700000019.0,0,1700000020.0,'lost','machine died');
INSERT INTO "attempts" VALUES('01HF0000000000000000000005',2,2,'r1','demo__r0',1700000021.0,1,NULL,'running','');
INSERT INTO "attempts" VALUES('01HF0000000000000000000006',1,1,'r1','demo__r0',1700000024.0,0,NULL,'running','');
INSERT INTO "attempts" VALUES('01HF0000000000000000000007',1,1,'r1','demo__r0',1700000027.0,0,1700000028.0,'lost','machine died');
CREATE TABLE desired_replicas (
    model        TEXT PRIMARY KEY,
    num_replicas INTEGER NOT NULL CHECK (num_replicas >= 0)
) WITHOUT ROWID;
INSERT INTO "desired_replicas" VALUES('demo',2);
CREATE TABLE documents (
    task_id  TEXT PRIMARY KEY,
    document TEXT NOT NULL
);
INSERT INTO "documents" VALUES('01HF0000000000000000000000','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000001','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000002','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000003','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000004','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000005','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000006','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000007','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000008','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000009','{"prompt":"def","max_new_tokens":10}');
INSERT INTO "documents" VALUES('01HF0000000000000000000010','{"prompt":"def","max_new_tokens":10}');
CREATE TABLE flows (
    model        TEXT NOT NULL,
    tenant       TEXT NOT NULL,
    virtual_time INTEGER NOT NULL,
    num_queued   INTEGER NOT NULL CHECK (num_queued >= 0),
    charged_cost INTEGER NOT NULL,
    PRIMARY KEY (model, tenant)
) WITHOUT ROWID;
INSERT INTO "flows" VALUES('demo','ann',186000,2,34);
INSERT INTO "flows" VALUES('demo','bob',186000,2,7);
INSERT INTO "flows" VALUES('demo','eve',136000,0,34);
CREATE TABLE journal (
    task_id   TEXT NOT NULL,
    seq       INTEGER NOT NULL,
    token_ids TEXT NOT NULL,
    text      TEXT NOT NULL,
    PRIMARY KEY (task_id, seq)
) WITHOUT ROWID;
INSERT INTO "journal" VALUES('01HF0000000000000000000000',0,'[100]','<0>');
INSERT INTO "journal" VALUES('01HF0000000000000000000000',1,'[101]','<1>');
INSERT INTO "journal" VALUES('01HF0000000000000000000002',0,'[100]','<0>');
INSERT INTO "journal" VALUES('01HF0000000000000000000002',1,'[101]','<1>');
INSERT INTO "journal" VALUES('01HF0000000000000000000005',0,'[100]','<0>');
INSERT INTO "journal" VALUES('01HF0000000000000000000005',1,'[101]','<1>');
INSERT INTO "journal" VALUES('01HF0000000000000000000005',2,'[102]','<2>');
INSERT INTO "journal" VALUES('01HF0000000000000000000006',0,'[100]','<0>');
INSERT INTO "journal" VALUES('01HF0000000000000000000007',0,'[100]','<0>');
CREATE TABLE pools (
    model         TEXT PRIMARY KEY,
    virtual_floor INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "pools" VALUES('demo',186000);
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
INSERT INTO "tasks" VALUES('01HF0000000000000000000000','ann','demo','succeeded',0,NULL,NULL,25,5,2,9,9,0,1,1,NULL,NULL,NULL,2,2,1700000001.0,1700000002.0,1700000003.0,1700000003.0,'{"reason":"eos"}',NULL);
INSERT INTO "tasks" VALUES('01HF0000000000000000000001','bob','demo','failed',0,'k1',NULL,25,5,2,0,0,0,1,1,NULL,NULL,NULL,0,0,1700000004.0,1700000005.0,NULL,1700000005.0,NULL,'{"status":422,"message":"too long","field":"prompt"}');
INSERT INTO "tasks" VALUES('01HF0000000000000000000002','eve','demo','failed',0,NULL,NULL,25,5,2,9,9,0,2,2,NULL,NULL,NULL,2,2,1700000006.0,1700000007.0,1700000008.0,1700000010.0,NULL,'{"status":500,"message":"lost 2 of 2 attempts allowed: attempt 1 on demo__r0 of r1: machine 0 died; attempt 2 on demo__r0 of r1: machine 1 died","field":""}');
INSERT INTO "tasks" VALUES('01HF0000000000000000000003','ann','demo','cancelled',0,NULL,NULL,25,5,2,0,0,0,0,0,NULL,NULL,NULL,0,0,1700000011.0,NULL,NULL,1700000011.0,NULL,'{"status":499,"message":"no need","field":""}');
INSERT INTO "tasks" VALUES('01HF0000000000000000000004','ann','demo','expired',0,NULL,1700000013.0,25,5,2,0,0,0,0,0,NULL,NULL,NULL,0,0,1700000012.0,NULL,NULL,1700000017.0,NULL,'{"status":504,"message":"the task''s deadline passed while it waited","field":""}');
INSERT INTO "tasks" VALUES('01HF0000000000000000000005','eve','demo','leased',3,NULL,NULL,25,5,2,25,7,18000,2,2,'r1','demo__r0',1700000031.0,3,3,1700000018.0,1700000019.0,1700000020.0,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES('01HF0000000000000000000006','ann','demo','leased',2,NULL,NULL,25,5,2,25,0,25000,1,1,'r1','demo__r0',1700000034.0,1,1,1700000023.0,1700000024.0,1700000025.0,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES('01HF0000000000000000000007','bob','demo','queued',1,NULL,NULL,25,5,2,7,7,0,1,1,NULL,NULL,NULL,1,1,1700000026.0,1700000027.0,1700000028.0,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES('01HF0000000000000000000008','ann','demo','queued',0,NULL,NULL,25,5,2,0,0,0,0,0,NULL,NULL,NULL,0,0,1700000029.0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES('01HF0000000000000000000009','bob','demo','queued',0,'k2',2700000029.0,25,5,2,0,0,0,0,0,NULL,NULL,NULL,0,0,1700000030.0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES('01HF0000000000000000000010','ann','demo','queued',-1,NULL,NULL,25,5,2,0,0,0,0,0,NULL,NULL,NULL,0,0,1700000031.0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE weights (
    tenant          TEXT PRIMARY KEY,
    weight_permille INTEGER NOT NULL CHECK (weight_permille > 0)
) WITHOUT ROWID;
INSERT INTO "weights" VALUES('ann',3000);
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
CREATE INDEX flows_next ON flows (model, virtual_time, tenant) WHERE num_queued > 0;
COMMIT;
