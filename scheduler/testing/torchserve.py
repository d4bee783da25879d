"""A double of TorchServe: its inference and management ports, answering as the real one does.

It serves one model that counts, for any archive of the store, and needs no Java and no torch. The
contract test for TorchServe's clients runs against this and against the real one. What it knows
beyond the usual answers are the ways TorchServe fails: a dead worker resets the connections that
had an answer begun and tells the others 500; what waits is served after the restart; a client that
left is noticed at the next step.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from handlers.wire import Chunk, Finish, Frame, TokenLogprob, encode_frame
from scheduler.torchserve import process
from scheduler.torchserve.process import Ports


@dataclass(slots=True)
class _Model:
    name: str
    url: str
    status: str = "UNLOADING"
    has_worker: bool = True
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    #: Requests that are being answered; each is set to None when the worker dies.
    running: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    loading: asyncio.Task[None] | None = None
    device_ids: list[int] | None = None
    #: Whether its worker says READY and answers nobody.
    is_zombie: bool = False


class FakeTorchServe:
    """Start it with :meth:`start`; clients find it through the files in the state folder."""

    def __init__(
        self, state: Path, store: Path, *, load_s: float = 0.05, step_s: float = 0.005
    ) -> None:
        self.state = state
        self.store = store
        self.load_s = load_s
        self.step_s = step_s
        #: Requests whose client left before the end.
        self.num_abandoned = 0
        self.models: dict[str, _Model] = {}
        self._keys: dict[str, str] = {}
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        """Listen, and write the ports and keys where clients look."""
        inference, management = web.Application(), web.Application()
        inference.router.add_post("/predictions/{model}", self._predict)
        management.router.add_get("/models", self._list)
        management.router.add_post("/models", self._register)
        management.router.add_get("/models/{model}", self._describe)
        management.router.add_put("/models/{model}", self._scale)
        management.router.add_delete("/models/{model}", self._unregister)
        management.router.add_get("/token", self._renew)
        ports = [await self._listen(app) for app in (inference, management)]
        home = process.folder(self.state)
        home.mkdir(parents=True, exist_ok=True)
        document = dict.fromkeys(Ports.__dataclass_fields__, 0)
        document |= {"inference": ports[0], "management": ports[1]}
        (home / process.ENDPOINTS_FILE).write_text(json.dumps(document))
        self._keys = {name: secrets.token_urlsafe(6) for name in ("inference", "management", "API")}
        self._write_keys(timedelta(hours=1))

    async def stop(self) -> None:
        """Stop listening; every worker is gone."""
        for name in list(self.models):
            self._remove(name)
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    def kill_worker(self, name: str) -> None:
        """What ``kill -9`` of a worker does: its requests fail, and it is started again."""
        model = self.models[name]
        for task in model.running.values():
            task.cancel("Worker died.")
        self._load(model)

    def give_up_worker(self, name: str) -> None:
        """What TorchServe does when a worker has died too often: it is listed, and never started
        again."""
        self._stop_worker(self.models[name])

    def leak_worker(self, name: str) -> None:
        """What ``min_worker=0`` with more allowed does: the worker is not listed any more."""
        self.models[name].has_worker = False

    def become_zombie(self, name: str) -> None:
        """What an exception in a worker thread's clean-up does: it is listed as READY for ever, and
        no request is answered."""
        self.models[name].is_zombie = True

    def num_running(self, name: str) -> int:
        """Requests the replica works on."""
        return len(self.models[name].running) if name in self.models else 0

    def chunk(self, document: Mapping[str, Any], position: int, index: int) -> Chunk:
        """What the model says at a position of an answer: here, it counts."""
        likely = (TokenLogprob(-0.5, ((position, -0.5),)),) if "logprobs" in document else ()
        return Chunk((position,), f"{position} ", index, likely)

    def unregistering(self, name: str, num_running: int) -> None:
        """A client of the management API takes a replica away that works on so many requests."""

    def expire_keys(self) -> None:
        """Make the keys look as if they were about to expire."""
        self._write_keys(timedelta(seconds=30))

    def replace_keys(self) -> None:
        """New keys, as after a renewal by somebody else."""
        for name in ("inference", "management"):
            self._keys[name] = secrets.token_urlsafe(6)
        self._write_keys(timedelta(hours=1))

    async def _listen(self, app: web.Application) -> int:
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._runners.append(runner)
        return int(runner.addresses[0][1])

    def _write_keys(self, lifetime: timedelta) -> None:
        # Nine digits of fraction, as Java writes them.
        expires = (datetime.now(UTC) + lifetime).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        document: dict[str, dict[str, str]] = {
            name: {"key": self._keys[name], "expiration time": expires}
            for name in ("management", "inference")
        }
        document["API"] = {"key": self._keys["API"]}
        path = process.folder(self.state) / process.KEY_FILE
        path.write_text(json.dumps(document, indent=2))

    # -- management

    def _check_key(self, request: web.Request, key: str) -> None:
        if request.headers.get("Authorization") != f"Bearer {self._keys[key]}":
            message = "Token Authorization failed. Token either incorrect, expired, or not provided"
            raise web.HTTPBadRequest(**_error(400, "InvalidKeyException", message))

    def _find(self, request: web.Request) -> _Model:
        name = request.match_info["model"]
        if name not in self.models:
            raise web.HTTPNotFound(
                **_error(404, "ModelNotFoundException", f"Model not found: {name}")
            )
        return self.models[name]

    async def _list(self, request: web.Request) -> web.Response:
        self._check_key(request, "management")
        start = int(request.query.get("next_page_token", "0"))
        end = start + int(request.query.get("limit", "100"))
        names = sorted(self.models)
        page: dict[str, Any] = {
            "models": [{"modelName": n, "modelUrl": self.models[n].url} for n in names[start:end]]
        }
        if end < len(names):
            page["nextPageToken"] = str(end)
        return web.json_response(page)

    async def _register(self, request: web.Request) -> web.Response:
        self._check_key(request, "management")
        url, name = request.query["url"], request.query["model_name"]
        if name in self.models:
            message = f"Model version 1.0 is already registered for model {name}"
            raise web.HTTPConflict(**_error(409, "ConflictStatusException", message))
        if not (self.store / url / "MAR-INF" / "MANIFEST.json").is_file():
            message = f"Model not found at: {url}"
            raise web.HTTPNotFound(**_error(404, "ModelNotFoundException", message))
        model = self.models[name] = _Model(name, url)
        self._load(model)
        return web.json_response({"status": "Processing worker updates..."}, status=202)

    async def _describe(self, request: web.Request) -> web.Response:
        self._check_key(request, "management")
        model = self._find(request)
        workers = [{"id": "9000", "status": model.status, "pid": 1}] if model.has_worker else []
        description: dict[str, Any] = {
            "modelName": model.name,
            "modelVersion": "1.0",
            "modelUrl": model.url,
            "minWorkers": int(model.has_worker),
            "maxWorkers": int(model.has_worker),
            "workers": workers,
            "jobQueueStatus": {"remainingCapacity": 64, "pendingRequests": 0},
        }
        if model.device_ids is not None:
            description["deviceIds"] = model.device_ids
        return web.json_response([description])

    async def _scale(self, request: web.Request) -> web.Response:
        self._check_key(request, "management")
        model = self._find(request)
        model.has_worker = int(request.query["max_worker"]) > 0
        if not model.has_worker:
            self._stop_worker(model)
        elif model.loading is None:
            self._load(model)
        return web.json_response({"status": "Processing worker updates..."}, status=202)

    async def _unregister(self, request: web.Request) -> web.Response:
        self._check_key(request, "management")
        name = self._find(request).name
        self.unregistering(name, self.num_running(name))
        self._remove(name)
        return web.json_response({"status": f'Model "{name}" unregistered'})

    async def _renew(self, request: web.Request) -> web.Response:
        self._check_key(request, "API")
        self._keys[request.query["type"]] = secrets.token_urlsafe(6)
        self._write_keys(timedelta(hours=1))
        return web.Response(text="\n", content_type="application/json")

    def _remove(self, name: str) -> None:
        self._stop_worker(self.models.pop(name))

    def _stop_worker(self, model: _Model) -> None:
        model.status = "UNLOADING"
        model.ready.clear()
        if model.loading is not None:
            model.loading.cancel()
            model.loading = None
        for task in model.running.values():
            task.cancel("Worker died.")

    def _load(self, model: _Model) -> None:
        async def load() -> None:
            await asyncio.sleep(self.load_s)
            model.status = "READY"
            model.ready.set()

        if model.loading is not None:
            model.loading.cancel()
        model.status = "UNLOADING"
        model.ready.clear()
        model.loading = asyncio.create_task(load())

    # -- inference

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request, "inference")
        model = self._find(request)
        if not model.has_worker:
            message = f'Model "{model.name}" has no worker to serve inference request.'
            raise web.HTTPServiceUnavailable(**_error(503, "ServiceUnavailableException", message))
        document = json.loads(await request.read())
        await model.ready.wait()
        response = web.StreamResponse(headers={"ts_stream_next": "true"})
        key = secrets.token_hex(4)
        answering = asyncio.ensure_future(self._answer(request, response, model, document))
        model.running[key] = answering
        try:
            return await asyncio.shield(answering)
        except asyncio.CancelledError:
            if not answering.cancelled():  # the client has gone, not the worker
                self.num_abandoned += 1
                answering.cancel()
                raise
        finally:
            model.running.pop(key, None)
        if response.prepared and request.transport is not None:
            _reset(request.transport)
            return response
        raise web.HTTPInternalServerError(**_error(500, "InternalServerException", "Worker died."))

    async def _answer(
        self,
        request: web.Request,
        response: web.StreamResponse,
        model: _Model,
        document: dict[str, Any],
    ) -> web.StreamResponse:
        if model.is_zombie:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.step_s)
        if "input" in document:
            answer = {"embeddings": [[1.0, 2.0] for _ in document["input"]]}
            return web.json_response(answer | {"num_live": len(model.running)})
        if document["prompt"] == "refuse":
            failure = {"status": 422, "message": "not this", "field": "prompt"}
            return web.Response(text=json.dumps(failure), status=422)
        starts, end = _starts(document), document["max_new_tokens"]
        for position in range(min(starts), end):
            if document["prompt"] == "die" and not any(starts) and position == 3:
                self.kill_worker(model.name)
                await asyncio.sleep(0)
            for index, start in enumerate(starts):
                if start <= position:
                    await self._write(request, response, self.chunk(document, position, index))
            await asyncio.sleep(self.step_s)
        reasons = ("length",) * len(starts) if len(starts) > 1 else ()
        num_tokens = sum(max(start, end) for start in starts)
        await self._write(request, response, Finish("length", 1, num_tokens, reasons))
        await response.write_eof()
        return response

    async def _write(
        self, request: web.Request, response: web.StreamResponse, frame: Frame
    ) -> None:
        if not response.prepared:
            await response.prepare(request)
        await response.write(encode_frame(frame).encode())


def _starts(document: dict[str, Any]) -> list[int]:
    """How many tokens each answer has already."""
    given, num_answers = document.get("generated", []), document.get("n", 1)
    if num_answers == 1:
        return [len(given)]
    return [len(answer) for answer in given or [[]] * num_answers]


def _reset(transport: asyncio.Transport) -> None:
    """Close as TorchServe does: lingering for no time, which sends a reset."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _error(code: int, kind: str, message: str) -> dict[str, Any]:
    """TorchServe's own error body, over several lines as it writes it."""
    document = {"code": code, "type": kind, "message": message}
    return {"text": json.dumps(document, indent=2), "content_type": "application/json"}
