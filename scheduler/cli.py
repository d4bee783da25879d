"""The command line: the only place that parses arguments.

Only what was asked for goes to standard output; progress, hints and errors go to standard error.
Exit codes: 0 done, 1 the request or the start failed, 2 the command line was wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scheduler import serve_commands, tables
from scheduler import settings as settings_module
from scheduler.errors import PlaitError

app = typer.Typer(
    name="plait",
    help="Serve large models to many tenants, fairly and durably, on TorchServe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
serve_commands.add_to(app)
_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)


AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Gateway to talk to.", show_default="http://127.0.0.1:8700"),
]
GrpcOption = Annotated[
    str | None, typer.Option("--grpc-address", help="Its gRPC port.", show_default="127.0.0.1:8701")
]
TenantOption = Annotated[str, typer.Option("--tenant", "-t", help="Whom the work is accounted to.")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model to use; see `plait models`.")
]
MaxNewTokensOption = Annotated[int, typer.Option(help="Most tokens to produce.", min=1)]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.", min=0.0)]
TopKOption = Annotated[int, typer.Option(help="Draw from the k likeliest; 0: from all.", min=0)]
TopPOption = Annotated[float, typer.Option(help="Draw from the likeliest that make up p.")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed draws the same tokens.", min=0)]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be given several times.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TASK_PANEL = "Generate and follow tasks"
OPERATE_PANEL = "Operate"


# ------------------------------------------------------------------------------------- tasks


@app.command(rich_help_panel=TASK_PANEL)
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    model: ModelOption = "demo",
    max_new_tokens: MaxNewTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    tenant: TenantOption = "default",
    address: AddressOption = None,
    grpc_address: GrpcOption = None,
) -> None:
    """Continue a prompt, streaming the text; goes on by itself after a lost connection."""
    client = _client(address, grpc_address, tenant)
    document = _document(prompt, max_new_tokens, temperature, top_k, top_p, seed, stop)
    with _told():
        task_id = client.submit(model, document)["task_id"]
        try:
            for text in client.stream(task_id):
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            client.cancel(task_id)
            raise
    if sys.stdout.isatty():
        print()


@app.command(rich_help_panel=TASK_PANEL)
def submit(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    model: ModelOption = "demo",
    max_new_tokens: MaxNewTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    priority: Annotated[
        int, typer.Option(help="Order among your own tasks: greater goes first.")
    ] = 0,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds after which nobody wants it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key, the same task.")
    ] = None,
    tenant: TenantOption = "default",
    address: AddressOption = None,
) -> None:
    """Hand in a task and print its id; it goes on without you."""
    client = _client(address, None, tenant)
    document = _document(prompt, max_new_tokens, temperature, top_k, top_p, seed, stop)
    with _told():
        task = client.submit(
            model, document, priority=priority, deadline_s=deadline_s, idempotency_key=key
        )
    print(task["task_id"])


@app.command(rich_help_panel=TASK_PANEL)
def status(
    task_id: Annotated[
        str | None, typer.Argument(help="A task's id; without it: your newest.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Most tasks to list.", min=1)] = 20,
    as_json: JsonOption = False,
    tenant: TenantOption = "default",
    address: AddressOption = None,
) -> None:
    """Show one task with its attempts, or list the newest."""
    client = _client(address, None, tenant)
    with _told():
        if task_id is None:
            _show(client.tasks(limit=limit), as_json, tables.task_table)
        else:
            _show(client.task(task_id), as_json, tables.task_story)


@app.command(rich_help_panel=TASK_PANEL)
def watch(
    task_id: Annotated[str, typer.Argument(help="A task's id.")],
    cursor: Annotated[int, typer.Option(help="Chunks to leave out.", min=0)] = 0,
    tenant: TenantOption = "default",
    address: AddressOption = None,
    grpc_address: GrpcOption = None,
) -> None:
    """Stream what a task produces, from its beginning, until it ends."""
    client = _client(address, grpc_address, tenant)
    with _told():
        for text in client.stream(task_id, cursor):
            sys.stdout.write(text)
            sys.stdout.flush()
    if sys.stdout.isatty():
        print()


@app.command(rich_help_panel=TASK_PANEL)
def cancel(
    task_id: Annotated[str, typer.Argument(help="A task's id.")],
    tenant: TenantOption = "default",
    address: AddressOption = None,
) -> None:
    """Take a task back; one that has ended stays as it is."""
    client = _client(address, None, tenant)
    with _told():
        print(client.cancel(task_id)["state"])


# ------------------------------------------------------------------------------------- operating


@app.command(rich_help_panel=OPERATE_PANEL)
def models(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List the models with their replicas."""
    with _told():
        _show(_client(address).models(), as_json, tables.model_table)


@app.command(rich_help_panel=OPERATE_PANEL)
def workers(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List the nodes and what runs on them."""
    with _told():
        _show(_client(address).workers(), as_json, tables.worker_table)


@app.command(rich_help_panel=OPERATE_PANEL)
def scale(
    model: Annotated[str, typer.Argument(help="A model's name.")],
    replicas: Annotated[int, typer.Argument(help="Replicas to keep.", min=0)],
    address: AddressOption = None,
) -> None:
    """Keep this many replicas of a model; surplus ones finish their work first."""
    with _told():
        answer = _client(address).scale(model, replicas)
    print(f"{model}: {answer['desired_replicas']} replicas desired; see `plait workers`")


@app.command(rich_help_panel=OPERATE_PANEL)
def weight(
    tenant: Annotated[str, typer.Argument(help="A tenant's name.")],
    share: Annotated[
        float | None, typer.Argument(help="New weight; 1 is everybody's default.")
    ] = None,
    address: AddressOption = None,
) -> None:
    """Show or set a tenant's weight: its share while others are busy too."""
    client = _client(address)
    with _told():
        print(client.weight(tenant) if share is None else client.set_weight(tenant, share))


# ------------------------------------------------------------------------------------- plumbing


def _client(address: str | None, grpc_address: str | None = None, tenant: str = "default") -> Any:
    from scheduler.client import Client

    with _told():
        chosen = settings_module.load()
    return Client(
        address or f"http://{chosen.host}:{chosen.http_port}",
        grpc_address or f"{chosen.host}:{chosen.grpc_port}",
        tenant=tenant,
        tell=lambda words: _err.print(f"plait: {words}", highlight=False, markup=False),
    )


def _document(
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: list[str] | None,
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "prompt": sys.stdin.read() if prompt == "-" else prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    if seed is not None:
        document["seed"] = seed
    if stop:
        document["stop"] = stop
    return document


@contextmanager
def _told() -> Iterator[None]:
    """Turn an error Plait raises on purpose into its message and exit code 1."""
    try:
        yield
    except PlaitError as error:
        _err.print(f"[red]plait:[/] {error}", highlight=False)
        raise typer.Exit(1) from None


def _show(document: Any, as_json: bool, render: Callable[[Any], Table | str]) -> None:
    _out.print_json(json.dumps(document)) if as_json else _out.print(render(document))


def main() -> None:
    """The ``plait`` command."""
    try:
        app()
    except PlaitError as error:
        _err.print(f"[red]plait:[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
