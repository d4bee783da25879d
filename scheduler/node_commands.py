"""The commands about machines: which there are, and what lets a runner join."""

from __future__ import annotations

import typer

from scheduler import tables
from scheduler.console import OPERATE_PANEL, AddressOption, JsonOption, client, show, told

nodes_app = typer.Typer(help="See the machines, and let runners join.")


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
