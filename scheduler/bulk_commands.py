"""The commands of bulks: run a file of inputs into a file of results, look, take back.

``plait bulk run`` can be cut off at any moment and run again: its key is made of the two files'
names and what was asked for, so the second run finds the bulk of the first, hands in what is
missing, and goes on writing where the file of results ends.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scheduler import tables
from scheduler.console import (
    ERR,
    TASK_PANEL,
    AddressOption,
    JsonOption,
    TenantOption,
    client,
    show,
    told,
)
from scheduler.errors import InvalidRequest

bulk_app = typer.Typer(no_args_is_help=True, help="Hand many inputs in as one, and follow them.")

BulkArgument = Annotated[str, typer.Argument(help="A bulk's id.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="File of results; it is gone on with.")
]
InputsArgument = Annotated[
    Path, typer.Argument(help="File of inputs: a JSON object a line.", exists=True, dir_okay=False)
]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of ``plait``."""
    app.add_typer(bulk_app, name="bulk", rich_help_panel=TASK_PANEL)


@bulk_app.command()
def run(
    inputs: InputsArgument,
    output: OutputOption,
    model: Annotated[str, typer.Option("--model", "-m", help="Model to use.")] = "demo",
    priority_class: Annotated[
        str | None, typer.Option("--class", help="Priority class.", show_default="batch")
    ] = None,
    name: Annotated[str, typer.Option(help="For people, in listings.")] = "",
    key: Annotated[
        str | None,
        typer.Option(help="Idempotency key.", show_default="made of the files' names"),
    ] = None,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Run every input of a file, and write what becomes of each, in order, as it comes.

    Run again with the same files it goes on. Exit code 1 when an input did not succeed.
    """
    gateway = client(address, None, tenant)
    key = key or _key_of(inputs, output, model, priority_class)
    bulk_id = ""
    with told(), _progress() as bar:
        try:
            bulk = _hand_in(bar, gateway, inputs, model, priority_class, name or inputs.name, key)
            bulk_id = bulk["bulk_id"]
            if bulk["state"] == "cancelled":
                message = f"bulk {bulk_id} was cancelled; begin another with another --key"
                raise InvalidRequest(message, field="key")
            states = _follow(bar, gateway, bulk, output)
        except KeyboardInterrupt:
            _tell_how_to_go_on(bulk_id)
            raise
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    ERR.print(f"{bulk_id}: {counts or 'no inputs'}; results in {output}", highlight=False)
    if set(states) - {"succeeded"}:
        raise typer.Exit(1)


@bulk_app.command()
def status(
    bulk_id: Annotated[
        str | None, typer.Argument(help="A bulk's id; without it: your newest.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Most bulks to list.", min=1)] = 20,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Show how far a bulk is, or list the newest."""
    gateway = client(address, None, tenant)
    with told():
        if bulk_id is None:
            show(gateway.bulks(limit=limit), as_json, tables.bulk_table)
        else:
            show(gateway.bulk(bulk_id), as_json, tables.bulk_story)


@bulk_app.command()
def results(
    bulk_id: BulkArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, else standard output.")
    ] = None,
    start: Annotated[int, typer.Option("--from", help="Place to begin at, from 0.", min=0)] = 0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Only what has ended by now; without it: wait.")
    ] = False,
    tenant: TenantOption = None,
    address: AddressOption = None,
) -> None:
    """Write what became of a bulk's inputs, a line each, in order."""
    gateway = client(address, None, tenant)
    with told():
        outcomes = gateway.bulk_results(bulk_id, start, is_partial=partial)
        if output is None:
            for outcome in outcomes:
                typer.echo(_line(outcome), nl=False)
            return
        with output.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, outcomes))


@bulk_app.command()
def cancel(
    bulk_id: BulkArgument, tenant: TenantOption = None, address: AddressOption = None
) -> None:
    """Take a bulk back; inputs that have ended stay as they are."""
    with told():
        typer.echo(tables.bulk_story(client(address, None, tenant).cancel_bulk(bulk_id)))


# ------------------------------------------------------------------------------------- handing in


def _hand_in(
    bar: Progress,
    gateway: Any,
    inputs: Path,
    model: str,
    priority_class: str | None,
    name: str,
    key: str,
) -> Any:
    """Every input of the file on disk at the gateway."""
    from scheduler.client import InputRefused

    task = bar.add_task("handing in", total=sum(1 for _ in _lines(inputs)))
    try:
        return gateway.submit_bulk(
            model,
            (text for _, text in _lines(inputs)),
            priority_class=priority_class,
            name=name,
            idempotency_key=key,
            on_accepted=lambda count: bar.update(task, completed=count),
        )
    except InputRefused as error:
        number = next(n for place, (n, _) in enumerate(_lines(inputs)) if place == error.index)
        raise InvalidRequest(
            f"{inputs}, line {number}: {error.message}; {error.index} inputs before it are "
            "accepted: put it right and run this again"
        ) from error


def _lines(inputs: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1."""
    with inputs.open("rb") as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                yield number, text


def _key_of(inputs: Path, output: Path, model: str, priority_class: str | None) -> str:
    """The same for the same command; another first input is another bulk."""
    first = next((text for _, text in _lines(inputs)), b"")
    what = [str(inputs.resolve()), str(output.resolve()), model, str(priority_class)]
    return hashlib.sha256("\0".join(what).encode() + b"\0" + first).hexdigest()


# ------------------------------------------------------------------------------------- following


def _follow(bar: Progress, gateway: Any, bulk: Any, output: Path) -> Counter[str]:
    """Write outcomes as they come, after those that the file has; states of all, counted."""
    states, last = _written(output)
    num_written = sum(states.values())
    if last is not None:
        _check_same_bulk(gateway, bulk, last, num_written, output)
    task = bar.add_task("working", total=bulk["num_inputs"], completed=num_written)
    with output.open("a", encoding="utf-8") as file:
        for outcome in gateway.bulk_results(bulk["bulk_id"], num_written):
            file.write(_line(outcome))
            file.flush()
            states[outcome["state"]] += 1
            bar.advance(task)
    return states


def _written(output: Path) -> tuple[Counter[str], Any]:
    """The states of what a file of results has, counted, and its last line. A line that was cut off
    is removed."""
    states: Counter[str] = Counter()
    last: Any = None
    if not output.exists():
        return states, last
    with output.open("rb+") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            last = _outcome(line, output)
            states[last["state"]] += 1
            end += len(line)
        file.truncate(end)
    return states, last


def _outcome(line: bytes, output: Path) -> Any:
    try:
        outcome = json.loads(line)
        return {**outcome, "index": int(outcome["index"]), "state": str(outcome["state"])}
    except (ValueError, TypeError, KeyError):
        message = f"{output} holds other lines than results of a bulk; name another --output"
        raise InvalidRequest(message, field="output") from None


def _check_same_bulk(gateway: Any, bulk: Any, last: Any, num_written: int, output: Path) -> None:
    """Refuse to mix two bulks' results in a file."""
    outcomes = gateway.bulk_results(bulk["bulk_id"], num_written - 1, is_partial=True)
    there = next(outcomes, None)
    if there is None or last["index"] != num_written - 1 or there["task_id"] != last["task_id"]:
        message = f"{output} holds results of another bulk; name another file with --output"
        raise InvalidRequest(message, field="output")


def _line(outcome: Any) -> str:
    return json.dumps(outcome, ensure_ascii=False, separators=(",", ":")) + "\n"


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=ERR)


def _tell_how_to_go_on(bulk_id: str) -> None:
    if bulk_id:
        ERR.print(
            f"bulk {bulk_id} goes on; run the same again to go on with it, or take it back with: "
            f"plait bulk cancel {bulk_id}",
            highlight=False,
        )
    else:
        ERR.print("run the same again to go on", highlight=False)
