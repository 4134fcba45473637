"""`dinokit search`: queries of all kinds, hits as lines and as JSON, sheets, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.search.photos import embedded, some_photos, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    pre = tiny_model(folder / "model")
    names = some_photos(folder / "photos")
    embedded(pre, folder / "photos", names, folder / "cls.parquet")
    embedded(pre, folder / "photos", names, folder / "mean.parquet", pooling="mean")
    return folder


def test_an_image_is_a_query(dinokit_cli, place: Path) -> None:
    """A line a hit with tabs; the same as JSON."""
    photo = place / "photos" / "04.png"
    done = dinokit_cli("search", place / "cls.parquet", "--image", photo, "--top", 2)
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [(line[1], Path(line[3]).name) for line in lines] == [("1", "04.png"), ("2", "05.png")]
    assert lines[0][2] == "1.0000"
    answer = json.loads(dinokit_cli("search", place / "cls.parquet", "--image", photo, "-k", 2, "--json").out)
    assert (answer["schema"], answer["metric"], answer["vectors"]) == (1, "cosine", 12)
    (query,) = answer["queries"]
    assert [hit["id"] for hit in query["hits"]] == ["04.png", "05.png"]
    assert set(query["hits"][0]) == {"rank", "number", "id", "path", "score"}


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_the_form_of_the_network_can_be_chosen(dinokit_cli, place: Path, engine: str) -> None:
    """As for `dinokit embed`: the hits are the same, and the fast form says what it is."""
    photo = place / "photos" / "04.png"
    done = dinokit_cli("search", place / "cls.parquet", "--image", photo, "-k", 2, "--engine", engine)
    assert done.code == 0, done.err
    assert [Path(line.split("\t")[3]).name for line in done.out.splitlines()] == ["04.png", "05.png"]
    assert ("engine: " in done.err) == (engine == "auto")
    region = dinokit_cli(
        "search", place / "mean.parquet", "--image", photo, "--region", "30,20,80,70", "-k", 1, "--engine", engine
    )
    assert region.code == 0, region.err
    assert dinokit_cli("search", place / "cls.parquet", "--image", photo, "--engine", "warp").code == 2


def test_an_id_is_a_query_and_not_its_own_hit(dinokit_cli, place: Path) -> None:
    """No model is needed; an unknown id is a usage error."""
    answer = json.loads(dinokit_cli("search", place / "cls.parquet", "--id", "00.png", "--id", "07.png", "--json").out)
    assert [query["query"] for query in answer["queries"]] == ["00.png", "07.png"]
    assert answer["queries"][0]["hits"][0]["id"] == "01.png"
    assert all(query["query"] not in {hit["id"] for hit in query["hits"]} for query in answer["queries"])
    bad = dinokit_cli("search", place / "cls.parquet", "--id", "nobody.png")
    assert (bad.code, bad.out) == (2, "")
    assert "nobody.png" in bad.err


def test_a_second_collection_asks_for_all_its_vectors(dinokit_cli, place: Path) -> None:
    """Refused when another pooling made it, compared with --force."""
    done = dinokit_cli("search", place / "cls.parquet", "--against", place / "cls.parquet", "-k", 1, "--json")
    assert len(json.loads(done.out)["queries"]) == 12
    bad = dinokit_cli("search", place / "cls.parquet", "--against", place / "mean.parquet")
    assert (bad.code, bad.out) == (6, "")
    assert "another kind" in bad.err
    assert dinokit_cli("search", place / "cls.parquet", "--against", place / "mean.parquet", "--force").code == 0


def test_a_region_needs_means(dinokit_cli, place: Path) -> None:
    """And the pixels that the model sees."""
    photo = place / "photos" / "04.png"
    done = dinokit_cli("search", place / "mean.parquet", "--image", photo, "--region", "30,20,80,70", "-k", 1)
    assert done.code == 0, done.err
    for collection, region, message in (
        ("cls", "30,20,80,70", "pooling mean"),
        ("mean", "0,0,5,5", "the model sees"),
        ("mean", "9,9,3,3", "is empty"),
    ):
        bad = dinokit_cli("search", place / f"{collection}.parquet", "--image", photo, "--region", region)
        assert bad.code == 2
        assert message in bad.err


def test_a_sheet_shows_the_query_and_its_hits(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """As a picture, and as a page with nothing from outside; what exists is not replaced."""
    photo = place / "photos" / "04.png"
    for name in ("hits.png", "hits.html"):
        done = dinokit_cli("search", place / "cls.parquet", "--image", photo, "--sheet", tmp_path / name)
        assert done.code == 0, done.err
    with Image.open(tmp_path / "hits.png") as sheet:
        assert sheet.width > 1_000
    page = (tmp_path / "hits.html").read_text()
    assert page.count("<figure>") == 11
    assert not re.search(r'(src|href)="(?!data:)[a-z]+:', page)
    assert dinokit_cli("search", place / "cls.parquet", "--id", "00.png", "--sheet", tmp_path / "hits.png").code == 6
    again = dinokit_cli(
        "search", place / "cls.parquet", "--id", "00.png", "--sheet", tmp_path / "hits.png", "--overwrite"
    )
    assert again.code == 0
    assert dinokit_cli("search", place / "cls.parquet", "--id", "00.png", "--sheet", tmp_path / "hits.gif").code == 2


def test_misuse_is_told_before_anything_is_done(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """No query, two kinds of query, another model, no collection, an unknown column."""
    assert dinokit_cli("search", place / "cls.parquet").code == 2
    assert dinokit_cli("search", place / "cls.parquet", "--id", "00.png", "--image", "x.png").code == 2
    tiny_model(tmp_path / "other", seed=1)
    bad = dinokit_cli("search", place / "cls.parquet", "--image", place / "photos" / "00.png", "-m", tmp_path / "other")
    assert bad.code == 6
    assert "is not the model that made" in bad.err
    assert dinokit_cli("search", tmp_path / "nothing", "--id", "a").code == 7
    assert dinokit_cli("search", place / "cls.parquet", "--id", "00.png", "--column", "nope").code == 2
    help_page = dinokit_cli("search", "--help")
    assert help_page.code == 0
    assert "--sheet" in help_page.out
