"""The command line: the only place that parses arguments.

Only what was asked for goes to standard output; progress, hints and errors go to standard error.
Exit codes: 0 done, 1 the request or the start failed, 2 the command line was wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scheduler import serve_commands, tables
from scheduler import settings as settings_module
from scheduler.errors import InvalidRequest, PlaitError

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
MinPOption = Annotated[
    float, typer.Option(help="Leave out what is less likely than this share of the likeliest.")
]
RepetitionOption = Annotated[
    float, typer.Option(help="Above 1: what was said before becomes less likely.")
]
SchemaOption = Annotated[
    str | None, typer.Option(help="Answer with JSON that fits this schema; @FILE reads it.")
]
RegexOption = Annotated[
    str | None, typer.Option(help="Answer with a text that this expression matches.")
]
NumAnswersOption = Annotated[int, typer.Option("--n", help="Answers to the prompt.", min=1)]
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
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    json_schema: SchemaOption = None,
    regex: RegexOption = None,
    n: NumAnswersOption = 1,
    tenant: TenantOption = "default",
    address: AddressOption = None,
    grpc_address: GrpcOption = None,
) -> None:
    """Continue a prompt, streaming the text; goes on by itself after a lost connection."""
    client = _client(address, grpc_address, tenant)
    with _told():
        document = _document(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            json_schema=json_schema,
            regex=regex,
            n=n,
        )
        task_id = client.submit(model, document)["task_id"]
        try:
            for text in client.stream(task_id) if n == 1 else _answers(client, task_id):
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
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    json_schema: SchemaOption = None,
    regex: RegexOption = None,
    n: NumAnswersOption = 1,
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
    with _told():
        document = _document(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            json_schema=json_schema,
            regex=regex,
            n=n,
        )
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
    index: Annotated[int, typer.Option(help="Which answer, from 0.", min=0)] = 0,
    tenant: TenantOption = "default",
    address: AddressOption = None,
    grpc_address: GrpcOption = None,
) -> None:
    """Stream what a task produces, from its beginning, until it ends."""
    client = _client(address, grpc_address, tenant)
    with _told():
        for text in client.stream(task_id, cursor, index):
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
def workers(
    stages: Annotated[
        bool, typer.Option("--stages", help="Show what each replica's pipeline tells of itself.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """List the nodes and what runs on them."""
    with _told():
        render = tables.stage_table if stages else tables.worker_table
        _show(_client(address).workers(), as_json, render)


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


def _document(prompt: str, **fields: Any) -> dict[str, Any]:
    """The request; what was not given is left to the gateway."""
    schema = fields.get("json_schema")
    if schema is not None and schema.startswith("@"):
        fields["json_schema"] = _read_file(schema[1:])
    given = {name: value for name, value in fields.items() if value is not None and value != []}
    return {"prompt": sys.stdin.read() if prompt == "-" else prompt, **given}


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"json_schema: cannot read {path}: {error}") from None


def _answers(client: Any, task_id: str) -> Iterator[str]:
    """Several answers, one after the other under a number each, when all are there."""
    for _ in client.stream(task_id):
        pass
    choices = client.task(task_id)["output"]["choices"]
    for choice in choices:
        yield f"[{choice['index']}] {choice['text']}\n"


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
