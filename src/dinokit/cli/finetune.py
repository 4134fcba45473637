"""`dinokit finetune`: a classifier, a segmentation head or a depth head on any backbone, with labels."""

from __future__ import annotations

import click


@click.group(name="finetune")
def command() -> None:
    """Train with labels: a classifier, segmentation or depth, on any backbone with registers or without."""
