"""Keys that tenants and operators show at the gateway, and runners where they join.

A key reads ``plait_<id>_<secret>``. The store holds the id and a hash of the secret, never the
secret: what is read from a copied store opens nothing. The secret is 256 random bits, so a plain
SHA-256 is as good as a slow hash and costs a request nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from enum import Enum
from typing import Final

from scheduler.records import Record

PREFIX: Final = "plait"
_KEY: Final = re.compile(rf"{PREFIX}_([a-z0-9]{{12}})_([A-Za-z0-9_-]{{43}})")


class Role(Enum):
    """What a key opens."""

    #: The tenant's own tasks.
    TENANT = "tenant"
    #: Everybody's, and what operators set.
    OPERATOR = "operator"
    #: The runners' stream, and nothing else: it is a join token.
    NODE = "node"


class Key(Record, frozen=True):
    """A key as the store holds it."""

    #: Public: shown in listings and logs.
    id: str
    tenant: str
    role: Role
    #: Hexadecimal SHA-256 of the secret.
    secret_hash: str
    created_at: float
    #: For people; empty when none was given.
    name: str = ""
    #: None: it was not.
    revoked_at: float | None = None
    #: From then on it opens nothing; None: it does not run out.
    expires_at: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it was not revoked and has not run out."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def opens_with(self, secret: str, now: float) -> bool:
        """Whether this is the key's secret and the key is valid."""
        return self.is_valid(now) and hmac.compare_digest(self.secret_hash, hashed(secret))


def hashed(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def written(key_id: str, secret: str) -> str:
    """A key as its holder gets it, once."""
    return f"{PREFIX}_{key_id}_{secret}"


def parse(text: str) -> tuple[str, str] | None:
    """Id and secret of a key; None when it does not look like one."""
    found = _KEY.fullmatch(text)
    return None if found is None else (found[1], found[2])
