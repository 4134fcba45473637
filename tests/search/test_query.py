"""Images as queries are embedded as the collection was, by the model that it names and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit
from dinokit.config import PositionRule
from dinokit.errors import IdentityError, ImageError
from dinokit.images import FastTransform
from dinokit.search import Index, Region
from dinokit.search.query import model_of, region_weights
from dinokit.search.written import write_collection
from dinokit.store import Feature, identify
from tests.search.photos import embedded, some_photos, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("query")
    pre = tiny_model(folder / "model")
    names = some_photos(folder / "photos")
    embedded(pre, folder / "photos", names, folder / "cls.parquet")
    embedded(pre, folder / "photos", names, folder / "mean.parquet", pooling="mean")
    embedded(pre, folder / "photos", names, folder / "block.parquet", pooling="cls+mean", block=0)
    return folder


@pytest.mark.parametrize("kind", ["cls", "mean", "block"])
def test_an_image_of_the_collection_finds_itself(place: Path, kind: str) -> None:
    """With cosine 1, then its twin, by the model that the collection names."""
    index = Index(place / f"{kind}.parquet")
    (hits,) = index.by_images([str(place / "photos" / "04.png")], 2)
    assert [hit.id for hit in hits] == ["04.png", "05.png"]
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert Path(index.pre.provenance.name) == place / "model"


def test_a_collection_made_the_fast_way_is_queried_the_fast_way(place: Path, tmp_path: Path) -> None:
    """Its images find themselves with cosine 1; a fingerprint that no way here has is refused."""
    pre = dinokit.load(place / "model")
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    photo = tmp_path / "large.jpg"
    Image.fromarray(noise).save(photo, quality=90)
    fast = FastTransform(pre.transform)
    with torch.no_grad():
        vector = pre.model(fast(str(photo))[None]).cls.numpy()
    feature = Feature(dim=vector.shape[1])
    for name, fingerprint in (("fast", fast.fingerprint), ("unknown", "0" * 16)):
        identity = identify(pre, [feature], fingerprint=fingerprint)
        write_collection(tmp_path / f"{name}.parquet", vector, ["large.jpg"], identity)
    (hits,) = Index(tmp_path / "fast.parquet").by_images([str(photo)], 1)
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    with pytest.raises(IdentityError, match="recorded transform has the fingerprint 0000"):
        Index(tmp_path / "unknown.parquet").by_images([str(photo)], 1)


def test_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    """Other weights, other positions; the message says what differs."""
    index = Index(place / "cls.parquet")
    with pytest.raises(IdentityError, match="weights_sha256 is"):
        index.use(tiny_model(tmp_path / "other", seed=1))
    with pytest.raises(IdentityError, match="weights_sha256 is"):
        model_of(index.features, name=tmp_path / "other")
    with pytest.raises(IdentityError, match="positions is"):
        index.use(dinokit.load(place / "model", position=PositionRule(0.25, False)))
    with pytest.raises(IdentityError, match="weights_sha256"):
        Index(place / "cls.parquet", pre=tiny_model(tmp_path / "third", seed=2)).by_images(
            [str(place / "photos" / "00.png")]
        )


def test_an_unreadable_query_is_an_image_error(place: Path) -> None:
    """As everywhere."""
    with pytest.raises(ImageError):
        Index(place / "cls.parquet").by_images([str(place / "cls.parquet")])


def test_a_region_is_the_mean_of_its_patches(place: Path) -> None:
    """The whole crop gives the image itself; one patch's pixels give that patch."""
    index = Index(place / "mean.parquet")
    photo = str(place / "photos" / "06.png")
    hits = index.by_region(photo, Region(-5, -5, 500, 500), 2)
    assert [hit.id for hit in hits] == ["06.png", "07.png"]
    assert hits[0].score == pytest.approx(1, abs=1e-5)

    # 90 x 120 becomes 80 x 106, the crop of 70 x 70 begins at (5, 18); patch (1, 2) is pixels 14..28, 28..42 of it
    scale = 90 / 80
    patch = Region((18 + 28) * 120 / 106, (5 + 14) * scale, (18 + 42) * 120 / 106, (5 + 28) * scale)
    from dinokit.search.query import embed_region

    found = embed_region(index.pre, index.features, photo, patch)[0]
    with torch.no_grad():
        token = index.pre(photo).patch_map[0, :, 1, 2].numpy()
    assert np.allclose(found, token / np.linalg.norm(token), atol=1e-5)


def test_weights_of_a_region_are_shares_of_its_area() -> None:
    """A quarter in each of four patches; outside of the crop none."""
    transform = dinokit.ImageTransform(resize=None, crop=(28, 28))
    weights = region_weights(Region(16, 16, 24, 24), (28, 28), transform, (2, 2), 14)
    assert np.allclose(region_weights(Region(10, 10, 18, 18), (28, 28), transform, (2, 2), 14), 0.25)
    assert weights.tolist() == [[0, 0], [0, 1]]
    assert np.allclose(region_weights(Region(0, 0, 28, 14), (28, 28), transform, (2, 2), 14), [[0.5, 0.5], [0, 0]])
    wide = dinokit.ImageTransform(resize=None, crop=(28, 28))
    with pytest.raises(ValueError, match="the model sees pixels 14 to 42 across"):
        region_weights(Region(0, 0, 10, 10), (28, 56), wide, (2, 2), 14)
    with pytest.raises(ValueError, match="is empty"):
        Region(4, 4, 4, 9)


def test_a_region_is_compared_with_means_only(place: Path) -> None:
    """A class token is no mean of patches."""
    with pytest.raises(ValueError, match="holds 'cls' vectors"):
        Index(place / "cls.parquet").by_region(str(place / "photos" / "00.png"), Region(20, 20, 60, 60))
