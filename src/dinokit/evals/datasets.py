"""Data sets in the folders in which people have them: what is where, in an order that does not depend on the file system.

Promise: only names are read here, and lists; a folder that is not as expected says what was looked for. Masks and depths are read by
`annotations`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from dinokit.errors import EXIT_USAGE, DinokitError, MissingExtraError
from dinokit.images import IMAGE_SUFFIXES, is_image_name

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "validation", "valid", "test")
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"


class DatasetError(DinokitError, ValueError):
    """A data set that is not where it should be, or not what it should be."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Labelled:
    """Images with a class each, as a number into `classes`."""

    paths: tuple[str, ...]
    labels: Int64[Tensor, " m"]
    classes: tuple[str, ...]

    def select(self, numbers: Sequence[int]) -> Labelled:
        """These images, with the same classes."""
        return Labelled(tuple(self.paths[i] for i in numbers), self.labels[list(numbers)], self.classes)


@dataclass(frozen=True)
class Paired:
    """Images, and for each a file that goes with it: a mask or a depth map."""

    images: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Sequence2017:
    """A video of DAVIS: frames and masks of the same number."""

    name: str
    frames: tuple[str, ...]
    masks: tuple[str, ...]


def images_below(folder: Path) -> list[Path]:
    """Images by suffix, at any depth, sorted."""
    return sorted(path for path in folder.rglob("*") if is_image_name(path.name) and path.is_file())


def read_image_folder(root: str | Path, devkit: str | Path | None = None) -> tuple[Labelled, Labelled | None]:
    """Train and test images of `root/train/CLASS/...` and `root/val/CLASS/...`; of `root/CLASS/...` train alone, without a test set.

    ImageNet's validation images may lie in one folder: then `devkit` (the folder ILSVRC2012_devkit_t12) says their classes.

    Raises:
        DatasetError: no class folders, no images, or classes in the test set that the train set lacks.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder; name one with train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg.")
    train, test = _first(root, TRAIN_NAMES), _first(root, TEST_NAMES)
    if train is None:
        return _class_folders(root, None), None
    found = _class_folders(train, None)
    if test is None:
        return found, None
    if not any(path.is_dir() for path in test.iterdir()):
        if devkit is None:
            raise DatasetError(
                f"{test} has no folder for each class. Sort its images into folders, or for ImageNet name the devkit."
            )
        return found, _flat_imagenet(test, Path(devkit), found.classes)
    return found, _class_folders(test, found.classes)


def read_labels_csv(path: str | Path) -> dict[str, tuple[str, str]]:
    """Label and split ("" without one) of each id, from a CSV with the columns `id`, `label` and, if wanted, `split`.

    Raises:
        DatasetError: unreadable, a column is missing, or an id comes twice.
    """
    path = Path(path)
    found: dict[str, tuple[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"id", "label"} <= set(rows.fieldnames or ()):
                raise DatasetError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ()) or 'none'}; it needs id and label (and may have split)."
                )
            for row in rows:
                if row["id"] in found:
                    raise DatasetError(f"{path} names {row['id']} twice; each image has one label.")
                found[row["id"]] = (row["label"] or "", row.get("split") or "")
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is no CSV: {error}.") from error
    return found


def read_ade20k(root: str | Path, split: str = "training") -> Paired:
    """Images and masks of ADEChallengeData2016: images/training/*.jpg, annotations/training/*.png (0 is "other").

    Raises:
        DatasetError: a folder is missing, or an image has no mask.
    """
    root = Path(root)
    return _pair(root / "images" / split, root / "annotations" / split, "ADE20K's folder ADEChallengeData2016")


def read_voc_segmentation(root: str | Path, split: str = "train") -> Paired:
    """Images and masks of a VOC folder: ImageSets/Segmentation/{split}.txt, JPEGImages, SegmentationClass.

    Raises:
        DatasetError: a list or file is missing.
    """
    root = Path(root)
    names = _lines(
        root / "ImageSets" / "Segmentation" / f"{split}.txt", "VOC's folder of one year, such as VOCdevkit/VOC2012"
    )
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    return _existing(images, masks)


def read_pairs(root: str | Path, split: str, kinds: tuple[str, str] = ("images", "masks")) -> Paired:
    """Images and targets of the same name in `root/{split}/images` and `root/{split}/masks`, or `root/images/{split}` and so on.

    Raises:
        DatasetError: neither is there, or an image has no target.
    """
    root = Path(root)
    inside = root / split / kinds[0]
    if inside.is_dir():
        return _pair(inside, root / split / kinds[1], f"a folder with {split}/{kinds[0]} and {split}/{kinds[1]}")
    return _pair(
        root / kinds[0] / split, root / kinds[1] / split, f"a folder with {split}/{kinds[0]} and {split}/{kinds[1]}"
    )


def read_listing(listing: str | Path, root: str | Path) -> Paired:
    """Image and depth of each line of a text file, paths below `root` (further words, such as a focal length, are passed over).

    So are NYU Depth's usual lists: "/kitchen/rgb_00045.jpg /kitchen/sync_depth_00045.png 518.8579". Lines with "None" for the depth
    are left out.

    Raises:
        DatasetError: unreadable, a line without two paths, or a file is missing.
    """
    rows = [line.split() for line in _lines(Path(listing), "a list of images and depths", whole=True)]
    if bad := [row for row in rows if len(row) < 2]:
        raise DatasetError(f"{listing}: {' '.join(bad[0])!r} is no image and depth; write two paths a line.")
    kept = [row for row in rows if row[1] != "None"]
    base = Path(root)
    return _existing([base / row[0].lstrip("/") for row in kept], [base / row[1].lstrip("/") for row in kept])


def read_davis(
    root: str | Path, split: str = "val", year: str = "2017", resolution: str = "480p"
) -> list[Sequence2017]:
    """Videos of a DAVIS folder: JPEGImages/480p/NAME, Annotations/480p/NAME, ImageSets/2017/val.txt (without it, all videos).

    Raises:
        DatasetError: a folder is missing, or frames and masks differ in number.
    """
    root = Path(root)
    frames, masks = root / "JPEGImages" / resolution, root / "Annotations" / resolution
    if not (frames.is_dir() and masks.is_dir()):
        raise DatasetError(
            f"{root} lacks JPEGImages/{resolution} or Annotations/{resolution}; name the folder DAVIS of DAVIS {year}."
        )
    listing = root / "ImageSets" / year / f"{split}.txt"
    if (root / "ImageSets").is_dir():
        names = _lines(listing, f"the folder DAVIS of DAVIS {year}")
    else:
        names = sorted(path.name for path in frames.iterdir() if path.is_dir())
    found = []
    for name in names:
        images, targets = images_below(frames / name), images_below(masks / name)
        if [path.stem for path in images] != [path.stem for path in targets] or not images:
            raise DatasetError(
                f"{name}: {len(images)} frames and {len(targets)} masks; every frame needs a mask of its name."
            )
        found.append(Sequence2017(name, tuple(map(str, images)), tuple(map(str, targets))))
    return found


def _class_folders(folder: Path, classes: tuple[str, ...] | None) -> Labelled:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise DatasetError(f"{folder} has no folders; images lie in one folder a class.")
    known = names if classes is None else classes
    if unknown := sorted(set(names) - set(known)):
        raise DatasetError(
            f"{folder} has the class {unknown[0]!r}, of which there is nothing to learn from in the train set."
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(known):
        found = images_below(folder / name)
        paths += map(str, found)
        labels += [label] * len(found)
    if not paths:
        raise DatasetError(
            f"{folder} holds no image; looked for {', '.join(sorted(IMAGE_SUFFIXES))} below {', '.join(names[:3])}."
        )
    return Labelled(tuple(paths), torch.tensor(labels), tuple(known))


def _flat_imagenet(folder: Path, devkit: Path, classes: tuple[str, ...]) -> Labelled:
    """Line i of the devkit's list is the class, counted from 1, of validation image i; meta.mat names the classes."""
    lists = sorted(devkit.rglob(DEVKIT))
    tables = sorted(devkit.rglob("meta.mat"))
    if not lists or not tables:
        raise DatasetError(f"{devkit} lacks data/{DEVKIT} or data/meta.mat; name the folder ILSVRC2012_devkit_t12.")
    names = _imagenet_names(tables[0])
    numbers = [int(line) for line in _lines(lists[0], "ImageNet's devkit")]
    places = {name: place for place, name in enumerate(classes)}
    paths, labels = [], []
    for path in images_below(folder):
        digits = re.search(r"(\d{1,8})$", path.stem)
        number = int(digits.group(1)) if digits else 0
        if not 1 <= number <= len(numbers) or names.get(numbers[number - 1]) not in places:
            raise DatasetError(f"{path}: no line of {lists[0]} and no train folder says its class.")
        paths.append(str(path))
        labels.append(places[names[numbers[number - 1]]])
    return Labelled(tuple(paths), torch.tensor(labels), classes)


def _imagenet_names(table: Path) -> Mapping[int, str]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError(
            f'{table} is a MATLAB file, which needs SciPy; pip install "dinokit[cluster]" brings it. Without it, sort the validation '
            f"images into folders by class."
        ) from error
    rows = loadmat(str(table), squeeze_me=True)["synsets"]
    return {int(number): str(name) for number, name in zip(rows["ILSVRC2012_ID"], rows["WNID"], strict=True)}


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _pair(images: Path, targets: Path, what: str) -> Paired:
    if not (images.is_dir() and targets.is_dir()):
        raise DatasetError(f"{images} or {targets} is missing; expected {what}.")
    found = images_below(images)
    by_name = {path.relative_to(targets).with_suffix(""): path for path in images_below(targets)}
    missing = [path for path in found if path.relative_to(images).with_suffix("") not in by_name]
    if missing or not found:
        raise DatasetError(
            f"{missing[0] if missing else images} has no file of its name in {targets}."
            if missing
            else f"{images} holds no image."
        )
    return Paired(
        tuple(map(str, found)), tuple(str(by_name[path.relative_to(images).with_suffix("")]) for path in found)
    )


def _existing(images: Sequence[Path], targets: Sequence[Path]) -> Paired:
    for path in (*images, *targets):
        if not path.is_file():
            raise DatasetError(f"{path} is in the list and not on the disk.")
    return Paired(tuple(map(str, images)), tuple(map(str, targets)))


def _lines(path: Path, what: str, *, whole: bool = False) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise DatasetError(f"{path} can't be read ({error.strerror}); expected {what}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text: {error}.") from error
    return lines if whole else [line.split()[0] for line in lines]
