"""Wherever images lie, each is listed once, in a stable order, under an id of its own, and has the same vector."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinokit.errors import StorageError
from dinokit.extract import Columns, list_images, open_sources
from dinokit.extract.inputs import list_inputs
from dinokit.store import FeatureSet
from dinokit.weights.load import Pretrained
from tests.extract.conftest import an_image, job

IMAGES = [an_image(seed) for seed in range(6)]
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def ids_of(*places: object, prefixed: bool = False, **more: object) -> list[str]:
    sources = open_sources([str(place) for place in places], **more)  # type: ignore[arg-type]
    return list_inputs(sources, prefixed=prefixed)[0].table.column("id").to_pylist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    for name, data in zip(["b/1.png", "b/2.PNG", "a.png", "b-c.png", "é ü.png", "z.png"], IMAGES, strict=True):
        (root / name).write_bytes(data)
    (root / "notes.txt").write_text("no image")
    return root


def write_tar(path: Path, names: list[str], images: list[bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in zip(names, images, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            text = tarfile.TarInfo(name.partition(".")[0] + ".json")
            archive.addfile(text)
    return path


def write_hugging_face(folder: Path, images: list[bytes], path_of: list[str] | None = None) -> Path:
    """As the datasets library's `save_to_disk` writes: Arrow streams and a state file."""
    folder.mkdir(parents=True)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for number, name in enumerate(names):
        part = images[number::2] if path_of is None else path_of[number::2]
        cells = [{"bytes": cell, "path": None} if path_of is None else {"bytes": None, "path": cell} for cell in part]
        table = pa.table({"image": pa.array(cells, HF_IMAGE), "label": list(range(len(part)))})
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def test_a_folder_is_listed_in_the_order_of_its_names(folder: Path) -> None:
    """Folder by folder, whatever the file system's order; ids are relative paths with forward slashes."""
    assert ids_of(folder) == ["a.png", "b/1.png", "b/2.PNG", "b-c.png", "z.png", "é ü.png"]
    assert list_images([folder]) == [str(folder / name) for name in ids_of(folder)]


def test_ids_of_several_sources_begin_with_their_names(folder: Path, tmp_path: Path) -> None:
    """So that ids tell where they come from; files that are named themselves keep their path."""
    shard = write_tar(tmp_path / "shard-000.tar", ["x/0001.jpg", "x/0002.jpg"], IMAGES[:2])
    assert ids_of(folder, shard, prefixed=True)[-3:] == ["photos/é ü.png", "shard-000/x/0001", "shard-000/x/0002"]
    assert ids_of(shard, folder)[:3] == ["x/0001", "x/0002", "a.png"]


def test_an_id_that_comes_again_gets_a_number(tmp_path: Path) -> None:
    """In the order of the list, past ids that are taken already; nothing is lost."""
    names = ["a.png", "b.png", "a.png", "a.png#2", "a.png"]
    listed, doubled = list_inputs(open_sources([], files=names), prefixed=False)
    assert listed.table.column("id").to_pylist() == ["a.png", "b.png", "a.png#3", "a.png#2", "a.png#4"]
    assert doubled == 2


def test_names_that_are_no_text_are_found_again(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 become escapes in the id; the file itself is opened by its true name."""
    import os

    root = tmp_path / "odd"
    root.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    (root / name).write_bytes(IMAGES[0])
    listed, _ = list_inputs(open_sources([str(root)]), prefixed=False)
    row = listed.rows(0, 1)[0]
    assert (row.id, row.shown) == ("caf\\xe9.png", str(root / "caf\\xe9.png"))
    assert Path(row.path).read_bytes() == IMAGES[0]


def test_globs_and_number_ranges_are_expanded(folder: Path, tmp_path: Path) -> None:
    """Sorted; a pattern that matches nothing is an error, since nothing else would tell."""
    assert [Path(name).name for name in ids_of(folder / "b" / "*.png")] == ["1.png"]
    for number in (9, 10):
        write_tar(tmp_path / f"s-{number:03}.tar", [f"{number}.jpg"], IMAGES[:1])
    assert ids_of(tmp_path / "s-{009..010}.tar") == ["9", "10"]
    with pytest.raises(StorageError, match="nothing matches"):
        ids_of(tmp_path / "no*.png")


def test_every_kind_of_source_gives_the_same_vectors(pre: Pretrained, folder: Path, tmp_path: Path) -> None:
    """Folder, list, CSV, manifest, tar, Parquet with bytes, Hugging Face folder with bytes or with paths: bit for bit."""
    paths = list_images([folder])
    images = [Path(path).read_bytes() for path in paths]
    (tmp_path / "list.csv").write_text("file,name\n" + "".join(f'"{path}",n{i}\n' for i, path in enumerate(paths)))
    pq.write_table(pa.table({"path": paths, "key": [f"k{i}" for i in range(6)]}), tmp_path / "paths.parquet")
    pq.write_table(
        pa.table({"jpg": pa.array(images, pa.binary()), "key": range(6)}), tmp_path / "bytes.parquet", row_group_size=4
    )
    write_tar(tmp_path / "t.tar", [f"{i}.jpg" for i in range(6)], images)
    inverse = [0, 3, 1, 4, 2, 5]  # the two files of the dataset hold every other image
    write_hugging_face(tmp_path / "hf" / "train", [images[i] for i in inverse])
    write_hugging_face(tmp_path / "linked", images, [paths[i] for i in inverse])
    (tmp_path / "hf" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    places = {
        "folder": (folder, {}, ids_of(folder)),
        "csv": (tmp_path / "list.csv", {"columns": Columns(id="name")}, [f"n{i}" for i in range(6)]),
        "manifest": (tmp_path / "paths.parquet", {"columns": Columns(id="key")}, [f"k{i}" for i in range(6)]),
        "bytes": (tmp_path / "bytes.parquet", {"columns": Columns(id="key")}, list("012345")),
        "rows": (tmp_path / "bytes.parquet", {"columns": Columns(image="jpg")}, list("012345")),
        "tar": (tmp_path / "t.tar", {}, list("012345")),
        "hugging face": (tmp_path / "hf", {}, list("012345")),
        "linked": (tmp_path / "linked", {}, list("012345")),
    }
    found = {}
    for number, (kind, (place, options, ids)) in enumerate(places.items()):
        out = tmp_path / f"{number}.emb"
        job(pre, str(place), out, **options).run()
        assert FeatureSet(out).ids() == ids, kind
        found[kind] = FeatureSet(out).vectors()
    for kind, vectors in found.items():
        assert np.array_equal(vectors, found["folder"]), kind
    assert len(np.unique(found["folder"], axis=0)) == 6


def test_tables_are_read_again_from_any_row(tmp_path: Path) -> None:
    """Forwards, backwards and across row groups; an empty cell is no error of the table."""
    from dinokit.extract.sources.tables import opened

    cells = [str(i).encode() if i % 5 else None for i in range(300)]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), tmp_path / "t.parquet", row_group_size=70)
    with opened("parquet", str(tmp_path / "t.parquet")) as table:
        assert [table.read(row, "image") for row in range(300)] == cells
        for row in (299, 0, 71, 70, 69, 150, 150, 3):
            assert table.read(row, "image") == cells[row]


def test_what_can_t_be_used_is_said(tmp_path: Path) -> None:
    """Compressed tars, broken tables, missing and ambiguous columns, Lance without its package."""
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "b.parquet").write_text("text")
    (tmp_path / "c.csv").write_text("name\nx\n")
    (tmp_path / "d.tar").write_text("text" * 300)
    pq.write_table(pa.table({"n": [1]}), tmp_path / "e.parquet")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"1"]}), tmp_path / "f.parquet")
    for name, message in {
        "a.tar.gz": "is compressed", "b.parquet": "can't be read as parquet", "c.csv": "--path-column", "d.tar": "no plain tar",
        "e.parquet": "no column looks like images", "f.parquet": "several columns may be images",
    }.items():  # fmt: skip
        with pytest.raises(StorageError, match=message):
            ids_of(tmp_path / name)
    with pytest.raises(StorageError, match="has no column 'x'"):
        ids_of(tmp_path / "e.parquet", columns=Columns(image="x"))
    cut = write_tar(tmp_path / "cut.tar", ["1.png"], IMAGES[:1])
    cut.write_bytes(cut.read_bytes()[:520])
    with pytest.raises(StorageError, match=r"cut short|no plain tar"):
        ids_of(cut)
    (tmp_path / "x.lance").mkdir()
    with pytest.raises(ImportError, match=r'pip install "dinokit\[lance\]"'):
        ids_of(tmp_path / "x.lance")


def test_relative_paths_can_be_meant_from_a_folder(folder: Path) -> None:
    """`root` is where lists begin and what ids are relative to."""
    listed, _ = list_inputs(
        open_sources([], files=["b/1.png", "./a.png"], columns=Columns(root=str(folder))), prefixed=False
    )
    assert [row.id for row in listed.rows(0, 2)] == ["b/1.png", "a.png"]
    assert all(Path(row.path).is_file() for row in listed.rows(0, 2))
