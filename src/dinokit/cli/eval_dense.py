"""`dinokit eval` on pixels: segmentation, in-context, depth, video, matching."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import engine_option, model_options
from dinokit.cli.eval_common import numbers, opened, output_options, refuse_existing, report, said, watched_by

if TYPE_CHECKING:
    from dinokit.evals.datasets import Paired

LAYOUTS = ("ade20k", "voc", "folders")
FOLDERS = "folders: train/images, train/masks, val/images, val/masks."
SQUASHED = "Images are squashed to so many pixels."


def dense_options(command: Any) -> Any:
    """DATA, what is cut off, where results go, the model."""
    for option in reversed(
        [
            click.argument("data", type=click.Path(path_type=Path)),
            click.option("--limit", type=click.IntRange(1), help="The first images, pairs or videos of each set only."),
            output_options,
            engine_option,
            model_options,
        ]
    ):
        command = option(command)
    return command


def mask_options(command: Any) -> Any:
    """How masks lie and count."""
    for option in reversed(
        [
            click.option("--layout", type=click.Choice(LAYOUTS), default="folders", show_default=True, help=FOLDERS),
            click.option("--classes", type=click.IntRange(2), help="By default counted in the train masks; ADE20K 150, VOC 21."),
            click.option("--size", type=click.IntRange(1), default=518, show_default=True, help=SQUASHED),
            click.option("--seed", type=int, default=0, show_default=True),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.option("--steps", type=click.IntRange(1), default=40_000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="Of AdamW.")
@click.option("--blocks", type=click.IntRange(1), default=1, show_default=True, help="Tokens of so many last blocks.")
@click.option(
    "--label-size", type=click.IntRange(1), help="Masks to learn from, in pixels; smaller is faster and less exact."
)
@mask_options
@dense_options
def segmentation(layout: str, classes: int | None, **options: Any) -> int:
    """Linear segmentation on frozen patch tokens: mIoU.

    \b
    dinokit eval segmentation ADEChallengeData2016/ --layout ade20k -m facebook/dinov2-with-registers-small
    dinokit eval segmentation VOCdevkit/VOC2012 --layout voc --steps 2000
    """  # fmt: skip
    from dinokit.evals.dense import segmentation_result

    settings = {name: options[name] for name in ("size", "blocks", "steps", "batch_size", "rate", "label_size", "seed")}
    return _segment(segmentation_result, layout, classes, options, settings)


@click.command()
@click.option("--k", type=click.IntRange(1), default=30, show_default=True, help="Neighbours.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=0.02, show_default=True)
@click.option(
    "--bank-size", type=click.IntRange(1), default=100_000, show_default=True, help="Patches to compare with."
)
@mask_options
@dense_options
def in_context(layout: str, classes: int | None, **options: Any) -> int:
    """Segmentation by the nearest labelled patches, without training: mIoU.

    \b
    dinokit eval in-context VOCdevkit/VOC2012 --layout voc -m facebook/dinov2-small
    """  # fmt: skip
    from dinokit.evals.dense import in_context_result

    settings = {name: options[name] for name in ("size", "k", "temperature", "bank_size", "seed")}
    return _segment(in_context_result, layout, classes, options, settings)


@click.command()
@click.option("--train-list", type=click.Path(path_type=Path), help="Text file: image, depth on each line, below DATA.")
@click.option("--test-list", type=click.Path(path_type=Path), help="The same for the test set.")
@click.option(
    "--unit", type=click.FloatRange(0, min_open=True), default=1000.0, show_default=True, help="A metre in the files."
)
@click.option("--nearest", type=float, default=0.001, show_default=True, help="Metres.")
@click.option("--farthest", type=float, default=10.0, show_default=True, help="Metres.")
@click.option("--eigen-crop", is_flag=True, help="Judge the part of NYU's 480 x 640 maps that papers do.")
@click.option(
    "--blocks", type=click.Choice(["1", "4"]), default="1", show_default=True, help="The last, or the published four."
)
@click.option("--steps", type=click.IntRange(1), default=38_400, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=3e-4, show_default=True, help="Of AdamW.")
@click.option("--size", type=click.IntRange(1), default=518, show_default=True, help=SQUASHED)
@click.option("--seed", type=int, default=0, show_default=True)
@dense_options
def depth(train_list: Path | None, test_list: Path | None, nearest: float, farthest: float, **options: Any) -> int:
    """Linear depth on frozen tokens: RMSE and others, as they are and after the best scale and shift.

    DATA has train/images, train/depth, val/images, val/depth (16-bit PNG), or is the folder that the lists' paths start from.

    \b
    dinokit eval depth nyu/ --train-list nyu_train.txt --test-list nyu_test.txt --eigen-crop --blocks 4
    """  # fmt: skip
    from dinokit.evals.datasets import read_listing, read_pairs
    from dinokit.evals.dense import depth_result
    from dinokit.evals.depth import DepthRange

    refuse_existing(options["out"], options["overwrite"])
    if (train_list is None) != (test_list is None):
        raise click.UsageError("--train-list and --test-list come together.")
    data, limit = options["data"], options["limit"]
    if train_list is not None and test_list is not None:
        train, test = (read_listing(listing, data) for listing in (train_list, test_list))
    else:
        train, test = (read_pairs(data, name, ("images", "depth")) for name in ("train", "val"))
    settings = {name: options[name] for name in ("size", "unit", "steps", "batch_size", "rate", "eigen_crop", "seed")}

    def run() -> Any:
        reach, pre = DepthRange(nearest, farthest), opened(options, view=False)
        return depth_result(
            pre, _first(train, limit), _first(test, limit), blocks=int(options["blocks"]), reach=reach,
            watched=watched_by("depth", "it"), **settings,
        )  # fmt: skip

    return report(said(run), options["as_json"], options["out"])


@click.command()
@click.option("--split", default="val", show_default=True)
@click.option("--year", default="2017", show_default=True, help="Of the list in ImageSets.")
@click.option("--resolution", default="480p", show_default=True, help="Folder of frames and masks.")
@click.option(
    "--short-side", type=click.IntRange(1), default=480, show_default=True, help="Pixels that the network sees."
)
@click.option(
    "--context", type=click.IntRange(0), default=7, show_default=True, help="Frames before, besides the first."
)
@click.option("--radius", type=click.IntRange(0), default=12, show_default=True, help="In patches.")
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="Neighbours.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=0.1, show_default=True)
@click.option(
    "--neighbourhood",
    type=click.Choice(["square", "circle"]),
    default="square",
    show_default=True,
    help="DINO's, DINOv3's.",
)
@dense_options
def video(split: str, year: str, resolution: str, **options: Any) -> int:
    """Masks carried through DAVIS's videos from their first frames: J and F.

    \b
    dinokit eval video DAVIS/ -m facebook/dinov2-with-registers-base
    """  # fmt: skip
    from dinokit.evals.datasets import read_davis
    from dinokit.evals.dense import video_result

    refuse_existing(options["out"], options["overwrite"])
    videos = read_davis(options["data"], split, year, resolution)[: options["limit"]]
    names = ("short_side", "context", "radius", "top_k", "temperature", "neighbourhood")
    settings = {name: options[name] for name in names}
    result = said(lambda: video_result(opened(options), videos, watched=watched_by("videos", "video"), **settings))
    return report(result, options["as_json"], options["out"])


@click.command()
@click.option("--split", default="test", show_default=True)
@click.option("--size", type=click.IntRange(1), default=518, show_default=True, help=SQUASHED)
@click.option("--alpha", "alphas", default="0.01,0.05,0.1", show_default=True, callback=numbers(float, 0))
@dense_options
def matching(split: str, alphas: tuple[float, ...], **options: Any) -> int:
    """Keypoints of SPair-71k found again by the nearest token: PCK.

    \b
    dinokit eval matching SPair-71k/ -m facebook/dinov2-base
    """  # fmt: skip
    from dinokit.evals.dense import matching_result
    from dinokit.evals.matching import read_keypoint_pairs

    refuse_existing(options["out"], options["overwrite"])
    pairs = read_keypoint_pairs(options["data"], split)[: options["limit"]]

    def run() -> Any:
        pre = opened(options, view=False)
        return matching_result(pre, pairs, size=options["size"], alphas=alphas, watched=watched_by("pairs", "pair"))

    return report(said(run), options["as_json"], options["out"])


def _segment(judge: Any, layout: str, classes: int | None, options: dict[str, Any], settings: dict[str, Any]) -> int:
    from dinokit.evals.datasets import read_ade20k, read_pairs, read_voc_segmentation

    refuse_existing(options["out"], options["overwrite"])
    data, limit = options["data"], options["limit"]
    if layout == "ade20k":
        sets, classes = [read_ade20k(data, split) for split in ("training", "validation")], classes or 150
    elif layout == "voc":
        sets, classes = [read_voc_segmentation(data, split) for split in ("train", "val")], classes or 21
    else:
        sets = [read_pairs(data, split) for split in ("train", "val")]
    train, test = (_first(part, limit) for part in sets)

    def run() -> Any:
        pre = opened(options, view=False)
        watched = watched_by("segmentation", "it")
        return judge(
            pre, train, test, num_classes=classes, zero_is_other=layout == "ade20k", watched=watched, **settings
        )

    return report(said(run), options["as_json"], options["out"])


def _first(data: Paired, limit: int | None) -> Paired:
    from dinokit.evals.datasets import Paired

    return Paired(data.images[:limit], data.targets[:limit])


COMMANDS = {
    "segmentation": segmentation,
    "in-context": in_context,
    "depth": depth,
    "video": video,
    "matching": matching,
}
