"""`dinokit.load` and `save`: provenance, transforms, classifiers, contradictions, and files that peers open."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit
from dinokit.atomic import file_sha256, write_json
from dinokit.config import OFFSET_PLAIN, SIZE_PLAIN, PositionRule
from dinokit.errors import OutputError, WeightsError
from dinokit.weights import files
from tests.tolerances import ORACLE, RECORDED, max_error
from tests.weights.test_convert import RECORDED_FILES, RULES, manifest


def picture(width: int = 90, height: int = 80) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("path", RECORDED_FILES)
def test_every_recorded_file_loads_by_its_path(formats, path):
    """Through the whole walk, with the position rule of its code base and tokens as recorded."""
    entry = next(entry for entry in manifest(formats)["files"] if entry["path"] == path)
    pre = dinokit.load(formats / path)
    assert pre.config.position == RULES[entry["own_interp"]]
    assert pre.provenance.verified
    assert not pre.model.training
    references, inputs = np.load(formats / "refs" / f"{entry['set']}.npz"), np.load(formats / "inputs.npz")
    for name in manifest(formats)["sets"][entry["set"]]["inputs"]:
        with torch.no_grad():
            found = pre.model(torch.from_numpy(inputs[name])).sequence
        assert max_error(found, torch.from_numpy(references[f"{entry['own_interp']}__{name}"])) <= RECORDED


def test_a_non_square_checkpoint_loads_by_its_signature(formats):
    """The grid is the one that was trained, 4 x 7."""
    pre = dinokit.load(formats / "birder_nonsquare_56x98.pt")
    assert pre.config.image_size == (56, 98)
    assert pre(picture()).grid == (4, 7)


def test_an_image_becomes_tokens_with_names(formats):
    """The README's first lines."""
    pre = dinokit.load(formats / "reg" / "hf")
    tokens = pre(picture())
    assert tokens.cls.shape == (1, 64)
    assert tokens.registers.shape == (1, 4, 64)
    assert tokens.patch_map.shape == (1, 64, 16, 16)
    assert not tokens.sequence.requires_grad
    both = pre([picture(), picture(200, 300)])
    assert both.cls.shape == (2, 64)
    assert max_error(both.cls[:1], tokens.cls) <= ORACLE


def test_the_transform_is_that_of_the_implementation(formats, tmp_path):
    """Meta's and transformers' 256/224, timm's own size, Birder's squash, or what lies beside the weights."""
    official = dinokit.load(formats / "reg" / "dinov2_tiny14_reg4_pretrain.pth").transform
    assert official == dinokit.ImageTransform.dinov2("half_even")
    assert dinokit.load(formats / "reg" / "hf").transform == dinokit.ImageTransform.dinov2()
    assert dinokit.load(formats / "reg" / "timm_reg4").transform == dinokit.ImageTransform.shortest_edge_crop(70)
    assert dinokit.load(formats / "reg" / "timm_reg4.safetensors").transform.crop == (70, 70)
    assert dinokit.load(formats / "reg" / "vit_reg4_tiny14_nps_ls.pt").transform == dinokit.ImageTransform.squash(70)
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 80},
                "crop_size": {"height": 70, "width": 56},
            }
        )
    )
    assert dinokit.load(folder).transform.crop == (70, 56)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(WeightsError, match="ViTImageProcessor"):
        dinokit.load(folder)


def test_provenance_says_where_a_model_came_from(formats):
    """File, layout, container, sum, what was filled in."""
    path = formats / "reg" / "vit_reg4_tiny14_nps_ls.pt"
    provenance = dinokit.load(path).provenance
    assert provenance.files == (path,)
    assert (provenance.layout, provenance.container, provenance.filled) == ("birder", "state", ("mask_token",))
    assert provenance.sha256 == file_sha256(path)
    assert provenance.revision is None


@pytest.mark.parametrize(
    ("position", "rule"),
    [("official", OFFSET_PLAIN), ("transformers", SIZE_PLAIN), (PositionRule(0.5, True), (0.5, True))],
)
def test_another_position_rule_can_be_asked_for(formats, position, rule):
    """By the name of an implementation, or as a rule."""
    assert dinokit.load(formats / "noreg" / "timm.safetensors", position=position).config.position == rule
    with pytest.raises(ValueError, match="unknown; use one of"):
        dinokit.load(formats / "noreg" / "hf", position="mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 16}, r"patch_size says 16, the weights say 14 .*64x3x14x14.*fix config\.json"),
        ({"model_type": "dinov2"}, r"num_register_tokens \(model_type dinov2\) says 0, the weights say 4"),
        ({"num_register_tokens": 0}, "num_register_tokens"),
        ({"hidden_size": 768}, "hidden_size says 768, the weights say 64"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers says 1000000"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"image_size": 518}, "image size of 518 x 518"),
        ({"num_attention_heads": 3}, "can't be 3 heads"),
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"hidden_act": "nonsense"}, "nonsense"),
        ({"image_size": "big"}, "can't be read"),
        ({"num_channels": 1}, "num_channels says 1"),
        ({"qkv_bias": False}, "qkv_bias"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(formats, tmp_path, change, message):
    """Key, both values, the tensor that shows it, and the likely cause; exit code 4."""
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | change)
    with pytest.raises(WeightsError, match=message) as caught:
        dinokit.load(folder)
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value) or "model_type" in str(caught.value) or "activation" in str(caught.value)


@pytest.mark.parametrize(
    "setting", [{"norm_layer_eps": 1e-5}, {"act_layer_type": "quick_gelu"}, {"pos_embed_special_tokens": True}]
)
def test_birder_files_with_settings_of_other_networks_are_refused(formats, tmp_path, setting):
    """They would compute something else."""
    content = torch.load(formats / "reg" / "vit_reg4_tiny14_nps_ls.pt", weights_only=True)
    content["config"] |= setting
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=next(iter(setting))):
        dinokit.load(tmp_path / "x.pt")


def test_a_file_inside_a_folder_minds_the_configuration_beside_it(formats, tmp_path):
    """Heads stand nowhere else."""
    folder = tmp_path / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"num_attention_heads": 4})
    assert dinokit.load(folder / "model.safetensors").config.num_heads == 4


def test_strictness_can_be_switched_off_and_is_then_reported(formats, tmp_path):
    """The model is not verified, and says what is missing."""
    tensors = dict(files.read(formats / "reg" / "hf").tensors)
    del tensors["encoder.layer.1.mlp.fc1.weight"]
    path = files.write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(WeightsError, match=r"Missing 1: encoder\.layer\.1\.mlp\.fc1\.weight"):
        dinokit.load(path)
    pre = dinokit.load(path, strict=False)
    assert pre.provenance.missing == ("blocks.1.mlp.fc1.weight",)
    assert not pre.provenance.verified


@pytest.mark.parametrize(("layers", "width"), [(1, 2), (4, 5)])
def test_meta_s_linear_classifiers_give_their_logits(formats, tmp_path, layers, width):
    """[class token, mean patch], or the class tokens of four blocks and the last mean patch, oldest first."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(width * 32, 5)
    torch.save(linear.state_dict(), tmp_path / "head.pth")
    config = dinokit.ViTConfig(
        embed_dim=32, depth=5, num_heads=2, ffn_dim=64, num_register_tokens=2, image_size=(70, 70), layer_scale_init=0.7
    )
    model = dinokit.VisionTransformer(config).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    pre = dinokit.load(tmp_path / "model.pth", head=tmp_path / "head.pth", num_heads=2)
    x = pre.pixels(picture())
    with torch.no_grad():
        states = [model.norm(state) for state in model.stream(x)]
        classes = [state[:, 0] for state in states[-layers:]]
        expected = linear(torch.cat([*classes, states[-1][:, 3:].mean(1)], dim=1))
    assert max_error(pre.logits(picture()), expected) <= ORACLE
    with pytest.raises(ValueError, match="no classifier"):
        dinokit.load(tmp_path / "model.pth", num_heads=2).logits(picture())


def test_classifiers_that_don_t_fit_are_refused(formats, tmp_path):
    """Their width must be one, two or five times the network's."""
    backbone = formats / "reg" / "hf"
    torch.save({"weight": torch.ones(5, 65), "bias": torch.ones(5)}, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match="reads 65 features"):
        dinokit.load(backbone, head=tmp_path / "head.pth")
    torch.save({"weight": torch.ones(5, 64), "bias": torch.ones(4)}, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match="expected a weight"):
        dinokit.load(backbone, head=tmp_path / "head.pth")
    torch.save({"w": torch.ones(5, 64)}, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match="no linear classifier"):
        dinokit.load(backbone, head=tmp_path / "head.pth")
    for head in (2, 1):
        with pytest.raises(ValueError, match="head="):
            dinokit.load(backbone, head=head)


OUTPUTS = [
    ("hf", "model"), ("hf", "model.safetensors"), ("hf5", "model.safetensors"), ("timm", "model"), ("timm", "model.pth"),
    ("birder", "model.pt"), ("birder", "model.safetensors"), ("birder_legacy", "model.pt"), ("official", "model.pth"),
    ("official", "model.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), OUTPUTS)
@pytest.mark.parametrize("variant", ["reg", "noreg", "regswiglu"])
def test_what_is_saved_loads_again_with_the_same_tokens(formats, tmp_path, layout, name, variant):
    """Each layout, each container; with the position rule of that implementation."""
    pre = dinokit.load(formats / variant / "hf")
    if variant == "regswiglu" and layout.startswith("birder"):
        with pytest.raises(WeightsError, match="SwiGLU"):
            dinokit.save(pre, tmp_path / name, layout)
        return
    dinokit.save(pre, tmp_path / name, layout)
    again = dinokit.load(tmp_path / name, num_heads=1)
    assert again.provenance.layout == layout
    assert again.config.replace(position=pre.config.position) == pre.config
    images = torch.randn(1, 3, 70, 70)
    with torch.no_grad():
        assert max_error(again.model(images).sequence, pre.model(images).sequence) <= ORACLE
    with pytest.raises(OutputError, match="exists already"):
        dinokit.save(pre, tmp_path / name, layout)
    dinokit.save(pre, tmp_path / name, layout, overwrite=True)


def test_the_position_rule_can_travel_in_an_hf_folder(formats, tmp_path):
    """Only if asked: by default whoever opens the folder gets transformers' numbers."""
    pre = dinokit.load(formats / "noreg" / "dinov2_tiny14_pretrain.pth")
    dinokit.save(pre, tmp_path / "a")
    dinokit.save(pre, tmp_path / "b", keep_position_rule=True)
    assert dinokit.load(tmp_path / "a").config.position == SIZE_PLAIN
    assert dinokit.load(tmp_path / "b").config.position == OFFSET_PLAIN


def test_saving_says_what_a_layout_can_t_hold(formats, tmp_path):
    """Unknown layouts, folders where a file is meant, classifiers without a place, grids that are no square."""
    pre = dinokit.load(formats / "reg" / "hf")
    with pytest.raises(ValueError, match="unknown; use one of"):
        dinokit.save(pre, tmp_path / "x", "keras")
    with pytest.raises(ValueError, match=r"is one file: end the path in \.safetensors"):
        dinokit.save(pre, tmp_path / "x", "official")
    head = dinokit.LinearHead(64, 3, "4cls+mean")
    with pytest.raises(WeightsError, match="no place for a classifier"):
        dinokit.save(replace(pre, head=head), tmp_path / "x", "hf")
    with pytest.raises(WeightsError, match="only for square ones"):
        dinokit.save(dinokit.load(formats / "birder_nonsquare_56x98.pt"), tmp_path / "x", "hf")
    assert list(tmp_path.iterdir()) == [] or not any((tmp_path / "x").iterdir())


@pytest.mark.parametrize("name", ["vit_reg4_tiny14_nps_ls.pt", "vit_reg4_tiny14_nps_ls_st.safetensors"])
def test_birder_s_container_is_written_as_birder_writes_it(formats, tmp_path, name):
    """The same keys and values beside the tensors, texts in safetensors, objects in .pt."""
    recorded = formats / "reg" / name
    dinokit.save(dinokit.load(recorded), tmp_path / name, "birder")
    expected, found = files.read(recorded).metadata, files.read(tmp_path / name).metadata
    assert found.keys() == expected.keys()
    for key in expected.keys() - {"config"}:
        assert found[key] == expected[key], key
    stated, written = (json.loads(c) if isinstance(c, str) else c for c in (expected["config"], found["config"]))
    assert {key: written[key] for key in stated.keys() & written.keys()} == {
        key: stated[key] for key in stated.keys() & written.keys()
    }


@pytest.mark.parametrize("inputs", ["cls", "cls+mean"])
def test_classifiers_are_saved_and_loaded_with_labels(formats, tmp_path, inputs):
    """One that reads the class token in timm's and Birder's layout, [class, mean] in transformers'."""
    pre = dinokit.load(formats / "reg" / "hf")
    labels = {0: "cat", 1: "dog", 2: "owl"}
    pre = replace(pre, head=dinokit.LinearHead(64, 3, inputs).eval(), labels=labels)
    for layout, name in [("birder", "a.pt"), ("timm", "b")] if inputs == "cls" else [("hf", "c")]:
        dinokit.save(pre, tmp_path / name, layout)
        again = dinokit.load(tmp_path / name)
        assert again.head.inputs == inputs
        assert torch.equal(again.head.linear.weight, pre.head.linear.weight)
        assert layout == "timm" or again.labels == labels


@pytest.mark.parametrize("variant", ["reg", "noreg", "regswiglu", "noregswiglu"])
def test_saved_folders_open_in_transformers(formats, tmp_path, variant):
    """With equal tokens at native and other sizes, from every layout that was read."""
    import transformers

    sources = [path for path in RECORDED_FILES if path.startswith(variant + "/") and "birder_noconfig" not in path]
    for number, source in enumerate(sources):
        pre = dinokit.load(formats / source, position="transformers")
        folder = dinokit.save(pre, tmp_path / str(number))
        oracle = transformers.AutoModel.from_pretrained(folder).eval()
        for size in ((70, 70), (56, 112)):
            images = torch.randn(1, 3, *size)
            with torch.no_grad():
                expected = oracle(images).last_hidden_state
                assert max_error(pre.model(images).sequence, expected) <= ORACLE, source
