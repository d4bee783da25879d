"""Runners that show what lets them join, and those that do not."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from scheduler import join_token
from scheduler.clock import ManualClock
from scheduler.fair_queue import FairQueue
from scheduler.gateway.keyring import Keyring
from scheduler.keys import Role
from scheduler.ledger import Ledger
from scheduler.operations import Operations
from scheduler.policies import virtual_time
from scheduler.stores.sqlite import MEMORY, Store
from tests.integration.dispatcher_system import Control, Stream, control_plane, heartbeat, hello
from tests.waiting import until

Admit = Callable[[str | None], Awaitable[None]]


class Tokens:
    """A control plane's keys, where they are required."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        store = Store(MEMORY)
        queue = FairQueue(virtual_time.Policy())
        self.operations = Operations(Ledger(store, self.clock), queue)
        self.ring = Keyring(self.operations, self.clock, is_required=True)


def connect(control: Control, token: str | None) -> Stream:
    shown = None if token is None else (("authorization", f"Bearer {token}"),)
    return Stream(control.stub.Connect(metadata=shown))


async def refusal(control: Control, token: str | None) -> grpc.aio.AioRpcError:
    stream = connect(control, token)
    await stream.say(hello())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.end()
    return caught.value


async def test_a_runner_without_a_token_is_refused_and_told_how_to_get_one(free_port: int) -> None:
    tokens = Tokens()
    async with control_plane(free_port, admit=tokens.ring.admit_runner) as control:
        error = await refusal(control, None)

        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "PLAIT_JOIN_TOKEN" in (error.details() or "")
        assert control.dispatcher.nodes() == []


async def test_a_tenant_s_key_lets_no_runner_join(free_port: int) -> None:
    tokens = Tokens()
    _, key = await tokens.operations.create_key("red", Role.TENANT)
    async with control_plane(free_port, admit=tokens.ring.admit_runner) as control:
        assert (await refusal(control, key)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_runner_whose_token_is_revoked_is_sent_away_and_not_let_in_again(
    free_port: int,
) -> None:
    tokens = Tokens()
    key, token = await tokens.operations.create_key(join_token.NOBODY, Role.NODE)
    async with control_plane(free_port, admit=tokens.ring.admit_runner) as control:
        stream = connect(control, token)
        await stream.say(hello())
        await stream.hear("welcome")

        await tokens.operations.revoke_key(key.id)
        tokens.clock.advance(2)
        await stream.say(heartbeat())

        await stream.end()
        assert await until(control.dispatcher.nodes, lambda nodes: not nodes[0].connected)
        assert (await refusal(control, token)).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_that_has_run_out_lets_nobody_join(free_port: int) -> None:
    tokens = Tokens()
    _, token = await tokens.operations.create_key(join_token.NOBODY, Role.NODE, expires_in_s=60.0)
    tokens.clock.advance(60)
    async with control_plane(free_port, admit=tokens.ring.admit_runner) as control:
        assert (await refusal(control, token)).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_machine_s_own_token_is_its_owner_s_alone_and_made_anew_once_it_is_revoked(
    tmp_path: Path,
) -> None:
    tokens = Tokens()

    await join_token.keep(tokens.operations, tmp_path)
    first = join_token.read(tmp_path)
    await join_token.keep(tokens.operations, tmp_path)
    assert join_token.read(tmp_path) == first
    assert stat.S_IMODE((tmp_path / join_token.FILE).stat().st_mode) == 0o600

    (key,) = await tokens.operations.keys(join_token.NOBODY)
    await tokens.operations.revoke_key(key.id)
    await join_token.keep(tokens.operations, tmp_path)

    assert join_token.read(tmp_path) not in ("", first)
