"""The commands of an operator: what runs, and what tenants, classes and keys are set to.

Each talks to a gateway; where keys are required it shows the operator's key in PLAIT_API_KEY.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scheduler import tables
from scheduler.console import ERR, OPERATE_PANEL, AddressOption, JsonOption, client, show, told
from scheduler.errors import InvalidRequest

TenantArgument = Annotated[str, typer.Argument(help="A tenant's name.")]
KeyArgument = Annotated[str, typer.Argument(help="A key's id; see `plait keys list`.")]
LimitOption = Annotated[str | None, typer.Option(help="A number; none removes the limit.")]

tenants_app = typer.Typer(no_args_is_help=True, help="See and set tenants' weights and quotas.")
keys_app = typer.Typer(no_args_is_help=True, help="Make and revoke keys.")
classes_app = typer.Typer(no_args_is_help=True, help="See and set priority classes.")
costs_app = typer.Typer(no_args_is_help=True, help="See and set what device kinds cost.")
providers_app = typer.Typer(no_args_is_help=True, help="See who rents us containers, and which.")


def add_to(app: typer.Typer) -> None:
    """Make these commands part of ``plait``."""
    for command in (models, workers, scale, weight, purge, reconcile):
        app.command(rich_help_panel=OPERATE_PANEL)(command)
    groups = {
        "tenants": tenants_app,
        "keys": keys_app,
        "classes": classes_app,
        "costs": costs_app,
        "providers": providers_app,
    }
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=OPERATE_PANEL)


# ------------------------------------------------------------------------------------- what runs


def models(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List the models with their replicas."""
    with told():
        show(client(address).models(), as_json, tables.model_table)


def workers(
    stages: Annotated[
        bool, typer.Option("--stages", help="Show what each replica's pipeline tells of itself.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """List the replicas of every node."""
    with told():
        render = tables.stage_table if stages else tables.worker_table
        show(client(address).nodes(), as_json, render)


def scale(
    model: Annotated[str, typer.Argument(help="A model's name.")],
    replicas: Annotated[str, typer.Argument(help="Replicas to keep; auto: as its config says.")],
    address: AddressOption = None,
) -> None:
    """Keep this many replicas of a model; surplus ones finish their work first."""
    with told():
        if replicas == "auto":
            answer = client(address).scale_by_work(model)
        elif replicas.isdecimal():
            answer = client(address).scale(model, int(replicas))
        else:
            message = f"replicas: must be a whole number from 0, or auto, not {replicas!r:.40}"
            raise InvalidRequest(message, field="replicas")
    print(f"{model}: {answer['desired_replicas']} replicas desired; see `plait workers`")


def weight(
    tenant: TenantArgument,
    share: Annotated[
        float | None, typer.Argument(help="New weight; 1 is everybody's default.")
    ] = None,
    address: AddressOption = None,
) -> None:
    """Show or set a tenant's weight: its share while others are busy too."""
    gateway = client(address)
    with told():
        print(gateway.weight(tenant) if share is None else gateway.set_weight(tenant, share))


def purge(
    older_than_s: Annotated[
        float, typer.Option(help="Seconds that must have passed since a task's end.", min=0)
    ],
    address: AddressOption = None,
) -> None:
    """Remove ended tasks with their output, now; PLAIT_RETENTION_S does it by itself."""
    with told():
        print(f"{client(address).purge(older_than_s)} tasks removed")


def reconcile(
    once: Annotated[
        bool, typer.Option("--once", help="Have every check look at everything now.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Show what has drifted and was put right, check by check."""
    with told():
        gateway = client(address)
        answer = gateway.reconcile() if once else gateway.reconciliation()
        show(answer, as_json, tables.check_table)


# ------------------------------------------------------------------------------------- tenants


@tenants_app.command("list")
def list_tenants(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List tenants with their quotas, and what they have and were served."""
    with told():
        show(client(address).tenants(), as_json, tables.tenant_table)


@tenants_app.command("show")
def show_tenant(
    tenant: TenantArgument, as_json: JsonOption = False, address: AddressOption = None
) -> None:
    """Show one tenant."""
    with told():
        answer = client(address).tenant(tenant)
        show({"tenants": [answer]} if not as_json else answer, as_json, tables.tenant_table)


@tenants_app.command("set")
def set_tenant(
    tenant: TenantArgument,
    weight: Annotated[float | None, typer.Option(help="Share; 1 is everybody's default.")] = None,
    max_queued: LimitOption = None,
    max_in_flight: LimitOption = None,
    cost_per_minute: LimitOption = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes it may use, comma separated; all: any.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Set what is given of a tenant; the rest stays as it is."""
    limits = {
        "max_queued": max_queued,
        "max_in_flight": max_in_flight,
        "cost_per_minute": cost_per_minute,
    }
    with told():
        given: dict[str, Any] = {n: _limit(n, v) for n, v in limits.items() if v is not None}
        if weight is not None:
            given["weight"] = weight
        if classes is not None:
            given["classes"] = None if classes == "all" else _names(classes)
        answer = client(address).set_tenant(tenant, **given)
        show({"tenants": [answer]} if not as_json else answer, as_json, tables.tenant_table)


def _limit(field: str, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise InvalidRequest(f"{field}: {text!r} is no number; none removes the limit", field=field)
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# ------------------------------------------------------------------------------------- keys


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Of this tenant.")] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """List keys; how they are written is not kept anywhere."""
    with told():
        show(client(address).keys(tenant), as_json, tables.key_table)


@keys_app.command("create")
def create_key(
    tenant: TenantArgument,
    role: Annotated[str, typer.Option(help="tenant, operator or node.")] = "tenant",
    name: Annotated[str, typer.Option(help="For people, such as where it is used.")] = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Make a key and print it, this once."""
    with told():
        _show_new(client(address).create_key(tenant, role=role, name=name), as_json)


@keys_app.command("revoke")
def revoke_key(key_id: KeyArgument, address: AddressOption = None) -> None:
    """Make a key open nothing any more, within a second."""
    with told():
        print(f"{client(address).revoke_key(key_id)['key_id']} is revoked")


@keys_app.command("rotate")
def rotate_key(
    key_id: KeyArgument, as_json: JsonOption = False, address: AddressOption = None
) -> None:
    """Put a new key in the place of one, which is revoked, and print it, this once."""
    with told():
        _show_new(client(address).rotate_key(key_id), as_json)


def _show_new(answer: Any, as_json: bool) -> None:
    if not as_json:
        who = f"{answer['role']} key {answer['key_id']} of {answer['tenant']}"
        ERR.print(f"{who}; it is shown this once:", highlight=False, markup=False)
    show(answer, as_json, lambda document: str(document["key"]))


# ------------------------------------------------------------------------------------- the rest


@classes_app.command("list")
def list_classes(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List priority classes with their weights."""
    with told():
        show(client(address).classes(), as_json, tables.class_table)


@classes_app.command("set")
def set_class(
    name: Annotated[str, typer.Argument(help="A class, which may be a new one.")],
    weight: Annotated[float, typer.Argument(help="Its share of a model while it has work.")],
    address: AddressOption = None,
) -> None:
    """Set the weight of a class."""
    with told():
        answer = client(address).set_class(name, weight)
    print(f"{answer['class']}: {answer['weight']:g}")


@costs_app.command("list")
def list_costs(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List the device kinds whose cost was set."""
    with told():
        show(client(address).cost_factors(), as_json, tables.cost_table)


@costs_app.command("set")
def set_cost(
    model: Annotated[str, typer.Argument(help="A model's name.")],
    device_kind: Annotated[str, typer.Argument(help="A device kind, such as cpu.")],
    factor: Annotated[float, typer.Argument(help="What a token costs there; 1 is the default.")],
    address: AddressOption = None,
) -> None:
    """Set what a model's token costs on a device kind."""
    with told():
        answer = client(address).set_cost_factor(model, device_kind, factor)
    print(f"{answer['model']} on {answer['device_kind']}: {answer['factor']:g}")


# ------------------------------------------------------------------------------------- containers


@providers_app.command("list")
def list_providers(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List providers with prices, limits and how they are doing."""
    with told():
        show(client(address).providers(), as_json, tables.provider_table)


@providers_app.command("containers")
def list_containers(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List the containers that were ordered, and those that nobody ordered."""
    with told():
        show(client(address).containers(), as_json, tables.container_table)


@providers_app.command("ledger")
def show_ledger(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """Show what was noted of providers: losses, stalls, slow starts; it fades with time."""
    with told():
        show(client(address).providers(), as_json, tables.ledger_table)
