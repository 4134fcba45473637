"""`dinokit curate`."""

from __future__ import annotations

import click


@click.command(no_args_is_help=True)
@click.argument("collection")
def command(collection: str) -> None:
    """Not written yet."""
    raise click.UsageError(f"{collection}: this command is being written.")
