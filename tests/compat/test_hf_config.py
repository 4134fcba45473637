"""The documented configurations: order, defaults, labels, stages, files, errors."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dinokit.compat.hf import AutoConfig, Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, PretrainedConfig
from dinokit.config import PositionRule

BOTH = pytest.mark.parametrize("cls", [Dinov2Config, Dinov2WithRegistersConfig])

DOCUMENTED: list[tuple[str, Any]] = [
    ("hidden_size", 768),
    ("num_hidden_layers", 12),
    ("num_attention_heads", 12),
    ("mlp_ratio", 4),
    ("hidden_act", "gelu"),
    ("hidden_dropout_prob", 0.0),
    ("attention_probs_dropout_prob", 0.0),
    ("initializer_range", 0.02),
    ("layer_norm_eps", 1e-06),
    ("image_size", 224),
    ("patch_size", 16),
    ("num_channels", 3),
    ("qkv_bias", True),
    ("layerscale_value", 1.0),
    ("drop_path_rate", 0.0),
    ("use_swiglu_ffn", False),
    ("num_register_tokens", 4),
    ("out_features", None),
    ("out_indices", None),
    ("apply_layernorm", True),
    ("reshape_hidden_states", True),
]


@BOTH
def test_arguments_stand_in_the_documented_order_with_the_documented_defaults(cls: type[PretrainedConfig]) -> None:
    """Positional code written for the documents means the same here."""
    found = [(name, p.default) for name, p in inspect.signature(cls).parameters.items() if name != "kwargs"]
    documented = [row for row in DOCUMENTED if cls is Dinov2WithRegistersConfig or row[0] != "num_register_tokens"]
    assert found[: len(documented)] == documented
    assert [name for name, _ in found[len(documented) :]] == (["use_mask_token"] if cls is Dinov2Config else [])


@BOTH
def test_base_fields_have_their_documented_defaults(cls: Any) -> None:
    """What every configuration has besides its architecture."""
    config = cls()
    assert (config.return_dict, config.use_return_dict) == (True, True)
    assert (config.output_attentions, config.output_hidden_states) == (False, False)
    assert (config.num_labels, config.problem_type, config.architectures, config.dtype) == (2, None, None, None)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.stage_names == ["stem", *(f"stage{i}" for i in range(1, 13))]
    assert (config.out_features, config.out_indices) == (["stage12"], [12])


@BOTH
def test_unknown_keywords_are_kept_and_saved(cls: Any, tmp_path: Path) -> None:
    """Keys of other tools survive a round trip through a file."""
    config = cls(num_hidden_layers=2, intermediate_size=37, is_decoder=False, transformers_version="4.32.0.dev0")
    assert (config.intermediate_size, config.is_decoder) == (37, False)
    config.save_pretrained(tmp_path / "new" / "folder")
    again = cls.from_pretrained(tmp_path / "new" / "folder")
    assert again == config
    assert again.transformers_version == "4.32.0.dev0"
    assert again.name_or_path == str(tmp_path / "new" / "folder")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({"id2label": {"0": "cat", "1": "dog"}}, {0: "cat", 1: "dog"}),
        ({"id2label": {0: "cat"}, "num_labels": 1}, {0: "cat"}),
        ({"label2id": {"cat": 0, "dog": 1}}, {0: "cat", 1: "dog"}),
        ({"num_labels": 0}, {}),
    ],
)
def test_labels_follow_from_whatever_says_them(given: dict[str, Any], labels: dict[int, str]) -> None:
    """Numbers, names in either direction, and keys that JSON made text."""
    config = Dinov2Config(**given)
    assert config.id2label == labels
    assert config.num_labels == len(labels)
    assert config.label2id == {label: index for index, label in labels.items()}


def test_num_labels_wins_over_labels_that_disagree() -> None:
    """With a warning when both are written down; silently when it overrides a file."""
    with pytest.warns(UserWarning, match="named anew"):
        assert Dinov2Config(id2label={0: "cat", 1: "dog"}, num_labels=5).num_labels == 5
    assert Dinov2Config.from_dict({"id2label": {"0": "cat"}}, num_labels=7).id2label[6] == "LABEL_6"
    config = Dinov2Config.from_dict({"id2label": {"0": "cat", "1": "dog"}}, num_labels=2)
    assert config.id2label == {0: "cat", 1: "dog"}
    config.num_labels = 1
    assert config.label2id == {"LABEL_0": 0}


@pytest.mark.parametrize(
    ("given", "features", "indices"),
    [
        ({"out_features": ["stem", "stage2"]}, ["stem", "stage2"], [0, 2]),
        ({"out_indices": (1, 3)}, ["stage1", "stage3"], [1, 3]),
        ({"out_indices": [-2, -1]}, ["stage2", "stage3"], [-2, -1]),
        ({"out_features": ["stage1"], "out_indices": [1]}, ["stage1"], [1]),
    ],
)
def test_stages_are_aligned(given: dict[str, Any], features: list[str], indices: list[int]) -> None:
    """Names and indices say the same; negative indices stay as they were given."""
    config = Dinov2Config(num_hidden_layers=3, **given)
    assert (config.out_features, config.out_indices) == (features, indices)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out_features": ["stage9"]}, "subset of stage_names"),
        ({"out_features": ("stage1",)}, "must be a list"),
        ({"out_features": ["stage1", "stage1"]}, "duplicates"),
        ({"out_features": ["stage2", "stage1"]}, "same order as stage_names"),
        ({"out_indices": [4]}, "valid indices"),
        ({"out_indices": [-5]}, "valid indices"),
        ({"out_indices": 3}, "list or tuple"),
        ({"out_indices": [3, -1]}, "duplicates"),
        ({"out_indices": [-1, 0]}, "same order"),
        ({"out_features": ["stage1"], "out_indices": [1, 2]}, "same length"),
        ({"out_features": ["stage1"], "out_indices": [2]}, "same stages"),
        ({"problem_type": "clustering"}, "problem_type"),
        ({"torch_dtype": "int8"}, "dtype"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation"),
        ({"num_labels": -1}, "num_labels"),
    ],
)
def test_wrong_values_are_value_errors(given: dict[str, Any], message: str) -> None:
    """As in transformers; the message says what is wrong."""
    with pytest.raises(ValueError, match=message):
        Dinov2Config(num_hidden_layers=3, **given)


def test_setting_stages_realigns_them() -> None:
    """Setting one sets the other; None means the last stage again; a wrong one changes nothing."""
    config = Dinov2WithRegistersConfig(num_hidden_layers=3)
    config.out_features = ["stage1"]
    assert config.out_indices == [1]
    config.out_indices = (0, 2)
    assert config.out_features == ["stem", "stage2"]
    with pytest.raises(ValueError, match="subset"):
        config.out_features = ["stage7"]
    assert config.out_indices == [0, 2]
    config.out_features = None
    assert config.out_indices == [3]
    config.out_indices = None
    assert config.out_features == ["stage3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"hidden_size": 30, "num_attention_heads": 4},
            r"The hidden size \(30,\) is not a multiple of the number of attention heads 4\.",
        ),
        ({"num_hidden_layers": 10**6}, "128"),
        ({"hidden_size": 2**20}, "8192"),
        ({"image_size": 10**6}, "patches"),
        ({"image_size": 8}, "smaller than one patch"),
        ({"patch_size": (14, 16)}, "square"),
        ({"hidden_act": "tropical"}, "tropical"),
        ({"drop_path_rate": 1.5}, "drop_path"),
        ({"image_size": (70, 70, 3)}, "height, width"),
    ],
)
def test_absurd_values_fail_when_the_model_is_built_before_memory_is_asked_for(
    given: dict[str, Any], message: str
) -> None:
    """A configuration can be read and looked at; a model of it can't be built."""
    values = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    config = Dinov2Config(**values | given)
    with pytest.raises(ValueError, match=message):
        Dinov2Model(config)


def test_positions_are_resampled_as_transformers_does_unless_told() -> None:
    """Antialiasing goes with registers; Meta's 0.1 offset is a key of the configuration."""
    assert Dinov2Config().to_vit_config().position == PositionRule(0.0, False)
    assert Dinov2WithRegistersConfig().to_vit_config().position == PositionRule(0.0, True)
    told = Dinov2Config.from_dict({"interpolate_offset": 0.1, "interpolate_antialias": True})
    assert told.to_vit_config().position == PositionRule(0.1, True)
    assert "interpolate_offset" not in Dinov2Config().to_dict()
    assert told.to_dict()["interpolate_offset"] == 0.1


def test_a_square_or_rectangular_position_table_can_be_configured() -> None:
    """(height, width); transformers fails on the latter."""
    assert Dinov2Config(image_size=(224, 448)).to_vit_config().grid == (14, 28)
    assert Dinov2Config(image_size=[224, 224], patch_size=[16, 16]).to_vit_config().grid == (14, 14)


@BOTH
def test_native_and_hugging_face_configurations_translate_both_ways(cls: Any) -> None:
    """The same network comes back, MLP or SwiGLU, whatever its ratio."""
    for given in (
        {},
        {"use_swiglu_ffn": True},
        {"mlp_ratio": 37 / 32},
        {"hidden_size": 96, "mlp_ratio": 100.0001 / 96},
    ):
        vit = cls(**{"hidden_size": 32, "num_attention_heads": 2, "use_swiglu_ffn": False} | given).to_vit_config()
        assert cls.from_vit_config(vit).to_vit_config() == vit
    uneven = vit.replace(drop_path=tuple(i / 100 for i in range(12)))
    with pytest.raises(ValueError, match="differs between blocks"):
        cls.from_vit_config(uneven)


def test_files_hold_the_number_types_that_transformers_5_insists_on() -> None:
    """Whole ratios are ints, other real numbers floats, pairs are lists."""
    text = Dinov2Config(mlp_ratio=4.0, layerscale_value=1, qkv_bias=1, image_size=(70, 56)).to_json_string()
    found = json.loads(text)
    assert type(found["mlp_ratio"]) is int
    assert type(found["layerscale_value"]) is float
    assert found["qkv_bias"] is True
    assert found["image_size"] == [70, 56]
    assert text.splitlines()[1].startswith('  "apply_layernorm"')


def test_a_function_as_activation_works_and_cant_be_saved(tmp_path: Path) -> None:
    """The message says what to do; nothing is written."""
    config = Dinov2Config(hidden_act=torch.nn.functional.relu)
    assert config.to_vit_config().activation is torch.nn.functional.relu
    with pytest.raises(ValueError, match="hidden_act"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert "hidden_act" in repr(config)


def test_dtype_has_two_names() -> None:
    """`torch_dtype` of the documents and `dtype` of newer versions."""
    config = Dinov2Config(torch_dtype="float16")
    assert config.dtype is config.torch_dtype is torch.float16
    config.dtype = "bfloat16"
    assert json.loads(config.to_json_string())["torch_dtype"] == "bfloat16"
    assert Dinov2Config.from_dict({"torch_dtype": "float32"}, dtype="float16").dtype is torch.float16


def test_keywords_override_a_file_and_stale_entries_go() -> None:
    """Fewer layers have fewer stages; unknown keywords are reported, not swallowed."""
    content = {"num_hidden_layers": 4, "out_features": ["stage4"], "out_indices": [4], "stage_names": ["stem"]}
    config = Dinov2Config.from_dict(content, num_hidden_layers=2)
    assert (config.out_features, config.stage_names) == (["stage2"], ["stem", "stage1", "stage2"])
    assert Dinov2Config.from_dict(content, out_features=["stage1"]).out_indices == [1]
    config, unused = Dinov2Config.from_dict(content, return_unused_kwargs=True, foo=1, qkv_bias=False)
    assert unused == {"foo": 1}
    assert config.qkv_bias is False
    with pytest.warns(UserWarning, match="foo"):
        Dinov2Config.from_dict(content, foo=1)


def test_attributes_can_be_set_compared_and_printed() -> None:
    """Plain attributes; equal means the same content."""
    a, b = Dinov2Config(), Dinov2Config()
    assert a == b
    a.update({"hidden_size": 384, "note": "mine"})
    assert a != b
    assert a != Dinov2WithRegistersConfig()
    assert repr(a).startswith("Dinov2Config {")
    assert '"note": "mine"' in repr(a)
    assert json.loads(a.to_json_string(use_diff=False))["return_dict"] is True
    assert "return_dict" not in a.to_diff_dict()


def test_files_of_the_other_kind_are_refused_with_the_right_name(tmp_path: Path) -> None:
    """Registers would otherwise be dropped in silence."""
    Dinov2WithRegistersConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Dinov2WithRegisters classes"):
        Dinov2Config.from_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), Dinov2WithRegistersConfig)


def test_auto_config_lists_what_it_supports(tmp_path: Path) -> None:
    """Another model is a ValueError, a missing file an OSError."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="dinov2, dinov2_with_registers"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dinov2, dinov2_with_registers"):
        AutoConfig.for_model("bert")
    assert AutoConfig.for_model("dinov2_with_registers", 384).hidden_size == 384
    with pytest.raises(OSError, match=r"config\.json"):
        AutoConfig.from_pretrained(tmp_path.parent / tmp_path.name, subfolder="nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match="not valid JSON"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="no instances"):
        AutoConfig()


def test_one_file_can_be_read(tmp_path: Path) -> None:
    """`from_json_file`, and a path to the file itself."""
    Dinov2Config(hidden_size=48).to_json_file(tmp_path / "other.json")
    assert Dinov2Config.from_json_file(tmp_path / "other.json").hidden_size == 48
    assert Dinov2Config.from_pretrained(tmp_path / "other.json").hidden_size == 48
