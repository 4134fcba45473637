"""The networks inside the package: known by name without a network, unchanged, trained, and transformers opens them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import dinokit
from dinokit.analysis.attention import attention_budget
from dinokit.errors import WeightsError
from dinokit.evals.knn import knn
from dinokit.model import attention_weights
from dinokit.train.data.textures import Textures
from dinokit.train.recipes import resolve
from dinokit.train.run import build_network, read_log, read_recipe
from dinokit.weights import hub, zoo
from dinokit.weights.files import read

NAMES = {"dinokit/tiny-procedural-reg4": 4, "dinokit/tiny-procedural": 0}
RECORDED = json.loads((Path(__file__).parent / "bundled_features.json").read_text())
CLOSE = 2e-4  # of features of length 11, across machines


def folder_of(name: str) -> Path:
    return zoo.BUNDLED / name.removeprefix("dinokit/")


def picture(size: int) -> np.ndarray:
    """Waves in three colours: the same on any machine."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(9 * x + 5 * y), np.cos(14 * x * y), np.sin(4 * (x - y))]
    return (127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(params=NAMES)
def name(request, monkeypatch) -> str:
    """With the network switched off."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return request.param


def test_they_load_by_name_without_a_network(name, tmp_path):
    """By either name, with every tensor in its place, and the licence stated."""
    pre = dinokit.load(name, cache_dir=tmp_path)
    short = dinokit.load(name.removeprefix("dinokit/"), cache_dir=tmp_path)
    assert pre.provenance.verified
    assert pre.provenance.license == "Apache-2.0"
    assert pre.provenance.sha256 in zoo.lookup(name).sha256
    assert pre.config.num_register_tokens == NAMES[name]
    assert hub.is_cached(name)
    for a, b in zip(pre.model.state_dict().values(), short.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.iterdir())


def test_a_changed_file_is_refused(name, tmp_path, monkeypatch):
    """One bit of the weights is enough."""
    copy = shutil.copytree(folder_of(name), tmp_path / "copy")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    monkeypatch.setitem(zoo.SOURCES, name, dataclasses.replace(zoo.SOURCES[name], folder=copy))
    with pytest.raises(WeightsError, match="sha256"):
        dinokit.load(name)


@pytest.mark.parametrize("size", [40, 224])
def test_features_are_those_that_were_recorded(name, size):
    """Class token, at the size of training and at that of photographs."""
    pre = dinokit.load(name)
    pixels = torch.from_numpy(picture(size)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (pre.transform.mean, pre.transform.std))
    with torch.no_grad():
        tokens = pre.model((pixels - mean) / std)
    assert tokens.patch_map.shape == (1, 128, size // 8, size // 8)
    assert tokens.cls[0].tolist() == pytest.approx(RECORDED[name][str(size)], abs=CLOSE)


def test_transformers_opens_the_folder(name):
    """With its own classes, and gives the same tokens at the size of training."""
    transformers = pytest.importorskip("transformers")
    kind = transformers.Dinov2WithRegistersModel if NAMES[name] else transformers.Dinov2Model
    theirs = kind.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    ours = dinokit.load(name).model
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (theirs(pixels).last_hidden_state - ours(pixels).sequence).abs().max()
    assert difference < 1e-4


def test_they_tell_textures_apart_better_than_random_weights(name):
    """Ten textures in any colours, by 20 neighbours: a margin of a tenth at least."""
    made = [Textures(n, seed=seed) for n, seed in ((600, 7), (300, 8))]
    (x, y), (test_x, test_y) = ((m.batch(range(len(m))), torch.from_numpy(m.labels())) for m in made)
    pre = dinokit.load(name)
    mean, std = (torch.tensor(v)[:, None, None] for v in (pre.transform.mean, pre.transform.std))

    def accuracy(model: torch.nn.Module) -> float:
        found = []
        for images in (x, test_x):
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            enlarged = torch.nn.functional.interpolate(pixels, (56, 56), mode="bicubic").clamp(0, 1)
            with torch.no_grad():
                found.append(model((enlarged - mean) / std).cls)
        return knn(found[0], y, found[1], test_y, ks=(20,), centred=True).top1[20]

    recipe = resolve("tiny_procedural", [f"model.num_register_tokens={NAMES[name]}"])
    assert accuracy(pre.model) > accuracy(build_network(recipe).backbone.eval()) + 0.1


def test_attention_is_spent_whole(name):
    """What the class token gives to itself, to registers and to patches is 1; registers, where there are any, get some."""
    model = dinokit.load(name).model
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (weights,) = attention_weights(model, pixels, blocks=1)
    spent = attention_budget(weights, torch.zeros(2, 64, dtype=torch.bool), NAMES[name]).to_dict()
    registers = sum(share for part, share in spent.items() if part.startswith("register"))
    assert sum(spent.values()) == pytest.approx(1, abs=1e-5)
    assert (registers > 0.001) == bool(NAMES[name])


def test_what_lies_beside_the_weights(name):
    """Half precision, under four megabytes; a card that names its licence and says its limits, the run's recipe and its log."""
    folder = folder_of(name)
    assert {t.dtype for t in read(folder).tensors.values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "No semantics" in card
    recipe = read_recipe(folder)
    assert recipe.name == "tiny_procedural"
    assert recipe.model.num_register_tokens == NAMES[name]
    assert read_log(folder)[-1]["step"] == recipe.steps
    for other in NAMES:
        assert dataclasses.replace(recipe, model=read_recipe(folder_of(other)).model) == read_recipe(folder_of(other))
