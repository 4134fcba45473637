"""Every command on right, wrong and broken input: what it prints where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit
from dinokit.atomic import file_sha256, write_json
from dinokit.cli.main import COMMANDS
from dinokit.weights import files

TINY_TRANSFORM = {"size": {"shortest_edge": 80}, "crop_size": {"height": 70, "width": 70}}


@pytest.fixture
def model(formats, tmp_path) -> Path:
    """A tiny checkpoint in the hub's layout."""
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    write_json(folder / "preprocessor_config.json", TINY_TRANSFORM)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five good images in two folders, and among them a text, an empty and a cut file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(["a.png", "b.jpg", "more/c.webp", "more/d.PNG", "e.bmp"]):
        pixels = rng.integers(0, 256, (60 + 10 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    jpeg = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "notes.txt").write_text("not an image by its name")
    return folder


def test_help_is_quick_and_shows_a_working_example_of_every_command(dinokit_cli):
    """Listed in the group's help, each with an example that names the program."""
    listed = dinokit_cli("--help")
    assert listed.code == 0
    for name in COMMANDS:
        assert name in listed.out
        shown = dinokit_cli(name, "--help")
        assert shown.code == 0
        assert f"dinokit {name}" in shown.out.split("Usage:")[1].split("\n", 1)[1]


def test_help_does_not_import_torch():
    """`dinokit embed --help` answers at once, and needs no network."""
    script = "import sys; from dinokit.cli.main import _run; _run(['embed', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_usage_errors_end_in_2_with_the_nearest_command(dinokit_cli):
    """Unknown commands, unknown options, bad values."""
    assert dinokit_cli("emebd").code == 2
    assert "Did you mean 'embed'?" in dinokit_cli("emebd").err
    assert dinokit_cli("embed", "--nonsense").code == 2
    assert dinokit_cli("embed", "x.jpg", "--pool", "max").code == 2
    assert "write 518 or 448x672" in dinokit_cli("embed", "x.jpg", "--image-size", "big").err
    assert "3 numbers" in dinokit_cli("embed", "x.jpg", "--background", "1,2").err
    assert dinokit_cli("--version").out.strip() == f"dinokit {dinokit.__version__}"


def test_embed_prints_one_line_an_input_and_ends_in_3_if_some_failed(dinokit_cli, model, photos):
    """Rows in order; failures with their code, beside good vectors that equal single runs."""
    done = dinokit_cli("embed", photos, "--model", model, "--batch-size", 3)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 3
    assert [Path(row["path"]).name for row in rows] == [
        "a.png", "b.jpg", "cut.jpg", "e.bmp", "empty.png", "c.webp", "d.PNG", "text.jpg",
    ]  # fmt: skip
    assert {Path(r["path"]).name: r["error_code"] for r in rows if r["status"] == "error"} == {
        "cut.jpg": "truncated", "empty.png": "zero_byte", "text.jpg": "not_image",
    }  # fmt: skip
    assert "3 failed (1 truncated, 1 zero_byte, 1 not_image)" in done.err
    pre = dinokit.load(model)
    for row in rows:
        if row["status"] == "ok":
            alone = pre(row["path"]).cls[0].numpy()
            assert np.abs(np.array(row["embedding"]) - alone).max() <= 2e-6
            assert row["norm"] == pytest.approx(np.linalg.norm(alone), rel=1e-5)
            assert len(row["compat_id"]) == 16


@pytest.mark.parametrize(
    ("pool", "shape"),
    [("cls", (64,)), ("mean", (64,)), ("cls+mean", (128,)), ("registers", (4, 64)), ("patches", (25, 64))],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".jsonl"])
def test_embed_writes_files_with_the_identity_of_the_vectors(dinokit_cli, model, photos, tmp_path, pool, shape, suffix):
    """Every pool, every format; rows and paths in step; what made them beside them."""
    out = tmp_path / f"out{suffix}"
    done = dinokit_cli("embed", photos, "-m", model, "-p", pool, "-o", out)
    assert done.code == 3
    assert done.out == ""
    if suffix == ".npz":
        with np.load(out) as found:
            embeddings, paths, identity = found["embeddings"], list(found["paths"]), json.loads(str(found["identity"]))
            assert len(found["failed_paths"]) == len(found["failed_codes"]) == 3
    else:
        identity = json.loads((tmp_path / "out.identity.json").read_text())
        index = tmp_path / "out.index.jsonl" if suffix == ".npy" else out
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        assert len(rows) == 8
        good = [row for row in rows if row["status"] == "ok"]
        paths = [row["path"] for row in good]
        if suffix == ".npy":
            embeddings = np.load(out)
            assert [row["row"] for row in good] == list(range(5))
        else:
            embeddings = np.array([row["embedding"] for row in good])
    assert embeddings.shape == (5, *shape)
    pre = dinokit.load(model)
    for path, embedding in zip(paths, embeddings, strict=True):
        assert np.abs(embedding - pre(path).pool(pool)[0].numpy()).max() <= 2e-6
    assert identity["model"]["weights_sha256"] == file_sha256(model / "model.safetensors")
    assert identity["preprocess"]["fingerprint"] == pre.transform.fingerprint
    assert identity["pooling"] == pool


def test_embed_never_overwrites_unasked(dinokit_cli, model, photos, tmp_path):
    """Exit code 6 before anything is computed."""
    out = tmp_path / "out.npz"
    out.write_bytes(b"mine")
    done = dinokit_cli("embed", photos, "-m", "no-such-model-at-all", "-o", out)
    assert (done.code, out.read_bytes()) == (6, b"mine")
    assert "--overwrite" in done.err
    assert dinokit_cli("embed", photos / "a.png", "-m", model, "-o", out, "--overwrite").code == 0
    assert dinokit_cli("embed", photos / "a.png", "-m", model, "-o", tmp_path / "no" / "out.npz").code == 6
    assert dinokit_cli("embed", photos / "a.png", "-m", model, "-o", tmp_path / "out.csv").code == 2


def test_embed_reads_lists_of_paths(dinokit_cli, model, photos, monkeypatch, tmp_path):
    """From a file or stdin, by lines or NUL; a path that is not there has its row."""
    names = [str(photos / "a.png"), str(photos / "no such.png"), str(photos / "b.jpg")]
    listed = tmp_path / "list.txt"
    for text, flags in (("\n".join(names) + "\n\n", []), ("\0".join(names), ["-0"])):
        listed.write_text(text)
        done = dinokit_cli("embed", "-m", model, "--files-from", listed, *flags)
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert [row["path"] for row in rows] == names
        assert [row.get("error_code") for row in rows] == [None, "not_a_file", None]
    stdin = io.TextIOWrapper(io.BytesIO(names[0].encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert len(dinokit_cli("embed", "-m", model, "--files-from", "-").out.splitlines()) == 1


def test_embed_takes_options_for_odd_images(dinokit_cli, model, tmp_path):
    """A window for float pixels, a colour behind transparency, a limit of pixels, another size, stop at the first error."""
    Image.fromarray(np.linspace(0, 1000, 90 * 90, dtype=np.float32).reshape(90, 90)).save(tmp_path / "f.tif")
    Image.new("RGBA", (90, 90), (255, 0, 0, 0)).save(tmp_path / "t.png")
    assert json.loads(dinokit_cli("embed", tmp_path / "f.tif", "-m", model).out)["error_code"] == "unsupported_mode"
    assert dinokit_cli("embed", tmp_path / "f.tif", "-m", model, "--window", "0,1000").code == 0
    vectors = [
        json.loads(dinokit_cli("embed", tmp_path / "t.png", "-m", model, *flags).out)["embedding"]
        for flags in ([], ["--background", "255,0,0"], ["--background", "0,0,255"])
    ]
    assert vectors[0] == vectors[1] != vectors[2]
    bomb = dinokit_cli("embed", tmp_path / "t.png", "-m", model, "--max-pixels", 100)
    assert json.loads(bomb.out)["error_code"] == "too_many_pixels"
    done = dinokit_cli("embed", tmp_path / "t.png", "-m", model, "--image-size", "56x98", "--pool", "patches")
    assert np.array(json.loads(done.out)["embedding"]).shape == (28, 64)
    done = dinokit_cli("embed", tmp_path / "f.tif", tmp_path / "t.png", "-m", model, "--fail-fast", "--batch-size", 1)
    assert (done.code, len(done.out.splitlines())) == (3, 1)


def test_embed_refuses_what_can_t_be_done(dinokit_cli, formats, model, photos):
    """No images, registers of a model without, a device that is not there, an unknown model."""
    assert "no images" in dinokit_cli("embed", "-m", model).err or dinokit_cli("embed", "-m", model).code == 2
    done = dinokit_cli("embed", photos / "a.png", "-m", formats / "noreg" / "hf", "--pool", "registers")
    assert done.code == 2
    assert "no registers" in done.err
    assert dinokit_cli("embed", photos / "a.png", "-m", model, "--device", "cuda:77").code == 2
    unknown = dinokit_cli("embed", photos / "a.png", "-m", "dinov2_vitz14")
    assert unknown.code == 4
    assert "Did you mean dinov2_vit" in unknown.err
    offline = dinokit_cli("embed", photos / "a.png")
    assert offline.code == 5
    assert "dinokit demo" in offline.err


def test_embed_in_bfloat16_stays_near_float32(dinokit_cli, model, photos):
    """--dtype bf16: cosine above 0.999 on a tiny random network."""
    vectors = [
        np.array(json.loads(dinokit_cli("embed", photos / "a.png", "-m", model, "--dtype", dtype).out)["embedding"])
        for dtype in ("fp32", "bf16")
    ]
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert 0.999 < cosine < 1


def test_info_tells_what_a_checkpoint_is(dinokit_cli, formats, model):
    """Layout, container, sizes, parameters, FLOPs, sum, what was filled in; for reading and as JSON."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    facts = json.loads(dinokit_cli("info", path, "--json", "--image-size", "70").out)
    assert (facts["layout"], facts["container"], facts["filled_with_zeros"]) == ("birder", "state", ["mask_token"])
    assert facts["parameters"] == sum(p.numel() for p in dinokit.load(path).model.parameters())
    assert facts["sha256"] == file_sha256(path)
    assert (facts["tokens"], facts["num_register_tokens"], facts["verified"]) == (30, 4, True)
    text = dinokit_cli("info", path).out
    for part in ("birder, under 'state'", "64 wide, 2 blocks", "zeros for     mask_token", "yes, every tensor"):
        assert part in text


def test_info_of_a_released_model_that_is_not_on_disk(dinokit_cli):
    """What is known of it, and how to get it; with --download the network is asked."""
    done = dinokit_cli("info", "facebook/dinov2-with-registers-giant", "--json")
    assert done.code == 0
    assert json.loads(done.out)["parameters"] == 1_136_486_912
    assert "--download" in done.err
    assert dinokit_cli("info", "facebook/dinov2-base", "--download").code == 5
    assert json.loads(dinokit_cli("info", "dinov2_vitb14", "--json").out)["position_rule"]["offset"] == 0.1
    assert json.loads(dinokit_cli("info", "facebook/dinov2-base", "--json").out)["position_rule"]["offset"] == 0.0


def test_broken_checkpoints_end_in_4(dinokit_cli, model):
    """One sentence with the file's name; --allow-missing is loud."""
    weights = model / "model.safetensors"
    # cloned, since what was read is mapped from the file that is damaged next
    tensors = {name: tensor.clone() for name, tensor in files.read(weights).tensors.items()}
    weights.write_bytes(weights.read_bytes()[:1000])
    done = dinokit_cli("info", model)
    assert done.code == 4
    assert done.err.startswith(f"error: {weights} is damaged")
    del tensors["encoder.layer.0.norm1.weight"]
    files.write_safetensors(weights, tensors)
    assert dinokit_cli("info", model).code == 4
    allowed = dinokit_cli("info", model, "--allow-missing")
    assert allowed.code == 0
    assert "random values" in allowed.err
    assert "missing       blocks.0.norm1.weight" in allowed.out


@pytest.mark.parametrize(
    ("source", "target", "layout"),
    [
        ("reg/dinov2_tiny14_reg4_pretrain.pth", "out", "hf"),
        ("reg/hf", "out.pth", "official"),
        ("reg/teacher_checkpoint.pth", "out", "timm"),
        ("reg/timm_reg4", "out.pt", "birder"),
        ("reg/vit_reg4_tiny14_nps_ls_v033.pt", "out.safetensors", "birder"),
        ("noreg/dinov2_tiny14_pretrain.pth", "out", "hf"),
        ("regswiglu/hf", "out.safetensors", "hf5"),
        ("noregswiglu/timm_giant.safetensors", "out.pth", "official"),
    ],
)
def test_convert_writes_a_layout_and_proves_it_equal(dinokit_cli, formats, tmp_path, source, target, layout):
    """All tensors bit for bit, tokens with no difference, and a word where positions will differ."""
    done = dinokit_cli("convert", formats / source, tmp_path / target, "--to", layout, "--json")
    assert done.code == 0, done.err
    proof = json.loads(done.out)
    assert proof["equal"]
    assert proof["different"] == []
    assert proof["not_stored"] == (["mask_token"] if layout in ("timm", "birder") and "teacher" in source else [])
    assert proof["tensors_equal_bit_for_bit"] == proof["tensors"]
    assert max(proof["max_difference_trained_size"], proof["max_difference_other_size"]) <= 1e-5
    again = dinokit_cli("convert", formats / source, tmp_path / target, "--to", layout)
    assert again.code == 6
    text = dinokit_cli("convert", formats / source, tmp_path / target, "--to", layout, "--overwrite").out
    assert "equal bit for bit" in text
    assert ("note: away from the trained size" in text) == source.startswith("noreg")


def test_convert_refuses_what_does_not_go(dinokit_cli, formats, tmp_path):
    """A folder for a layout of one file, SwiGLU in Birder."""
    folder = dinokit_cli("convert", formats / "reg/hf", tmp_path / "x", "--to", "official")
    assert folder.code == 2
    assert "end the path in" in folder.err
    assert dinokit_cli("convert", formats / "regswiglu/hf", tmp_path / "x.pt", "--to", "birder").code == 4
    assert not (tmp_path / "x.pt").exists()


def test_models_lists_all_names_without_a_network(dinokit_cli):
    """Eight networks; a filter; JSON."""
    assert len(json.loads(dinokit_cli("models", "--json").out)) == 8
    giants = json.loads(dinokit_cli("models", "giant", "--json").out)
    assert [entry["parameters"] for entry in giants] == [1_136_486_912, 1_136_480_768]
    assert "vit_reg4_l14_nps_ls_dino-v2-lvd142m" in dinokit_cli("models", "large").out
    assert dinokit_cli("models", "resnet").code == 2


def test_demo_shows_the_planted_artefacts(dinokit_cli, tmp_path):
    """Norm 302.76 at two patches before, 8 with a register of 302.65 after; the neurons by number; four pictures."""
    done = dinokit_cli("demo", "--artefacts", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    layers = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line[:1].isdigit()}
    assert layers["3"] == ["8.00", "302.76", "2", "8.00", "8.00", "302.65"]
    assert "block 2 neuron 3, block 2 neuron 7" in done.out
    assert "CONSTRUCTED" in done.err
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pictures == ["planted_attention.png", "planted_norms.png", "repaired_attention.png", "repaired_norms.png"]


def run_process(*arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dinokit.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_a_closed_pipe_and_an_interrupt_end_quietly(model, photos, tmp_path):
    """`| head` shows no traceback; ctrl-C ends in 130, SIGTERM in 143, and nothing half-written stays."""
    many = tmp_path / "many.txt"
    many.write_text("\n".join([str(photos / "a.png")] * 20_000))
    process = run_process("embed", "-m", model, "--files-from", many)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / "out.jsonl"
        process = run_process("embed", "-m", model, "--files-from", many, "-o", out)
        started = time.monotonic()
        while not list(tmp_path.glob(".out.jsonl.*.tmp")) and time.monotonic() - started < 30:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        assert "Traceback" not in err
        assert not out.exists()
        assert list(tmp_path.glob(".out*")) == []


def test_the_model_can_come_from_the_environment(dinokit_cli, model, photos, monkeypatch):
    """DINOKIT_MODEL and DINOKIT_DEVICE stand for the options."""
    monkeypatch.setitem(os.environ, "DINOKIT_MODEL", str(model))
    monkeypatch.setitem(os.environ, "DINOKIT_DEVICE", "cpu")
    assert dinokit_cli("embed", photos / "a.png").code == 0


def test_verify_compares_with_what_was_published(dinokit_cli, tmp_path, monkeypatch):
    """A network of the published size with other weights: the values fail; without published values they are unknown."""
    from dinokit.weights import references

    name = "facebook/dinov2-with-registers-small"
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = dinokit.VisionTransformer(dinokit.VARIANTS["vits14_reg"]).eval()
    torch.save(network.state_dict(), "w.pth")
    dinokit.save(dinokit.load("w.pth"), name, "hf")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save("x.png")
    unknown = dinokit_cli("verify", name, "--image", "x.png", "--json")
    assert unknown.code == 0
    outcomes = {check["check"]: check["outcome"] for check in json.loads(unknown.out)["checks"]}
    assert outcomes == {"strict load": "pass", "architecture": "pass", "sha256": "unknown", "values": "unknown"}
    with torch.no_grad():
        values = dinokit.load(name)("x.png").sequence[0, :3, :3]
    for offset, code in ((0.0, 0), (0.01, 4)):
        published = references.Reference(position=network.config.position, values=(values + offset).tolist())
        monkeypatch.setitem(references.REFERENCES, name, published)
        done = dinokit_cli("verify", name, "--image", "x.png")
        assert done.code == code
    assert "values failed" in done.err
    assert dinokit_cli("verify", "my-own-model").code == 2
