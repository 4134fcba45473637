"""Birder's model card, with only its imports changed, against a hub on loopback."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinokit.compat.birder as birder
from dinokit.atomic import file_sha256
from dinokit.weights import zoo
from tests.tolerances import RECORDED
from tests.weights.fakehub import running_hub

NAME = "vit_reg4_l14_nps_ls_dino-v2-lvd142m"

# The code blocks of the card (sections "Image Embeddings" and "Detection Feature Map").
IMAGE_EMBEDDINGS = """
import birder
from birder.inference.classification import infer_image

(net, model_info) = birder.load_pretrained_model("vit_reg4_l14_nps_ls_dino-v2-lvd142m", inference=True)

# Get the image size the model was trained on
size = birder.get_size_from_signature(model_info.signature)

# Create an inference transform
transform = birder.classification_transform(size, model_info.rgb_stats)

image = "path/to/image.jpeg"  # or a PIL image
(out, embedding) = infer_image(net, image, transform, return_embedding=True)
# embedding is a NumPy array with shape of (1, 1024)
"""
DETECTION_FEATURE_MAP = """
from PIL import Image
import birder

(net, model_info) = birder.load_pretrained_model("vit_reg4_l14_nps_ls_dino-v2-lvd142m", inference=True)

# Get the image size the model was trained on
size = birder.get_size_from_signature(model_info.signature)

# Create an inference transform
transform = birder.classification_transform(size, model_info.rgb_stats)

image = Image.open("path/to/image.jpeg")
features = net.detection_features(transform(image).unsqueeze(0))
# features is a dict (stage name -> torch.Tensor)
print([(k, v.size()) for k, v in features.items()])
# Output example:
# [('neck', torch.Size([1, 1024, 37, 37]))]
"""


@pytest.fixture
def online(formats, tmp_path, monkeypatch):
    """A hub that serves a tiny network under the card's name, and the card's image in the current folder."""
    root = tmp_path / "served"
    file = root / "birder-project" / NAME / f"{NAME}.pt"
    file.parent.mkdir(parents=True)
    shutil.copy(formats / "reg" / "vit_reg4_tiny14_nps_ls.pt", file)
    source = dataclasses.replace(zoo.SOURCES[NAME], sha256=(file_sha256(file),))
    monkeypatch.setitem(zoo.SOURCES, NAME, source)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    with Image.open(formats / "image.png") as image:
        image.save("path/to/image.jpeg", "PNG")  # lossless under the card's name, so the recorded numbers hold
    with running_hub(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def run(block: str) -> dict[str, object]:
    for name in ("birder.inference", "birder"):
        block = block.replace(f"from {name}.", f"from dinokit.compat.{name}.").replace(
            f"import {name}\n", f"import dinokit.compat.{name} as birder\n"
        )
    found: dict[str, object] = {}
    exec(compile(block, "card", "exec"), found)
    return found


def test_the_card_s_first_block_gives_birder_s_embedding(online, formats):
    """Downloaded by name, checked, transformed, embedded: the numbers that Birder recorded."""
    found = run(IMAGE_EMBEDDINGS)
    recorded = np.load(formats / "refs" / "reg_image.npz")
    assert found["size"] == (70, 70)
    assert np.abs(found["embedding"] - recorded["emb"]).max() < RECORDED
    assert np.abs(found["out"] - recorded["out"]).max() < RECORDED
    assert found["embedding"].dtype == found["out"].dtype == np.float32


def test_the_card_s_second_block_prints_one_map_called_neck(online, formats, capsys):
    """The key and the values of the card, which newer Birder no longer gives."""
    found = run(DETECTION_FEATURE_MAP)
    assert capsys.readouterr().out == "[('neck', torch.Size([1, 64, 5, 5]))]\n"
    recorded = np.load(formats / "refs" / "reg_image.npz")["neck"]
    assert np.abs(found["features"]["neck"].numpy() - recorded).max() < RECORDED


def test_a_registered_file_is_put_where_dst_says(online, tmp_path):
    """Downloaded once, used again; another file under that name is never overwritten."""
    dst = tmp_path / "model.pt"
    net, _ = birder.load_pretrained_model(NAME, dst=dst, inference=True, progress_bar=False)
    asked = len(online.requests)
    again, _ = birder.load_pretrained_model(NAME, dst=dst)
    assert len(online.requests) == asked
    assert all((a == b).all() for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    dst.write_bytes(b"something else")
    with pytest.raises(FileExistsError, match=NAME):
        birder.load_pretrained_model(NAME, dst=dst)
    assert dst.read_bytes() == b"something else"
    with pytest.raises(ValueError, match="leave dst out"):
        birder.load_pretrained_model(online.root / "birder-project" / NAME / f"{NAME}.pt", dst=dst)


def test_a_file_with_another_sha256_than_published_is_refused(online, monkeypatch):
    """Whatever the hub served under the name."""
    source = dataclasses.replace(zoo.SOURCES[NAME], sha256=("0" * 64,))
    monkeypatch.setitem(zoo.SOURCES, NAME, source)
    with pytest.raises(ValueError, match="sha256"):
        birder.load_pretrained_model(NAME)


def test_the_code_of_the_docs_runs(online):
    """Every block of docs/birder.md, in order."""
    with Image.open("path/to/image.jpeg") as image:
        image.save("photo.jpg")
    text = (Path(__file__).parents[2] / "docs" / "birder.md").read_text(encoding="utf-8")
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/birder.md", "exec"), found)
    assert found["embedding"].shape == (1, 64)
    assert found["maps"]["neck"].shape == (1, 64, 5, 5)
    assert found["logits"].shape == (1, 10)
