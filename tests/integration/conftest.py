"""A gateway with a played runner behind it, for the tests of what it speaks; PostgreSQL stores."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from scheduler.stores.postgres import Store
from tests.integration.gateway_system import GatewaySystem


@pytest_asyncio.fixture
async def system() -> AsyncIterator[GatewaySystem]:
    running = GatewaySystem()
    await running.open()
    yield running
    assert running.runner is not None
    await running.runner.close()
    await running.close()


@pytest_asyncio.fixture
async def http(system: GatewaySystem) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(system.url) as session:
        yield session


@pytest_asyncio.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    """A control plane's store on PostgreSQL."""
    opened = Store(postgres_url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def rival(postgres_url: str) -> AsyncIterator[Store]:
    """A second control plane's store on the same database."""
    opened = Store(postgres_url)
    yield opened
    await opened.close()
