"""What operators see and set: tenants and their quotas, keys, classes, device kinds, replicas.

All of it is data in the store, may change while everything runs, and holds from the next decision
on, at every control plane.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from scheduler import keys
from scheduler.errors import InvalidRequest, KeyNotFound
from scheduler.fair_queue import FairQueue
from scheduler.flow import Flow, Tenant
from scheduler.keys import Key, Role
from scheduler.ledger import Ledger
from scheduler.records import changed
from scheduler.scaling import ScaleStory, Wishes
from scheduler.stores.base import Transaction

#: A weight may be a thousandth to a thousandfold of the ordinary one; so may a cost factor.
MAX_PERMILLE = 1_000_000
#: Largest quota that can be set.
MAX_QUOTA = 10**12
_KEY_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class Unchanged:
    """Marks a field that is left as it is; None means no limit."""


UNCHANGED = Unchanged()


@dataclass(frozen=True, slots=True)
class TenantChange:
    """What to set of a tenant."""

    weight_permille: int | Unchanged = UNCHANGED
    max_queued: int | Unchanged | None = UNCHANGED
    max_in_flight: int | Unchanged | None = UNCHANGED
    cost_per_minute: int | Unchanged | None = UNCHANGED
    classes: tuple[str, ...] | Unchanged | None = UNCHANGED

    def __post_init__(self) -> None:
        """Raises InvalidRequest."""
        _check("weight_permille", self.weight_permille, MAX_PERMILLE)
        for name in ("max_queued", "max_in_flight", "cost_per_minute"):
            _check(name, getattr(self, name), MAX_QUOTA)

    def applied(self, tenant: Tenant) -> Tenant:
        """The tenant with these fields set."""
        given = {name: getattr(self, name) for name in self.__slots__}
        return changed(
            tenant, **{name: v for name, v in given.items() if not isinstance(v, Unchanged)}
        )


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant with what it has in the queue and was served."""

    tenant: Tenant
    flows: tuple[Flow, ...]


class Operations:
    """Operators' data."""

    def __init__(self, ledger: Ledger, queue: FairQueue) -> None:
        self._ledger, self._queue = ledger, queue

    def __repr__(self) -> str:
        return f"<Operations {self._ledger!r}>"

    # -- tenants

    async def tenant(self, name: str) -> TenantView:
        """A tenant for which nothing was set has the defaults."""
        return await self._ledger.store.read(
            lambda tx: TenantView(tx.tenant(name), tuple(tx.flows_of(name)))
        )

    async def tenants(self, models: list[str]) -> list[TenantView]:
        """Every tenant for which something was set or that was served by one of the models."""

        def query(tx: Transaction) -> list[TenantView]:
            known = {tenant.name: tenant for tenant in tx.tenants()}
            flows: dict[str, list[Flow]] = {name: [] for name in known}
            for model in models:
                for flow in tx.flows(model):
                    flows.setdefault(flow.tenant, []).append(flow)
            return [
                TenantView(known.get(name) or Tenant(name), tuple(own))
                for name, own in sorted(flows.items())
            ]

        return await self._ledger.store.read(query)

    async def set_tenant(self, name: str, change: TenantChange) -> Tenant:
        """Holds from the next submission and claim on. Raises InvalidRequest."""
        now = self._ledger.clock.now()

        def command(tx: Transaction) -> Tenant:
            if isinstance(change.classes, tuple):
                _check_classes(tx, change.classes)
            before = tx.tenant(name)
            tenant = change.applied(before)
            if tenant.cost_per_minute != before.cost_per_minute:
                # A new allowance begins full.
                full = float(tenant.cost_per_minute or 0)
                tenant = changed(tenant, allowance=full, allowance_at=now)
            tx.put_tenant(tenant)
            self._queue.regulate(tx, name, has_new_limit=True)
            return tenant

        return await self._ledger.store.run(command)

    # -- keys

    async def create_key(
        self,
        tenant: str,
        role: Role = Role.TENANT,
        name: str = "",
        expires_in_s: float | None = None,
    ) -> tuple[Key, str]:
        """A new key, and how it is written: this once, for only its hash is kept."""
        now = self._ledger.clock.now()
        expires_at = None if expires_in_s is None else now + expires_in_s
        key, written = _new_key(tenant, role, name, now, expires_at)
        await self._ledger.store.run(lambda tx: tx.put_key(key))
        return key, written

    async def rotate_key(self, key_id: str) -> tuple[Key, str]:
        """A new key in the place of a valid one, which is revoked. Raises KeyNotFound."""
        now = self._ledger.clock.now()

        def command(tx: Transaction) -> tuple[Key, str]:
            old = tx.key(key_id)
            if old is None or old.revoked_at is not None:
                raise KeyNotFound(key_id)
            tx.put_key(changed(old, revoked_at=now))
            key, written = _new_key(old.tenant, old.role, old.name, now, old.expires_at)
            tx.put_key(key)
            return key, written

        return await self._ledger.store.run(command)

    async def revoke_key(self, key_id: str) -> Key:
        """Idempotent. Raises KeyNotFound."""
        now = self._ledger.clock.now()

        def command(tx: Transaction) -> Key:
            key = tx.key(key_id)
            if key is None:
                raise KeyNotFound(key_id)
            if key.revoked_at is None:
                key = changed(key, revoked_at=now)
                tx.put_key(key)
            return key

        return await self._ledger.store.run(command)

    async def keys(self, tenant: str | None = None) -> list[Key]:
        return await self._ledger.store.read(lambda tx: tx.keys(tenant))

    async def authenticate(self, text: str) -> Key | None:
        """The valid key that this is; None when it is none."""
        if (parts := keys.parse(text)) is None:
            return None
        key_id, secret = parts
        key = await self._ledger.store.read(lambda tx: tx.key(key_id))
        now = self._ledger.clock.now()
        return key if key is not None and key.opens_with(secret, now) else None

    # -- classes and device kinds

    async def classes(self) -> dict[str, int]:
        """Weight by class, in thousandths."""
        return dict(await self._ledger.store.read(lambda tx: tx.class_weights()))

    async def set_class(self, priority_class: str, weight_permille: int) -> None:
        """Set the weight of a class, a new one included. Raises InvalidRequest."""
        _check("weight", weight_permille, MAX_PERMILLE)
        await self._ledger.store.run(lambda tx: tx.put_class(priority_class, weight_permille))

    async def cost_factors(self) -> dict[tuple[str, str], int]:
        """What a weighted token costs, by model and device kind, in thousandths."""
        return await self._ledger.store.read(lambda tx: tx.cost_factors())

    async def set_cost_factor(self, model: str, device_kind: str, factor_permille: int) -> None:
        """Holds from the next claim on. Raises InvalidRequest."""
        _check("factor", factor_permille, MAX_PERMILLE)
        await self._ledger.store.run(
            lambda tx: tx.put_cost_factor(model, device_kind, factor_permille)
        )

    # -- replicas

    async def wishes(self) -> Wishes:
        """How many replicas there should be, by who says so."""
        return await self._ledger.store.read(
            lambda tx: Wishes(tx.desired_replicas(), tx.scaled_replicas())
        )

    async def set_desired_replicas(self, model: str, num_replicas: int) -> None:
        """Raises InvalidRequest."""
        if num_replicas < 0:
            raise InvalidRequest(
                f"num_replicas is {num_replicas}; allowed is 0 or more", field="num_replicas"
            )
        await self._ledger.set_desired(lambda tx: tx.put_desired_replicas(model, num_replicas))

    async def give_back_replicas(self, model: str) -> None:
        """No operator says any more how many there should be: the model's config does, or the work
        there is for it."""
        await self._ledger.set_desired(lambda tx: tx.remove_desired_replicas(model))

    async def scale_story(self, model: str, limit: int) -> ScaleStory:
        """How the number of a model's replicas came about; at most ``limit`` decisions."""

        def query(tx: Transaction) -> ScaleStory:
            return ScaleStory(
                Wishes(tx.desired_replicas(), tx.scaled_replicas()),
                tuple(tx.measures(model)),
                tuple(tx.scale_decisions(model, limit)),
            )

        return await self._ledger.store.read(query)


def _new_key(
    tenant: str, role: Role, name: str, now: float, expires_at: float | None
) -> tuple[Key, str]:
    secret = secrets.token_urlsafe(32)
    key_id = "".join(secrets.choice(_KEY_ID_ALPHABET) for _ in range(12))
    key = Key(key_id, tenant, role, keys.hashed(secret), now, name, expires_at=expires_at)
    return key, keys.written(key_id, secret)


def _check(field: str, value: int | Unchanged | None, most: int) -> None:
    if isinstance(value, int) and not 1 <= value <= most:
        raise InvalidRequest(f"{field} is {value}; allowed are 1 to {most}", field=field)


def _check_classes(tx: Transaction, classes: tuple[str, ...]) -> None:
    known = sorted(tx.class_weights())
    for each in classes:
        if each not in known:
            message = f"there is no class {each!r}; there are: {', '.join(known)}"
            raise InvalidRequest(f"classes: {message}", field="classes")
    if not classes:
        raise InvalidRequest("classes: name at least one, or leave all allowed", field="classes")
