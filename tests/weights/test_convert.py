"""Every layout in, every layout out: recorded files of four code bases, and round trips bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dinokit.config import OFFSET_PLAIN, SIZE_ANTIALIAS, SIZE_PLAIN
from dinokit.errors import WeightsError
from dinokit.weights import files
from dinokit.weights.convert import from_native, to_native
from dinokit.weights.infer import Hints, build, infer_config
from dinokit.weights.layouts import LAYOUTS, generic
from dinokit.weights.peel import peel
from tests.tolerances import RECORDED, max_error

RULES = {"aa": SIZE_ANTIALIAS, "size": SIZE_PLAIN, "offset": OFFSET_PLAIN}
MANIFEST_LAYOUTS = {
    "official": "official", "official_teacher": "official", "timm": "timm", "timm_dir": "timm", "hf_dir": "hf", "hf_v5_dir": "hf5",
    "birder_pt": "birder", "birder_st": "birder", "birder_noconfig_pt": "birder", "birder_legacy_pt": "birder_legacy",
}  # fmt: skip
RECORDED_FILES = [
    "reg/dinov2_tiny14_reg4_pretrain.pth", "reg/timm_reg4.safetensors", "reg/timm_reg4", "reg/vit_reg4_tiny14_nps_ls.pt",
    "reg/vit_reg4_tiny14_nps_ls_st.safetensors", "reg/vit_reg4_tiny14_nps_ls_v033.pt", "reg/vit_reg4_tiny14_nps_ls_noconfig.pt",
    "reg/hf", "reg/hf_v5", "reg/teacher_checkpoint.pth", "noreg/dinov2_tiny14_pretrain.pth", "noreg/timm.safetensors", "noreg/hf",
    "regswiglu/dinov2_tinyg14_reg4_pretrain.pth", "regswiglu/timm_giant_reg4.safetensors", "regswiglu/hf",
    "noregswiglu/dinov2_tinyg14_pretrain.pth", "noregswiglu/timm_giant.safetensors", "noregswiglu/hf",
]  # fmt: skip


def manifest(formats: Path) -> dict:
    return json.loads((formats / "manifest.json").read_text())


def test_no_recorded_file_is_left_out(formats):
    """The list above is the manifest's."""
    assert [entry["path"] for entry in manifest(formats)["files"]] == RECORDED_FILES


@pytest.mark.parametrize("path", RECORDED_FILES)
def test_recorded_checkpoints_give_their_recorded_tokens(formats, path):
    """The layout, the position rule of its code base, and the tokens at every recorded size, before and after the norm."""
    entry = next(entry for entry in manifest(formats)["files"] if entry["path"] == path)
    converted = to_native(files.read(formats / path).tensors, source=path)
    assert converted.layout.name == MANIFEST_LAYOUTS[entry["layout"]]
    config = infer_config(converted)
    assert (config.num_register_tokens, config.num_heads, config.depth) == (
        entry["registers"],
        entry["heads"],
        entry["depth"],
    )
    assert config.position == RULES[entry["own_interp"]]
    references, inputs = np.load(formats / "refs" / f"{entry['set']}.npz"), np.load(formats / "inputs.npz")
    with torch.no_grad():
        for rule in (entry["own_interp"], entry["hf_interp"]):
            model = build(converted, config.replace(position=RULES[rule]))
            for name in manifest(formats)["sets"][entry["set"]]["inputs"]:
                found = model(torch.from_numpy(inputs[name])).sequence
                assert max_error(found, torch.from_numpy(references[f"{rule}__{name}"])) <= RECORDED, name
        *_, last = model.stream(torch.from_numpy(inputs["native"]))
        assert max_error(last, torch.from_numpy(references["prenorm__native"])) <= RECORDED


def test_a_recorded_checkpoint_with_a_grid_that_is_no_square(formats):
    """4 x 7 patches, as the signature beside the tensors says; without it the size is asked for."""
    checkpoint = files.read(formats / "birder_nonsquare_56x98.pt")
    converted = to_native(checkpoint.tensors)
    with pytest.raises(WeightsError, match="image_size"):
        infer_config(converted)
    shape = checkpoint.metadata["signature"]["inputs"][0]["data_shape"]
    config = infer_config(converted, Hints(image_size=(shape[2], shape[3])))
    references = np.load(formats / "refs" / "nonsquare.npz")
    assert config.grid == (4, 7)
    model = build(converted, config)
    with torch.no_grad():
        found = model(torch.from_numpy(references["x"])).sequence
    assert max_error(found, torch.from_numpy(references["tokens"])) <= RECORDED


def native_states(formats: Path) -> dict[str, dict[str, torch.Tensor]]:
    paths = {
        "reg": "reg/hf", "noreg": "noreg/hf", "regswiglu": "regswiglu/hf", "noregswiglu": "noregswiglu/hf",
    }  # fmt: skip
    return {name: to_native(files.read(formats / path).tensors).state for name, path in paths.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["reg", "noreg", "regswiglu", "noregswiglu"])
def test_round_trips_are_bit_for_bit(formats, layout, variant):
    """native -> layout -> native; where a layout folds the class position, the folded values come back."""
    state = native_states(formats)[variant]
    if variant.endswith("swiglu") and layout.startswith("birder"):
        with pytest.raises(WeightsError, match="no SwiGLU"):
            from_native(state, layout)
        return
    back = to_native(from_native(state, layout))
    # timm's names for a plain network are Meta's without the mask token, so nothing else can be told apart
    assert back.layout.name == layout
    expected = dict(state)
    if LAYOUTS[layout].folds_position(state["register_tokens"].shape[1]):
        expected["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        expected["pos_embed"] = torch.cat([torch.zeros(1, 1, 64), state["pos_embed"][:, 1:]], dim=1)
    if "mask_token" in LAYOUTS[layout].lacks:
        expected["mask_token"] = torch.zeros(1, 64)
        assert back.filled == ("mask_token",)
    assert back.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(back.state[name], tensor), name


@pytest.mark.parametrize("layout", ["hf", "hf5", "timm", "birder", "official"])
def test_classifiers_travel_with_their_backbone(formats, layout):
    """Under the layout's own name, and behind the prefix of transformers' classes."""
    state = native_states(formats)["reg"]
    head = {"weight": torch.randn(3, 64), "bias": torch.randn(3)}
    tensors = from_native(state, layout, head, prefix="dinov2_with_registers." if layout.startswith("hf") else "")
    back = to_native(tensors)
    assert back.head is not None
    assert all(torch.equal(back.head[leaf], head[leaf]) for leaf in head)


@pytest.mark.parametrize(
    ("source", "recorded", "layout"),
    [
        ("reg/dinov2_tiny14_reg4_pretrain.pth", "reg/hf", "hf"),
        ("reg/dinov2_tiny14_reg4_pretrain.pth", "reg/hf_v5", "hf5"),
        ("reg/dinov2_tiny14_reg4_pretrain.pth", "reg/timm_reg4.safetensors", "timm"),
        ("reg/dinov2_tiny14_reg4_pretrain.pth", "reg/vit_reg4_tiny14_nps_ls.pt", "birder"),
        ("reg/dinov2_tiny14_reg4_pretrain.pth", "reg/vit_reg4_tiny14_nps_ls_v033.pt", "birder_legacy"),
        ("reg/hf", "reg/dinov2_tiny14_reg4_pretrain.pth", "official"),
        ("noreg/dinov2_tiny14_pretrain.pth", "noreg/hf", "hf"),
        ("noreg/dinov2_tiny14_pretrain.pth", "noreg/timm.safetensors", "timm"),
        ("regswiglu/dinov2_tinyg14_reg4_pretrain.pth", "regswiglu/hf", "hf"),
        ("regswiglu/dinov2_tinyg14_reg4_pretrain.pth", "regswiglu/timm_giant_reg4.safetensors", "timm"),
        ("noregswiglu/hf", "noregswiglu/dinov2_tinyg14_pretrain.pth", "official"),
        ("noregswiglu/hf", "noregswiglu/timm_giant.safetensors", "timm"),
    ],
)
def test_written_tensors_are_those_that_the_other_code_wrote(formats, source, recorded, layout):
    """The same names and the same bits as in files recorded from Meta's code, transformers, timm and Birder."""
    written = from_native(to_native(files.read(formats / source).tensors).state, layout)
    expected = files.read(formats / recorded).tensors
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name


WRAPPERS = {
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "Meta's student": lambda name: f"backbone.{name}",
    "nested": lambda name: f"module._orig_mod.backbone.{name}",
    "FSDP": lambda name: name.replace("blocks.", "blocks._fsdp_wrapped_module.").replace(".attn.", "._checkpoint_wrapped_module.attn."),
    "one chunk": lambda name: name.replace("blocks.", "blocks.0."),
    "two chunks": lambda name: name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_training_code_come_off(formats, wrapper):
    """The tensors are the same, and heads of the training objective are set aside by name."""
    tensors = files.read(formats / "reg" / "dinov2_tiny14_reg4_pretrain.pth").tensors
    wrapped = {WRAPPERS[wrapper](name): tensor for name, tensor in tensors.items()}
    wrapped |= {"dino_head.mlp.0.weight": torch.ones(1), "ibot_head.last_layer.weight_g": torch.ones(1)}
    found, plain = to_native(wrapped), to_native(tensors)
    assert found.dropped == ("dino_head.mlp.0.weight", "ibot_head.last_layer.weight_g")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in plain.state.items())


def test_nothing_is_matched_by_substring():
    """A segment that only contains a wrapper's name stays."""
    assert set(peel({"my_module.x": torch.ones(1), "a.modules.b": torch.ones(1)}).tensors) == {
        "my_module.x",
        "a.modules.b",
    }


def test_without_strictness_gaps_are_reported(formats):
    """Missing native names and left-over foreign ones; the network gets fresh values there."""
    tensors = dict(files.read(formats / "reg" / "hf").tensors)
    del tensors["encoder.layer.1.mlp.fc1.weight"]
    tensors["extra.weight"] = torch.ones(1)
    converted = to_native(tensors, strict=False)
    assert converted.missing == ("blocks.1.mlp.fc1.weight",)
    assert converted.unexpected == ("extra.weight",)
    model = build(converted, infer_config(converted))
    assert torch.equal(model.blocks[0].mlp.fc1.weight, converted.state["blocks.0.mlp.fc1.weight"])
    assert model.blocks[1].mlp.fc1.weight.std() > 0


def test_a_network_without_qkv_bias_is_read(formats):
    """Optional in every layout, but in all blocks or none."""
    state = native_states(formats)["noreg"]
    bare = {name: t for name, t in state.items() if not name.endswith("qkv.bias")}
    converted = to_native(from_native(bare, "hf"))
    assert infer_config(converted).qkv_bias is False
    build(converted, infer_config(converted))
    del state["blocks.1.attn.qkv.bias"]
    with pytest.raises(WeightsError, match=r"Missing 1: blocks\.1\.attn\.qkv\.bias"):
        to_native(from_native(state, "official"))


def test_tables_are_one_to_one():
    """Each layout names all native tensors that it has a place for, once, and no foreign name twice."""
    native = {generic(name) for name, _ in LAYOUTS["official"].rows(1, "mlp")}
    for layout in LAYOUTS.values():
        rows = dict(layout.rows(1, "mlp"))
        assert {generic(name) for name in rows} == native - layout.lacks
        foreign = [name for names in rows.values() for name in names]
        assert len(foreign) == len(set(foreign))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(formats, dtype):
    """Unless asked otherwise."""
    tensors = {name: t.to(dtype) for name, t in files.read(formats / "reg" / "hf").tensors.items()}
    converted = to_native(tensors)
    config = infer_config(converted)
    assert {p.dtype for p in build(converted, config).parameters()} == {torch.float32}
    assert {p.dtype for p in build(converted, config, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
