"""Folders of images with true boxes: VOC and COCO as they are published.

Promise: files are data; XML with a document type or entities is refused. Boxes are (left, top, right, bottom), exact, in pixels, with
right and bottom not included.
Source: conventions of LOST's evaluation (Simeoni et al. 2021): VOC boxes xmin - 1, ymin - 1; COCO without crowds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.parsers import expat  # the parser alone: no tree, and every declaration comes by our hands

from dinokit.errors import EXIT_USAGE, DinokitError

MAX_XML_BYTES = 4 << 20
NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?")
DIGITS_AT_END = re.compile(r"(\d{1,18})$")
OBJECT, BOX = ("annotation", "object"), ("annotation", "object", "bndbox")
SIDES = ("xmin", "ymin", "xmax", "ymax")

TrueBox = tuple[Fraction, Fraction, Fraction, Fraction]


class DatasetError(DinokitError, ValueError):
    """A data set that is not where it should be, or not what it should be."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Annotated:
    """An image and the boxes of the objects in it."""

    path: str
    boxes: tuple[TrueBox, ...]


def read_voc(folder: str | Path, split: str = "trainval", *, no_hard: bool = False) -> list[Annotated]:
    """Images of a VOC folder (Annotations, ImageSets, JPEGImages), in the order of their names.

    `split` is a list of ImageSets/Main; without that folder, all annotated images are taken. `no_hard` leaves out objects that are
    difficult or truncated.

    Raises:
        DatasetError: a folder or split is missing, or an annotation is malformed.
    """
    root = Path(folder)
    annotations, lists = root / "Annotations", root / "ImageSets" / "Main"
    if not annotations.is_dir():
        raise DatasetError(f"{root} has no folder Annotations; name the folder of one year, such as VOCdevkit/VOC2012.")
    if lists.is_dir():
        chosen = lists / f"{split}.txt"
        if not chosen.is_file():
            known = ", ".join(sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem)[:8]) or "none"
            raise DatasetError(f"{chosen} is missing; splits there: {known}.")
        names = sorted({line.split()[0] for line in chosen.read_text().splitlines() if line.strip()})
    else:
        names = sorted(path.stem for path in annotations.glob("*.xml"))
    return [
        Annotated(str(root / "JPEGImages" / f"{name}.jpg"), voc_boxes(annotations / f"{name}.xml", no_hard=no_hard))
        for name in names
    ]


def voc_boxes(path: Path, *, no_hard: bool = False) -> tuple[TrueBox, ...]:
    """Boxes of the objects (not of their parts) of one annotation; VOC counts pixels from 1, we from 0.

    Raises:
        DatasetError: unreadable, too large, not XML, with a document type or entities, or a box without four numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}.") from error
    if len(data) > MAX_XML_BYTES:
        raise DatasetError(f"{path} has {len(data):,} bytes; an annotation has {MAX_XML_BYTES:,} at most.")
    objects = _voc_objects(data, path)
    return tuple(
        _voc_box(fields, path)
        for fields in objects
        if not (no_hard and (fields.get("difficult") == "1" or fields.get("truncated") == "1"))
    )


def _voc_objects(data: bytes, path: Path) -> list[dict[str, str]]:
    """Fields of each object; those of its parts (head, hand, foot) lie deeper and are passed over."""
    objects: list[dict[str, str]] = []
    place: list[str] = []
    text: list[str] = []

    def refuse(*_: object) -> None:
        raise DatasetError(
            f"{path} declares a document type or entities, which no VOC annotation does; it is not read."
        )

    def start(name: str, _: dict[str, str]) -> None:
        place.append(name)
        text.clear()
        if tuple(place) == OBJECT:
            objects.append({})

    def end(name: str) -> None:
        place.pop()
        if tuple(place) in (OBJECT, BOX):
            objects[-1][name] = "".join(text).strip()
        text.clear()

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DatasetError(f"{path} is no XML: {error}.") from error
    return objects


def _voc_box(fields: Mapping[str, str], path: Path) -> TrueBox:
    numbers = [fields.get(side, "") for side in SIDES]
    if not all(NUMBER.fullmatch(number) for number in numbers):
        raise DatasetError(f"{path}: a bndbox holds {dict(zip(SIDES, numbers, strict=True))}; expected four numbers.")
    left, top, right, bottom = (Fraction(number) for number in numbers)
    if right < left or bottom < top:
        raise DatasetError(
            f"{path}: a bndbox holds {dict(zip(SIDES, numbers, strict=True))}; it ends before it begins."
        )
    return left - 1, top - 1, right, bottom


def read_coco(folder: str | Path, annotations: str | Path, ids: Iterable[int] | None = None) -> list[Annotated]:
    """Images of a folder with a COCO instances file, in the order of their ids; crowds are no objects.

    `ids` chooses images (see `read_ids`), such as the 20,000 of COCO20k.

    Raises:
        DatasetError: unreadable, not JSON, without images and annotations, a malformed box, or an id that is not there.
    """
    path = Path(annotations)
    content = _json(path)
    try:
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        boxes: dict[int, list[TrueBox]] = {number: [] for number in names}
        for found in content["annotations"]:
            if not found.get("iscrowd") and int(found["image_id"]) in boxes:
                boxes[int(found["image_id"])].append(_coco_box(found["bbox"], path))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no COCO instances file: {type(error).__name__} at {error}.") from error
    wanted = sorted(names if ids is None else set(ids))
    if missing := [number for number in wanted if number not in names]:
        raise DatasetError(
            f"{path} lacks {len(missing):,} of the {len(wanted):,} images asked for, such as {missing[0]}; "
            f"the ids belong to another file."
        )
    return [Annotated(str(Path(folder) / names[number]), tuple(boxes[number])) for number in wanted]


def read_ids(path: str | Path) -> list[int]:
    """Image ids of a text file, one a line: numbers, or file names that end in one (COCO_train2014_000000000009.jpg).

    Raises:
        DatasetError: unreadable, or a line without a number.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} can't be read as a list of ids: {error}.") from error
    found = []
    for line in filter(None, lines):
        digits = DIGITS_AT_END.search(Path(line).stem)
        if digits is None:
            raise DatasetError(f"{path}: {line!r} is neither an id nor a file name that ends in one.")
        found.append(int(digits.group(1)))
    return found


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.load(file)
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON: {error}.") from error


def _coco_box(box: Any, path: Path) -> TrueBox:
    """From left, top, width, height, as they are written: 0.1 is a tenth."""
    plain = isinstance(box, list) and len(box) == 4 and all(type(number) in (int, float) for number in box)
    if not plain or not all(math.isfinite(number) for number in box) or min(box[2:]) < 0:
        raise DatasetError(f"{path}: bbox {box!r} is not left, top, width, height.")
    left, top, width, height = (Fraction(repr(number)) for number in box)
    return left, top, left + width, top + height
