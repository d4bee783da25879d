"""What every provider of containers promises.

A *container* is something a provider starts for us in which a node runs: TorchServe and a runner
that connects to the control plane. Providers are told numbers and keys that make a repeated call
harmless: after a call that failed nobody knows whether it had an effect, so it is made again.

A member of the family is a file with these names in it:

    SETTINGS   what its section ``settings`` may hold: a check for each key
    REQUIRED   those of them that must be there
    secrets    of the settings: what ``secrets`` must name environment variables for
    Provider   the class, made from a :class:`ProviderConfig` and a :class:`Surroundings`

The executable form of this contract is ``tests/contracts/test_provider_contract.py``; ``docs/
providers.md`` says how to add one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from scheduler.errors import PlaitError

#: Seconds after which a call that a provider has not answered has failed.
CALL_TIMEOUT_S: Final = 10.0
#: Containers that one provider can ever be asked for; a typing error must not cost a fortune.
MOST_CONTAINERS: Final = 1000


class ProviderError(PlaitError):
    """A provider did not do what it was asked; never shown to clients."""

    status = 503


class ProviderRefused(ProviderError):
    """It said no: not allowed, out of quota, or not understood. Asking again will not help soon."""


class ProviderLimited(ProviderError):
    """It was asked too often."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        """``retry_after_s``: None when it did not say."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProviderUnavailable(ProviderError):
    """It did not answer, or failed. Whether what it was asked has happened is unknown."""


class ProviderNotFound(ProviderError):
    """It does not know what it was asked about: the group or the workload is not there."""


class ContainerState(Enum):
    """How a container is doing, as its provider sees it."""

    #: On its way: being allocated, downloaded or started.
    STARTING = "starting"
    RUNNING = "running"
    #: On its way out.
    STOPPING = "stopping"
    #: Ended by itself, or cannot be started; ``reason`` says why.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Container:
    """A container as its provider lists it."""

    #: The provider's name for it, which the runner in it knows as PLAIT_CONTAINER.
    id: str
    state: ContainerState
    #: Why it is in this state, for a person; empty when there is nothing to say.
    reason: str = ""
    #: The key it was created under; None: the provider keeps none.
    key: str | None = None
    #: Differs when what runs under the same id is another one than before: its work is lost.
    incarnation: str = ""
    #: What of its kind it runs on, as far as that tells more than the provider does: a machine, a
    #: pool of machines; empty: nothing.
    node_class: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do."""

    #: Whether it can take away any container; if not, always the one that it lists last.
    removes_any: bool
    #: Whether it starts another by itself in the place of one that was lost.
    replaces_lost: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What a container costs, and how many there may be, as far as the provider tells."""

    price_per_hour: float | None = None
    #: Containers that it would let us have in all; None: it does not say.
    most: int | None = None


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """What ``provider_configs/<name>.yaml`` says."""

    name: str
    #: A file in scheduler/providers.
    kind: str
    max_containers: int
    #: Kept although nobody needs them.
    min_containers: int = 0
    #: In whatever currency, the same for all providers; None: as the provider says, else 0.
    price_per_hour: float | None = None
    #: What runners in it report, and how many devices they have; 0: it computes on its processors.
    device_kind: str = "cpu"
    num_devices: int = 0
    #: Replicas that are placed in one container; None: as many as its devices suffice for.
    replicas_per_container: int | None = None
    #: Models it may run; None: any.
    models: tuple[str, ...] | None = None
    #: For people, and for providers that label what they start.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Seconds from an order until its runner is there, after which it counts as slow and another is
    #: ordered.
    start_timeout_s: float = 600.0
    #: Seconds that a container has to finish its work before it is removed all the same.
    drain_timeout_s: float = 600.0
    #: Seconds for which a container that nobody needs is kept.
    idle_s: float = 120.0
    #: Seconds between two listings of its containers.
    look_s: float = 10.0
    #: The provider's own, as its ``SETTINGS`` allow.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: Values of the environment variables that the file names.
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a provider that starts nodes itself has to know of this control plane."""

    #: Folder in which it may keep files.
    folder: Path
    #: Environment of the nodes: where the control plane is, and its settings but for secrets.
    environment: Mapping[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """One provider, as one file of ``provider_configs`` describes it.

    No call takes longer than :data:`CALL_TIMEOUT_S`, none blocks the event loop, and each raises
    nothing but a :class:`ProviderError`.
    """

    capabilities: Capabilities

    async def containers(self) -> Sequence[Container]:
        """Every container of this Plait, and no other; what was created a moment ago may not be
        listed yet.

        Raises:
            ProviderError: nobody knows which there are.
        """
        ...

    async def create(self, key: str, count: int) -> None:
        """Have one more container started, after which there are to be ``count``.

        Idempotent: a second call with the same key and count changes nothing, whatever became of
        the first. ``count`` includes those on their way, and is never lowered by this.

        Raises:
            ProviderError: it was not started, or nobody knows.
        """
        ...

    async def remove(self, container_id: str, count: int) -> None:
        """Take a container away, after which there are to be ``count``; it may be working.

        Idempotent, and one that is not there is as good as removed. Without ``removes_any`` it has
        to be the one listed last.

        Raises:
            ProviderError: it was not removed, or nobody knows.
        """
        ...

    async def terms(self) -> Terms:
        """Raises ProviderError."""
        ...

    async def close(self) -> None:
        """Let go of connections; containers stay, unless the provider says otherwise."""
        ...


@asynccontextmanager
async def bounded(what: str) -> AsyncIterator[None]:
    """Give a call its time.

    Raises:
        ProviderUnavailable: it was over.
    """
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            yield
    except TimeoutError:
        raise ProviderUnavailable(f"{what}: no answer for {CALL_TIMEOUT_S:g} s") from None


def error_of(status: int, what: str, retry_after: str | None = None) -> ProviderError:
    """The error that an HTTP status means."""
    message = f"{what} (HTTP {status})"
    if status == 429:
        return ProviderLimited(message, _seconds(retry_after))
    if status == 404:
        return ProviderNotFound(message)
    # 408 and 409 are told when somebody else was quicker; so is 5xx: again a little later.
    return (ProviderUnavailable if status >= 500 or status in (408, 409) else ProviderRefused)(
        message
    )


def _seconds(retry_after: str | None) -> float | None:
    """The header's number of seconds; a date, which nobody sends us, is left unread."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None
