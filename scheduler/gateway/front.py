"""What every protocol of the gateway does in the same way: accept, own, follow.

A request becomes a task here and nowhere else. A client that waits on its own connection *owns*
its task: when it leaves, the task is cancelled at once, unless it is the gateway that goes. It
knows no protocol: what it raises is a ``PlaitError``, and every protocol writes that down its way.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol, TypeVar

import structlog

from handlers.model_config import ModelConfig
from scheduler.bulk_book import BulkBook
from scheduler.clock import Clock
from scheduler.cluster_view import Cluster
from scheduler.container import Containers, ContainersView
from scheduler.drift import Finding, Tally
from scheduler.errors import ModelNotFound, RequestError, TaskNotFound, Unavailable
from scheduler.explainer import Explainer
from scheduler.gateway import views
from scheduler.gateway.keyring import Keyring
from scheduler.gateway.pacing import paced
from scheduler.gateway.pressure import Pressure
from scheduler.gateway.problems import GatewayClosing, NoReplicas
from scheduler.gateway.submission import Options, check_vocabulary, decide, parse, texts_of
from scheduler.gateway.tokens import Counter
from scheduler.operations import Operations
from scheduler.task import Attempt, JournalChunk, Submission, Task, TaskEvent, TaskState
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: The one version of a model there is; TorchServe's clients may name it.
MODEL_VERSION = "1.0"
#: Texts longer than this are counted in a thread, so that other requests do not wait.
COUNT_INLINE_CHARS = 4000
#: Seconds the store has to show that it lives.
HEALTH_TIMEOUT_S = 5.0
#: Seconds until a cancellation that the store refused is tried again.
STORE_PAUSE_S = 0.5
_CHUNKS_A_READ = 1000
#: States in which a task waits.
_WAITING = frozenset({TaskState.QUEUED, TaskState.DELAYED, TaskState.PAUSED})


class Checks(Protocol):
    """Whoever looks for what has drifted."""

    def tallies(self) -> Sequence[Tally]:
        """Of every check, in the order in which they look."""
        ...

    async def look(self, *, is_whole: bool = False) -> Mapping[str, Sequence[Finding]]:
        """Have those look whose turn it is, or all at everything."""
        ...


class Front:
    """The gateway's side of the task book."""

    def __init__(
        self,
        book: TaskBook,
        operations: Operations,
        models: Mapping[str, ModelConfig],
        counters: Mapping[str, Counter],
        cluster: Cluster,
        clock: Clock,
        bulks: BulkBook,
        explainer: Explainer,
        checks: Checks,
        *,
        pressure: Pressure | None = None,
        containers: Containers | None = None,
        require_keys: bool = False,
    ) -> None:
        """``containers``: None where there are no providers of any."""
        self.book = book
        self.bulks, self.explainer, self.checks = bulks, explainer, checks
        self.operations = operations
        self.models = models
        self.cluster = cluster
        self.keyring = Keyring(operations, clock, is_required=require_keys)
        self.pressure = pressure
        self._containers = containers
        self._counters = counters
        self._clock = clock
        self._closing = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Front models={len(self.models)} leaving={len(self._leaving)}>"

    def containers(self) -> ContainersView:
        """Providers, and the containers there are."""
        return ContainersView() if self._containers is None else self._containers.view()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.now()

    def model(self, name: str, version: str = "") -> ModelConfig:
        """A model by its name.

        Raises:
            ModelNotFound: no such model, or no such version of it.
        """
        if (config := self.models.get(name)) is None:
            raise ModelNotFound(name, list(self.models))
        if version not in ("", MODEL_VERSION):
            message = f"model {name!r} has no version {version!r}; there is {MODEL_VERSION!r}"
            missing = ModelNotFound(name, list(self.models))
            missing.message, missing.field = message, "version"
            raise missing
        return config

    async def desired_replicas(self) -> dict[str, int]:
        """Replicas that should run, by model."""
        wishes = await self.operations.wishes()
        return {name: wishes.of(config) for name, config in self.models.items()}

    async def is_healthy(self) -> bool:
        """Whether work can be accepted: the store answers."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self.book.depth()
        except (Unavailable, TimeoutError):
            return False
        return True

    async def accept(
        self, config: ModelConfig, document: Mapping[str, Any], options: Options, tenant: str
    ) -> tuple[Task, bool]:
        """Make a task of a request; False: the idempotency key already had it.

        Raises:
            InvalidRequest: a field cannot be served as it is.
            IdempotencyConflict: the key belongs to another request.
            ClassNotAllowed: the tenant may not use the class.
            QuotaExceeded: the tenant has all it may have.
            Unavailable: not now; nothing was accepted, or the store does not know.
        """
        self.check_open()
        request = parse(document, config)
        counter = self._counters[config.name]
        check_vocabulary(request, counter.vocabulary_size)
        texts = texts_of(request)
        if sum(map(len, texts)) > COUNT_INLINE_CHARS:
            count = await asyncio.to_thread(counter.count, texts)
        else:
            count = counter.count(texts)
        seed = seed_of(tenant, options.idempotency_key)
        now = self._clock.now()
        submission = decide(request, config, count, options, tenant=tenant, seed=seed, now=now)
        await self.require_replicas(config.name)
        self.check_pressure(1)
        return await self.book.submit(submission)

    def submission(
        self,
        config: ModelConfig,
        document: Mapping[str, Any],
        options: Options,
        tenant: str,
        seed: int,
    ) -> Submission:
        """What a request would be accepted as; slow for long texts, and may run in a thread.

        Raises:
            InvalidRequest: a field cannot be served as it is.
        """
        request = parse(document, config)
        counter = self._counters[config.name]
        check_vocabulary(request, counter.vocabulary_size)
        count, now = counter.count(texts_of(request)), self._clock.now()
        return decide(request, config, count, options, tenant=tenant, seed=seed, now=now)

    def check_pressure(self, count: int) -> None:
        """Raises Overloaded when so many tasks more would be too many."""
        if self.pressure is not None:
            self.pressure.check(count)

    def check_open(self) -> None:
        """Raises GatewayClosing."""
        if self._closing.is_set():
            raise GatewayClosing("this gateway is closing; try again in a moment")

    @asynccontextmanager
    async def owned(
        self, config: ModelConfig, document: Mapping[str, Any], options: Options, tenant: str
    ) -> AsyncIterator[Task]:
        """Accept a task that lives no longer than this context, unless it has ended by then."""
        accepting = asyncio.ensure_future(self.accept(config, document, options, tenant))
        try:
            # Shielded: a client that leaves during the commit still owns what was committed.
            task, _ = await asyncio.shield(accepting)
            yield task
        except BaseException:
            if not _is_refused(accepting):
                self._let_go(accepting)
            raise

    async def follow(
        self, task_id: str, cursor: int = 0, heartbeat_s: float | None = None
    ) -> AsyncGenerator[TaskEvent | None, None]:
        """Events of a task up to "end"; None whenever ``heartbeat_s`` passed without one.

        Raises:
            GatewayClosing: the gateway stops; the task goes on.
        """
        events = paced(self.book.watch(task_id, cursor), self._closing, heartbeat_s)
        async with aclosing(events):
            async for event in events:
                if event and event.kind == "state" and event.task and event.task.state.is_final:
                    continue  # Chunks may still follow; "end" tells it after them.
                yield event

    def until_closing(
        self, items: AsyncIterator[T], heartbeat_s: float
    ) -> AsyncGenerator[T | None, None]:
        """The items as they come, as :func:`paced` gives them, until this gateway closes."""
        return paced(items, self._closing, heartbeat_s)

    async def detail(self, task: Task) -> dict[str, Any]:
        """All there is to tell about a task."""
        attempts = await self.book.attempts(task.id)
        chunks: list[JournalChunk] = []
        while page := await self.book.chunks(task.id, len(chunks), _CHUNKS_A_READ):
            chunks += page
        return views.detail(task, attempts, chunks)

    async def ended_attempt(self, event: TaskEvent) -> Attempt | None:
        """Why a task that had been worked on waits again, for who hears of it; None when it is no
        such event."""
        task = event.task
        if task is None or event.kind != "state" or task.state not in _WAITING or not task.attempt:
            return None
        attempts = await self.book.attempts(task.id)
        return next((each for each in attempts if each.number == task.attempt), None)

    def close(self) -> None:
        """Accept nothing new and end every stream; tasks whose clients then leave go on."""
        self._closing.set()

    async def wait_closed(self) -> None:
        """Wait until the cancellations of clients that left are on disk."""
        while self._leaving:
            await asyncio.gather(*self._leaving)

    async def require_replicas(self, model: str) -> None:
        """Raises NoReplicas; work for a model that scales from none is what starts one."""
        config, wishes = self.models[model], await self.operations.wishes()
        if wishes.of(config) == 0 and not wishes.is_automatic(config):
            raise NoReplicas(
                f"model {model!r} is scaled to 0 replicas, so nobody would serve the request; "
                f"an operator can change that with PUT /v1/models/{model}/replicas"
            )

    def _let_go(self, accepting: asyncio.Future[tuple[Task, bool]]) -> None:
        leaving = asyncio.create_task(self._cancel_abandoned(accepting))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _cancel_abandoned(self, accepting: asyncio.Future[tuple[Task, bool]]) -> None:
        try:
            task, is_new = await accepting
        except RequestError:
            return  # Refused after its client had left: nothing was accepted.
        except Unavailable as error:
            log.warning("abandoned_task_not_cancelled", error=str(error))
            return
        # A repeat with the same key only watches; the task belongs to who was first.
        while is_new and not self._closing.is_set():
            try:
                await self.book.cancel(task.id, reason="the client left")
            except TaskNotFound:
                return
            except Unavailable as error:
                log.warning("abandoned_task_not_cancelled", task_id=task.id, error=str(error))
                await asyncio.sleep(STORE_PAUSE_S)
            else:
                return


def seed_of(owner: str, key: str | None) -> int:
    """Drawn anew for each request, save that repeats under one key have to be the same request."""
    if key is None:
        return secrets.randbits(63)
    digest = hashlib.sha256(f"{owner}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _is_refused(accepting: asyncio.Future[Any]) -> bool:
    if not accepting.done() or accepting.cancelled():
        return accepting.cancelled()
    return accepting.exception() is not None
