"""Damaged, foreign and malicious files end in one sentence that names the file; writing leaves whole files or none."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dinokit.atomic import write_atomically, write_json
from dinokit.errors import StorageError, WeightsError
from dinokit.weights import files
from dinokit.weights.convert import to_native
from dinokit.weights.infer import Hints, infer_config


def header_file(path: Path, header: object, data: bytes = b"", size: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + data)


def f32(start: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def truncated(path: Path) -> None:
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:200])


def one_byte_short(path: Path) -> None:
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])


def trailing_bytes(path: Path) -> None:
    save_file({"a": torch.ones(4)}, path)
    path.write_bytes(path.read_bytes() + b"more")


BAD_SAFETENSORS = {
    "truncated": truncated,
    "one byte short": one_byte_short,
    "empty": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: path.write_bytes(b"1234567"),
    "header of 2^64-1": lambda path: header_file(path, b"{}", size=2**64 - 1),
    "header of 101 MB": lambda path: header_file(path, b" " * 101_000_000),
    "not JSON": lambda path: header_file(path, b"{nonsense}"),
    "deep JSON": lambda path: header_file(path, b"[" * 100_000),
    "overlap": lambda path: header_file(path, {"a": f32(0, 8, [2]), "b": f32(4, 12, [2])}, b"\0" * 12),
    "hole": lambda path: header_file(path, {"a": f32(0, 4, [1]), "b": f32(8, 12, [1])}, b"\0" * 12),
    "shape overflow": lambda path: header_file(path, {"a": f32(0, 4, [2**62, 2**62])}, b"\0" * 4),
    "unknown dtype": lambda path: header_file(path, {"a": {**f32(0, 4, [1]), "dtype": "F99"}}, b"\0" * 4),
    "trailing bytes": trailing_bytes,
    "duplicate key": lambda path: header_file(
        path, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html><body>Not found</body></html>"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_damaged_safetensors_are_refused_by_name(tmp_path, case):
    """One sentence, the file's name, the way out; a WeightsError, whose exit code is 4."""
    path = tmp_path / "model.safetensors"
    BAD_SAFETENSORS[case](path)
    with pytest.raises(WeightsError, match="download it again") as caught:
        files.read(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_pickles_with_code_are_not_executed(tmp_path, monkeypatch, protocol):
    """Refused, and no fallback that would run it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    if protocol == "torch":
        torch.save({"a": torch.ones(1), "b": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"b": Evil()}))
    with pytest.raises(WeightsError, match=r"could run code|not a PyTorch checkpoint"):
        files.read(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        b"PK\x03\x04broken",
        b"\x80\x02}q\x00broken",
        b"\x80\x04\x95",
        b"PK\x05\x06" + b"\0" * 18,
    ],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content):
    """Whatever stands in them."""
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.pth"):
        files.read(path)


def refused_mutants(source: Path, path: Path, count: int) -> int:
    """How many of `count` copies of `source` with random flips and cuts `read` refuses; any other error than ours gets through."""
    good, rng, refused = source.read_bytes(), np.random.default_rng(0), 0
    for _ in range(count):
        raw = bytearray(good[: rng.integers(1, len(good))] if rng.random() < 0.3 else good)
        for position in rng.integers(0, len(raw), size=rng.integers(1, 8)):
            raw[position] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            files.read(path)
        except WeightsError:
            refused += 1
    return refused


def test_mutated_pickles_only_ever_give_our_error(tmp_path):
    """300 random flips and cuts of a small checkpoint: refused or read, never another exception."""
    source, path = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"a": torch.arange(8.0), "b": {"c": torch.ones(2)}}, source)
    assert refused_mutants(source, path, 300) > 100


def test_mutated_safetensors_only_ever_give_our_error(tmp_path):
    """1,000 random flips and cuts: refused or read, never another exception."""
    source, path = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"a": torch.arange(8.0), "b": torch.ones(2, 3)}, source)
    assert refused_mutants(source, path, 1000) > 300


def test_paths_that_are_no_files_are_refused(tmp_path):
    """Missing, a folder without weights, a folder whose weights have another name, a pipe."""
    with pytest.raises(WeightsError, match="does not exist"):
        files.read(tmp_path / "nothing.safetensors")
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        files.read(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"name that file instead"):
        files.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="not a regular file"):
        files.read(tmp_path / "pipe.pth")


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "..\\x.safetensors", ""]
)
def test_shard_indexes_can_t_lead_outside_of_their_folder(tmp_path, shard):
    """A shard is a plain file name."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": shard}})
    with pytest.raises(WeightsError, match="plain file name inside the folder"):
        files.read(folder)


def test_missing_and_incomplete_shards_are_refused(tmp_path):
    """A file that is not there, a tensor that no shard holds, a tensor in two shards."""
    index = tmp_path / "model.safetensors.index.json"
    write_json(index, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(WeightsError, match=r"two\.safetensors is missing"):
        files.read(tmp_path)
    save_file({"c": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match="lists b"):
        files.read(tmp_path)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match="repeats a"):
        files.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff\xfe", "null"])
def test_broken_configurations_are_refused(tmp_path, text):
    """Named, with the way out."""
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"config\.json"):
        files.read(tmp_path)


def official(formats: Path) -> dict[str, torch.Tensor]:
    return dict(files.read(formats / "reg" / "dinov2_tiny14_reg4_pretrain.pth").tensors)


def test_a_missing_layer_is_refused_with_its_tensors(formats):
    """The first ten names and how many more; no random weights in silence."""
    tensors = {name: t for name, t in official(formats).items() if not name.startswith("blocks.0.")}
    with pytest.raises(WeightsError, match=r"Missing 14: blocks\.0\.norm1\.weight.* and 4 more"):
        to_native(tensors, source="model.pth")


def test_all_tensors_missing_or_one_too_many_is_refused(formats):
    """Other people's checkpoints, an empty one, an extra tensor."""
    for tensors in ({}, {"conv1.weight": torch.ones(1)}):
        with pytest.raises(WeightsError, match="no DINOv2 backbone"):
            to_native(tensors)
    with pytest.raises(WeightsError, match=r"Unexpected 1: blocks\.0\.attn\.extra"):
        to_native({**official(formats), "blocks.0.attn.extra": torch.ones(1)})
    with pytest.raises(WeightsError, match="linear head alone"):
        to_native({"weight": torch.ones(2, 2), "bias": torch.ones(2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(formats, value):
    """The tensor and how many values."""
    tensors = official(formats)
    tensors["norm.weight"] = tensors["norm.weight"].clone()
    tensors["norm.weight"][3] = value
    with pytest.raises(WeightsError, match=r"norm\.weight has 1 of 64 values that are NaN or infinite"):
        to_native(tensors)


def test_quantised_weights_are_refused(formats):
    """Integers are not weights."""
    tensors = official(formats)
    tensors["norm.weight"] = torch.ones(64, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"torch\.int8"):
        to_native(tensors)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.1.mlp.fc1.weight", (255, 64), r"blocks\.1\.mlp\.fc1\.weight is \(255, 64\), expected \(256, 64\)"),
        ("cls_token", (1, 1, 32), "disagree about the network's size"),
        ("cls_token", (64,), r"expected \(1, 1, width\)"),
        ("patch_embed.proj.weight", (64, 3, 14, 16), "only square ones"),
        ("patch_embed.proj.weight", (64, 588), "must have 4 axes"),
        ("pos_embed", (1, 24, 64), "no square"),
        ("register_tokens", (4, 64), "expected"),
        ("blocks.0.mlp.fc2.weight", (64,), "must have 2 axes"),
    ],
)
def test_tensors_of_wrong_shapes_are_named(formats, name, shape, message):
    """What it is and what was expected."""
    tensors = {**official(formats), name: torch.ones(shape)}
    with pytest.raises(WeightsError, match=message):
        infer_config(to_native(tensors), Hints(num_heads=1))


def test_wild_names_build_no_giant_tables(formats):
    """A block number of a billion, and q/k/v that don't fit each other."""
    with pytest.raises(WeightsError, match="Missing"):
        to_native({**official(formats), "blocks.999999999.norm1.weight": torch.ones(64)})
    hf = dict(files.read(formats / "reg" / "hf").tensors)
    hf["encoder.layer.0.attention.attention.key.weight"] = torch.ones(32, 64)
    with pytest.raises(WeightsError, match="must have one shape to be joined"):
        to_native(hf)


def test_heads_that_don_t_divide_the_width_are_asked_for(formats):
    """A bare file does not tell; widths of released networks are multiples of 64."""
    with pytest.raises(WeightsError, match="give num_heads"):
        infer_config(to_native(official(formats)), Hints(num_heads=3))


def test_a_student_and_a_teacher_side_by_side_are_refused(formats):
    """Two models in one file: which one is meant can't be told."""
    tensors = official(formats)
    both = {f"module.{name}": t for name, t in tensors.items()} | tensors
    with pytest.raises(WeightsError, match="keep one of the models"):
        to_native(both)


def test_a_container_that_holds_no_tensors_is_explained(tmp_path):
    """Where tensors are looked for."""
    torch.save({"optimizer": {"lr": 1.0}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="under teacher, model"):
        files.read(tmp_path / "x.pth")
    torch.save([torch.ones(1)], tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        files.read(tmp_path / "x.pth")


def test_files_appear_whole_or_not_at_all(tmp_path):
    """A writer that fails leaves neither the file nor a torso, and an older file stays."""
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError):
        write_atomically(path, lambda file: (file.write(b"half"), (_ for _ in ()).throw(RuntimeError()))[0])
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(StorageError, match="can't be written"):
        write_json(tmp_path / "no" / "x.json", {})


def test_a_full_disk_leaves_nothing(tmp_path):
    """Writing beyond a limit of 100 kB ends in exit code 7 and an empty folder."""
    script = f"""
import resource, signal, torch
from dinokit.errors import StorageError
from dinokit.weights.files import write_safetensors, write_pickle
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write, name in ((write_safetensors, "a.safetensors"), (write_pickle, "a.pth")):
    try:
        write({str(tmp_path)!r} + "/" + name, {{"a": torch.ones(100_000)}})
    except StorageError as error:
        print(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["7", "7"], done.stderr
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
