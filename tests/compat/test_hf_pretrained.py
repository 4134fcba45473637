"""`from_pretrained` and `save_pretrained`: names, folders, files, shards, overrides, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from dinokit.compat.hf import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2PreTrainedModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from dinokit.errors import HubError, UnknownModelError, WeightsError
from tests.compat.hf_tiny import TINY, classifier, pixels, plain, registers
from tests.tolerances import RECORDED, max_error
from tests.weights.fakehub import running_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved registers model."""
    registers().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def reconfigure(folder: Path, **changes: Any) -> None:
    """Change the config.json of a folder."""
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


def test_a_model_comes_back_as_it_was_saved(folder: Path) -> None:
    """In evaluation mode, trainable, float32, bit for bit."""
    model = Dinov2WithRegistersModel.from_pretrained(folder)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model(pixels())[0], registers()(pixels())[0])
    assert model.config.architectures == ["Dinov2WithRegistersModel"]
    assert model.name_or_path == str(folder)
    model(pixels()).pooler_output.sum().backward()


def test_saving_leaves_nothing_but_the_files(folder: Path) -> None:
    """No temporary file; the configuration says what the weights are."""
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    registers().half().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float16"


def test_shards_replace_a_whole_file_and_the_reverse(folder: Path) -> None:
    """A folder never holds two generations of weights."""
    registers().save_pretrained(folder, max_shard_size="0.03MB")
    names = sorted(os.listdir(folder))
    assert "model.safetensors" not in names
    assert len([name for name in names if name.startswith("model-0")]) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * registers().num_parameters()
    assert torch.equal(AutoModel.from_pretrained(folder)(pixels())[0], registers()(pixels())[0])
    registers().save_pretrained(folder)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("size", ["many", "GB", "", "5 parsecs", 0, "0.1"])
def test_a_shard_size_must_be_one(size: Any, tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(ValueError, match="max_shard_size"):
        plain().save_pretrained(tmp_path, max_shard_size=size)
    assert not list(tmp_path.iterdir())


def test_what_cant_be_saved_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Pickles, functions, a file where a folder should be."""
    with pytest.raises(ValueError, match="pickle"):
        plain().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="hidden_act"):
        plain(hidden_act=torch.relu).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        plain().save_pretrained(tmp_path / "file")
    plain().save_pretrained(tmp_path / "rank1", is_main_process=False)
    assert not (tmp_path / "rank1").exists()


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        ({}, torch.float32),
        ({"torch_dtype": "auto"}, torch.float16),
        ({"dtype": "auto"}, torch.float16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float64"}, torch.float64),
        ({"dtype": None, "torch_dtype": None}, torch.float32),
    ],
)
def test_the_dtype_is_float32_unless_asked(asked: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """Under either name; "auto" means the file's; heads follow."""
    classifier().half().save_pretrained(tmp_path)
    model = Dinov2ForImageClassification.from_pretrained(tmp_path, **asked)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config.torch_dtype == dtype


def test_a_folder_named_like_a_hub_id_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers."""
    monkeypatch.chdir(tmp_path)
    plain().save_pretrained("facebook/dinov2-base")
    assert Dinov2Model.from_pretrained("facebook/dinov2-base").config.hidden_size == 32
    assert AutoConfig.from_pretrained("facebook/dinov2-base").patch_size == 14


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on loopback with two repositories, and an empty cache."""
    root = tmp_path / "root"
    plain().save_pretrained(root / "facebook" / "dinov2-base")
    registers().save_pretrained(root / "facebook" / "dinov2-with-registers-base", max_shard_size="40KB")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub(root) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_hub_names_are_fetched_once_and_then_read_from_the_cache(hub: Any, tmp_path: Path) -> None:
    """With `cache_dir`, `revision` and `local_files_only`; shards too; the documents' misspelt name with a warning."""
    places = {"cache_dir": tmp_path / "mine", "revision": "main"}
    model = Dinov2Model.from_pretrained("facebook/dinov2-base", **places)
    assert torch.equal(model(pixels())[0], plain()(pixels())[0])
    asked = len(hub.requests)
    Dinov2Model.from_pretrained("facebook/dinov2-base", local_files_only=True, **places)
    assert len(hub.requests) == asked
    with pytest.warns(UserWarning, match="with-registers"):
        sharded = AutoModel.from_pretrained("facebook/dinov2_with_registers-base", cache_dir=tmp_path / "mine")
    assert type(sharded) is Dinov2WithRegistersModel
    with pytest.raises(UnknownModelError, match="no revision"):
        Dinov2Model.from_pretrained("facebook/dinov2-base", revision="v9", cache_dir=tmp_path / "other")


@pytest.mark.parametrize("name", ["facebook/dinov2-huge", "dinov2-of-mine", "no/such/folder"])
def test_an_unknown_name_is_an_os_error(name: str, tmp_path: Path) -> None:
    """What code written for transformers catches."""
    for load in (AutoModel.from_pretrained, AutoConfig.from_pretrained, Dinov2Model.from_pretrained):
        with pytest.raises(OSError, match=name.split("/")[-1]) as caught:
            load(name, cache_dir=tmp_path)
        assert isinstance(caught.value, UnknownModelError | HubError)


def test_an_empty_folder_is_an_os_error(tmp_path: Path) -> None:
    """As is one with a configuration alone."""
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(tmp_path)
    Dinov2Config(**TINY).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        Dinov2Model.from_pretrained(tmp_path)


def test_heads_come_and_go(tmp_path: Path) -> None:
    """A head is left out of a bare model and drawn, with a warning, for a classifier; both are listed."""
    classifier(num_labels=3).save_pretrained(tmp_path / "head")
    keys = ["classifier.weight", "classifier.bias"]
    for cls in (Dinov2Model, Dinov2Backbone, AutoModel, AutoBackbone):
        _, info = cls.from_pretrained(tmp_path / "head", output_loading_info=True)
        assert sorted(info["unexpected_keys"]) == sorted(keys)
        assert not info["missing_keys"]
    plain().save_pretrained(tmp_path / "bare")
    with pytest.warns(UserWarning, match="drawn at random"):
        head, info = Dinov2ForImageClassification.from_pretrained(
            tmp_path / "bare", num_labels=7, output_loading_info=True, torch_dtype="float16"
        )
    assert info == {"missing_keys": keys, "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    assert head.classifier.weight.shape == (7, 64)
    assert head.classifier.weight.dtype == torch.float16
    assert 0 < head.classifier.weight.abs().max() < 0.2
    assert (head.classifier.bias == 0).all()


def test_another_number_of_labels_needs_leave_for_a_new_head(tmp_path: Path) -> None:
    """Then the labels are renamed and the backbone stays."""
    classifier(num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes=True") as caught:
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert isinstance(caught.value, WeightsError)
    with pytest.warns(UserWarning, match="drawn at random"):
        model, info = AutoModelForImageClassification.from_pretrained(
            tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert info["mismatched_keys"][0] == ("classifier.weight", (3, 64), (7, 64))
    assert model.config.id2label[6] == "LABEL_6"
    assert torch.equal(model.dinov2(pixels())[0], classifier(num_labels=3).dinov2(pixels())[0])


def test_other_misshaped_tensors_are_drawn_anew_when_asked(tmp_path: Path) -> None:
    """The rest keeps its trained values."""
    plain().save_pretrained(tmp_path)
    model, info = Dinov2Model.from_pretrained(
        tmp_path, image_size=42, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["mismatched_keys"] == [("embeddings.position_embeddings", (1, 26, 32), (1, 10, 32))]
    assert torch.equal(model.layernorm.weight, plain().layernorm.weight)
    assert model(pixels(42, 42)).last_hidden_state.shape == (2, 10, 32)


def test_keywords_override_the_configuration(folder: Path) -> None:
    """Switches of outputs, stages, dropout; fewer layers cut the model."""
    assert AutoModel.from_pretrained(folder, output_hidden_states=True)(pixels()).hidden_states is not None
    assert AutoBackbone.from_pretrained(folder, out_indices=[0, 1]).out_features == ["stem", "stage1"]
    assert AutoModel.from_pretrained(folder, drop_path_rate=0.2).encoder.layer[1].drop_path1.rate == 0.2
    for ignored in ("eager", "sdpa", None):
        AutoModel.from_pretrained(folder, attn_implementation=ignored, low_cpu_mem_usage=True, trust_remote_code=True)
    model, info = AutoModel.from_pretrained(folder, num_hidden_layers=1, output_loading_info=True)
    assert len(model.encoder.layer) == 1
    assert "encoder.layer.1.attention.attention.query.weight" in info["unexpected_keys"]
    with pytest.raises(TypeError, match="num_labls"):
        AutoModel.from_pretrained(folder, num_labls=3)
    with pytest.raises(ValueError, match="device_map"):
        AutoModel.from_pretrained(folder, device_map="auto")


def test_a_configuration_may_come_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    """An object, which is not changed, or a path."""
    config = Dinov2WithRegistersConfig(**TINY, drop_path_rate=0.1)
    model = Dinov2WithRegistersModel.from_pretrained(folder, config=config, torch_dtype="float16", qkv_bias=True)
    assert model.config.drop_path_rate == 0.1
    assert config.torch_dtype is None
    config.save_pretrained(tmp_path / "config")
    model = AutoModel.from_pretrained(folder / "model.safetensors", config=tmp_path / "config")
    assert model.config.drop_path_rate == 0.1


def test_a_state_dict_may_stand_for_the_file(folder: Path) -> None:
    """With the folder's configuration, or with one given and no folder."""
    state = {name: tensor + 1 for name, tensor in registers().state_dict().items()}
    for model in (
        Dinov2WithRegistersModel.from_pretrained(folder, state_dict=state),
        Dinov2WithRegistersModel.from_pretrained(None, config=registers().config, state_dict=state),
    ):
        assert torch.equal(model.embeddings.cls_token, registers().embeddings.cls_token + 1)
    with pytest.raises(ValueError, match="nothing to load from"):
        Dinov2WithRegistersModel.from_pretrained(None, config=registers().config)


def test_subfolders_are_looked_into(folder: Path) -> None:
    """Of a local folder."""
    assert AutoModel.from_pretrained(folder.parent, subfolder="model").config.hidden_size == 32


def test_a_model_without_a_mask_token_opens_with_and_without_one(tmp_path: Path) -> None:
    """A zero mask token is what such a file means."""
    plain(use_mask_token=False).save_pretrained(tmp_path / "without")
    model, info = Dinov2Model.from_pretrained(tmp_path / "without", output_loading_info=True)
    assert not any(info.values())
    assert torch.isfinite(model(pixels())[0]).all()
    model, info = Dinov2Model.from_pretrained(tmp_path / "without", use_mask_token=True, output_loading_info=True)
    assert info["missing_keys"] == ["embeddings.mask_token"]
    assert (model.embeddings.mask_token == 0).all()
    plain().save_pretrained(tmp_path / "with")
    model, info = Dinov2Model.from_pretrained(tmp_path / "with", use_mask_token=False, output_loading_info=True)
    assert info["unexpected_keys"] == ["embeddings.mask_token"]
    assert model(pixels())[0].shape == (2, 26, 32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: rewrite(f, lambda t: t.pop("layernorm.weight")), r"Missing 1: layernorm\.weight"),
        (lambda f: rewrite(f, lambda t: [t.pop(n) for n in list(t) if "layer.1." in n]), "missing"),
        (lambda f: rewrite(f, lambda t: t.update({"pooler.weight": torch.ones(2)})), r"Unexpected 1: pooler\.weight"),
        (lambda f: rewrite(f, lambda t: t["layernorm.bias"].fill_(float("nan"))), r"layernorm\.bias has 32 of 32"),
        (lambda f: rewrite(f, lambda t: t.clear()), "class token"),
        (lambda f: reconfigure(f, patch_size=16), r"projection\.weight is 32x3x14x14.*patch_size is 16.*use 14"),
        (lambda f: reconfigure(f, image_size=224), r"position_embeddings is 1x26x32.*image_size is 224"),
        (lambda f: reconfigure(f, hidden_size=64), "hidden_size is 64"),
        (lambda f: reconfigure(f, num_hidden_layers=3), "num_hidden_layers"),
        (lambda f: reconfigure(f, num_hidden_layers=1, out_features=None, out_indices=None), "num_hidden_layers"),
        (lambda f: reconfigure(f, qkv_bias=False), "qkv_bias"),
        (lambda f: reconfigure(f, use_swiglu_ffn=True), "use_swiglu_ffn"),
        (lambda f: reconfigure(f, num_register_tokens=2), "num_register_tokens is 2"),
        (lambda f: reconfigure(f, num_register_tokens=0), "has 4 register tokens"),
        (lambda f: reconfigure(f, model_type="dinov2"), "has 4 register tokens.*Dinov2WithRegisters"),
        (lambda f: reconfigure(f, model_type="bert"), "bert"),
        (lambda f: reconfigure(f, num_hidden_layers=10**6, hidden_size=2**20), "embed_dim"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: os.truncate(f / "model.safetensors", 999), "delete it and download it again"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(damage: Any, message: str, folder: Path) -> None:
    """Each of these loads in transformers 5, or ends in a riddle. The message says what and why."""
    damage(folder)
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(folder)


def test_the_wrong_twin_is_refused_with_the_right_name(folder: Path, tmp_path: Path) -> None:
    """Both ways, with and without a configuration beside the weights."""
    with pytest.raises(ValueError, match="Dinov2WithRegisters classes"):
        Dinov2Model.from_pretrained(folder)
    with pytest.raises(ValueError, match="Dinov2WithRegisters classes"):
        Dinov2Model.from_pretrained(folder, config=Dinov2Config(**TINY))
    plain().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="use the Dinov2 classes"):
        Dinov2WithRegistersForImageClassification.from_pretrained(tmp_path / "plain")


FIXTURES = [
    ("reg/dinov2_tiny14_reg4_pretrain.pth", "reg", "aa"),
    ("reg/teacher_checkpoint.pth", "reg", "aa"),
    ("reg/timm_reg4", "reg", "aa"),
    ("reg/timm_reg4.safetensors", "reg", "aa"),
    ("reg/vit_reg4_tiny14_nps_ls.pt", "reg", "aa"),
    ("reg/hf", "reg", "aa"),
    ("reg/hf_v5", "reg", "aa"),
    ("regswiglu/hf", "regswiglu", "aa"),
    ("noreg/hf", "noreg", "size"),
    ("noreg/dinov2_tiny14_pretrain.pth", "noreg", "size"),
    ("noregswiglu/timm_giant.safetensors", "noregswiglu", "size"),
]


@pytest.mark.parametrize(("path", "refs", "rule"), FIXTURES)
@pytest.mark.parametrize("image", ["native", "sq98", "ns56x112"])
@torch.no_grad()
def test_files_of_every_layout_give_transformers_numbers(
    path: str, refs: str, rule: str, image: str, formats: Path
) -> None:
    """Recorded outputs; positions are resampled as transformers does, wherever the file comes from."""
    model = AutoModel.from_pretrained(formats / path)
    x = torch.from_numpy(np.load(formats / "inputs.npz")[image])
    expected = np.load(formats / "refs" / f"{refs}.npz")[f"{rule}__{image}"]
    assert max_error(model(x).last_hidden_state, torch.from_numpy(expected)) <= RECORDED


def test_metas_offset_can_be_asked_for_in_one_word(formats: Path) -> None:
    """`interpolate_offset=0.1` on a file of Meta's gives Meta's own numbers."""
    model = Dinov2Model.from_pretrained(formats / "noreg" / "dinov2_tiny14_pretrain.pth", interpolate_offset=0.1)
    x = torch.from_numpy(np.load(formats / "inputs.npz")["sq98"])
    expected = torch.from_numpy(np.load(formats / "refs" / "noreg.npz")["offset__sq98"])
    assert max_error(model(x).last_hidden_state.detach(), expected) <= RECORDED


class Segmenter(Dinov2PreTrainedModel):
    """A model of a user's, as tutorials write one."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.dinov2 = Dinov2Model(config)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.hidden_size, config.num_labels, 1), nn.BatchNorm2d(config.num_labels)
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.dinov2(pixel_values).last_hidden_state[:, 1:]
        return self.decoder(tokens.transpose(1, 2).unflatten(2, (5, 5)))


def test_a_users_model_on_the_network_loads_and_saves_like_ours(tmp_path: Path) -> None:
    """First from a bare checkpoint, its own layers fresh; then from its own files, whole; a stray tensor is still refused."""
    plain().save_pretrained(tmp_path / "bare")
    with pytest.warns(UserWarning, match=r"decoder\.0\.weight"):
        model, info = Segmenter.from_pretrained(tmp_path / "bare", num_labels=3, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(f"decoder.{name}" for name in model.decoder.state_dict())
    assert torch.equal(model.dinov2(pixels())[0], plain()(pixels())[0])
    assert not [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    model.train()(pixels()).sum().backward()
    model.eval().save_pretrained(tmp_path / "tuned")
    again, info = Segmenter.from_pretrained(tmp_path / "tuned", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(pixels()), model(pixels()))
    rewrite(tmp_path / "tuned", lambda tensors: tensors.update(stray=torch.ones(1)))
    with pytest.raises(WeightsError, match="Unexpected 1: stray"):
        Segmenter.from_pretrained(tmp_path / "tuned")
