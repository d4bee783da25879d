"""What the commands that talk to a gateway share: options, the client, how answers are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from scheduler import settings as settings_module
from scheduler.errors import PlaitError

OUT: Final = Console(soft_wrap=True)
ERR: Final = Console(stderr=True, soft_wrap=True)

AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Gateway to talk to.", show_default="http://127.0.0.1:8700"),
]
GrpcOption = Annotated[
    str | None, typer.Option("--grpc-address", help="Its gRPC port.", show_default="127.0.0.1:8701")
]
TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        "-t",
        help="Whom the work is accounted to.",
        show_default="that of PLAIT_API_KEY, else default",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TASK_PANEL = "Generate and follow tasks"
OPERATE_PANEL = "Operate"


def client(address: str | None, grpc_address: str | None = None, tenant: str | None = None) -> Any:
    """A client of the gateway that the options and settings name."""
    from scheduler.client import Client

    with told():
        chosen = settings_module.load()
    return Client(
        address or f"http://{chosen.host}:{chosen.http_port}",
        grpc_address or f"{chosen.host}:{chosen.grpc_port}",
        tenant=tenant,
        api_key=chosen.api_key.get_secret_value(),
        tell=lambda words: ERR.print(f"plait: {words}", highlight=False, markup=False),
    )


@contextmanager
def told() -> Iterator[None]:
    """Turn an error Plait raises on purpose into its message and exit code 1."""
    try:
        yield
    except PlaitError as error:
        ERR.print("[red]plait:[/]", end=" ")
        ERR.print(str(error), highlight=False, markup=False)
        raise typer.Exit(1) from None


def show(document: Any, as_json: bool, render: Callable[[Any], Table | str]) -> None:
    """What the gateway answered, as JSON or for a person."""
    OUT.print_json(json.dumps(document)) if as_json else OUT.print(render(document))
