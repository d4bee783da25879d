"""The commands about machines: which there are, and what lets a runner join."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler import tables
from scheduler.console import ERR, OPERATE_PANEL, OUT, AddressOption, JsonOption, client, show, told
from scheduler.join_token import NOBODY

nodes_app = typer.Typer(help="See the machines, and let runners join.")
token_app = typer.Typer(help="Make and revoke what runners join with (PLAIT_JOIN_TOKEN).")
nodes_app.add_typer(token_app, name="token")


def add_to(app: typer.Typer) -> None:
    """Make these commands part of ``plait``."""
    app.add_typer(nodes_app, name="nodes", rich_help_panel=OPERATE_PANEL)


@nodes_app.callback(invoke_without_command=True)
def nodes(
    context: typer.Context, as_json: JsonOption = False, address: AddressOption = None
) -> None:
    """List the machines with what they have and how busy they are."""
    if context.invoked_subcommand is None:
        with told():
            show(client(address).nodes(), as_json, tables.node_table)


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Option(help="For people, such as the machine it is for.")] = "",
    expires_in_s: Annotated[
        float | None, typer.Option("--expires-in", help="Seconds after which it opens nothing.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Make a join token and print it, this once."""
    with told():
        gateway = client(address)
        answer = gateway.create_key(NOBODY, role="node", name=name, expires_in_s=expires_in_s)
        if not as_json:
            line = f"join token {answer['key_id']}; it is shown this once:"
            ERR.print(line, highlight=False, markup=False)
        show(answer, as_json, lambda document: str(document["key"]))


@token_app.command("list")
def list_tokens(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List join tokens; how they are written is not kept anywhere."""
    with told():
        show(client(address).keys(NOBODY), as_json, tables.key_table)


@token_app.command("revoke")
def revoke_token(
    key_id: Annotated[str, typer.Argument(help="Id of the token, as in the list.")],
    address: AddressOption = None,
) -> None:
    """Let nobody join with a token any more; runners that have are sent away."""
    with told():
        OUT.print(f"{client(address).revoke_key(key_id)['key_id']} is revoked", markup=False)
