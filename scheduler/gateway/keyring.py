"""Who sends a request: what the key it shows says, and what that lets it do.

A key is looked up in the store and remembered for a second, so that a busy client costs one look a
second and a key that was revoked stops working within that time. Only valid keys are remembered,
and by a hash: nothing here could be read and used as a key. Without a key a caller is whoever it
says it is, unless keys are required.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from scheduler import keys
from scheduler.clock import Clock
from scheduler.errors import NotPermitted, Unauthenticated
from scheduler.gateway.submission import parse_tenant
from scheduler.keys import Key, Role
from scheduler.operations import Operations

#: Seconds for which a key is known to be valid.
REMEMBERED_S: Final = 1.0
#: Keys remembered at once; beyond that all are forgotten and looked up anew.
MAX_REMEMBERED: Final = 10_000
_SCHEME: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request."""

    #: The key it showed; None: none.
    key: Key | None
    #: Whether who shows no key is nobody.
    is_key_required: bool = False

    def require_key(self) -> None:
        """Refuse who shows no key, where keys are required.

        Raises:
            Unauthenticated: it shows none.
        """
        if self.key is None and self.is_key_required:
            message = "a key is required: send 'Authorization: Bearer plait_...'"
            raise Unauthenticated(message, field="Authorization")

    def require_operator(self) -> None:
        """Refuse who may not see and set what operators do.

        Raises:
            Unauthenticated: it shows no key, where keys are required.
            NotPermitted: its key is a tenant's.
        """
        self.require_key()
        if self.key is not None and self.key.role is not Role.OPERATOR:
            message = f"key {self.key.id} is of tenant {self.key.tenant}; this takes an operator's"
            raise NotPermitted(message, field="Authorization")

    def tenant(self, named: str | None, field: str) -> str:
        """Whom its work is accounted to; ``named`` is what it says itself, in ``field``.

        Raises:
            InvalidRequest: that is no tenant's name.
            NotPermitted: it shows the key of another tenant.
        """
        if self.key is None:
            return parse_tenant(named, field)
        if named is None:
            return self.key.tenant
        tenant = parse_tenant(named, field)
        if tenant != self.key.tenant and self.key.role is not Role.OPERATOR:
            message = f"is {tenant!r}, and key {self.key.id} is of tenant {self.key.tenant!r}"
            raise NotPermitted(f"{field}: {message}; leave it out", field=field)
        return tenant


class Keyring:
    """The keys that were shown of late."""

    def __init__(self, operations: Operations, clock: Clock, *, is_required: bool) -> None:
        self._operations = operations
        self._clock = clock
        self._is_required = is_required
        #: By hash of what was shown: the key, and until when it is known to be valid.
        self._known: dict[bytes, tuple[Key, float]] = {}

    def __repr__(self) -> str:
        return f"<Keyring required={self._is_required} known={len(self._known)}>"

    async def identify(self, authorization: str | None) -> Caller:
        """Who shows this; what is no key of Plait's is somebody else's to look at.

        Raises:
            Unauthenticated: it looks like a key and is none, has run out or was revoked.
            NotPermitted: it is a join token.
        """
        key = await self._key(authorization)
        if key is not None and key.role is Role.NODE:
            message = f"key {key.id} is a join token: it lets runners join, and nothing else"
            raise NotPermitted(message, field="Authorization")
        return Caller(key, self._is_required)

    async def admit_runner(self, authorization: str | None) -> None:
        """Let a runner join, or go on; without a token anybody may while keys are not required.

        Raises:
            Unauthenticated: it shows no token and needs one, or one that is not valid (any more).
            NotPermitted: it shows a key that is no join token.
        """
        key = await self._key(authorization)
        if key is None and self._is_required:
            message = "a join token is required: set PLAIT_JOIN_TOKEN (plait nodes token create)"
            raise Unauthenticated(message, field="Authorization")
        if key is not None and key.role is not Role.NODE:
            raise NotPermitted(f"key {key.id} is no join token", field="Authorization")

    async def _key(self, authorization: str | None) -> Key | None:
        shown = _key_in(authorization)
        return None if shown is None else await self._valid(shown)

    async def _valid(self, shown: str) -> Key:
        digest, now = hashlib.sha256(shown.encode()).digest(), self._clock.monotonic()
        key, until = self._known.get(digest, (None, 0.0))
        if key is not None and now < until:
            return key
        self._known.pop(digest, None)
        key = await self._operations.authenticate(shown)
        if key is None:
            message = "Authorization: this key is not valid; it may have run out or been revoked"
            raise Unauthenticated(message, field="Authorization")
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[digest] = key, now + REMEMBERED_S
        return key


def _key_in(authorization: str | None) -> str | None:
    if authorization is None or not authorization.lower().startswith(_SCHEME):
        return None
    shown = authorization[len(_SCHEME) :].strip()
    return shown if shown.startswith(f"{keys.PREFIX}_") else None
