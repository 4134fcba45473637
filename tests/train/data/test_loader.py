"""Batches from any source: the same whoever makes them; unreadable images replaced and reported; small decodes equal to large ones."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dinokit.errors import ImageError
from dinokit.train.data import (
    Augmentation,
    Batches,
    CropRule,
    Order,
    Photometric,
    Plan,
    TensorBatches,
    Views,
    image_files,
    load_batches,
    loader,
)
from dinokit.train.data.sources import pixels_and_boxes
from dinokit.train.masking import Masks
from dinokit.train.network import Batch

SMALL = Augmentation(
    seed=4,
    global_crops=CropRule(2, 12, (0.4, 1.0)),
    local_crops=CropRule(3, 6, (0.1, 0.4)),
    second=Photometric(blur=0.9),
)
CLOSE = 1e-5


def pictures(count: int = 11) -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 5, 6), dtype=np.uint8))
    return torch.nn.functional.interpolate(coarse, (20, 24), mode="bilinear")


def equal(a: Views, b: Views) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("global_crops", "local_crops", "visits", "images")
    )


@pytest.fixture
def folder(tmp_path):
    """Eleven images, of which 3 and 4 are damaged."""
    for i, picture in enumerate(pictures()):
        path = tmp_path / "deep" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
        if i in (3, 4):
            path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_the_number_of_workers_changes_nothing(folder):
    """Two processes started anew give the batches that this one makes, in order; the global generator is not touched."""
    files, plan = image_files(folder), Plan(Order(11, 1), 4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    made = list(load_batches(files, SMALL, plan, 2, 7, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    own = Batches(files, SMALL, plan)
    assert len(made) == 5
    for step, views in zip(range(2, 7), made, strict=True):
        assert equal(views, own[step])
        assert views.unreadable == own[step].unreadable
    assert all(equal(a, b) for a, b in zip(load_batches(files, SMALL, plan, 2, 7), made, strict=True))


def by_crop(crops: torch.Tensor, count: int) -> torch.Tensor:
    return crops.unflatten(0, (count, -1))


def test_a_view_depends_on_its_visit_only():
    """Whatever the batch size and the number of processes, the crops of a visit are the same, before and after finishing."""
    images, order = [p.numpy() for p in pictures()], Order(11, 1)
    whole = Batches(images, SMALL, Plan(order, 12))[1]
    finished = SMALL.finish(whole)
    small = [Batches(images, SMALL, Plan(order, 6, rank, 3))[step] for step in (2, 3) for rank in range(3)]
    for views in small:
        ready = SMALL.finish(views)
        for i, visit in enumerate(views.visits.tolist()):
            at = whole.visits.tolist().index(visit)
            for count, a, b in ((2, views.global_crops, whole.global_crops), (3, views.local_crops, whole.local_crops)):
                assert torch.equal(by_crop(a, count)[:, i], by_crop(b, count)[:, at])
            for count, c, d in zip((2, 3), ready, finished, strict=False):
                assert (by_crop(c, count)[:, i] - by_crop(d, count)[:, at]).abs().max() < CLOSE


def test_an_image_seen_twice_in_a_batch_is_seen_differently():
    """A batch of two epochs of three images has six different crops of each kind."""
    views = Batches([p.numpy() for p in pictures(3)], SMALL, Plan(Order(3), 6))[0]
    assert sorted(views.images.tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(torch.unique(views.global_crops.flatten(1), dim=0)) == 12


def test_unreadable_images_are_replaced_by_the_next_and_reported(folder):
    """Under the visit of the image that was meant; two damaged ones in a row lead to the one behind both."""
    files = image_files(folder)
    views = Batches(files, SMALL, Plan(Order(11, shuffle=False), 11))[0]
    assert views.visits.tolist() == list(range(11))
    assert views.images.tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10]
    assert [(u.index, u.code) for u in views.unreadable] == [(3, "truncated"), (4, "truncated"), (4, "truncated")]
    assert files[3] in views.unreadable[0].message
    good = Batches([f for i, f in enumerate(files) if i not in (3, 4)], SMALL, Plan(Order(9, shuffle=False), 9))[0]
    for crops, others in ((views.global_crops, good.global_crops), (views.local_crops, good.local_crops)):
        assert torch.equal(crops.unflatten(0, (-1, 11))[:, :3], others.unflatten(0, (-1, 9))[:, :3])
    at_five = by_crop(views.global_crops, 2)[0, 3:6]
    assert len(torch.unique(at_five.flatten(1), dim=0)) == 3


def test_nothing_but_unreadable_images_is_an_error(tmp_path):
    """It says which, and does not go round for ever."""
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    with pytest.raises(
        ImageError, match=r"images 1 to 0 can't be read.*not_a_file|images 1 to 0 can't be read"
    ) as caught:
        Batches(files, SMALL, Plan(Order(3, shuffle=False), 1))[1]
    assert caught.value.code == "not_a_file"


def test_giving_up_comes_after_a_bounded_number(monkeypatch, tmp_path):
    """Not after a whole collection."""
    monkeypatch.setattr(loader, "MOST_UNREADABLE", 4)
    files = [str(tmp_path / f"{i}.png") for i in range(1000)]
    with pytest.raises(ImageError, match="images 5 to 8"):
        Batches(files, SMALL, Plan(Order(1000, shuffle=False), 5))[1]


def test_a_tensor_of_images_gives_the_same_crops():
    """Cropped as one batch: within a level of what the workers' way gives."""
    images, plan = pictures(), Plan(Order(11, 1), 6, 1, 2)
    one = TensorBatches(images, SMALL, plan)[3]
    other = Batches([p.permute(1, 2, 0).numpy() for p in images], SMALL, plan)[3]
    assert torch.equal(one.visits, other.visits)
    assert torch.equal(one.images, other.images)
    for a, b in ((one.global_crops, other.global_crops), (one.local_crops, other.local_crops)):
        assert (a.int() - b.int()).abs().max() <= 1


def test_without_local_crops_there_are_none():
    """Their count may be zero."""
    alone = replace(SMALL, local_crops=CropRule(0, 6, (0.1, 0.4)))
    images, plan = pictures(), Plan(Order(11), 4)
    for views in (TensorBatches(images, alone, plan)[0], Batches(list(images.numpy()), alone, plan)[0]):
        crops, local, _ = alone.finish(views)
        assert crops.shape == (8, 3, 12, 12)
        assert local.shape == (0, 3, 6, 6)


def test_finished_views_are_a_batch_of_the_network():
    """Shapes, order and ids are those that the step takes."""
    views = TensorBatches(pictures(), SMALL, Plan(Order(11), 4))[0]
    crops, local, visits = SMALL.finish(views, "cpu", torch.bfloat16)
    batch = Batch(crops, local, Masks.of(np.zeros((8, 9), bool)), visits)
    assert batch.num_local == 3
    assert crops.dtype == torch.bfloat16
    assert torch.equal(visits, views.visits)


def jpeg(orientation: int) -> bytes:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, exif=exif, subsampling=0)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_jpegs_are_decoded_small_and_look_the_same(orientation, monkeypatch):
    """For crops that shrink by four or more: a quarter of the pixels or less, upright, the same boxes of the same scene."""
    data = jpeg(orientation)
    images, plan = [data], Plan(Order(1), 6)
    pixels, found = pixels_and_boxes(data, lambda h, w: [(np.array([[h // 4, w // 4, h // 2, w // 2]]), 40)])
    assert pixels.shape[:2] in {(240, 320), (320, 240)}
    assert found[0][0].tolist() == [
        [pixels.shape[0] // 4, pixels.shape[1] // 4, pixels.shape[0] // 2, pixels.shape[1] // 2]
    ]
    small = Batches(images, SMALL, plan)[0]
    monkeypatch.setattr("dinokit.train.data.sources.REDUCTIONS", ())
    full = Batches(images, SMALL, plan)[0]
    for a, b in ((small.global_crops, full.global_crops), (small.local_crops, full.local_crops)):
        assert not torch.equal(a, b)
        assert (a.float() - b.float()).abs().mean() < 2


def test_jpegs_are_decoded_whole_where_crops_need_it(monkeypatch):
    """Crops about as large as the image; a damaged JPEG is the decoder's to tell."""
    data = jpeg(1)
    pixels, _ = pixels_and_boxes(data, lambda h, w: [(np.array([[0, 0, h, w]]), 224)])
    assert pixels.shape == (480, 640, 3)
    with pytest.raises(ImageError, match="damaged") as caught:
        pixels_and_boxes(data[:3000], lambda h, w: [(np.array([[0, 0, h, w]]), 8)])
    assert caught.value.code == "truncated"


def test_an_empty_folder_and_a_wrong_plan_are_refused(tmp_path):
    """Before training begins."""
    with pytest.raises(ValueError, match="no image below it"):
        image_files(tmp_path)
    with pytest.raises(ValueError, match=r"Order\(11\)"):
        TensorBatches(pictures(), SMALL, Plan(Order(12), 4))
    with pytest.raises(ValueError, match="8 bits"):
        TensorBatches(pictures().float(), SMALL, Plan(Order(11), 4))
    with pytest.raises(ValueError, match="two"):
        Augmentation(global_crops=CropRule(3, 12, (0.4, 1.0)))
    with pytest.raises(ValueError, match="dinov2, dino"):
        Augmentation.dinov2(blur="none")
