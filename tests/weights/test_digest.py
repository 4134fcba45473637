"""The sum that is computed ahead is that of the file which is there when it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import dinokit
from dinokit.atomic import file_sha256
from dinokit.weights.digest import FOLDER_WEIGHTS, PIECE_BYTES, Digest, digest_ahead


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_it_is_the_sum_of_the_file(tmp_path, size):
    """Of any number of pieces."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(os.urandom(size))
    assert Digest(path).result() == file_sha256(path)


@pytest.mark.parametrize("how", ["replaced", "appended", "gone"])
def test_a_file_that_changed_since_is_summed_again(tmp_path, how):
    """What is there now counts, and what is not there is an error."""
    path, other = tmp_path / "x.pth", tmp_path / "y.pth"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    digest = Digest(path)
    digest._thread.join()
    if how == "replaced":
        os.replace(other, path)
    elif how == "appended":
        path.write_bytes(b"one more")
    else:
        path.unlink()
        with pytest.raises(FileNotFoundError):
            digest.result()
        return
    assert digest.result() == file_sha256(path)


def test_a_folder_is_summed_by_the_file_that_is_read_of_it(tmp_path):
    """The first of the list; nothing for an index of shards, an empty folder, or a name."""
    for name in reversed(FOLDER_WEIGHTS):
        (tmp_path / name).write_bytes(name.encode())
        digest = digest_ahead(tmp_path)
        found = None if digest is None else digest.path.name
        assert found == (None if name.endswith(".json") else name) or (os.cpu_count() or 1) < 2
    assert digest_ahead(tmp_path / "nothing") is None
    assert digest_ahead("facebook/dinov2-base") is None


def test_a_model_takes_the_sum_of_its_own_file_only(formats, tmp_path):
    """A sum that was begun for another file is not taken for this one's."""
    shutil.copy(formats / "noreg" / "timm.safetensors", tmp_path / "x.safetensors")
    pre = dinokit.load(tmp_path / "x.safetensors")
    (own,) = pre.provenance.files
    own_digest, other_digest = Digest(own), Digest(formats / "reg" / "timm_reg4.safetensors")
    own_digest._found = ("told", own_digest._found[1]) if own_digest._thread.join() is None else None
    assert replace(pre.provenance, digest=own_digest).sha256 == "told"
    assert replace(pre.provenance, digest=other_digest).sha256 == file_sha256(own)


def test_the_sum_is_begun_without_torch():
    """Its import is what the sum is computed beside."""
    code = "import sys, dinokit.cli.main, dinokit.weights.digest; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
