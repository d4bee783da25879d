"""What every provider promises: one suite over every file of scheduler/providers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import scheduler.providers
from scheduler import plugins
from scheduler.provider_config import open_provider
from scheduler.providers import base
from scheduler.providers.base import (
    Container,
    ContainerState,
    Provider,
    ProviderConfig,
    ProviderLimited,
    ProviderNotFound,
    ProviderRefused,
    ProviderUnavailable,
    Surroundings,
)
from tests.provider_doubles import TOKEN, Api, Kubernetes, Salad
from tests.waiting import until

#: A process that does nothing, until it is told to end.
IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
SALAD = {"organization": "acme", "project": "serving", "container_group": "plait-node"}


class Subject:
    """A provider, and what of its world a test may move."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder = kind, folder
        self.api: Any = None
        name = kind.split()[0]
        self.settings: dict[str, Any] = {"command": IDLE}
        secrets = {}
        if name == "kubernetes":
            self.api = Kubernetes(kind.split()[1])
            self.settings = {"workload": f"{self.api.kind}/plait-node", "namespace": "serving"}
            secrets = {"token": TOKEN}
        elif name == "salad":
            self.api = Salad()
            self.settings = dict(SALAD)
            secrets = {"api_key": TOKEN}
        self.config = ProviderConfig("here", name, 9, settings=self.settings, secrets=secrets)
        self.provider: Provider

    async def open(self) -> None:
        if isinstance(self.api, Api):
            await self.api.start()
            key = "server" if self.kind.startswith("kubernetes") else "url"
            self.settings[key] = self.api.url
        self.provider = open_provider(self.config, Surroundings(self._folder, dict(os.environ)))

    async def close(self) -> None:
        await self.provider.close()
        if self.api is not None:
            await self.api.stop()

    def again(self) -> Provider:
        """The provider as a control plane that was started anew has it."""
        return open_provider(self.config, Surroundings(self._folder, dict(os.environ)))

    async def up(self, count: int) -> Sequence[Container]:
        """Have so many containers, and wait until they run."""
        for number in range(1, count + 1):
            await self.provider.create(f"here-{number}-1", number)
        if self.api is not None:
            self.api.come_up()
        return await until(self.provider.containers, lambda all_: running(all_) == count)

    def lose(self, container: Container) -> None:
        if self.api is not None:
            self.api.lose(container.id)
        else:
            os.kill(int(container.incarnation), signal.SIGKILL)


def running(containers: Sequence[Container]) -> int:
    return sum(each.state is ContainerState.RUNNING for each in containers)


REMOTE = ("kubernetes deployment", "kubernetes statefulset", "salad")
KINDS = ("local", *REMOTE)


def test_every_provider_is_under_this_contract() -> None:
    assert set(plugins.names(scheduler.providers)) == {kind.split()[0] for kind in KINDS}


@pytest_asyncio.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    opened = Subject(request.param, tmp_path / "containers")
    await opened.open()
    yield opened
    await opened.close()


@pytest_asyncio.fixture(params=REMOTE)
async def remote(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    opened = Subject(request.param, tmp_path / "containers")
    await opened.open()
    yield opened
    await opened.close()


async def test_there_are_none_at_first(subject: Subject) -> None:
    assert list(await subject.provider.containers()) == []


async def test_what_was_created_comes_to_run(subject: Subject) -> None:
    containers = await subject.up(2)

    assert len({each.id for each in containers}) == 2
    assert all(each.incarnation for each in containers)


async def test_a_key_that_comes_twice_creates_one(subject: Subject) -> None:
    await subject.up(1)

    await subject.provider.create("here-1-1", 1)

    assert len(await subject.provider.containers()) == 1


async def test_a_restarted_control_plane_finds_what_there_is_and_creates_it_not_again(
    subject: Subject,
) -> None:
    (before,) = await subject.up(1)
    again = subject.again()

    await again.create("here-1-1", 1)

    assert [each.id for each in await again.containers()] == [before.id]
    await again.close()


async def test_the_one_that_is_removed_goes_and_the_others_stay(subject: Subject) -> None:
    containers = await subject.up(3)
    victim = containers[0 if subject.provider.capabilities.removes_any else -1]

    await subject.provider.remove(victim.id, 2)

    left = await until(subject.provider.containers, lambda all_: len(all_) == 2)
    assert {each.id for each in left} == {each.id for each in containers} - {victim.id}


async def test_removing_twice_removes_one(subject: Subject) -> None:
    containers = await subject.up(2)

    for _ in range(2):
        await subject.provider.remove(containers[-1].id, 1)

    left = await until(subject.provider.containers, lambda all_: len(all_) == 1)
    assert left[0].id == containers[0].id


async def test_one_that_is_not_there_is_as_good_as_removed(subject: Subject) -> None:
    await subject.up(1)

    await subject.provider.remove("nobody", 0)

    assert running(await subject.provider.containers()) == 1


async def test_a_lost_one_is_seen_to_be_lost(subject: Subject) -> None:
    (before,) = await subject.up(1)

    subject.lose(before)

    def is_another(found: Sequence[Container]) -> bool:
        runs = [each for each in found if each.state is ContainerState.RUNNING]
        return (before.id, before.incarnation) not in {(e.id, e.incarnation) for e in runs}

    await until(subject.provider.containers, is_another)


async def test_who_replaces_lost_ones_has_as_many_as_before(remote: Subject) -> None:
    containers = await remote.up(2)

    remote.lose(containers[0])

    assert remote.provider.capabilities.replaces_lost
    assert len(await remote.provider.containers()) == 2


async def test_what_does_not_run_yet_says_why(remote: Subject) -> None:
    await remote.provider.create("here-1-1", 1)

    (container,) = await remote.provider.containers()

    assert container.state is ContainerState.STARTING
    assert container.reason


async def test_a_creation_that_failed_after_it_had_succeeded_is_not_made_twice(
    remote: Subject,
) -> None:
    remote.api.failures, remote.api.fails_afterwards = [500], True
    with pytest.raises(ProviderUnavailable):
        await remote.provider.create("here-1-1", 1)

    await remote.provider.create("here-1-1", 1)

    assert len(await remote.provider.containers()) == 1


async def test_a_creation_is_not_made_twice_while_the_listing_lags(remote: Subject) -> None:
    remote.api.lag()
    await remote.provider.create("here-1-1", 1)
    assert not await remote.provider.containers()

    await remote.provider.create("here-1-1", 1)

    remote.api.catch_up()
    assert len(await remote.provider.containers()) == 1


async def test_too_many_requests_are_told_with_the_time_to_wait(remote: Subject) -> None:
    remote.api.failures, remote.api.fails_reads, remote.api.retry_after = [429], True, "7"

    with pytest.raises(ProviderLimited) as told:
        await remote.provider.containers()

    assert told.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, ProviderRefused), (403, ProviderRefused), (404, ProviderNotFound)]
    + [(status, ProviderUnavailable) for status in (500, 503)],
)
async def test_a_failure_has_the_type_of_what_it_means(
    remote: Subject, status: int, error: type[Exception]
) -> None:
    remote.api.failures = [status]

    with pytest.raises(error, match=r"here: "):
        await remote.provider.create("here-1-1", 1)


async def test_a_wrong_secret_is_refused_and_not_shown(remote: Subject) -> None:
    remote.api.is_allowed = lambda request: False

    with pytest.raises(ProviderRefused) as told:
        await remote.provider.containers()

    assert TOKEN not in str(told.value)


async def test_an_api_that_is_gone_is_unavailable(remote: Subject) -> None:
    await remote.api.stop()

    with pytest.raises(ProviderUnavailable):
        await remote.provider.containers()


async def test_an_api_that_does_not_answer_is_given_up(
    remote: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CALL_TIMEOUT_S", 0.2)
    remote.api.is_silent = True

    with pytest.raises(ProviderUnavailable, match="no answer"):
        await remote.provider.containers()


async def test_terms_are_told_where_the_provider_has_them(subject: Subject) -> None:
    terms = await subject.provider.terms()

    expected = (0.18, 15) if subject.kind == "salad" else (None, None)
    assert (terms.price_per_hour, terms.most) == expected
