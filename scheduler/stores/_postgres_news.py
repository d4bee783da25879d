"""What control planes on one database tell each other: NOTIFY in the transaction it tells of.

The news of a batch go out as one notification, because each takes a lock that all sessions of the
server share. A notification has room for 8000 bytes: where the names of tasks do not fit, the
others look for themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import psycopg
import structlog

from scheduler.stores._postgres_link import FIRST_PAUSE_S, LONGEST_PAUSE_S, parameters
from scheduler.stores.base import News

log = structlog.get_logger(__name__)

CHANNEL: Final = "plait"
#: Bytes of a notification; the server takes fewer than 8000.
MAX_BYTES: Final = 7900

Listener = Callable[[News | None], None]


def merged(news: Sequence[News]) -> News:
    """Several pieces of news as one."""
    ids: dict[str, None] = {}
    for each in news:
        ids.update(dict.fromkeys(each.task_ids or ()))
    return News(
        None if any(each.task_ids is None for each in news) else tuple(ids),
        tuple(dict.fromkeys(model for each in news for model in each.models)),
        tuple(lease for each in news for lease in each.ended_leases),
        any(each.has_desired for each in news),
        any(each.has_nodes for each in news),
    )


def encode(sender: str, news: News) -> str:
    """The text of a notification."""
    no_ids = replace(news, task_ids=None)
    for each in (news, no_ids):
        fields = {
            "t": each.task_ids,
            "m": each.models,
            "l": each.ended_leases,
            "d": each.has_desired or (),
            "n": each.has_nodes or (),
        }
        # Empty fields are left out.
        text = _dump({"s": sender, **{k: v for k, v in fields.items() if v != ()}})
        if len(text) <= MAX_BYTES:
            return text
    return _dump({"s": sender, "t": None, "look": True})


def decode(text: str) -> tuple[str, News | None]:
    """Who sent a notification, and what it tells; None: look for yourselves.

    Raises:
        ValueError: another program sent it, or another version.
    """
    try:
        document = json.loads(text)
        if document.get("look"):
            return str(document["s"]), None
        ids, leases = document.get("t", ()), document.get("l", ())
        return str(document["s"]), News(
            None if ids is None else tuple(map(str, ids)),
            tuple(map(str, document.get("m", ()))),
            tuple((str(task), int(fence), str(runner)) for task, fence, runner in leases),
            bool(document.get("d")),
            bool(document.get("n")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no news of a control plane: {error}") from error


def _dump(document: dict[str, Any]) -> str:
    # ASCII, so that a character is a byte.
    return json.dumps(document, separators=(",", ":"))


class Ear:
    """Hears what others tell, on a connection of its own, and passes it on in the event loop.

    Whenever it begins to listen, it says that something may have been missed.
    """

    def __init__(self, url: str, own: str) -> None:
        """``own``: what this process's notifications are signed with; they are left out."""
        self._url, self._own = url, own
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, listener: Listener) -> None:
        """Begin to listen, if this is the first."""
        self._listeners.append(listener)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="store news")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with await self._connect() as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    pause_s = FIRST_PAUSE_S
                    self._tell([None])
                    async for notification in connection.notifies():
                        self._tell(self._understood(notification.payload))
            except psycopg.Error as error:
                log.warning("store_news_interrupted", error=str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(**parameters(self._url), autocommit=True)

    def _understood(self, payload: str) -> Iterable[News | None]:
        try:
            sender, news = decode(payload)
        except ValueError as error:
            log.warning("store_news_not_understood", error=str(error))
            return [None]
        return [] if sender == self._own else [news]

    def _tell(self, told: Iterable[News | None]) -> None:
        loop = asyncio.get_running_loop()
        for news in told:
            for listener in self._listeners:
                # Through the loop, so that a listener's error is the loop's to report.
                loop.call_soon(cast(Callable[..., Any], listener), news)
