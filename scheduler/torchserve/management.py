"""Registers, describes and removes replicas through TorchServe's management port.

TorchServe is asked to work asynchronously and its state is polled: a synchronous call blocks a
thread that it shares with inference for as long as a model loads. It is never asked for
``min_worker=0`` with more workers allowed (the worker leaks), nor for a customized description
(which livelocks a continuously batched model). What its answers claim is not believed; what
:meth:`Management.describe` shows is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from scheduler.clock import Clock
from scheduler.errors import PlaitError, Unavailable
from scheduler.torchserve.endpoint import Endpoint, KeyName
from scheduler.torchserve.process import sweep_replica

_TIMEOUT_S: Final = 15.0
#: Registering reads the archive and makes its links before it answers.
_REGISTER_TIMEOUT_S: Final = 120.0
#: Keys are renewed when they have less than this left of their hour.
_RENEW_BEFORE_S: Final = 900.0
_PAGE: Final = 100


class ManagementError(PlaitError):
    """TorchServe refused; ``code`` is its HTTP status."""

    status = 502

    def __init__(self, what: str, code: int, message: str) -> None:
        super().__init__(f"TorchServe refused to {what}: {message} (HTTP {code})")
        self.code = code


class Unreachable(Unavailable):
    """TorchServe did not answer; whether it did what it was asked is unknown."""


@dataclass(frozen=True, slots=True)
class Description:
    """A registered model, as TorchServe describes it."""

    name: str
    #: State of each worker: "READY", or "UNLOADING" for one that starts, is dead or given up.
    workers: tuple[str, ...]
    #: Devices it was registered with; empty: none of its own.
    device_ids: tuple[int, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether it has its one worker, and that has loaded the model."""
        return self.workers == ("READY",)


class Management:
    """TorchServe's management port. Every call raises Unreachable when there is no answer, and
    NotRunning when TorchServe has not been started."""

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    def start_id(self) -> tuple[int, int] | None:
        """Differs from one start of TorchServe to the next; None: it was never started."""
        return self._endpoint.start_id()

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def names(self) -> list[str]:
        """Every registered model."""
        names: list[str] = []
        token = "0"
        while token:
            query = {"limit": str(_PAGE), "next_page_token": token}
            code, document = await self._call("GET", "/models", query)
            page = _expect("list models", code, document, 200)
            names += [model["modelName"] for model in page["models"]]
            token = page.get("nextPageToken", "")
        return names

    async def describe(self, name: str) -> Description | None:
        """The model, or None when there is none of that name."""
        code, document = await self._call("GET", f"/models/{name}")
        if code == 404:
            return None
        [model] = _expect(f"describe {name}", code, document, 200)
        workers = tuple(worker["status"] for worker in model.get("workers", ()))
        return Description(name, workers, tuple(model.get("deviceIds") or ()))

    async def register(self, name: str, archive: str) -> None:
        """Register an archive of the model store under a name and start its one worker.

        Returns at once, and also when the name is taken; poll :meth:`describe`.

        Raises:
            ManagementError: the archive is not there, or is none.
        """
        query = {
            "url": archive,
            "model_name": name,
            "initial_workers": "1",
            "synchronous": "false",
        }
        code, document = await self._call("POST", "/models", query, timeout_s=_REGISTER_TIMEOUT_S)
        _expect(f"register {name}", code, document, 200, 202, 409)

    async def unregister(self, name: str) -> None:
        """Kill the worker and forget the model; nothing happens when there is none."""
        code, document = await self._call("DELETE", f"/models/{name}")
        _expect(f"unregister {name}", code, document, 200, 202, 404)

    async def scale(self, name: str, num_workers: int) -> None:
        """Ask for exactly ``num_workers``, 0 or 1; those that go are killed at once."""
        query = {
            "min_worker": str(num_workers),
            "max_worker": str(num_workers),
            "synchronous": "false",
        }
        code, document = await self._call("PUT", f"/models/{name}", query)
        _expect(f"scale {name}", code, document, 200, 202)

    async def kill_leftovers(self, name: str) -> list[int]:
        """Kill the workers of a model that is not registered; their process ids.

        TorchServe loses count of a worker when it is asked for ``min_worker=0`` with more allowed,
        and may leave ranks behind when it kills a group: they hold their devices for ever.
        """
        return await asyncio.to_thread(sweep_replica, self._endpoint.state, name)

    async def renew_keys(self) -> bool:
        """Have TorchServe make new keys for those that expire soon; whether it made any."""
        renewed = False
        names: Sequence[KeyName] = ("inference", "management")
        for name in names:
            if self._endpoint.expires_at(name) - self._clock.now() < _RENEW_BEFORE_S:
                code, document = await self._call("GET", "/token", {"type": name}, key="API")
                _expect(f"renew the {name} key", code, document, 200)
                renewed = True
        return renewed

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        key: KeyName = "management",
        timeout_s: float = _TIMEOUT_S,
    ) -> tuple[int, Any]:
        code, document = await self._send(method, path, query, key, timeout_s)
        if code == 400 and _type(document) == "InvalidKeyException":
            self._endpoint.forget()
            code, document = await self._send(method, path, query, key, timeout_s)
        return code, document

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        key: KeyName,
        timeout_s: float,
    ) -> tuple[int, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        try:
            async with self._session.request(
                method,
                self._endpoint.url("management") + path,
                params=query,
                headers=self._endpoint.headers(key),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                return response.status, _decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = str(error) or type(error).__name__
            raise Unreachable(f"TorchServe did not answer {method} {path}: {what}") from error


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body) if body.strip() else {}
    except ValueError:
        return {"message": body.decode("utf-8", "replace")[:300]}


def _type(document: Any) -> str:
    return str(document.get("type", "")) if isinstance(document, dict) else ""


def _expect(what: str, code: int, document: Any, *allowed: int) -> Any:
    if code not in allowed:
        message = document.get("message", "") if isinstance(document, dict) else str(document)
        raise ManagementError(what, code, str(message) or "no reason given")
    return document
