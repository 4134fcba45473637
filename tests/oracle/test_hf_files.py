"""Files between transformers 5.23 and the Hugging Face style models: each opens what the other writes, with equal outputs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

import dinokit.compat.hf as ours
from tests.oracle.hf_pairs import NETWORKS, PLAIN, REGISTERS, SIZES, TINY, images, pair, worst
from tests.tolerances import ORACLE

HEADS = ("Model", "ForImageClassification", "Backbone")


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_what_we_save_transformers_opens_with_equal_outputs(network: str, head: str, tmp_path: Path) -> None:
    """Every tensor finds its place there, none is missing or left over."""
    _, mine = pair(network, head)
    mine.save_pretrained(tmp_path)
    cls = getattr(transformers, NETWORKS[network][0] + head)
    theirs, info = cls.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values())
    x = images(mine, SIZES["wide"])
    assert worst(theirs(x, output_hidden_states=True), mine(x, output_hidden_states=True)) <= ORACLE


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_what_transformers_saves_we_open_with_equal_outputs(network: str, head: str, tmp_path: Path) -> None:
    """By the class and by the Auto class; nothing is missing or left over."""
    theirs, _ = pair(network, head)
    theirs.save_pretrained(tmp_path)
    auto = {"Model": ours.AutoModel, "Backbone": ours.AutoBackbone}.get(head, ours.AutoModelForImageClassification)
    mine, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(mine).__name__ == NETWORKS[network][0] + head
    assert not any(info.values())
    assert not mine.training
    x = images(mine, SIZES["wide"])
    assert worst(theirs(x), mine(x)) <= ORACLE


@pytest.mark.parametrize("network", ["plain", "registers", "registers, swiglu", "plain, no qkv bias"])
@pytest.mark.parametrize("head", HEADS)
def test_the_names_on_disk_are_transformers_own(network: str, head: str, tmp_path: Path) -> None:
    """Same names, same shapes, same values, and the metadata that transformers insists on."""
    theirs, mine = pair(network, head)
    theirs.save_pretrained(tmp_path / "theirs")
    mine.save_pretrained(tmp_path / "mine")
    a = load_file(tmp_path / "theirs" / "model.safetensors")
    b = load_file(tmp_path / "mine" / "model.safetensors")
    assert a.keys() == b.keys() == mine.state_dict().keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    with safe_open(tmp_path / "mine" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", [PLAIN, REGISTERS])
def test_a_saved_configuration_says_what_transformers_says(kind: str, tmp_path: Path) -> None:
    """Each key that transformers writes has the same value and number type in ours."""
    values = TINY | {"mlp_ratio": 2.0, "layerscale_value": 1, "num_labels": 3, "out_indices": (1, 3), "foo": [1]}
    theirs = getattr(transformers, f"{kind}Config")(**values | {"mlp_ratio": 2, "layerscale_value": 1.0})
    mine = getattr(ours, f"{kind}Config")(**values)
    theirs.save_pretrained(tmp_path / "theirs")
    mine.save_pretrained(tmp_path / "mine")
    a, b = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "mine"))
    del a["transformers_version"]
    assert json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    opened = getattr(transformers, f"{kind}Config").from_pretrained(tmp_path / "mine")
    assert opened.to_diff_dict() == theirs.to_diff_dict()
    assert getattr(ours, f"{kind}Config").from_pretrained(tmp_path / "theirs").out_features == ["stage1", "stage3"]


@torch.no_grad()
def test_shards_open_on_both_sides(tmp_path: Path) -> None:
    """A model above the shard limit is several files and an index."""
    theirs, mine = pair("registers", "ForImageClassification")
    x = images(mine, SIZES["native"])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    mine.save_pretrained(tmp_path / "mine", max_shard_size="40KB")
    for folder in ("theirs", "mine"):
        assert len(list((tmp_path / folder).glob("model-*-of-*.safetensors"))) > 1
    opened = ours.Dinov2WithRegistersForImageClassification.from_pretrained(tmp_path / "theirs")
    assert worst(opened(x), theirs(x)) <= ORACLE
    back = transformers.Dinov2WithRegistersForImageClassification.from_pretrained(tmp_path / "mine")
    assert worst(back(x), mine(x)) <= ORACLE


@pytest.mark.parametrize("network", ["plain", "registers, swiglu"])
def test_a_state_dict_of_transformers_5_in_memory_loads(network: str, tmp_path: Path) -> None:
    """Files that users made with `torch.save(model.state_dict())` under transformers 5."""
    theirs, mine = pair(network)
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    cls = type(mine)
    found = cls.from_pretrained(tmp_path / "memory.pth", config=mine.config)
    for name, tensor in mine.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


@pytest.mark.parametrize(("kind", "changes"), [(PLAIN, {"interpolate_offset": 0.1}), (REGISTERS, {})])
def test_interpolation_keys_survive_in_files_that_transformers_opens(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """The switch of position numerics is part of the saved configuration."""
    network = "plain" if kind == PLAIN else "registers"
    _, mine = pair(network)
    for name, value in changes.items():
        setattr(mine.config, name, value)
    mine.save_pretrained(tmp_path)
    transformers.AutoModel.from_pretrained(tmp_path)
    again = ours.AutoModel.from_pretrained(tmp_path)
    assert again.network.config.position.offset == changes.get("interpolate_offset", 0.0)
