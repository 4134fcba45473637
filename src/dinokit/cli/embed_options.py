"""Options of `dinokit embed`, in the order in which they are thought of: what goes in, what comes out, how the job behaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dinokit.cli.common import ENGINES, numbers_callback, size_callback

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

POOLS = ("cls", "mean", "cls+mean", "registers", "patches")
DENSE = ("patches", "registers", "tokens")


def _together(options: list[Decorator]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


source_options = _together(
    [
        click.option("--files-from", type=click.File("rb"), help="A list of paths, one a line; - for stdin."),
        click.option("-0", "nul", is_flag=True, help="Paths of --files-from end in NUL (find -print0)."),
        click.option("--path-column", help="Column of paths in a CSV or Parquet manifest.  [default: path, file, ...]"),
        click.option(
            "--image-column", help="Column of image bytes in Parquet, Arrow and Lance.  [default: the only one]"
        ),
        click.option("--id-column", help="Column of ids; without it ids are paths or row numbers."),
        click.option(
            "--root",
            default="",
            metavar="DIR",
            help="Relative paths of lists and manifests are meant from here, and ids too.",
        ),
        click.option(
            "--id-prefix/--no-id-prefix",
            default=None,
            help="Begin ids with the name of their source.  [default: if there are several]",
        ),
    ]
)

image_options = _together(
    [
        click.option(
            "--image-size",
            callback=size_callback,
            metavar="H[xW]",
            help="Crop of another size; the shorter edge is scaled as the model's own transform does.",
        ),
        click.option(
            "--exact", is_flag=True, help="Prepare images as the reference does, not by the fast way (docs/embed.md)."
        ),
        click.option("--max-pixels", type=click.IntRange(1), help="Refuse larger images.  [default: 178,956,970]"),
        click.option(
            "--window",
            callback=numbers_callback(2),
            metavar="LO,HI",
            help="Values of black and white, for 16-bit and float images.",
        ),
        click.option(
            "--background", callback=numbers_callback(3), metavar="R,G,B", help="Put transparent images on this colour."
        ),
    ]
)

result_options = _together(
    [
        click.option(
            "--out",
            "-o",
            type=click.Path(path_type=Path),
            help="A folder, written in shards and resumable; or FILE.npz, .npy, .jsonl. JSON lines on stdout without it.",
        ),
        click.option(
            "--pool",
            "-p",
            "pools",
            type=click.Choice(POOLS),
            multiple=True,
            default=["cls"],
            show_default=True,
            help="Which tokens become the embedding; several give a column each (folders).",
        ),
        click.option(
            "--layer",
            "layers",
            type=int,
            multiple=True,
            help="After this block, from 0, or -1 from the end; several give a column each.  [default: the last]",
        ),
        click.option(
            "--normalize/--no-normalize",
            default=True,
            show_default=True,
            help="Vectors of length 1; the length they had is in the column norm.",
        ),
        click.option("--float16", is_flag=True, help="Store vectors in 16 bits."),
        click.option("--hash/--no-hash", default=True, show_default=True, help="sha256 of each file's bytes."),
        click.option("--absolute", is_flag=True, help="Absolute paths in the column path."),
        click.option(
            "--dense",
            type=click.Choice(DENSE),
            multiple=True,
            help="Also all tokens of a kind, as arrays beside the shards; says how large they will be.",
        ),
        click.option(
            "--dense-dtype",
            type=click.Choice(["float16", "float32"]),
            default="float16",
            show_default=True,
            help="Of those.",
        ),
        click.option(
            "--dense-format",
            type=click.Choice(["npy", "zarr"]),
            default="npy",
            show_default=True,
            help="An array a shard, or one Zarr store.",
        ),
        click.option("--json", "as_json", is_flag=True, help="A summary as JSON on stdout."),
        click.option("--overwrite", is_flag=True, help="Replace FILE if it is there."),
    ]
)

job_options = _together(
    [
        click.option("--shard-size", type=click.IntRange(1, 1 << 20), help="Rows a file.  [default: 1024]"),
        click.option(
            "--batch-size",
            type=click.IntRange(1, 4096),
            help="Images at a time.  [default: 8; GPU 64; 1 if sizes differ]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(0, 256),
            help="Processes that decode; 0: threads in this process.  [default: by cores]",
        ),
        click.option(
            "--engine",
            type=click.Choice([*ENGINES, "ray"]),
            help="Form of the network: auto, the fastest here (for folders by default); eager, as it is; compiled. Or ray: "
            "the fastest, on the machines of RAY_ADDRESS.",
        ),
        click.option(
            "--actors", type=click.IntRange(1), help="Processes with a network, for --engine ray.  [default: all]"
        ),
        click.option(
            "--decode-timeout",
            type=click.FloatRange(0, min_open=True),
            default=30.0,
            show_default=True,
            help="Seconds for one image; then its row says decode_timeout.",
        ),
        click.option("--retry-failed", is_flag=True, help="Do the failed rows of a finished job again."),
        click.option(
            "--no-check-inputs", is_flag=True, help="Go on with the plan as it is, without listing the sources again."
        ),
        click.option("--max-errors", metavar="N|P%", help="Stop when more inputs fail.  [default: 100%]"),
        click.option("--fail-fast", is_flag=True, help="Stop at the first bad image."),
        click.option(
            "--rank", type=click.IntRange(0), help="Of this process among --world-size.  [default: RANK, SLURM]"
        ),
        click.option("--world-size", type=click.IntRange(1), help="Processes that share the folder."),
        click.option("--status", is_flag=True, help="Only say how far the folder is."),
    ]
)
