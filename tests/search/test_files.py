"""What is written: clusters with their centres, exports, plans, sheets, faiss' indices; and what comes back from them."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from dinokit.errors import IdentityError, OutputError, StorageError
from dinokit.search.ann import KINDS, faiss_index, open_faiss
from dinokit.search.clusters import hdbscan, write_clusters
from dinokit.search.export import export, project
from dinokit.search.kmeans import kmeans
from dinokit.search.knn import nearest
from dinokit.search.outliers import outliers
from dinokit.search.sheets import Group, Shown, sheet_html, sheet_image, thumbnail, write_sheet
from dinokit.search.tables import read_origin, read_rows, write_rows
from dinokit.search.written import write_collection
from dinokit.store import FeatureSet
from tests.search.made import a_collection, an_identity
from tests.search.test_kmeans import blobs

DIM = 8


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    """60 images in 3 groups, in two parts, ids with a comma and an umlaut."""
    vectors = blobs(60, 3, DIM, seed=4, spread=0.2)
    ids = [f"a, b/\u00fc{i}.png" for i in range(60)]
    return a_collection(tmp_path / "c", vectors, parts=2, ids=ids, facts={"path": [f"p/{i}.png" for i in range(60)]})


def test_centres_are_a_collection_of_the_same_kind(features: FeatureSet, tmp_path: Path) -> None:
    """They can be searched with the vectors that they came from."""
    found = kmeans(features, 3)
    table, centres = write_clusters(tmp_path / "clusters.parquet", features, found, seed=0)
    again = FeatureSet(centres)
    features.require_same(again)
    assert np.allclose(again.vectors(), found.centroids, atol=1e-6)
    assert again.ids() == ["cluster-000000", "cluster-000001", "cluster-000002"]
    rows = read_rows(table)
    assert [row["id"] for row in rows] == features.ids()
    assert [row["cluster"] for row in rows] == found.labels.tolist()
    assert sum(row["medoid"] for row in rows) == 3
    assert np.array_equal(nearest(features.vectors(), again, 1).numbers[:, 0], found.labels)
    assert read_origin(table)["compat_id"] == features.compat_id
    medoids = {row["cluster"]: row["path"] for row in rows if row["medoid"]}
    assert [row["path"] for row in again.rows(range(3), ("path",))] == [medoids[i] for i in range(3)]


def test_hdbscan_finds_groups_and_noise(tmp_path: Path) -> None:
    """Two dense groups and five vectors in directions of their own."""
    rng = np.random.default_rng(0)
    groups = [np.eye(16)[i] + 0.03 * rng.standard_normal((20, 16)) for i in (0, 1)]
    vectors = np.concatenate([*groups, 3 * np.eye(16)[8:13]]).astype(np.float32)
    features = a_collection(tmp_path / "c", vectors)
    found = hdbscan(features, 5)
    assert found.labels[:20].tolist() == [found.labels[0]] * 20
    assert found.labels[20:40].tolist() == [found.labels[20]] * 20
    assert set(found.labels[:40]) == {0, 1}
    assert found.labels[40:].tolist() == [-1] * 5
    assert np.isnan(found.distances[40:]).all()
    rows = read_rows(write_clusters(tmp_path / "h.jsonl", features, found)[0])
    assert [row["distance"] for row in rows[40:]] == [None] * 5
    with pytest.raises(ValueError, match="bytes, more than memory"):
        hdbscan(features, 5, memory=10)
    with pytest.raises(ValueError, match="min_cluster_size"):
        hdbscan(features, 1)


def test_outliers_are_those_of_brute_force(tmp_path: Path) -> None:
    """Mean distance to the k nearest others; the planted one is first."""
    vectors = blobs(80, 2, DIM, seed=1)
    vectors[17] = -40
    features = a_collection(tmp_path / "c", vectors, identity=an_identity(DIM, normalized=False))
    for metric in ("cosine", "l2"):
        found = outliers(features, 5, metric=metric, memory=0)  # type: ignore[arg-type]
        x = vectors.astype(np.float64)
        away = np.linalg.norm(x[:, None] - x[None], axis=2)
        if metric == "cosine":
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            away = 1 - unit @ unit.T
        np.fill_diagonal(away, np.inf)
        wanted = np.sort(away, axis=1)[:, :5].mean(axis=1)
        assert np.allclose(found.scores, wanted, atol=1e-6, rtol=1e-5)
        assert found.top(1).tolist() == [int(wanted.argmax())]
        assert np.array_equal(found.nearest, away.argmin(axis=1))
    assert outliers(features, 5, metric="l2").top(3)[0] == 17
    assert outliers(vectors[:3], 10).scores.shape == (3,)
    with pytest.raises(ValueError, match="two images at least"):
        outliers(vectors[:1])


def test_exports_hold_what_the_collection_holds(features: FeatureSet, tmp_path: Path) -> None:
    """Each format, read back by something else."""
    vectors, ids = features.vectors(), features.ids()
    export(features, tmp_path / "v.csv", "csv")
    with (tmp_path / "v.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ids
    read = np.array([[row[f"embedding_{i}"] for i in range(DIM)] for row in rows], np.float32)
    assert np.array_equal(read, vectors)

    made = export(features, tmp_path / "v.npy", "npy")
    assert [path.name for path in made] == ["v.npy", "v.ids.txt", "v.identity.json"]
    assert np.array_equal(np.load(tmp_path / "v.npy"), vectors)
    assert (tmp_path / "v.ids.txt").read_text("utf-8").splitlines() == ids
    assert json.loads((tmp_path / "v.identity.json").read_text())["compat_id"] == features.compat_id

    export(features, tmp_path / "v.parquet", "parquet")
    again = FeatureSet(tmp_path / "v.parquet")
    features.require_same(again)
    assert np.array_equal(again.vectors(), vectors)
    found = duckdb.sql(f"select id, embedding from '{tmp_path / 'v.parquet'}'").fetchall()
    assert [row[0] for row in found] == ids
    assert np.array_equal(np.array([row[1] for row in found], np.float32), vectors)

    export(features, tmp_path / "v.json", "fiftyone", root=tmp_path / "photos")
    samples = json.loads((tmp_path / "v.json").read_text("utf-8"))["samples"]
    assert [sample["filepath"] for sample in samples] == [str(tmp_path / "photos" / name) for name in ids]
    assert np.array_equal(np.array([sample["embedding"] for sample in samples], np.float32), vectors)

    export(features, tmp_path / "atlas.parquet", "embedding-atlas")
    atlas = pd.read_parquet(tmp_path / "atlas.parquet")
    assert atlas["path"].tolist() == [f"p/{i}.png" for i in range(60)]
    assert np.array_equal(atlas[["x", "y"]].to_numpy(), project(features))


def test_the_projection_is_that_of_principal_components(features: FeatureSet) -> None:
    """Scikit-learn's up to sign, in whatever blocks."""
    wanted = PCA(2, svd_solver="full").fit_transform(features.vectors().astype(np.float64))
    found = project(features, block_rows=7)
    signs = np.sign(np.sum(wanted * found, axis=0))
    assert np.allclose(found, wanted * signs, atol=1e-5)


def test_exports_are_refused_rather_than_guessed(
    features: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown formats, outputs that exist, Lance without its package."""
    with pytest.raises(ValueError, match="the format is 'xls'"):
        export(features, tmp_path / "x", "xls")  # type: ignore[arg-type]
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export(features, tmp_path / "x.csv", "csv")
    assert (tmp_path / "x.csv").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ImportError, match=r'pip install "dinokit\[lance\]"'):
        export(features, tmp_path / "l", "lance")


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_finds_and_is_kept(features: FeatureSet, tmp_path: Path, kind: str) -> None:
    """The flat index finds all, the others nearly; after a round trip the same; another collection is refused."""
    index = faiss_index(features, kind, lists=4, probes=3)  # type: ignore[arg-type]
    queries = features.vectors()[:20]
    recall = index.recall(queries, features, 5)
    assert recall == 1 if kind == "flat" else recall > 0.8
    index.save(tmp_path / "index.faiss")
    again = open_faiss(tmp_path / "index.faiss", features)
    assert np.array_equal(again.nearest(queries, 5).numbers, index.nearest(queries, 5).numbers)
    assert again.kind == kind
    with pytest.raises(OutputError):
        index.save(tmp_path / "index.faiss")
    other = a_collection(tmp_path / "o", features.vectors(), identity=an_identity(DIM, weights="b"))
    with pytest.raises(IdentityError, match="Build the index again"):
        open_faiss(tmp_path / "index.faiss", other)
    with pytest.raises(StorageError):
        open_faiss(tmp_path / "nothing.faiss", features)


def test_faiss_is_asked_for_by_name(features: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the message says how to get it."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"dinokit\[search\]"):
        faiss_index(features)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="kind is 'tree'"):
        faiss_index(features, "tree")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_tables_come_back(tmp_path: Path, suffix: str) -> None:
    """Rows with odd names and empty fields, and their origin; also of no row."""
    columns = {"id": "string", "number": "int64", "score": "float32"}
    rows = [{"id": 'a,"b\n\u00fc', "number": 1, "score": 0.5}, {"id": "c", "number": 2}]
    path = write_rows(tmp_path / f"t{suffix}", rows, columns, {"compat_id": "x"})
    assert read_origin(path) == {"compat_id": "x"}
    found = read_rows(path)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [str(row["number"]) for row in found] == ["1", "2"]
    assert found[1]["score"] in (None, "")
    with pytest.raises(OutputError):
        write_rows(path, rows, columns, {})
    write_rows(path, [], columns, {}, overwrite=True)
    assert read_rows(path) == []


def test_tables_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """By suffix, and when damaged."""
    with pytest.raises(ValueError, match=r"ends in \.parquet"):
        write_rows(tmp_path / "t.xls", [], {}, {})
    (tmp_path / "t.parquet").write_text("no")
    with pytest.raises(StorageError):
        read_rows(tmp_path / "t.parquet")


def test_a_collection_is_written_as_it_was_meant(tmp_path: Path) -> None:
    """Vectors get length 1 and keep their old one; repeated ids, other lengths, unknown columns are refused."""
    vectors = np.array([[3, 4], [0, 2]], np.float32)
    path = write_collection(tmp_path / "v.parquet", vectors, ["a", "b"], an_identity(2), facts={"width": [7, 8]})
    features = FeatureSet(path)
    assert np.allclose(features.vectors(), [[0.6, 0.8], [0, 1]])
    assert features.rows([1], ("id", "path", "width", "norm")) == [{"id": "b", "path": "b", "width": 8, "norm": 2.0}]
    half = write_collection(
        tmp_path / "h.parquet", vectors, ["a", "b"], an_identity(2, dtype="float16", normalized=False)
    )
    assert np.array_equal(FeatureSet(half).vectors(), vectors)
    for arguments, message in (
        ((vectors, ["a", "a"]), "each vector has its own"),
        ((vectors[:, :1], ["a", "b"]), "vectors of 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            write_collection(tmp_path / "x.parquet", *arguments, an_identity(2))
    with pytest.raises(ValueError, match="unknown columns colour"):
        write_collection(tmp_path / "x.parquet", vectors, ["a", "b"], an_identity(2), facts={"colour": [1, 2]})
    with pytest.raises(OutputError):
        write_collection(path, vectors, ["a", "b"], an_identity(2))
    assert "BYTE_STREAM_SPLIT" in pq.ParquetFile(path).metadata.row_group(0).column(11).encodings


def test_sheets_escape_names_and_bring_their_pictures(tmp_path: Path) -> None:
    """Nothing of a name becomes HTML; links are relative; what can't be read says why."""
    odd = tmp_path / "photos" / "<b>&'\" \u00fc#1.png"
    odd.parent.mkdir()
    Image.new("RGB", (40, 20), (250, 0, 0)).save(odd)
    groups = [Group("<script>", [Shown(odd, odd.name, "0 < 1"), Shown(tmp_path / "gone.png", "gone")])]
    page = sheet_html(groups, title="a & b", folder=tmp_path / "out")
    assert "<script>" not in page
    assert "<b>" not in page
    assert 'href="../photos/%3Cb%3E%26%27%22%20%C3%BC%231.png"' in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert not re.search(r'(?:src|href)="(?:https?:|//|/)', page)
    assert "default-src 'none'" in page
    square = np.asarray(thumbnail(odd, 40))
    assert square[20, 20].tolist() == [250, 0, 0]
    assert square[5, 20].tolist() != [250, 0, 0]
    assert len(np.unique(np.asarray(thumbnail(tmp_path / "gone.png")))) > 2
    sheet = sheet_image(groups, title="a")
    assert sheet.width > 1_000
    assert sheet_image([], title="none").height > 50
    write_sheet(tmp_path / "s.png", groups, title="a")
    with pytest.raises(OutputError):
        write_sheet(tmp_path / "s.png", groups, title="a")
    with pytest.raises(ValueError, match=r"a \.png or an \.html"):
        write_sheet(tmp_path / "s.jpg", groups, title="a")
