"""What happens to a bulk: it is begun, filled, closed, taken back, and at last removed.

Each input has its place, counted from 0, and becomes a task in the very transaction that counts it;
so whoever repeats a batch, because the answer was lost or the upload broke off, doubles nothing.
What takes many tasks is done in batches, each a command of its own, so that the commands of others
get their turn in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.bulk import MAX_INPUTS, Bulk
from scheduler.errors import BulkClosed, BulkNotFound, InputsDiffer, InvalidRequest
from scheduler.moves.base import Change, Outcome, Rules, gather
from scheduler.moves.intake import add_all, admit
from scheduler.moves.ownership import cancel as cancel_task
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Submission, Task


def owned(tx: Transaction, bulk_id: str, tenant: str | None = None) -> Bulk:
    """The bulk, if it exists and, where a tenant is given, is that tenant's.

    Raises:
        BulkNotFound: it is not.
    """
    bulk = tx.bulk(bulk_id)
    if bulk is None or (tenant is not None and bulk.tenant != tenant):
        raise BulkNotFound(bulk_id)
    return bulk


def begin(tx: Transaction, bulk: Bulk, now: float) -> Bulk:
    """Begin a bulk; under a key that has one already, that one.

    Raises:
        InputsDiffer: the key's bulk is for another model or class.
        InvalidRequest: there is no such class.
        ClassNotAllowed: the tenant may not use the class.
    """
    if bulk.idempotency_key is not None:
        known = tx.bulk_by_key(bulk.tenant, bulk.idempotency_key)
        if known is not None:
            _check_same(known, bulk)
            return known
    classes = sorted(tx.class_weights())
    if bulk.priority_class not in classes:
        message = f"there is no class {bulk.priority_class!r:.80}; there are: {', '.join(classes)}"
        raise InvalidRequest(f"class: {message}", field="class")
    admit(tx, bulk.tenant, bulk.priority_class, 0, 0, now)
    tx.put_bulk(bulk)
    return bulk


def extend(
    tx: Transaction,
    rules: Rules,
    bulk_id: str,
    start: int,
    submissions: Sequence[Submission],
    task_ids: Sequence[str],
    now: float,
) -> Outcome[Bulk]:
    """Accept inputs from place ``start`` on, all or none; those accepted before are not doubled.

    Raises:
        BulkClosed: it takes no more.
        InputsDiffer: what was accepted before is another input.
        InvalidRequest: inputs are missing before ``start``, or there are too many.
        QuotaExceeded: the tenant has all it may have.
    """
    bulk = owned(tx, bulk_id)
    end = start + len(submissions)
    if start > bulk.num_inputs:
        message = f"begins at place {start}, and the bulk has {bulk.num_inputs} inputs so far"
        raise InvalidRequest(f"from: {message}", field="from")
    num_known = min(bulk.num_inputs, end) - start
    _check_known(tx, bulk, start, submissions[:num_known])
    new, ids = submissions[num_known:], task_ids[num_known:]
    if not new:
        return Outcome(bulk)
    if bulk.closed_at is not None:
        raise BulkClosed(bulk.id, bulk.num_inputs, is_cancelled=bulk.cancelled_at is not None)
    if end > MAX_INPUTS:
        message = f"a bulk has at most {MAX_INPUTS} inputs; begin another for the rest"
        raise InvalidRequest(message, field="body")
    cost = sum(each.estimated_cost for each in new)
    admit(tx, bulk.tenant, bulk.priority_class, len(new), cost, now)
    tasks = add_all(tx, rules, new, ids, now)
    bulk = changed(bulk, num_inputs=end)
    tx.put_bulk(bulk)
    # One stands for all: nobody can watch a task whose id nobody has been told.
    return Outcome(bulk, (Change(tasks[0]),))


def close(tx: Transaction, bulk_id: str, tenant: str | None, now: float) -> Bulk:
    """Say that no more inputs come; one that is closed stays as it is."""
    bulk = owned(tx, bulk_id, tenant)
    if bulk.closed_at is None:
        bulk = changed(bulk, closed_at=now)
        tx.put_bulk(bulk)
    return bulk


def revoke(tx: Transaction, bulk_id: str, tenant: str | None, now: float) -> Bulk:
    """Take a bulk back: it takes no more inputs; :func:`cancel_some` ends what it has."""
    bulk = close(tx, bulk_id, tenant, now)
    if bulk.cancelled_at is None:
        bulk = changed(bulk, cancelled_at=now)
        tx.put_bulk(bulk)
    return bulk


def cancel_some(
    tx: Transaction, rules: Rules, bulk_id: str, reason: str, now: float, limit: int
) -> Outcome[list[Task]]:
    """Cancel up to ``limit`` tasks of a bulk that have not ended."""
    unfinished = tx.bulk_unfinished(bulk_id, limit)
    return gather(cancel_task(tx, rules, task.id, None, reason, now) for task in unfinished)


def purge(tx: Transaction, closed_before: float, limit: int) -> int:
    """Remove bulks that were closed before a moment and whose tasks have all been removed."""
    return tx.delete_bulks(closed_before, limit)


def _check_same(known: Bulk, asked: Bulk) -> None:
    for field in ("model", "priority_class"):
        before, now = getattr(known, field), getattr(asked, field)
        if before != now:
            name = "class" if field == "priority_class" else field
            raise InputsDiffer(known.id, f"its {name} is {before}, not {now}")


def _check_known(
    tx: Transaction, bulk: Bulk, start: int, submissions: Sequence[Submission]
) -> None:
    """Inputs that were accepted before must be the same; those that have been removed count as
    such."""
    if not submissions:
        return
    there = {task.bulk_index: task for task in tx.bulk_tasks(bulk.id, start, len(submissions))}
    for place, submission in enumerate(submissions, start):
        task = there.get(place)
        if task is not None and task.document != submission.document:
            raise InputsDiffer(bulk.id, f"input {place} was another one")
