"""`dinokit repair`: find the neurons that write a network's artefacts, once; afterwards any command takes `--repair FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import model_options, open_model, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dinokit.model import VisionTransformer
    from dinokit.weights.load import Pretrained


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Where the calibration goes."
)
@click.option(
    "--neurons", type=click.IntRange(1), default=10, show_default=True, help="How many register neurons to move."
)
@click.option(
    "--factor",
    type=click.FloatRange(1, min_open=True),
    default=4.0,
    show_default=True,
    help="An outlier has more than this times its image's median norm.",
)
@click.option(
    "--norm-block", type=int, default=-1, show_default=True, help="After which block norms are read; -2 for ViT-L."
)
@click.option("--top-block", type=int, help="Last block searched; by default the first after which outliers show.")
@click.option("--bias", is_flag=True, help="Keep keys and values too, for the form without a token.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Use at most so many images.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "as_json", is_flag=True, help="What was found as one JSON object.")
@model_options
def command(
    inputs: tuple[str, ...],
    out: Path,
    neurons: int,
    factor: float,
    norm_block: int,
    top_block: int | None,
    bias: bool,
    limit: int,
    batch_size: int,
    overwrite: bool,
    as_json: bool,
    model: str,
    **loading: Any,
) -> None:
    """Calibrate test-time registers on the images of INPUTS (files and folders; some hundred suffice).

    Finds the neurons that fire at outlier patches and tells how the share of outliers changes when they are moved to a register.

    \b
    dinokit repair photos/ --model facebook/dinov2-large --norm-block -2 --out repair.safetensors
    dinokit embed photos/ --model facebook/dinov2-large --repair repair.safetensors --pool patches -o clean.npz
    """  # fmt: skip
    from dinokit.errors import OutputError
    from dinokit.extract import list_images
    from dinokit.repair import TestTimeRegisters, calibrate, mean_keys_and_values
    from dinokit.weights.repaired import save_calibration

    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out.name!r} does not end in .safetensors.", param_hint="--out")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists already; choose another name or use --overwrite.")
    paths = list_images(inputs)[:limit]
    if not paths:
        raise click.UsageError("no images: name files or folders.")
    pre = open_model(model, **loading)
    batches = list(_batches(pre, paths, batch_size))
    top = first_outlier_block(pre.model, batches, factor) if top_block is None else top_block
    try:
        found = calibrate(pre.model, batches, num_neurons=neurons, factor=factor, norm_block=norm_block, top_block=top)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    pairs = mean_keys_and_values(pre.model, found.neurons, batches) if bias else None
    save_calibration(out, found, pre, pairs, overwrite=overwrite)
    before = outlier_share(pre.model, batches, factor, found.norm_block)
    after = outlier_share(TestTimeRegisters(pre.model, found.neurons), batches, factor, found.norm_block)
    result = {
        "neurons": [list(neuron) for neuron in found.neurons],
        "scores": list(found.scores),
        "top_block": found.top_block,
        "images": found.num_images,
        "outlier_share_before": before,
        "outlier_share_after": after,
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo("block neuron  mean activation at outliers")
        for (block, neuron), score in zip(found.neurons, found.scores, strict=True):
            click.echo(f"{block:>5} {neuron:>6}  {score:.2f}")
        click.echo(f"outlier patches: {before:.2%} before, {after:.2%} with one test-time register")
    say(f"wrote {out}")


def _batches(pre: Pretrained, paths: list[str], size: int) -> Iterator[Tensor]:
    """Pixels of the readable images; the others are said."""
    import torch

    from dinokit.errors import ImageError

    waiting: list[Tensor] = []
    for path in paths:
        try:
            waiting.append(pre.transform(path).to(pre.device, pre.dtype))
        except ImageError as error:
            say(f"{error.code}: {error}")
        if len(waiting) == size:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def first_outlier_block(model: VisionTransformer, batches: list[Tensor], factor: float) -> int:
    """The first block after which any patch exceeds `factor` times its image's median norm; the last block where none does."""
    first = model.config.depth - 1
    for images in batches:
        for index, flags in _outliers_by_block(model, images, factor):
            if index >= first:
                break
            if flags.any():
                first = index
    return first


def outlier_share(model: VisionTransformer, batches: list[Tensor], factor: float, block: int) -> float:
    """Share of patches above `factor` times their image's median norm after `block`."""
    found = total = 0
    for images in batches:
        flags = next(flags for index, flags in _outliers_by_block(model, images, factor) if index == block)
        found, total = found + int(flags.sum()), total + flags.numel()
    return found / total


def _outliers_by_block(model: VisionTransformer, images: Tensor, factor: float) -> Iterator[tuple[int, Tensor]]:
    """Which patches (b n) are outliers after each block; computes no further than is read."""
    import torch

    from dinokit.repair.form import robust_outliers

    stream = model.stream(images)
    with torch.no_grad():
        next(stream)  # what enters the first block
    for index in range(model.config.depth):
        with torch.no_grad():
            flags = robust_outliers(next(stream)[:, model.config.num_prefix_tokens :].norm(dim=-1), factor)
        yield index, flags
