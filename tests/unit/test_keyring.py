"""Who a caller is by the key it shows, and for how long a key is remembered."""

from __future__ import annotations

from typing import Any, cast

import pytest

from scheduler.clock import ManualClock
from scheduler.errors import InvalidRequest, NotPermitted, Unauthenticated
from scheduler.gateway.keyring import REMEMBERED_S, Caller, Keyring
from scheduler.keys import Key, Role

TENANT = Key("abcdefghijkl", "red", Role.TENANT, "", 0.0)
OPERATOR = Key("mnopqrstuvwx", "ops", Role.OPERATOR, "", 0.0)
TOKEN = Key("yzabcdefghij", "nodes", Role.NODE, "", 0.0)


class Keys:
    """Operators' data with one valid key, which counts how often it is asked."""

    def __init__(self) -> None:
        self.valid: dict[str, Key] = {"plait_red": TENANT}
        self.num_asked = 0

    async def authenticate(self, text: str) -> Key | None:
        self.num_asked += 1
        return self.valid.get(text)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ring(keys: Keys, clock: ManualClock) -> Keyring:
    return Keyring(cast(Any, keys), clock, is_required=False)


async def test_a_key_is_looked_up_once_a_second(
    ring: Keyring, keys: Keys, clock: ManualClock
) -> None:
    for _ in range(5):
        assert (await ring.identify("Bearer plait_red")).key is TENANT
    asked_at_first = keys.num_asked
    clock.advance(REMEMBERED_S)
    await ring.identify("bearer plait_red")

    assert (asked_at_first, keys.num_asked) == (1, 2)


async def test_a_revoked_key_is_refused_once_it_is_no_longer_remembered(
    ring: Keyring, keys: Keys, clock: ManualClock
) -> None:
    await ring.identify("Bearer plait_red")
    keys.valid.clear()
    clock.advance(REMEMBERED_S)

    with pytest.raises(Unauthenticated):
        await ring.identify("Bearer plait_red")


async def test_a_wrong_key_is_not_remembered(ring: Keyring, keys: Keys) -> None:
    with pytest.raises(Unauthenticated):
        await ring.identify("Bearer plait_blue")
    keys.valid["plait_blue"] = OPERATOR

    assert (await ring.identify("Bearer plait_blue")).key is OPERATOR


async def test_nothing_that_is_kept_or_said_holds_a_key(ring: Keyring) -> None:
    await ring.identify("Bearer plait_red")

    with pytest.raises(Unauthenticated) as caught:
        await ring.identify("Bearer plait_secret")

    assert "plait_red" not in f"{vars(ring)!r}"
    assert "plait_secret" not in f"{caught.value} {vars(caught.value)}"


@pytest.mark.parametrize("shown", [None, "", "Basic dTpw", "Bearer other", "plait_red"])
async def test_what_is_no_key_of_ours_is_nobody(ring: Keyring, shown: str | None) -> None:
    assert (await ring.identify(shown)).key is None


def test_without_a_key_a_caller_is_whoever_it_says_it_is() -> None:
    assert Caller(None).tenant("blue", "field") == "blue"
    assert Caller(None).tenant(None, "field") == "default"
    Caller(None).require_operator()


def test_a_tenant_s_key_is_its_tenant_s() -> None:
    caller = Caller(TENANT)

    assert caller.tenant(None, "field") == caller.tenant("red", "field") == "red"
    with pytest.raises(NotPermitted, match="blue"):
        caller.tenant("blue", "field")
    with pytest.raises(NotPermitted, match="operator"):
        caller.require_operator()


def test_an_operator_s_key_is_everybody_s() -> None:
    caller = Caller(OPERATOR)

    assert caller.tenant(None, "field") == "ops"
    assert caller.tenant("blue", "field") == "blue"
    caller.require_operator()
    with pytest.raises(InvalidRequest):
        caller.tenant("no tenant", "field")


def test_where_keys_are_required_who_shows_none_is_refused() -> None:
    caller = Caller(None, is_key_required=True)

    with pytest.raises(Unauthenticated):
        caller.require_key()
    with pytest.raises(Unauthenticated):
        caller.require_operator()


# -- runners


async def test_a_join_token_lets_a_runner_join_and_opens_nothing_else(
    ring: Keyring, keys: Keys
) -> None:
    keys.valid["plait_node"] = TOKEN

    await ring.admit_runner("Bearer plait_node")

    with pytest.raises(NotPermitted, match="join token"):
        await ring.identify("Bearer plait_node")


async def test_no_other_key_lets_a_runner_join(ring: Keyring) -> None:
    with pytest.raises(NotPermitted, match="no join token"):
        await ring.admit_runner("Bearer plait_red")


@pytest.mark.parametrize(("is_required", "allowed"), [(False, True), (True, False)])
async def test_a_runner_needs_a_token_where_keys_are_required(
    keys: Keys, clock: ManualClock, is_required: bool, allowed: bool
) -> None:
    ring = Keyring(cast(Any, keys), clock, is_required=is_required)

    if allowed:
        await ring.admit_runner(None)
    else:
        with pytest.raises(Unauthenticated, match="plait nodes token create"):
            await ring.admit_runner(None)
