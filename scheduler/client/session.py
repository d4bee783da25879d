"""The client most programs want: REST for commands, gRPC for streams, joined.

A generation is submitted as a task under a key made here and then followed, so neither a lost
connection nor a restart of the control plane is seen by who reads the text.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Self

from scheduler.client.bulks import Bulks
from scheduler.client.operating import Operating
from scheduler.client.problems import TaskUnsuccessful
from scheduler.client.rest import Rest
from scheduler.client.streaming import Chunk, State, Watcher

DEFAULT_ADDRESS = "http://127.0.0.1:8700"
DEFAULT_GRPC_ADDRESS = "127.0.0.1:8701"
DEFAULT_MODEL = "demo"
#: Seconds of unbroken silence after which a client gives up.
DEFAULT_PATIENCE_S = 60.0


class Client(Rest, Bulks, Operating):
    """A client of one Plait, for one tenant; usable as a context manager."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        grpc_address: str = DEFAULT_GRPC_ADDRESS,
        *,
        tenant: str | None = None,
        api_key: str = "",
        patience_s: float = DEFAULT_PATIENCE_S,
        tell: Callable[[str], None] = lambda _words: None,
    ) -> None:
        """Without a ``tenant`` it is that of the key, else ``default``. ``tell`` hears, in words
        for a person, whenever this client begins to try again."""
        super().__init__(address, tenant, patience_s, tell, api_key)
        self._watcher = Watcher(grpc_address, tenant, patience_s, tell, api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._watcher.close()
        super().close()

    def generate(
        self,
        prompt: str,
        *,
        model: str = DEFAULT_MODEL,
        priority_class: str | None = None,
        **parameters: Any,
    ) -> Generator[str, None, None]:
        """Continue a prompt; the text comes as it is produced.

        ``parameters`` are those of a generation request, such as ``max_new_tokens`` and ``seed``.
        The task is accepted when this returns. Closing the generator early takes the task back.
        Several answers (``n``) are no one text: for those use ``submit`` and ``watch``.

        Raises:
            ValueError: several answers are asked for.
            ApiError: the request was refused.
            TaskUnsuccessful: the task ended without a result.
            Unreachable: patience ran out.
        """
        if parameters.get("n", 1) != 1:
            raise ValueError(f"n is {parameters['n']!r}; generate gives one text, watch gives all")
        document = {"prompt": prompt, **parameters}
        task = self.submit(model, document, priority_class=priority_class)
        return self._owned(task["task_id"])

    def stream(self, task_id: str, cursor: int = 0, index: int = 0) -> Iterator[str]:
        """The text of a task's answer ``index`` after ``cursor`` chunks, until the task ends.

        Raises:
            TaskUnsuccessful: the task ended without a result.
        """
        for event in self.watch(task_id, cursor):
            if isinstance(event, Chunk):
                if event.index == index:
                    yield event.text
            elif event.is_final and event.task["state"] != "succeeded":
                raise TaskUnsuccessful(event.task)

    def watch(self, task_id: str, cursor: int = 0) -> Iterator[Chunk | State]:
        """A task's chunks and changes of state after ``cursor``; see ``streaming.Watcher``."""
        return self._watcher.watch(task_id, cursor)

    def _owned(self, task_id: str) -> Generator[str, None, None]:
        try:
            yield from self.stream(task_id)
        except (GeneratorExit, KeyboardInterrupt):
            # Nobody else knows the id, so nobody will ever read the rest.
            self.cancel(task_id)
            raise
