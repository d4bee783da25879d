"""What owners do with tasks over the gateway's REST API, as methods."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, cast

from scheduler.client import shapes
from scheduler.client.calls import BROKEN, TIMEOUT_S, Calls, part


class Rest(Calls):
    """A client of one gateway, for one tenant."""

    def submit(
        self,
        model: str,
        document: Mapping[str, Any],
        *,
        priority_class: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> shapes.TaskOutcome:
        """Hand in a task; returns it as soon as it is on disk.

        Raises:
            ApiError: the request was refused; nothing was accepted.
            Unreachable: whether it was accepted is unknown; the same key finds out.
        """
        body = {
            "model": model,
            "input": dict(document),
            "priority": priority,
            "idempotency_key": idempotency_key or uuid.uuid4().hex,
        }
        if priority_class is not None:
            body["class"] = priority_class
        if deadline_s is not None:
            body["deadline_s"] = deadline_s
        return cast(shapes.TaskOutcome, self.call("POST", "/v1/tasks", body))

    def task(self, task_id: str) -> shapes.TaskDetail:
        """A task with its input, output and attempts."""
        return cast(shapes.TaskDetail, self.call("GET", f"/v1/tasks/{part(task_id)}"))

    def tasks(
        self,
        *,
        state: str | None = None,
        is_dead: bool = False,
        all_tenants: bool = False,
        model: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> shapes.TaskPage:
        """A page of the tenant's tasks, newest first; ``before`` is the last id of the one seen;
        ``is_dead``: dead letters alone; ``all_tenants`` is for operators."""
        query: dict[str, Any] = {"state": state, "model": model, "limit": limit, "before": before}
        if is_dead:
            query["dead"] = "true"
        if all_tenants:
            query["all"] = "true"
        return cast(shapes.TaskPage, self.call("GET", "/v1/tasks", query=query))

    def cancel(self, task_id: str) -> shapes.TaskOutcome:
        """Take a task back; one that has ended stays as it is."""
        return cast(shapes.TaskOutcome, self.call("DELETE", f"/v1/tasks/{part(task_id)}"))

    def explain(self, task_id: str) -> shapes.Explanation:
        """Why a task waits and until when, or the story of its attempts."""
        return cast(shapes.Explanation, self.call("GET", f"/v1/tasks/{part(task_id)}/explain"))

    def pause(self, task_id: str) -> shapes.TaskOutcome:
        """Make a task wait until it is resumed; it keeps what it has produced."""
        return self._move(task_id, "pause")

    def resume(self, task_id: str) -> shapes.TaskOutcome:
        """Let a paused task go on; one that is not paused and has not ended stays as it is."""
        return self._move(task_id, "resume")

    def requeue(self, task_id: str) -> shapes.TaskOutcome:
        """Try a dead letter again; it goes on from what it has produced."""
        return self._move(task_id, "requeue")

    def _move(self, task_id: str, name: str) -> shapes.TaskOutcome:
        return cast(shapes.TaskOutcome, self.call("POST", f"/v1/tasks/{part(task_id)}/{name}"))

    def classes(self) -> shapes.ClassList:
        """The priority classes there are, the heaviest first."""
        return cast(shapes.ClassList, self.call("GET", "/v1/classes"))

    def models(self) -> shapes.ModelList:
        return cast(shapes.ModelList, self.call("GET", "/v1/models"))

    def is_ready(self) -> bool:
        """Whether every model that should run has a replica that takes work; asks once."""
        try:
            return self._session.get(f"{self._address}/ready", timeout=TIMEOUT_S).status_code == 200
        except BROKEN:
            return False
