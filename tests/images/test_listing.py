"""Which files are images: by suffix, in one order, none lost, and the same rule wherever folders are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinokit.errors import StorageError
from dinokit.images import IMAGE_SUFFIXES, is_image_name, list_images
from tests.images.corpus import photo, saved

names = st.sampled_from([*sorted(IMAGE_SUFFIXES), *(suffix.upper() for suffix in IMAGE_SUFFIXES), ".txt", ".npy", ""])
paths = st.tuples(st.sampled_from(["", "a", "b", "a/c"]), st.text("xyz-é", min_size=1, max_size=3), names)


@given(st.sets(paths, max_size=12))
def test_a_folder_gives_its_images_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, files: set) -> None:
    """Each once, by suffix in any case, and in the order of the names from the top down."""
    folder = tmp_path_factory.mktemp("photos")
    for place, stem, suffix in files:
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{stem}{suffix}").write_bytes(b"")
    found = [Path(path) for path in list_images([folder])]
    wanted = {path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES}
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert [path.relative_to(folder).parts for path in found] == sorted(
        path.relative_to(folder).parts for path in wanted
    )


def test_what_is_named_itself_is_kept(tmp_path: Path) -> None:
    """Whatever its suffix, and even if it is not there: its row will say so."""
    (tmp_path / "scan.dat").write_bytes(saved(photo(), "PNG"))
    assert list_images([tmp_path / "scan.dat", "nowhere.jpg"]) == [str(tmp_path / "scan.dat"), "nowhere.jpg"]
    assert list_images([tmp_path]) == []


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    """So that a link upwards does not go on for ever; links to files are images, and so are broken ones."""
    (tmp_path / "1.png").write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "up.png", target_is_directory=True)
    os.symlink(tmp_path / "1.png", tmp_path / "2.png")
    os.symlink(tmp_path / "4.png", tmp_path / "4.png")
    assert [Path(path).name for path in list_images([tmp_path])] == ["1.png", "2.png", "4.png"]


def test_a_folder_that_can_t_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images would be missed otherwise; the message names the folder."""

    def refused(folder: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(StorageError, match=r"can't be listed: Permission denied"):
        list_images([tmp_path])


def test_all_who_read_folders_mean_the_same_files(tmp_path: Path) -> None:
    """Embedding, training and evaluations take the same images of one folder."""
    from dinokit.evals.datasets import images_below
    from dinokit.extract import IMAGE_SUFFIXES as EMBEDDED
    from dinokit.extract import open_sources
    from dinokit.train.data.sources import image_files

    for index, suffix in enumerate([*sorted(IMAGE_SUFFIXES), ".JPG", ".txt"]):
        (tmp_path / f"{index:02}{suffix}").write_bytes(b"")
    (tmp_path / ".jpg").write_bytes(b"")  # a name without a suffix
    wanted = list_images([tmp_path])
    assert len(wanted) == len(IMAGE_SUFFIXES) + 1
    assert EMBEDDED is IMAGE_SUFFIXES
    assert image_files(tmp_path) == wanted
    assert [str(path) for path in images_below(tmp_path)] == wanted
    (folder,) = open_sources([str(tmp_path)])
    assert [entry.path for entry in folder.entries()] == wanted
    assert is_image_name("a.JPG")
    assert not is_image_name(".jpg")
