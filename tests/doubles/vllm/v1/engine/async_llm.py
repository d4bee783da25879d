"""The engine's front: requests in, streams of outputs back, in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from vllm.engine_args import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.core import Core, Request
from vllm.v1.engine.exceptions import EngineDeadError

#: Steps between two looks of the consumers: their deltas have up to so many tokens.
STEPS_AT_ONCE = 2


class Collector:
    """What one consumer has not taken yet; deltas become one meanwhile."""

    def __init__(self, request: Request, name: str) -> None:
        self.request, self.name = request, name
        self.output: RequestOutput | Exception | None = None
        self.ready = asyncio.Event()

    def put(self, output: RequestOutput | Exception) -> None:
        if isinstance(self.output, RequestOutput) and isinstance(output, RequestOutput):
            self.output.add(output)
        else:
            self.output = output
        self.ready.set()

    async def get(self) -> RequestOutput:
        await self.ready.wait()
        self.ready.clear()
        output, self.output = self.output, None
        if isinstance(output, Exception):
            raise output
        assert output is not None
        return output


class AsyncLLM:
    def __init__(self, engine_args: AsyncEngineArgs) -> None:
        self.core = Core(engine_args)
        self.is_dead = False
        self.aborted: list[str] = []
        self.open: list[Collector] = []
        self._handler: asyncio.Task[None] | None = None

    @classmethod
    def from_engine_args(
        cls, engine_args: AsyncEngineArgs, start_engine_loop: bool = True
    ) -> AsyncLLM:
        return cls(engine_args)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        if self.is_dead:
            raise EngineDeadError
        assert sampling_params.output_kind is RequestOutputKind.DELTA, "the double knows no other"
        collector = Collector(self._request(prompt, sampling_params), request_id)
        self.open.append(collector)
        if self._handler is None:
            self._handler = asyncio.create_task(self._run())
        try:
            finished = False
            while not finished:
                output = await collector.get()
                finished = output.finished
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
        finally:
            if collector in self.open:
                self.open.remove(collector)

    async def check_health(self) -> None:
        if self.is_dead:
            raise EngineDeadError

    def shutdown(self, timeout: float | None = None) -> None:
        if self._handler is not None:
            self._handler.cancel()

    def die(self) -> None:
        """The double's own, for any thread: the engine's process is killed."""
        self.is_dead = True

    def _request(self, prompt: Any, params: SamplingParams) -> Request:
        token_ids, most = prompt["prompt_token_ids"], self.core.args.max_model_len
        if most is not None and len(token_ids) >= most:
            raise VLLMValidationError(f"The decoder prompt (length {len(token_ids)}) is too long")
        return Request(self.core, token_ids, params)

    async def _run(self) -> None:
        while not self.is_dead:
            for _ in range(STEPS_AT_ONCE):
                for collector in list(self.open):
                    if collector.request.finish_reason is None:
                        collector.put(_advance(collector))
            await asyncio.sleep(0 if self.open else 0.001)
        for collector in self.open:
            collector.put(EngineDeadError())


def _advance(collector: Collector) -> RequestOutput:
    request = collector.request
    token_id, logprobs = request.step()
    listed = None if logprobs is None else [logprobs]
    reason = request.finish_reason
    part = CompletionOutput(0, "", [token_id], None, listed, reason, request.stop_reason)
    return RequestOutput(collector.name, None, None, [part], reason is not None)
