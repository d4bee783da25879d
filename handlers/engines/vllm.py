"""Generates text with vLLM, where its package is installed.

It is an adapter: vLLM schedules, computes and draws, in processes of its own. Rank 0 holds its
``AsyncLLM`` and an event loop in a thread; the other ranks, which TorchServe starts so that a
worker owns its devices, have nothing to do. Of vLLM's tokens everything else is made as with the
other engines: text, stop strings, ends.

What differs from them:

- A sampled answer depends on its seed and on nothing else of ours: vLLM's noise is its own. A
  resumed one goes on with other noise than it would have had.
- vLLM knows no half answers, so tokens that are known already are given as part of the prompt.
  What counts or follows the answer only cannot go on from there: presence and frequency penalties
  and grammars. ``generated`` is refused beside those.
- How it computes is not fixed: what else is in a batch may change the last bits of logits.

When vLLM's engine dies, this process ends: the worker is started anew from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from handlers.engines import base
from handlers.engines._placeholder import Placeholder
from handlers.engines._text import TextModel, generation_of, sampling_of
from handlers.engines._vllm_library import Library, draws_of, own_environment, refusal
from handlers.engines.base import Answer, Place, Request, is_final
from handlers.model_config import ModelConfig
from handlers.outbox import Outbox
from handlers.pipeline import process
from handlers.pipeline.generation import Completion
from handlers.pipeline.sampling import check
from handlers.resumption import fields_in_the_way
from handlers.sources import resolve_source
from handlers.wire import BadRequest, Failure, Frame, GenerationRequest

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether vLLM's engine is alive.
_LOOK_EVERY_S: Final = 1.0
#: Seconds that closing waits for vLLM's processes.
_CLOSE_WITHIN_S: Final = 20.0


@dataclass(slots=True, eq=False)
class _Job:
    """One answer, as vLLM is asked for it."""

    index: int
    token_ids: list[int]
    params: Any


@dataclass(slots=True, eq=False)
class _Open:
    """A request that has not ended."""

    completion: Completion
    num_top: int | None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def drop_tasks(self) -> None:
        """In the event loop: vLLM aborts what nobody waits for any more."""
        for task in self.tasks:
            task.cancel()


class Engine(base.Engine):
    """vLLM's engine, as rank 0 asks it."""

    def __init__(self, config: ModelConfig, text: TextModel, library: Library) -> None:
        self._config, self._text, self._library = config, text, library
        self._outbox = Outbox()
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._closing = asyncio.Event()
        #: These two come with the thread.
        self._loop: Any = None
        self._llm: Any = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<vllm.Engine {self._config.name} open={len(self._open)} {self._outbox!r}>"

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> base.Engine:
        """Start vLLM's processes and wait until they have loaded the model.

        Raises:
            ValueError: vLLM is not installed, or the settings do not fit it or the model.
        """
        if place.rank > 0:
            return Placeholder()
        library = Library.load()
        model_dir = resolve_source(config)
        arguments = library.engine_args(config, model_dir)
        engine = cls(config, TextModel.read(config, model_dir), library)
        ready: Future[None] = Future()
        engine._thread = threading.Thread(
            target=engine._work, args=(arguments, ready), name="vllm", daemon=True
        )
        engine._thread.start()
        ready.result()
        return engine

    def submit(self, request_id: str, request: Request) -> None:
        wanted = generation_of(request)
        self._refuse_unresumable(wanted)
        prompt = self._text.tokenize(wanted)
        completion = Completion(wanted, prompt, self._text.limits, self._text.decode)
        check(sampling_of(wanted, 0), self._text.tokenizer)
        jobs = [
            self._job(wanted, index, prompt)
            for index in range(wanted.n)
            if not completion.has_ended(index)
        ]
        self._outbox.open(request_id)
        if completion.finish is not None:
            self._outbox.put(request_id, [completion.finish])
            return
        opened = _Open(completion, wanted.logprobs)
        with self._lock:
            self._open[request_id] = opened
        self._loop.call_soon_threadsafe(self._begin, request_id, opened, jobs)

    def cancel(self, request_id: str) -> None:
        with self._lock:
            opened = self._open.pop(request_id, None)
        self._outbox.drop(request_id)
        if opened is not None:
            self._loop.call_soon_threadsafe(opened.drop_tasks)

    def take(self, request_id: str) -> list[Answer]:
        return self._outbox.take(request_id)

    def wait(self, timeout_s: float) -> bool:
        return self._outbox.wait(timeout_s)

    def close(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_CLOSE_WITHIN_S)

    def _refuse_unresumable(self, request: GenerationRequest) -> None:
        in_the_way = fields_in_the_way(request, self._config)
        if in_the_way and any(request.generated_of(index) for index in range(request.n)):
            raise BadRequest(
                "generated", f"cannot be gone on from by engine vllm with {in_the_way[0]!r}"
            )

    def _job(self, request: GenerationRequest, index: int, prompt: Sequence[int]) -> _Job:
        params = self._library.sampling_params(request, index, len(prompt), self._text.limits)
        return _Job(index, [*prompt, *request.generated_of(index)], params)

    def _work(self, arguments: Any, ready: Future[None]) -> None:
        try:
            asyncio.run(self._live(arguments, ready))
        except Exception as error:  # noqa: BLE001  # `start` raises it again, or `end` logs it
            if not ready.done():
                ready.set_exception(error)
                return
            process.end(f"vllm broke: {type(error).__name__}: {error}")

    async def _live(self, arguments: Any, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        with own_environment():
            self._llm = self._library.AsyncLLM.from_engine_args(arguments)
        try:
            ready.set_result(None)
            while not self._closing.is_set():
                await self._llm.check_health()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _LOOK_EVERY_S)
        finally:
            await self._drop_all()
            self._llm.shutdown()

    async def _drop_all(self) -> None:
        with self._lock:
            tasks = [task for opened in self._open.values() for task in opened.tasks]
            self._open.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, request_id: str, opened: _Open, jobs: Sequence[_Job]) -> None:
        """In the event loop: ask for every answer, unless the request was cancelled already."""
        if self._open.get(request_id) is opened:
            works = (self._answer(request_id, opened, job) for job in jobs)
            opened.tasks = [self._loop.create_task(work) for work in works]

    async def _answer(self, request_id: str, opened: _Open, job: _Job) -> None:
        try:
            reason = await self._stream(request_id, opened, job)
            if not opened.completion.has_ended(job.index):
                failure = Failure(500, f"vllm ended an answer before its end: {reason}")
                self._fail(request_id, opened, failure)
        except self._library.EngineDeadError as error:
            process.end(f"vllm's engine died: {error}")
        except self._library.ClientError as error:
            refused = refusal(error)
            failure = Failure(refused.status, refused.message, refused.field)
            self._fail(request_id, opened, failure)
        except Exception as error:
            # Of this request only: the engine itself lives, or the next look at it will tell.
            logger.exception("request_failed request_id=%s", request_id)
            self._fail(request_id, opened, Failure(500, f"vllm: {type(error).__name__}: {error}"))

    async def _stream(self, request_id: str, opened: _Open, job: _Job) -> str | None:
        """Take an answer's tokens until it ends; returns why vLLM ended it, if it did."""
        prompt = self._library.TokensPrompt(prompt_token_ids=job.token_ids)
        name = f"{request_id}-{job.index}-{next(self._numbers)}"
        outputs = self._llm.generate(prompt, job.params, name)
        reason: str | None = None
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                for part in output.outputs:
                    self._take(request_id, opened, job.index, part)
                    reason = part.finish_reason
                if opened.completion.has_ended(job.index):
                    break
        return reason

    def _take(self, request_id: str, opened: _Open, index: int, part: Any) -> None:
        news: list[Frame] = []
        for draw in draws_of(part, opened.num_top):
            if opened.completion.has_ended(index):
                break
            news += opened.completion.add(index, draw)
        self._emit(request_id, opened, news)

    def _fail(self, request_id: str, opened: _Open, failure: Failure) -> None:
        self._emit(request_id, opened, [failure])
        opened.drop_tasks()

    def _emit(self, request_id: str, opened: _Open, news: Sequence[Frame]) -> None:
        """Hand over news, unless the request was cancelled: its id may be another's by now."""
        with self._lock:
            if self._open.get(request_id) is opened:
                if news and is_final(news[-1]):
                    del self._open[request_id]
                self._outbox.put(request_id, news)
