"""`dinokit embed`: images to embeddings, one row an input, bad images reported and never in the way of good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dinokit.cli.common import model_options, open_model
from dinokit.cli.embed_files import FILE_SUFFIXES, watched, writer
from dinokit.cli.embed_given import decode_options, introduce, listed, prepared_for
from dinokit.cli.embed_options import image_options, job_options, result_options, source_options
from dinokit.cli.start import import_torch

# A folder is not meant by these.
OTHER_SUFFIXES = (
    ".csv",
    ".tsv",
    ".txt",
    ".json",
    ".parquet",
    ".arrow",
    ".feather",
    ".pt",
    ".h5",
    ".zip",
    ".lance",
    ".zarr",
)
FOLDERS_ONLY = {
    "layers": "--layer", "normalize": "--normalize", "float16": "--float16", "hash": "--hash", "absolute": "--absolute",
    "dense": "--dense", "dense_dtype": "--dense-dtype", "dense_format": "--dense-format", "as_json": "--json",
    "shard_size": "--shard-size", "exact": "--exact",
    "decode_timeout": "--decode-timeout", "retry_failed": "--retry-failed", "no_check_inputs": "--no-check-inputs",
    "max_errors": "--max-errors", "rank": "--rank", "world_size": "--world-size", "status": "--status",
    "path_column": "--path-column", "image_column": "--image-column", "id_column": "--id-column", "id_prefix": "--id-prefix",
    "root": "--root", "actors": "--actors",
}  # fmt: skip


@click.command(no_args_is_help=True)
@click.argument("inputs", metavar="SOURCE...", nargs=-1)
@result_options
@model_options
@source_options
@image_options
@job_options
@click.pass_context
def command(context: click.Context, /, out: Path | None, **given: Any) -> int:
    """Embed SOURCEs: folders (all images below), image files, globs, tar shards, Parquet and CSV, Hugging Face datasets on disk.

    Every input has one row, in order: path, status, size and embedding, or the reason why there is none. Exit code 3 says
    that some inputs failed. A folder is written in shards: whatever interrupts the job, the same command goes on with it.

    \b
    dinokit embed photos/ --out photos.emb                  # overnight; run it again to go on
    dinokit embed photos/ --out photos.npz
    dinokit embed cat.jpg --pool cls+mean | jq .norm
    find . -name '*.png' -print0 | dinokit embed --files-from - -0 -o all.jsonl
    """  # fmt: skip
    if out is not None and out.suffix not in FILE_SUFFIXES:
        if out.suffix in OTHER_SUFFIXES or out.is_file():
            raise click.BadParameter(
                f"{out.name!r} ends in none of {', '.join(FILE_SUFFIXES)}; for a folder, which is written in shards, give a name "
                f"like {out.stem}.emb.",
                param_hint="--out",
            )
        from dinokit.cli.embed_job import run

        return run(out, **given)
    for name, flag in FOLDERS_ONLY.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag} needs --out FOLDER.")
    if given["engine"] == "ray":
        raise click.UsageError("--engine ray needs --out FOLDER.")
    return _to_one_file(out, **given)


def _to_one_file(
    out: Path | None,
    *,
    inputs: tuple[str, ...],
    pools: tuple[str, ...],
    model: str,
    batch_size: int | None,
    workers: int | None,
    image_size: tuple[int, int] | None,
    files_from: Any,
    nul: bool,
    fail_fast: bool,
    overwrite: bool,
    engine: str | None,
    max_pixels: int | None,
    window: tuple[float, float] | None,
    background: tuple[float, float, float] | None,
    **loading: Any,
) -> int:
    """All rows of a run into one file, or as JSON lines to stdout."""
    import_torch()
    from dinokit.extract import embed_images
    from dinokit.images import list_images

    if len(pools) > 1:
        raise click.UsageError("several --pool need --out FOLDER.")
    pool = pools[0]
    paths = list_images(place for place in inputs if place != "-") + listed(inputs, files_from, nul=nul)
    if not paths:
        raise click.UsageError(
            "no images: name files or folders (looked for by suffix: .jpg, .png, ...), or use --files-from."
        )
    write = writer(out, overwrite)
    pre = open_model(model, engine=engine or "eager", **{k: v for k, v in loading.items() if k not in FOLDERS_ONLY})
    pre = prepared_for(pre, image_size)
    if pool == "registers" and not pre.config.num_register_tokens:
        raise click.BadParameter(f"{model} has no registers.", param_hint="--pool")
    introduce(pre, model)
    options = decode_options(max_pixels, window, background)
    rows = embed_images(pre, paths, pool=pool, batch_size=batch_size or 8, workers=workers or 2, options=options)  # type: ignore[arg-type]
    return write(watched(rows, len(paths), fail_fast), pre, pool)
