"""Two tenants: one asks for a little now and then, the other ten times as often for more.

Requests are sent at fixed moments, whatever has come of the ones before, so that a slow service
builds up a queue. Every token's arrival is noted.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import aiohttp

from benchmarks.fairness.systems import Way

LIGHT, FLOOD = "light", "flood"


@dataclass(frozen=True, slots=True)
class Load:
    """What one tenant sends."""

    tenant: str
    every_s: float
    num_tokens: int


@dataclass(slots=True)
class Answer:
    """One request, in seconds since the start of the run."""

    tenant: str
    sent_s: float
    #: When tokens came, and how many at once.
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    is_complete: bool = False

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token; None: none came."""
        return self.arrivals[0][0] - self.sent_s if self.arrivals else None


async def run(way: Way, loads: dict[Load, tuple[float, float]], until_s: float) -> list[Answer]:
    """Send each load from one moment to another; what is open at the end is given up."""
    began = time.perf_counter()
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        senders = [
            asyncio.create_task(_send(session, way, load, *window, began, answers))
            for load, window in loads.items()
        ]
        await asyncio.sleep(until_s)
        open_requests = {task for task in asyncio.all_tasks() if task.get_name() == "request"}
        for task in [*senders, *open_requests]:
            task.cancel()
        await asyncio.gather(*senders, *open_requests, return_exceptions=True)
    return answers


async def _send(
    session: aiohttp.ClientSession,
    way: Way,
    load: Load,
    start_s: float,
    end_s: float,
    began: float,
    answers: list[Answer],
) -> None:
    asking: list[asyncio.Task[None]] = []
    for number in range(int((end_s - start_s) / load.every_s)):
        moment = start_s + number * load.every_s
        await asyncio.sleep(max(0.0, moment - (time.perf_counter() - began)))
        answer = Answer(load.tenant, time.perf_counter() - began)
        answers.append(answer)
        asking.append(
            asyncio.create_task(_ask(session, way, load, number, began, answer), name="request")
        )
    await asyncio.gather(*asking)


async def _ask(
    session: aiohttp.ClientSession, way: Way, load: Load, number: int, began: float, answer: Answer
) -> None:
    document = {
        "prompt": f"def {load.tenant}_{number}(self):\n",
        "max_new_tokens": load.num_tokens,
        "ignore_eos": True,
        **way.more,
    }
    timeout = aiohttp.ClientTimeout(total=None)
    headers = way.headers_of(load.tenant)
    async with session.post(way.url, json=document, headers=headers, timeout=timeout) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.strip():
                count = len(json.loads(line).get("token_ids", ()))
                if count:
                    answer.arrivals.append((time.perf_counter() - began, count))
    answer.is_complete = True
