"""Writes the part of docs/schema.md that follows from the database: its tables and indexes.

    python -m tests.docs.schema_block      # writes it into the file

Tables, columns and indexes are those of a database that was brought up to date. What a column holds
is said by the field of the record it is stored from, else here; a column, table or index of which
nobody says what it is for is an error, and so is a word about one that does not exist.
"""

from __future__ import annotations

import inspect
import re
from contextlib import closing
from pathlib import Path
from typing import Final

from scheduler.bulk import Bulk
from scheduler.container import ContainerOrder, Flakiness
from scheduler.flow import Band, Flow, Tenant
from scheduler.keys import Key
from scheduler.registration import Leadership, Placement, Registration
from scheduler.scaling import Measure, ScaleDecision
from scheduler.stores import sqlite
from scheduler.task import Attempt, JournalChunk, Task

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "schema.md"
BEGIN: Final = "<!-- generated from the migrated database: begin -->"
END: Final = "<!-- generated from the migrated database: end -->"

#: The tables in the order of the page: the record of a row, and what a row is.
TABLES: Final[dict[str, tuple[type | None, str]]] = {
    "tasks": (Task, "A task: what does not change of it once it is accepted, and how it stands."),
    "documents": (None, "What a task asks. Apart, since a task's row is rewritten often."),
    "journal": (JournalChunk, "A piece of a task's output, as it came."),
    "attempts": (Attempt, "An attempt at a task that has ended; the running one is in its task."),
    "bulks": (Bulk, "Inputs that were handed in together."),
    "flows": (Flow, "A tenant's queued tasks of one class for one model, and what it was charged."),
    "bands": (Band, "All flows of one class for one model."),
    "pools": (None, "A model."),
    "tenants": (Tenant, "What operators have set of a tenant."),
    "tenant_keys": (Key, "A key of a tenant or of an operator, or a join token of runners."),
    "classes": (None, "A priority class whose weight an operator has set."),
    "cost_factors": (None, "A kind of device whose cost an operator has set."),
    "desired_replicas": (None, "A model whose number of replicas an operator has set."),
    "scaled_replicas": (None, "A model whose number of replicas follows its work."),
    "replica_measures": (Measure, "What replicas of a model do on one kind of device."),
    "scale_decisions": (ScaleDecision, "A decision on how many replicas a model needs."),
    "container_orders": (ContainerOrder, "A place of a provider, and the container that fills it."),
    "provider_ledger": (Flakiness, "What was noted of a provider's containers of one class."),
    "nodes": (Registration, "A runner with its node, as it last said it is."),
    "placements": (Placement, "What the leader has decided that a runner is to run."),
    "leaders": (Leadership, "Which of several control planes decides for all."),
    "batches": (None, "One row, by which control planes see that another has written."),
    "alembic_version": (None, "One row: the version of the schema."),
}

#: Words for columns whose record says nothing, or less than a reader of the table needs.
COLUMNS: Final = {
    "tenant": "Whom the work is accounted to.",
    "model": "Name of the model.",
    "priority_class": "Name of the priority class.",
    "task_id": "The task.",
    "tasks.state": "A state of [lifecycle.md](lifecycle.md).",
    "tasks.idempotency_key": "Two submissions of a tenant with the same key are one task.",
    "tasks.deadline_at": "Seconds since the epoch after which nobody wants the result.",
    "tasks.priority": "Order within the flow: the greater goes first.",
    "tasks.estimated_cost": "Predicted cost in weighted tokens.",
    "tasks.prompt_cost": "The prompt's share of it.",
    "tasks.cost_per_token": "Weighted tokens that one new token costs.",
    "tasks.runner": "Who holds the lease.",
    "tasks.replica": "Which of its replicas works on it.",
    "tasks.accepted_at": "When it was accepted.",
    "tasks.first_claimed_at": "When it was claimed for the first time.",
    "tasks.first_chunk_at": "When its first chunk was on disk.",
    "tasks.finished_at": "When it ended.",
    "tasks.resume": "What a lost attempt is worth: whether the next goes on from its tokens.",
    "tasks.charged_class_time": "What it added to the virtual time of the class.",
    "tasks.bulk_id": "The bulk it belongs to.",
    "tasks.bulk_index": "Its place in the bulk, from 0.",
    "tasks.result": "The answer of a task that succeeded, JSON.",
    "tasks.error": "Why it failed, expired or was cancelled, JSON.",
    "documents.document": "As the model's handler gets it, JSON.",
    "journal.token_ids": "JSON list.",
    "journal.text": "The text of these tokens.",
    "journal.answer": "Which of the task's answers goes on.",
    "journal.logprobs": "JSON, one for each token, if they were asked for.",
    "attempts.fence": "The fencing token it wrote under.",
    "attempts.runner": "Who held the lease.",
    "attempts.replica": "Which of its replicas worked on it.",
    "attempts.started_at": "When it was claimed.",
    "attempts.ended_at": "When it ended.",
    "attempts.outcome": "How, as in [lifecycle.md](lifecycle.md).",
    "bulks.created_at": "When it was begun.",
    "bulks.idempotency_key": "Two bulks of a tenant with the same key are one.",
    "flows.num_queued": "Tasks queued.",
    "flows.num_leased": "Tasks in flight.",
    "pools.virtual_floor": "Where its bands' virtual time stood when the last fell silent.",
    "tenants.weight_permille": "Its share beside others, in thousandths.",
    "tenants.classes": "Classes its tasks may be in, separated by blanks; NULL: all.",
    "tenants.allowance_at": "When that was so.",
    "tenant_keys.role": "What it opens: `tenant`, `operator` or `node`.",
    "tenant_keys.created_at": "When it was made.",
    "classes.weight_permille": "Its share beside other classes, in thousandths.",
    "cost_factors.device_kind": "As runners report it.",
    "cost_factors.factor_permille": "What a weighted token costs there, in thousandths.",
    "desired_replicas.num_replicas": "How many there should be.",
    "scaled_replicas.num_replicas": "How many were decided on last.",
    "replica_measures.was_full": "Whether every slot was busy meanwhile.",
    "replica_measures.start_times_s": "Seconds of the last starts, oldest first, JSON.",
    "scale_decisions.num_before": "Replicas wanted before it.",
    "scale_decisions.num_after": "Replicas wanted after it.",
    "scale_decisions.decided_at": "When it was made first.",
    "scale_decisions.last_at": "When it was made last.",
    "scale_decisions.message": "The same, as a sentence.",
    "scale_decisions.inputs": "What it was decided from, the last time, JSON.",
    "container_orders.generation": "Grows with each container that is ordered for the place.",
    "container_orders.state": "`ordered`, `up`, `leaving`, `removing` or `gone`.",
    "provider_ledger.provider": "As in the orders.",
    "nodes.runner_id": "Stable over restarts of the runner.",
    "placements.runner_id": "The runner.",
    "batches.id": "1.",
    "batches.num_committed": "Batches of commands that were committed.",
    "alembic_version.version_num": "The last migration that was run.",
}

INDEXES: Final = {
    "tasks_head": "who goes next in a flow, and what waits in it",
    "tasks_lease": "leases that ran out, and all there are",
    "tasks_due": "delayed tasks whose pause is over",
    "tasks_deadline": "tasks whose deadline has passed",
    "tasks_finished": "what may be purged",
    "tasks_dead": "the list of dead letters",
    "tasks_tenant": "a tenant's tasks, newest first",
    "tasks_idempotency": "the task that a key was used for; no second one",
    "tasks_bulk": "a bulk's tasks in order",
    "tasks_bulk_state": "how far a bulk is",
    "bulks_tenant": "a tenant's bulks, newest first",
    "bulks_idempotency": "the bulk that a key was used for; no second one",
    "flows_next": "the flow of a band whose turn it is",
    "flows_tenant": "all a tenant has queued and in flight",
}


def block() -> str:
    """Every table, as it has to stand between the two marks.

    Raises:
        ValueError: something is there of which nothing is said, or the other way round.
    """
    unused = set(COLUMNS) | set(INDEXES)
    with closing(sqlite.connect(sqlite.MEMORY)) as connection:
        found = "SELECT name FROM sqlite_master WHERE type = 'table'"
        names = {name for (name,) in connection.execute(found)}
        if names != set(TABLES):
            raise ValueError(f"told of are {sorted(TABLES)}; the database has {sorted(names)}")
        parts = [line for table in TABLES for line in _table(connection, table, unused)]
    if unused:
        raise ValueError(f"told of, and not there: {sorted(unused)}")
    return "\n".join(parts).strip("\n")


def _table(connection: sqlite.sqlite3.Connection, table: str, unused: set[str]) -> list[str]:
    record, purpose = TABLES[table]
    lines = [f"### {table}", "", purpose, "", "| column | type | holds |", "|---|---|---|"]
    told = {} if record is None else _told(record)
    for _, name, kind, is_needed, _, key in connection.execute(f"PRAGMA table_info({table})"):
        notes = [kind.lower(), *(["key"] if key else []), *([] if is_needed else ["or NULL"])]
        lines.append(f"| `{name}` | {', '.join(notes)} | {_words(table, name, told, unused)} |")
    indexes = list(_indexes(connection, table, unused))
    if indexes:
        lines += ["", "| index | on | answers |", "|---|---|---|", *indexes]
    return [*lines, ""]


def _indexes(connection: sqlite.sqlite3.Connection, table: str, unused: set[str]) -> list[str]:
    query = (
        "SELECT name, sql FROM sqlite_master WHERE tbl_name = ? AND type = 'index' ORDER BY name"
    )
    rows = []
    for name, sql in connection.execute(query, (table,)):
        if sql is None:
            continue  # of the primary key
        if name not in INDEXES:
            raise ValueError(f"nobody says what index {name} is for")
        unused.discard(name)
        on = re.sub(r"CREATE (UNIQUE )?INDEX \w+ ON \w+ ", r"\1", sql).replace("UNIQUE ", "unique ")
        rows.append(f"| `{name}` | `{on}` | {INDEXES[name]} |")
    return rows


def _words(table: str, column: str, told: dict[str, str], unused: set[str]) -> str:
    for name in (f"{table}.{column}", column):
        if name in COLUMNS and (name != column or column not in told):
            unused.discard(name)
            return COLUMNS[name]
    if column not in told:
        raise ValueError(f"nobody says what {table}.{column} holds")
    return told[column]


def _told(record: type) -> dict[str, str]:
    """What the ``#:`` lines of a record say of its fields."""
    told: dict[str, str] = {}
    lines: list[str] = []
    for line in inspect.getsource(record).splitlines():
        text = line.strip()
        if text.startswith("#:"):
            lines.append(text[2:].strip())
        elif lines and (found := re.match(r"(\w+):", text)):
            words = " ".join(lines).replace("None:", "NULL:").replace("None ", "NULL ")
            told[found[1]] = words.replace("``", "`").replace("|", "\\|")
            lines = []
    return told


def generated_part(text: str) -> str:
    """What stands between the marks."""
    return text.split(BEGIN)[1].split(END)[0].strip("\n")


def main() -> None:
    """Write the block into the page."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    replacement = f"{BEGIN}\n\n{block()}\n\n{END}"
    text = PAGE.read_text("utf-8")
    PAGE.write_text(pattern.sub(lambda _: replacement, text), "utf-8")


if __name__ == "__main__":
    main()
