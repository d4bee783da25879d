"""The clients: they send what the scenario says, and follow every task to its end.

A submission is repeated under its key until somebody says that it is accepted. A reader that loses
its stream, or leaves, attaches again with its cursor. All of it goes through the cable in front of
the control plane, and everything anybody was told is written down.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import aiohttp

from scheduler.testing.chaos.cluster import MODEL
from scheduler.testing.chaos.history import (
    Accepted,
    Attached,
    Broke,
    Cancelled,
    History,
    Read,
    Refused,
    Seen,
    Sent,
)
from scheduler.testing.chaos.scenario import Arrival

_AGAIN_S: Final = (0.2, 1.0)
#: Every token is drawn, which has to come out the same after a fault.
_TEMPERATURE: Final = 0.8
#: An answer that is shorter than a chunk; a stream sends a comment every ten seconds.
_CALL_TIMEOUT: Final = aiohttp.ClientTimeout(total=8.0, sock_connect=3.0)
_STREAM_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=3.0, sock_read=12.0)


class Clients:
    """Every client of a run."""

    def __init__(self, address: str, history: History, seed: int, name: str = "") -> None:
        """``name`` goes before every key, so that no two runs of clients share one."""
        self._address, self._history, self._name = address, history, name
        self._rng = random.Random(f"{seed} clients")
        self._living: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    @property
    def num_unfinished(self) -> int:
        """Tasks of which their client does not know the end."""
        return len(self._living)

    async def run(self, arrivals: tuple[Arrival, ...]) -> None:
        """Send everything at its time; returns when the last was sent."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector)
        for number, arrival in enumerate(arrivals):
            await asyncio.sleep(max(0.0, arrival.at_s - self._history.now()))
            living = asyncio.create_task(self._live_through(number, arrival))
            self._living.add(living)
            living.add_done_callback(self._ended)

    async def until_all_ended(self, patience_s: float) -> None:
        """Wait until every client knows the end of its task, or until for ``patience_s`` none has
        come to know it."""
        while self._living:
            ended, _ = await asyncio.wait(
                self._living, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not ended:
                return

    async def close(self) -> None:
        for living in list(self._living):
            living.cancel()
        await asyncio.gather(*self._living, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _ended(self, living: asyncio.Task[None]) -> None:
        self._living.discard(living)
        if not living.cancelled():
            living.result()

    async def _live_through(self, number: int, arrival: Arrival) -> None:
        key = f"{self._name}{arrival.tenant.name}-{number}"
        document = {
            "prompt": f"# {arrival.seed}\n",
            "seed": arrival.seed,
            "max_new_tokens": arrival.num_tokens,
            "temperature": _TEMPERATURE,
        }
        self._history.add(Sent(self._history.now(), key, arrival.tenant.name, document))
        task_id = await self._submit(key, arrival, document)
        if arrival.is_sent_twice:
            await self._submit(key, arrival, document)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(key, task_id, arrival))
            if arrival.cancelled_after_s is not None:
                group.create_task(self._cancel(task_id, arrival))

    # -- calls

    async def _submit(self, key: str, arrival: Arrival, document: dict[str, Any]) -> str:
        body = {
            "model": MODEL,
            "input": document,
            "class": arrival.tenant.priority_class,
            "idempotency_key": key,
        }
        while True:
            status, answer = await self._call("POST", "/v1/tasks", arrival.tenant.name, body)
            if status == 202:
                task_id = str(answer["task_id"])
                self._history.add(Accepted(self._history.now(), key, task_id))
                return task_id
            self._history.add(Refused(self._history.now(), key, status))
            await asyncio.sleep(self._rng.uniform(*_AGAIN_S))

    async def _cancel(self, task_id: str, arrival: Arrival) -> None:
        await asyncio.sleep(arrival.cancelled_after_s or 0.0)
        self._history.add(Cancelled(self._history.now(), task_id))
        path = f"/v1/tasks/{task_id}/cancel"
        while (await self._call("POST", path, arrival.tenant.name))[0] != 200:
            await asyncio.sleep(self._rng.uniform(*_AGAIN_S))

    async def _call(
        self, method: str, path: str, tenant: str, body: dict[str, Any] | None = None
    ) -> tuple[int, Any]:
        assert self._session is not None
        try:
            async with self._session.request(
                method,
                self._address + path,
                json=body,
                headers={"X-Plait-Tenant": tenant},
                timeout=_CALL_TIMEOUT,
            ) as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0, None

    # -- reading

    async def _follow(self, key: str, task_id: str, arrival: Arrival) -> None:
        cursor, leaves_after = 0, arrival.leaves_after
        while True:
            self._history.add(Attached(self._history.now(), key, task_id, cursor))
            try:
                async with aclosing(self._events(task_id, cursor, arrival)) as events:
                    async for kind, at_cursor, document in events:
                        cursor = self._note(key, task_id, kind, at_cursor, document)
                        if kind == "end":
                            return
                        if leaves_after is not None and cursor >= leaves_after:
                            leaves_after = None
                            break
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                pass
            self._history.add(Broke(self._history.now(), key, task_id))
            await asyncio.sleep(self._rng.uniform(*_AGAIN_S))

    def _note(
        self, reader: str, task_id: str, kind: str, cursor: int, document: dict[str, Any]
    ) -> int:
        now = self._history.now()
        if kind == "chunk":
            tokens, text = tuple(document["token_ids"]), document["text"]
            self._history.add(Read(now, reader, task_id, cursor, tokens, text))
        elif kind in ("state", "end"):
            state, attempt, runner = document["state"], document["attempt"], document["runner"]
            is_end = kind == "end"
            self._history.add(Seen(now, reader, task_id, state, attempt, runner, is_end))
        return cursor

    async def _events(
        self, task_id: str, cursor: int, arrival: Arrival
    ) -> AsyncGenerator[tuple[str, int, dict[str, Any]], None]:
        """Kind, cursor and document of each event."""
        assert self._session is not None
        url = f"{self._address}/v1/tasks/{task_id}/events?cursor={cursor}"
        headers = {"X-Plait-Tenant": arrival.tenant.name}
        async with self._session.get(url, headers=headers, timeout=_STREAM_TIMEOUT) as response:
            response.raise_for_status()
            frame: dict[str, str] = {}
            async for line in response.content:
                text = line.decode().rstrip("\n")
                if text:
                    name, _, value = text.partition(": ")
                    frame[name] = value
                elif "data" in frame:
                    yield frame["event"], int(frame["id"]), json.loads(frame["data"])
                    frame = {}
                else:
                    frame = {}
