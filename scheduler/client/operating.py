"""What operators see and set over the gateway's REST API, as methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from scheduler.client import shapes
from scheduler.client.calls import Calls, part


class Unchanged:
    """Marks what is left as it is; None means no limit."""


UNCHANGED = Unchanged()


class Operating(Calls):
    """An operator's calls; where keys are required, they take an operator's key."""

    def nodes(self) -> shapes.NodeList:
        """Every node, with its replicas and how busy it is."""
        return cast(shapes.NodeList, self.call("GET", "/v1/nodes"))

    def scale(self, model: str, num_replicas: int) -> shapes.Model:
        """Say how many replicas of a model should run; they come and go in the background."""
        path = f"/v1/models/{part(model)}/replicas"
        return cast(shapes.Model, self.call("PUT", path, {"replicas": num_replicas}))

    def scale_by_work(self, model: str) -> shapes.Model:
        """Let the model's config, or the work there is, say again how many replicas should run."""
        return cast(shapes.Model, self.call("DELETE", f"/v1/models/{part(model)}/replicas"))

    def explain_scale(self, model: str, limit: int = 20) -> shapes.ScaleStory:
        """How many replicas of a model should run, who says so, and the last decisions."""
        path = f"/v1/models/{part(model)}/scale?limit={limit}"
        return cast(shapes.ScaleStory, self.call("GET", path))

    def reconciliation(self) -> shapes.CheckList:
        """What has drifted and was put right, check by check, since the control plane began."""
        return cast(shapes.CheckList, self.call("GET", "/v1/reconciliation"))

    def reconcile(self) -> shapes.CheckList:
        """Have every check look at everything now; the answer comes when all have."""
        return cast(shapes.CheckList, self.call("POST", "/v1/reconciliation"))

    def providers(self) -> shapes.ProviderList:
        """Who rents us containers, with what was noted of each."""
        return cast(shapes.ProviderList, self.call("GET", "/v1/providers"))

    def containers(self) -> shapes.ContainerList:
        """Containers that were ordered, and those that nobody ordered."""
        return cast(shapes.ContainerList, self.call("GET", "/v1/containers"))

    # -- tenants

    def tenants(self) -> shapes.TenantList:
        return cast(shapes.TenantList, self.call("GET", "/v1/tenants"))

    def tenant(self, tenant: str) -> shapes.Tenant:
        """A tenant with its quotas, what it has waiting and in flight, and what it was served."""
        return cast(shapes.Tenant, self.call("GET", f"/v1/tenants/{part(tenant)}"))

    def set_tenant(
        self,
        tenant: str,
        *,
        weight: float | Unchanged = UNCHANGED,
        max_queued: int | Unchanged | None = UNCHANGED,
        max_in_flight: int | Unchanged | None = UNCHANGED,
        cost_per_minute: int | Unchanged | None = UNCHANGED,
        classes: Sequence[str] | Unchanged | None = UNCHANGED,
    ) -> shapes.Tenant:
        """Set what is given; None removes a limit."""
        fields: dict[str, Any] = {
            "weight": weight,
            "max_queued": max_queued,
            "max_in_flight": max_in_flight,
            "cost_per_minute": cost_per_minute,
            "classes": classes,
        }
        given = {name: v for name, v in fields.items() if not isinstance(v, Unchanged)}
        return cast(shapes.Tenant, self.call("PATCH", f"/v1/tenants/{part(tenant)}", given))

    def weight(self, tenant: str) -> float:
        """A tenant's share, relative to 1."""
        return float(self.call("GET", f"/v1/tenants/{part(tenant)}/weight")["weight"])

    def set_weight(self, tenant: str, weight: float) -> float:
        """Set a tenant's share; returns it as stored, in steps of 0.001."""
        path = f"/v1/tenants/{part(tenant)}/weight"
        return float(self.call("PUT", path, {"weight": weight})["weight"])

    # -- keys

    def keys(self, tenant: str | None = None) -> shapes.KeyList:
        """Every key, those that were revoked included."""
        return cast(shapes.KeyList, self.call("GET", "/v1/keys", query={"tenant": tenant}))

    def create_key(
        self,
        tenant: str,
        *,
        role: str = "tenant",
        name: str = "",
        expires_in_s: float | None = None,
    ) -> shapes.NewKey:
        """Make a key; ``key`` of the answer is how it is written, told this once.

        It is tried once: a repeat would make another key.
        """
        body: dict[str, Any] = {"tenant": tenant, "role": role, "name": name}
        if expires_in_s is not None:
            body["expires_in_s"] = expires_in_s
        return cast(shapes.NewKey, self.call_new("POST", "/v1/keys", body))

    def revoke_key(self, key_id: str) -> shapes.Key:
        """Make a key open nothing any more, within a second."""
        return cast(shapes.Key, self.call("DELETE", f"/v1/keys/{part(key_id)}"))

    def rotate_key(self, key_id: str) -> shapes.NewKey:
        """Put a new key in the place of one, which is revoked; tried once, as ``create_key``."""
        return cast(shapes.NewKey, self.call_new("POST", f"/v1/keys/{part(key_id)}/rotate"))

    # -- for all tenants

    def set_class(self, name: str, weight: float) -> shapes.PriorityClass:
        """Set the weight of a priority class, which may be a new one."""
        path = f"/v1/classes/{part(name)}"
        return cast(shapes.PriorityClass, self.call("PUT", path, {"weight": weight}))

    def cost_factors(self) -> shapes.CostFactorList:
        return cast(shapes.CostFactorList, self.call("GET", "/v1/cost-factors"))

    def set_cost_factor(self, model: str, device_kind: str, factor: float) -> shapes.CostFactor:
        """Set what a model's weighted token costs on a device kind; 1 is the default."""
        body = {"device_kind": device_kind, "factor": factor}
        return cast(shapes.CostFactor, self.call("PUT", f"/v1/cost-factors/{part(model)}", body))

    def purge(self, finished_before_s: float) -> int:
        """Remove every task that ended so many seconds ago or earlier; how many."""
        body = {"finished_before_s": finished_before_s}
        return int(self.call("POST", "/v1/purge", body)["num_removed"])
