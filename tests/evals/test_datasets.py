"""Data sets in the folders in which people have them, small ones made here; what is missing is named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import dinokit
from dinokit.errors import IdentityError
from dinokit.evals.annotations import read_depth, read_mask
from dinokit.evals.datasets import (
    DatasetError,
    read_ade20k,
    read_davis,
    read_image_folder,
    read_labels_csv,
    read_listing,
    read_pairs,
    read_voc_segmentation,
)
from dinokit.evals.labelled import from_features, from_images
from dinokit.evals.matching import read_keypoint_pairs
from dinokit.evals.published import SIZES, published, rows
from dinokit.evals.results import Result
from tests.evals.made import (
    class_folders,
    davis_folder,
    mask_folders,
    planted_checkpoint,
    spair_folder,
    write_image,
    write_numbers,
)
from tests.search.made import a_collection, an_identity

ONE = [0] * 16


def test_folders_by_class_become_numbers_in_the_order_of_their_names(tmp_path):
    """Train and val, one list of classes; without val there is no test set; class folders alone are a train set."""
    train, test = read_image_folder(class_folders(tmp_path))
    assert train.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert test is not None
    assert test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert [path.split("/")[-2] for path in test.paths] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    alone, nothing = read_image_folder(tmp_path / "val")
    assert nothing is None
    assert len(alone.paths) == 9
    assert alone.select([8, 0]).labels.tolist() == [2, 0]


def test_a_class_of_the_test_set_must_be_in_the_train_set(tmp_path):
    """And folders that are not there, or hold no image, are named."""
    write_image(class_folders(tmp_path) / "val" / "d" / "x.png", ONE)
    with pytest.raises(DatasetError, match="class 'd'"):
        read_image_folder(tmp_path)
    with pytest.raises(DatasetError, match="no folder; name one"):
        read_image_folder(tmp_path / "nothing")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds no image"):
        read_image_folder(tmp_path / "empty")


def test_imagenets_validation_images_get_their_class_from_the_devkit(tmp_path):
    """Line i of its list is the number, from 1, of image i's class, which meta.mat names."""
    for name in ("n02", "n01"):
        write_image(tmp_path / "train" / name / "x.png", ONE)
    for i in (1, 2, 3):
        write_image(tmp_path / "val" / f"ILSVRC2012_val_{i:08}.png", ONE)
    with pytest.raises(DatasetError, match="for ImageNet name the devkit"):
        read_image_folder(tmp_path)
    data = tmp_path / "kit" / "data"
    data.mkdir(parents=True)
    with pytest.raises(DatasetError, match="lacks data/"):
        read_image_folder(tmp_path, tmp_path / "kit")
    synsets = np.array([(1, "n02"), (2, "n01"), (3, "n09")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(data / "meta.mat", {"synsets": synsets[:, None]})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n1\n")
    _, test = read_image_folder(tmp_path, tmp_path / "kit")
    assert test is not None
    assert test.labels.tolist() == [0, 1, 1]  # n01, n02, n02
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")
    with pytest.raises(DatasetError, match="00000003"):
        read_image_folder(tmp_path, tmp_path / "kit")


def test_ade20k_counts_from_one_and_zero_is_other(tmp_path):
    """Numbers 0, 1, 150 become ignored, 0, 149; every image has its mask."""
    mask_folders(
        tmp_path, lambda code: code, lambda split, name: (f"images/{split}/{name}", f"annotations/{split}/{name}"),
        splits=("training", "validation"), num=(3, 2),
    )  # fmt: skip
    found = read_ade20k(tmp_path, "validation")
    assert [len(found.images), len(found.targets)] == [2, 2]
    write_numbers(tmp_path / "m.png", np.array([[0, 1, 150, 255]]))
    assert read_mask(tmp_path / "m.png", zero_is_other=True).tolist() == [[255, 0, 149, 255]]
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 1, 150, 255]]
    (tmp_path / "annotations" / "training" / "training1.png").unlink()
    with pytest.raises(DatasetError, match=r"training1\.png has no file of its name"):
        read_ade20k(tmp_path)
    with pytest.raises(DatasetError, match="ADEChallengeData2016"):
        read_ade20k(tmp_path / "images")


def test_voc_masks_are_palettes_whose_indices_are_the_classes(tmp_path):
    """Lists of ImageSets/Segmentation name them; a palette's colours say nothing."""
    mask_folders(
        tmp_path, lambda code: code, lambda _, name: (f"JPEGImages/{name}", f"SegmentationClass/{name}"),
        suffixes=(".jpg", ".png"), num=(2, 1),
    )  # fmt: skip
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("train1\ntrain0\n")
    assert [path[-10:] for path in read_voc_segmentation(tmp_path).images] == ["train1.jpg", "train0.jpg"]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9] * 256)
    palette.putdata([3, 255])
    palette.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png").tolist() == [[3, 255]]
    (lists / "train.txt").write_text("other\n")
    with pytest.raises(DatasetError, match="not on the disk"):
        read_voc_segmentation(tmp_path)
    with pytest.raises(DatasetError, match="VOCdevkit"):
        read_voc_segmentation(tmp_path, "val")


def test_masks_of_colours_and_broken_files_are_refused(tmp_path):
    """Rather than read as something else."""
    write_image(tmp_path / "colours.png", ONE)
    with pytest.raises(DatasetError, match="mode RGB"):
        read_mask(tmp_path / "colours.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    for path in (tmp_path / "b.png", tmp_path / "nothing.png"):
        with pytest.raises(DatasetError, match="can't be read"):
            read_depth(path)
    with pytest.raises(DatasetError, match="16-bit PNG"):
        read_depth(tmp_path / "x.h5")


def test_nyu_depths_are_millimetres_in_sixteen_bits(tmp_path):
    """Lists hold image, depth, focal length; lines without a depth are left out."""
    write_numbers(tmp_path / "kitchen" / "depth.png", np.array([[0, 1500, 9999]]), wide=True)
    write_image(tmp_path / "kitchen" / "rgb.png", ONE)
    listing = tmp_path / "train.txt"
    listing.write_text("/kitchen/rgb.png /kitchen/depth.png 518.8579\n/kitchen/rgb.png None 518.8579\n")
    found = read_listing(listing, tmp_path)
    assert len(found.targets) == 1
    assert read_depth(found.targets[0])[0].tolist() == pytest.approx([0, 1.5, 9.999])
    listing.write_text("one\n")
    with pytest.raises(DatasetError, match="two paths a line"):
        read_listing(listing, tmp_path)
    with pytest.raises(DatasetError, match="can't be read"):
        read_listing(tmp_path / "no.txt", tmp_path)


def test_pairs_lie_either_way_round(tmp_path):
    """train/images and train/masks, or images/train and masks/train."""
    mask_folders(tmp_path / "one", lambda code: code, lambda s, n: (f"{s}/images/{n}", f"{s}/masks/{n}"), num=(2, 1))
    mask_folders(tmp_path / "two", lambda code: code, lambda s, n: (f"images/{s}/{n}", f"masks/{s}/{n}"), num=(2, 1))
    assert len(read_pairs(tmp_path / "one", "train").images) == len(read_pairs(tmp_path / "two", "train").images) == 2
    with pytest.raises(DatasetError, match="test/images and test/masks"):
        read_pairs(tmp_path / "one", "test")


def test_davis_videos_have_a_mask_for_each_frame(tmp_path):
    """By the list, or without it all; a missing mask is named."""
    root = davis_folder(tmp_path)
    (video,) = read_davis(root)
    assert (video.name, len(video.frames), len(video.masks)) == ("square", 5, 5)
    with pytest.raises(DatasetError, match="DAVIS 2017"):
        read_davis(root, "train")
    (tmp_path / "Annotations" / "480p" / "square" / "00002.png").unlink()
    with pytest.raises(DatasetError, match="5 frames and 4 masks"):
        read_davis(root)
    with pytest.raises(DatasetError, match="lacks JPEGImages"):
        read_davis(tmp_path / "ImageSets")


def test_keypoint_pairs_must_fit_together(tmp_path):
    """As many points in both images, and a box."""
    root = spair_folder(tmp_path)
    path = root / "PairAnnotation" / "test" / "1.json"
    text = path.read_text()
    path.write_text(text.replace("[14, 2], ", ""))
    with pytest.raises(DatasetError, match="2 and 1 points"):
        read_keypoint_pairs(root)
    path.write_text("{}")
    with pytest.raises(DatasetError, match="KeyError at 'trg_bndbox'"):
        read_keypoint_pairs(root)
    with pytest.raises(DatasetError, match="SPair-71k"):
        read_keypoint_pairs(root, "val")


def test_labels_come_from_a_table_with_two_columns(tmp_path):
    """And a split, where there is one; ids once each."""
    path = tmp_path / "l.csv"
    path.write_text("label,id,split\ncat,1.jpg,val\ndog,2.jpg,\n")
    assert read_labels_csv(path) == {"1.jpg": ("cat", "val"), "2.jpg": ("dog", "")}
    path.write_text("id,label\na,x\na,y\n")
    with pytest.raises(DatasetError, match="names a twice"):
        read_labels_csv(path)
    path.write_text("name,label\n")
    with pytest.raises(DatasetError, match="needs id and label"):
        read_labels_csv(path)


def test_collections_have_labels_by_table_by_split_or_by_folder(tmp_path):
    """Two collections are a train and a test set; of one, the table's split says it; else an id's folder is its label."""
    vectors = np.eye(6, 4, dtype=np.float32) + 1
    ids = ["x/0", "x/1", "y/2", "y/3", "y/4", "5"]
    a_collection(tmp_path / "one", vectors, ids=ids, parts=2)
    found = from_features([tmp_path / "one"])
    assert found.classes == ("x", "y")
    assert found.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert found.data["without_label"] == 1
    assert found.test is None
    split = found.divided(0.4, 0)
    assert (split.data["train"], split.data["test"]) == (3, 2)
    (tmp_path / "l.csv").write_text("id,label,split\nx/0,p,train\nx/1,q,\ny/2,q,val\ny/4,p,test\n")
    table = from_features([tmp_path / "one"], tmp_path / "l.csv")
    assert table.train_labels.tolist() == [0, 1]
    assert table.tested()[1].tolist() == [1, 0]
    assert table.data["without_label"] == 2
    a_collection(tmp_path / "two", vectors[:2], ids=["y/a", "x/b"])
    both = from_features([tmp_path / "one", tmp_path / "two"])
    assert both.tested()[1].tolist() == [1, 0]
    assert len(both.train_labels) == 5


def test_collections_that_do_not_fit_are_refused(tmp_path):
    """Of another model, without labels, with a strange split or class."""
    vectors = np.eye(2, 4, dtype=np.float32)
    a_collection(tmp_path / "one", vectors, ids=["x/0", "x/1"])
    a_collection(tmp_path / "other", vectors, ids=["x/0", "x/1"], identity=an_identity(4, weights="b"))
    with pytest.raises(IdentityError, match="another kind"):
        from_features([tmp_path / "one", tmp_path / "other"])
    a_collection(tmp_path / "new", vectors, ids=["z/0", "x/1"])
    with pytest.raises(DatasetError, match="class 'z'"):
        from_features([tmp_path / "one", tmp_path / "new"])
    for text, message in (("id,label\n", "no vector has a label"), ("id,label,split\nx/0,a,night\n", "split 'night'")):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(DatasetError, match=message):
            from_features([tmp_path / "one"], tmp_path / "l.csv")
    with pytest.raises(DatasetError, match="no vectors are called 'm' here"):
        from_features([tmp_path / "one"], column="m")
    with pytest.raises(DatasetError, match="3 collections"):
        from_features([tmp_path / "one"] * 3)
    a_collection(tmp_path / "flat", vectors)
    with pytest.raises(DatasetError, match="name no folders"):
        from_features([tmp_path / "flat"])


def test_labels_stay_with_their_images_when_some_are_broken(tmp_path):
    """The broken one is named, the others keep their classes; a set without any readable image is refused."""
    pre = dinokit.load(planted_checkpoint(tmp_path / "model"))
    root = class_folders(tmp_path / "data", sizes=(2, 1))
    (root / "train" / "a" / "1.png").write_bytes(b"broken")
    found = from_images(pre, root)
    assert found.train_labels.tolist() == [0, 1, 1, 2, 2]
    assert len(found.failed) == 1
    assert found.data == {"source": str(root), "classes": 3, "train": 5, "test": 3}
    for name in "abc":
        (root / "val" / name / "0.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of 3 images"):
        from_images(pre, root)


def test_published_numbers_name_their_network_and_source():
    """A few as the papers print them; sizes that nobody released have none."""
    (row,) = published("knn", 1024, 14, 4)
    assert (row.value, row.size, row.registers, row.source) == (83.8, "L", True, "DINOv2 model card")
    assert str(row) == "ImageNet-1k, top-1 %, ViT-L/14 + registers: 83.8 (DINOv2 model card)"
    assert {r.value for r in published("depth", 1024, 14, 0)} == {0.384, 0.333, 0.378}
    assert published("knn", 1000, 14, 0) == published("knn", 1024, 16, 0) == ()
    assert all(row.size in SIZES.values() and row.value > 0 for row in rows())
    assert len(list(rows())) == len(set(rows()))


def test_results_are_plain_json_and_say_what_was_not_measured():
    """NaN is None there; the table has published numbers under a line that says so."""
    model = {"embed_dim": 384, "patch_size": 14, "registers": 0}
    result = Result(
        task="knn", data={}, model=model, settings={"k": (1, 2)}, metrics={"top-1": 0.5, "x": float("nan")}, seconds={}
    )
    content = result.to_dict()
    assert content["schema"] == 1
    assert content["metrics"] == {"top-1": 0.5, "x": None}
    assert content["settings"]["k"] == [1, 2]
    assert "published" not in content
    lines = result.table().splitlines()
    assert lines[0] == "top-1  0.5000"
    assert "published, not measured here:" in lines
    assert lines[-1].endswith("79 (DINOv2 model card)")
