"""Readers of VOC and COCO folders: the published conventions, and nothing that a file should not be able to do."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from dinokit.inspection.datasets import DatasetError, read_coco, read_ids, read_voc, voc_boxes

VOC_OBJECT = """<object><name>dog</name><pose>Left</pose><truncated>{truncated}</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>{part}</object>"""
PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


def voc_object(*box: object, truncated: int = 0, difficult: int = 0, part: str = "") -> str:
    return VOC_OBJECT.format(*box, truncated=truncated, difficult=difficult, part=part)


def annotation(*objects: str) -> str:
    return f"<annotation><size><width>20</width></size>{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations/b.xml").write_text(
        annotation(voc_object(1, 2, 10, 20, part=PART), voc_object(3, 3, 4, 4, difficult=1))
    )
    (tmp_path / "Annotations/a.xml").write_text(annotation(voc_object("45.7", 2, "60.25", 20, truncated=1)))
    (tmp_path / "Annotations/c.xml").write_text(annotation())
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("b\na\n\n")
    (tmp_path / "ImageSets/Main/dog_trainval.txt").write_text("b 1\na -1\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
    return tmp_path


def test_voc_boxes_count_from_zero_and_parts_are_no_objects(voc):
    """xmin - 1, ymin - 1; the head of a person is not a second person; fractions of a pixel are kept."""
    first, second = read_voc(voc)
    assert first.path == str(voc / "JPEGImages/a.jpg")
    assert first.boxes == ((Fraction("44.7"), 1, Fraction("60.25"), 20),)
    assert second.boxes == ((0, 1, 10, 20), (2, 2, 4, 4))


def test_voc_without_hard_objects(voc):
    """Difficult and truncated ones are left out; an image may lose all of its objects."""
    assert [item.boxes for item in read_voc(voc, no_hard=True)] == [(), ((0, 1, 10, 20),)]


def test_voc_splits(voc):
    """By name; all annotations where there are no lists."""
    assert [Path(item.path).stem for item in read_voc(voc, "val")] == ["c"]
    with pytest.raises(DatasetError, match="splits there: trainval, val"):
        read_voc(voc, "test")
    for file in (voc / "ImageSets/Main").iterdir():
        file.unlink()
    (voc / "ImageSets/Main").rmdir()
    assert [Path(item.path).stem for item in read_voc(voc)] == ["a", "b", "c"]
    with pytest.raises(DatasetError, match="no folder Annotations"):
        read_voc(voc / "JPEGImages")


BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "ha"><!ENTITY c "&a;&a;&a;">]><annotation>&c;</annotation>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "document type"),
        (OUTSIDE, "document type"),
        ("<!DOCTYPE annotation SYSTEM 'http://example.com/a.dtd'><annotation/>", "document type"),
        (BOMB.encode("utf-16").decode("latin-1"), "no XML|document type"),
        ("<annotation>", "no XML"),
        ("", "no XML"),
        (annotation(voc_object(1, 2, "", 4)), "four numbers"),
        (annotation(voc_object(1, 2, "1e999999", 4)), "four numbers"),
        (annotation(voc_object(9, 2, 3, 4)), "ends before it begins"),
        (annotation("<object><name>x</name></object>"), "four numbers"),
    ],
)
def test_annotations_that_are_none_are_refused(tmp_path, text, message):
    """Entities are never expanded, nothing is fetched, huge exponents are not computed."""
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        voc_boxes(path)


def test_annotations_that_cannot_be_read_are_refused(tmp_path):
    """Missing, or far too large."""
    with pytest.raises(DatasetError, match="can't be read"):
        voc_boxes(tmp_path / "no.xml")
    (tmp_path / "big.xml").write_bytes(b" " * ((4 << 20) + 1))
    with pytest.raises(DatasetError, match="at most"):
        voc_boxes(tmp_path / "big.xml")


def coco(tmp_path: Path, **changes: object) -> Path:
    content = {
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}, {"id": 5, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 9, "bbox": [0.1, 2, 3.2, 4.0], "iscrowd": 0},
            {"image_id": 9, "bbox": [0, 0, 100, 100], "iscrowd": 1},
            {"image_id": 9, "bbox": [1e-05, 0, 1, 1]},
        ],
        **changes,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_boxes_are_exact_and_crowds_no_objects(tmp_path):
    """Left, top, width, height become corners without rounding: 0.1 + 3.2 is 3.3."""
    first, second = read_coco("images", coco(tmp_path))
    assert (first.path, first.boxes) == ("images/b.jpg", ())
    assert second.boxes == (
        (Fraction("0.1"), 2, Fraction("3.3"), 6),
        (Fraction("0.00001"), 0, Fraction("1.00001"), 1),
    )


def test_a_list_of_ids_chooses_images_of_coco(tmp_path):
    """Numbers or file names, as the list of COCO20k has them."""
    (tmp_path / "ids.txt").write_text("train2014/COCO_train2014_000000000009.jpg\n\n5\n")
    ids = read_ids(tmp_path / "ids.txt")
    assert ids == [9, 5]
    assert len(read_coco("images", coco(tmp_path), ids[:1])) == 1
    with pytest.raises(DatasetError, match="such as 7"):
        read_coco("images", coco(tmp_path), [7, 9])
    (tmp_path / "ids.txt").write_text("cat.jpg\n")
    with pytest.raises(DatasetError, match="neither an id"):
        read_ids(tmp_path / "ids.txt")
    with pytest.raises(DatasetError, match="can't be read"):
        read_ids(tmp_path / "no.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 3}, "no COCO instances file"),
        ({"images": [{"id": 1}]}, "file_name"),
        ({"annotations": [{"image_id": 9}]}, "bbox"),
        ({"annotations": [{"image_id": 9, "bbox": [1, 2, 3]}]}, "is not left, top"),
        ({"annotations": [{"image_id": 9, "bbox": [1, 2, -3, 4]}]}, "is not left, top"),
        ({"annotations": [{"image_id": 9, "bbox": [1, 2, float("nan"), 4]}]}, "is not left, top"),
        ({"annotations": [{"image_id": 9, "bbox": [1, 2, True, 4]}]}, "is not left, top"),
    ],
)
def test_files_that_are_no_coco_annotations_are_refused(tmp_path, changes, message):
    """With the place that is wrong."""
    with pytest.raises(DatasetError, match=message):
        read_coco("images", coco(tmp_path, **changes))


def test_files_that_are_no_json_are_refused(tmp_path):
    """Missing, broken, or nested too deep."""
    path = tmp_path / "a.json"
    with pytest.raises(DatasetError, match="can't be read"):
        read_coco("images", path)
    for text in ("{", "[" * 200_000):
        path.write_text(text)
        with pytest.raises(DatasetError, match="no JSON"):
            read_coco("images", path)
    path.write_text("[]")
    with pytest.raises(DatasetError, match="no COCO"):
        read_coco("images", path)
