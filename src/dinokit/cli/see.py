"""`dinokit see`: what a network does with a photograph, as a picture and as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import model_options, open_model, say, size_callback
from dinokit.errors import EXIT_OK, EXIT_SOME_INPUTS_FAILED, DinokitError, ImageError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from dinokit.analysis.pca import PatchPCA
    from dinokit.inspection.drawn import Seen
    from dinokit.inspection.look import Look
    from dinokit.weights.load import Pretrained

KINDS = ("attention", "flow", "norms", "pca", "similarity", "registers", "segments", "discover")
TOGETHER = ("pca", "similarity")  # all images in one picture
MAX_TOGETHER = 48
# Which kinds an option is for; others refuse it, so that nothing is ignored in silence.
BELONGS = {
    "head": ("attention",),
    "query": ("similarity",),
    "basis": ("pca",),
    "foreground": ("pca",),
    "frames": ("pca",),
    "num": ("segments",),
}


def _query(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no patch; write ROW,COL, counted from 0.", param=parameter)
    return int(parts[0]), int(parts[1])


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1)
@click.option("--kind", "-k", type=click.Choice(KINDS), default="attention", show_default=True)
@click.option("--layer", type=int, default=-1, show_default=True, help="Block, 0 the first, -1 the last.")
@click.option("--head", type=int, help="attention: this head alone, 0 the first.")
@click.option(
    "--query", callback=_query, metavar="ROW,COL", help="similarity: patch of the first image.  [default: middle]"
)
@click.option("--num", type=click.IntRange(2), help="segments: how many.  [default: as the eigenvalues suggest]")
@click.option(
    "--basis", type=click.Path(path_type=Path), metavar="FILE.npz", help="pca: use this basis; written if not there."
)
@click.option("--foreground", is_flag=True, help="pca: background black, by the first component.")
@click.option("--frames", is_flag=True, help="pca: a picture a frame into the folder --out, one basis for all.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), metavar="DIR|FILE.png", help="Where pictures go.  [default: here]"
)
@click.option("--overwrite", is_flag=True, help="Replace pictures that are there.")
@click.option("--json", "as_json", is_flag=True, help="Numbers on stdout, a line a picture; pictures only with --out.")
@click.option(
    "--image-size", callback=size_callback, metavar="H[xW]", help="Larger maps: pixels of the crop, 518 for example."
)
@click.option("--no-crop", is_flag=True, help="The whole photograph instead of its middle.")
@model_options
def command(
    inputs: tuple[str, ...],
    kind: str,
    layer: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    image_size: tuple[int, int] | None,
    no_crop: bool,
    model: str,
    **options: Any,
) -> int:
    """Draw what the network does with INPUTS: image files, and folders with all images below them.

    One picture an image; `pca` and `similarity` show all images in one. Prints the paths of the pictures.

    \b
    dinokit see cat.jpg
    dinokit see cat.jpg --kind norms --image-size 518 --out norms.png
    dinokit see a.jpg b.jpg --kind pca --basis colours.npz
    dinokit see a.jpg b.jpg --kind similarity --query 8,8 --json | jq .images[1].nearest
    dinokit see frames/ --kind pca --frames --out coloured/
    """  # fmt: skip
    from dinokit.extract import list_images
    from dinokit.inspection.look import with_view

    chosen = {name: options.pop(name) for name in BELONGS}
    for name, kinds in BELONGS.items():
        if chosen[name] not in (None, False) and kind not in kinds:
            raise click.UsageError(f"--{name} belongs to --kind {' or '.join(kinds)}, not to {kind}.")
    if kind == "discover" and (image_size or no_crop):
        raise click.UsageError(
            "--kind discover always shows the whole photograph; see dinokit discover --longest-side."
        )
    paths = list_images(inputs)
    if not paths:
        raise click.UsageError("no images there; name files, or folders with .jpg, .png, ... below them.")
    if kind in TOGETHER and len(paths) > MAX_TOGETHER and not chosen["frames"]:
        raise click.UsageError(
            f"{len(paths)} images in one picture; {MAX_TOGETHER} at most, or --kind pca --frames for more."
        )
    targets = _targets(
        out, paths, kind, write=out is not None or not as_json, frames=chosen["frames"], overwrite=overwrite
    )
    pre = open_model(model, **options)
    with _as_usage():
        layer = _block(layer, pre)
        pre = with_view(pre, image_size, crop=not no_crop)
        if chosen["frames"]:
            return _frames(pre, paths, targets, layer, chosen)
        report = _Report(as_json)
        if kind in TOGETHER:
            looks = _looks(pre, paths, layer, report)
            if looks:
                report.add(_together(kind, looks, chosen), targets[0])
        else:
            for path, target in zip(paths, targets, strict=True):
                report.attempt(lambda path=path: _alone(kind, pre, path, layer, chosen), target)  # type: ignore[misc]
    return EXIT_SOME_INPUTS_FAILED if report.failed else EXIT_OK


class _Report:
    """Writes pictures, prints paths or numbers, counts failures."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.failed = as_json, 0

    def attempt(self, draw: Callable[[], Seen], target: Path | None) -> None:
        try:
            seen = draw()
        except ImageError as error:
            self.fail(error)
        else:
            self.add(seen, target)

    def fail(self, error: ImageError) -> None:
        self.failed += 1
        say(f"{error.code}: {error}")

    def add(self, seen: Seen, target: Path | None) -> None:
        if target is not None:
            _save(seen.picture, target)
        if self.as_json:
            record = seen.numbers if target is None else {**seen.numbers, "picture": str(target)}
            click.echo((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"), nl=False)
        else:
            click.echo(str(target))


@contextmanager
def _as_usage() -> Iterator[None]:
    """A value that does not suit this network or image is a matter of usage; the library's own sentence says which."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.UsageError(str(error)) from error


def _block(layer: int, pre: Pretrained) -> int:
    from dinokit.model.capture import block_indices

    return block_indices([layer], pre.config.depth)[0]


def _looks(pre: Pretrained, paths: Sequence[str], layer: int, report: _Report) -> list[Look]:
    from dinokit.inspection.look import look

    looks = []
    for path in paths:
        try:
            looks.append(look(pre, path, layer=layer, name=Path(path).name))
        except ImageError as error:
            report.fail(error)
            if not looks:  # a query belongs to the first image, so nothing can stand for it
                break
    return looks


def _alone(kind: str, pre: Pretrained, path: str, layer: int, chosen: dict[str, Any]) -> Seen:
    from dinokit.inspection import see, see_flow, see_maps
    from dinokit.inspection.look import look

    if kind == "discover":
        return _discover(pre, path, layer)
    found = look(pre, path, layer=layer, name=Path(path).name)
    match kind:
        case "flow":
            return see_flow.flow(pre, path, found)
        case "attention":
            return see.attention(found, chosen["head"])
        case "norms":
            given = click.get_current_context().get_parameter_source("layer")
            return see_maps.norms(found, None if given is click.core.ParameterSource.DEFAULT else layer + 1)
        case "registers":
            return see.registers(found)
        case _:
            return see_maps.segments(found, chosen["num"])


def _together(kind: str, looks: list[Look], chosen: dict[str, Any]) -> Seen:
    from dinokit.inspection import see, see_maps

    if kind == "similarity":
        rows, columns = looks[0].grid
        return see.similarity(looks, chosen["query"] or (rows // 2, columns // 2))
    basis = _basis(chosen["basis"], lambda: see_maps.fit_basis(looks, foreground=chosen["foreground"]))
    return see_maps.pca(looks, basis)


def _discover(pre: Pretrained, path: str, layer: int) -> Seen:
    from dinokit.inspection.discover import discover, load_photo
    from dinokit.inspection.discover_panel import discover_panel
    from dinokit.inspection.drawn import Seen

    photo = load_photo(pre, path)
    results = discover(pre, photo, layers=[layer])
    name = Path(path).name
    picture = discover_panel(photo, results, patch_size=pre.config.patch_size, title=f"LOST: {name}")
    boxes = [list(map(int, box)) for box in results[0].boxes]
    return Seen(
        picture, {"image": name, "layer": layer, "method": "lost", "boxes": boxes, "grid": list(results[0].grid)}
    )


def _basis(path: Path | None, fit: Callable[[], PatchPCA]) -> PatchPCA:
    """The basis of a file that is there; else a new one, written to the file if one was named."""
    from dinokit.analysis.pca import PatchPCA

    if path is not None and path.exists():
        return PatchPCA.load(path)
    basis = fit()
    if path is not None:
        say(f"wrote {basis.save(path)}")
    return basis


def _frames(
    pre: Pretrained, paths: Sequence[str], targets: Sequence[Path | None], layer: int, chosen: dict[str, Any]
) -> int:
    from tqdm import tqdm

    from dinokit.inspection.video import colour_frames, fit_frames

    basis = _basis(chosen["basis"], lambda: fit_frames(pre, paths, layer=layer, foreground=chosen["foreground"]))
    failed = 0
    frames = zip(colour_frames(pre, paths, basis, layer=layer), targets, strict=True)
    for frame, target in tqdm(frames, total=len(paths), unit="frame", disable=None):
        if frame.picture is None or target is None:
            failed += 1
            say(f"{frame.error.code if frame.error else 'error'}: {frame.error}")
            continue
        _save(frame.picture, target)
        click.echo(str(target))
    return EXIT_SOME_INPUTS_FAILED if failed else EXIT_OK


def _targets(
    out: Path | None, paths: Sequence[str], kind: str, *, write: bool, frames: bool, overwrite: bool
) -> list[Path | None]:
    """Where each picture goes; refuses before anything is computed.

    Raises:
        OutputError: a picture is there already, or its folder can't be made.
    """
    count = 1 if kind in TOGETHER and not frames else len(paths)
    if not write:
        return [None] * count
    if frames and (out is None or out.suffix == ".png"):
        raise click.UsageError("--frames writes a picture a frame; name their folder with --out.")
    if out is not None and out.suffix == ".png" and not out.is_dir():
        if count > 1:
            raise click.UsageError(f"{count} pictures don't fit into {out}; name a folder.")
        targets, folder = [out], out.parent
        if not folder.is_dir():
            raise OutputError(f"{out} can't be written: the folder {folder} does not exist.")
    else:
        folder = out or Path()
        suffix = "" if frames else f"-{kind}"
        targets = [folder / f"{name}{suffix}.png" for name in _names(paths[:count])]
    inputs = {Path(path).resolve() for path in paths}
    for target in targets:
        if target.resolve() in inputs:
            raise OutputError(f"{target} is one of the images; name another folder with --out.")
        if target.exists() and not overwrite:
            raise OutputError(f"{target} exists already; choose another name or use --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be used as a folder for pictures: {error.strerror}.") from error
    return list(targets)


def _names(paths: Sequence[str]) -> list[str]:
    """Stems of the images; a number makes those that repeat different."""
    taken: set[str] = set()
    names = []
    for path in paths:
        stem = name = Path(path).stem
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names.append(name)
    return names


def _save(picture: Image.Image, target: Path) -> None:
    from dinokit.atomic import write_atomically

    write_atomically(target, lambda file: picture.save(file, "PNG"))
