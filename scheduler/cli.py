"""The command line: the only place that parses arguments.

Only what was asked for goes to standard output; progress, hints and errors go to standard error.
Exit codes: 0 done, 1 the request or the start failed, 2 the command line was wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from scheduler import (
    bulk_commands,
    download_commands,
    node_commands,
    operate_commands,
    serve_commands,
    tables,
)
from scheduler.console import (
    ERR,
    TASK_PANEL,
    AddressOption,
    GrpcOption,
    JsonOption,
    TenantOption,
    client,
    show,
    told,
)
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
operate_commands.add_to(app)
node_commands.add_to(app)
bulk_commands.add_to(app)
download_commands.add_to(app)


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
ClassOption = Annotated[
    str | None,
    typer.Option(
        "--class", help="Priority class; see `plait classes list`.", show_default="standard"
    ),
]
LimitOption = Annotated[int, typer.Option(help="Most tasks to list.", min=1)]
TaskArgument = Annotated[str, typer.Argument(help="A task's id.")]


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
    priority_class: ClassOption = None,
    tenant: TenantOption = None,
    address: AddressOption = None,
    grpc_address: GrpcOption = None,
) -> None:
    """Continue a prompt, streaming the text; goes on by itself after a lost connection."""
    gateway = client(address, grpc_address, tenant)
    with told():
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
        task = gateway.submit(model, document, priority_class=priority_class)
        task_id = task["task_id"]
        try:
            for text in gateway.stream(task_id) if n == 1 else _answers(gateway, task_id):
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            gateway.cancel(task_id)
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
    priority_class: ClassOption = None,
    priority: Annotated[
        int, typer.Option(help="Order among your own tasks: greater goes first.")
    ] = 0,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds after which nobody wants it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key, the same task.")
    ] = None,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Hand in a task and print its id; it goes on without you."""
    gateway = client(address, None, tenant)
    with told():
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
        task = gateway.submit(
            model,
            document,
            priority_class=priority_class,
            priority=priority,
            deadline_s=deadline_s,
            idempotency_key=key,
        )
    print(task["task_id"])


@app.command(rich_help_panel=TASK_PANEL)
def status(
    task_id: Annotated[
        str | None, typer.Argument(help="A task's id; without it: your newest.")
    ] = None,
    state: Annotated[str | None, typer.Option(help="List those in this state.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Show one task with its attempts, or list the newest."""
    gateway = client(address, None, tenant)
    with told():
        if task_id is None:
            show(gateway.tasks(state=state, limit=limit), as_json, tables.task_table)
        else:
            show(gateway.task(task_id), as_json, tables.task_story)


@app.command(rich_help_panel=TASK_PANEL)
def explain(
    task_id: Annotated[str, typer.Argument(help="A task's id, or the word scale.")],
    model: Annotated[
        str | None, typer.Argument(help="After scale: the model whose replicas are asked for.")
    ] = None,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Tell why a task waits and until when, or what its attempts were; or, with the word scale and
    a model, why so many of its replicas run."""
    gateway = client(address, None, tenant)
    with told():
        if task_id != "scale":
            show(gateway.explain(task_id), as_json, tables.explanation_story)
        elif model is None:
            raise InvalidRequest("name the model: plait explain scale <model>", field="model")
        else:
            show(gateway.explain_scale(model), as_json, tables.scale_story)


@app.command(rich_help_panel=TASK_PANEL)
def watch(
    task_id: TaskArgument,
    cursor: Annotated[int, typer.Option(help="Chunks to leave out.", min=0)] = 0,
    index: Annotated[int, typer.Option(help="Which answer, from 0.", min=0)] = 0,
    tenant: TenantOption = None,
    address: AddressOption = None,
    grpc_address: GrpcOption = None,
) -> None:
    """Stream what a task produces, from its beginning, until it ends."""
    gateway = client(address, grpc_address, tenant)
    with told():
        for text in gateway.stream(task_id, cursor, index):
            sys.stdout.write(text)
            sys.stdout.flush()
    if sys.stdout.isatty():
        print()


@app.command(rich_help_panel=TASK_PANEL)
def cancel(
    task_id: TaskArgument,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Take a task back; one that has ended stays as it is."""
    gateway = client(address, None, tenant)
    with told():
        print(gateway.cancel(task_id)["state"])


@app.command(rich_help_panel=TASK_PANEL)
def pause(
    task_id: TaskArgument, tenant: TenantOption = None, address: AddressOption = None
) -> None:
    """Make a task wait until you resume it; it keeps what it has produced."""
    with told():
        print(client(address, None, tenant).pause(task_id)["state"])


@app.command(rich_help_panel=TASK_PANEL)
def resume(
    task_id: TaskArgument, tenant: TenantOption = None, address: AddressOption = None
) -> None:
    """Let a paused task go on."""
    with told():
        print(client(address, None, tenant).resume(task_id)["state"])


@app.command(rich_help_panel=TASK_PANEL)
def dead(
    all_tenants: Annotated[
        bool, typer.Option("--all", help="Those of all tenants; for operators.")
    ] = False,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """List dead letters: tasks that lost all their attempts and may be requeued."""
    with told():
        gateway = client(address, None, tenant)
        listing = gateway.tasks(is_dead=True, all_tenants=all_tenants, limit=limit)
        show(listing, as_json, tables.dead_table)


@app.command(rich_help_panel=TASK_PANEL)
def requeue(
    task_ids: Annotated[list[str], typer.Argument(help="Ids of dead letters; see `plait dead`.")],
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Try dead letters again, each from what it has produced."""
    gateway = client(address, None, tenant)
    with told():
        for task_id in task_ids:
            print(f"{task_id}  {gateway.requeue(task_id)['state']}")


# ------------------------------------------------------------------------------------- plumbing


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


def _answers(gateway: Any, task_id: str) -> Iterator[str]:
    """Several answers, one after the other under a number each, when all are there."""
    for _ in gateway.stream(task_id):
        pass
    choices = gateway.task(task_id)["output"]["choices"]
    for choice in choices:
        yield f"[{choice['index']}] {choice['text']}\n"


def main() -> None:
    """The ``plait`` command."""
    try:
        app()
    except PlaitError as error:
        ERR.print(f"[red]plait:[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
