"""`dinokit eval`."""

from __future__ import annotations

import click


@click.command(no_args_is_help=True)
@click.argument("task")
def command(task: str) -> None:
    """Not written yet."""
    raise click.UsageError(f"{task}: this command is being written.")
