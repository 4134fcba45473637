"""The documented contract of the models: arguments, tuples, configuration switches, errors, conveniences."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from dinokit.compat.hf import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from tests.compat.hf_tiny import TINY, classifier, pixels, plain, registers
from tests.tolerances import SAME_MATH, max_error


@pytest.mark.parametrize(
    ("cls", "documented"),
    [
        (
            Dinov2Model,
            "pixel_values bool_masked_pos head_mask output_attentions output_hidden_states return_dict",
        ),
        (
            Dinov2ForImageClassification,
            "pixel_values head_mask labels output_attentions output_hidden_states return_dict",
        ),
        (Dinov2Backbone, "pixel_values output_hidden_states output_attentions return_dict"),
    ],
)
def test_forward_has_the_documented_arguments_in_order(cls: Any, documented: str) -> None:
    """All optional; the twins with registers have the same."""
    found = inspect.signature(cls.forward).parameters
    assert list(found) == ["self", *documented.split()]
    assert all(p.default is None for name, p in found.items() if name != "self")
    with pytest.raises(TypeError):
        cls(Dinov2Config(**TINY))(pixels(), attention_mask=None)


def test_return_dict_false_gives_a_tuple_by_call_or_by_configuration() -> None:
    """In the order of the fields, without those that are None."""
    model = plain()
    assert [tuple(t.shape) for t in model(pixels(), return_dict=False)] == [(2, 26, 32), (2, 32)]
    model.config.return_dict = False
    assert isinstance(model(pixels()), tuple)
    assert model(pixels(), return_dict=True).pooler_output.shape == (2, 32)
    head = classifier(return_dict=False, output_hidden_states=True)
    loss, logits, hidden_states = head(pixels(), labels=torch.tensor([0, 1]))
    assert (loss.shape, logits.shape, len(hidden_states)) == ((), (2, 2), 3)


def test_the_configuration_says_what_a_call_does_not() -> None:
    """`output_attentions` and `output_hidden_states`; a call's own word comes first."""
    model = registers(output_attentions=True, output_hidden_states=True)
    found = model(pixels())
    assert [tuple(t.shape) for t in found.attentions] == [(2, 2, 30, 30)] * 2
    assert [tuple(t.shape) for t in found.hidden_states] == [(2, 30, 32)] * 3
    assert list(model(pixels(), output_attentions=False, output_hidden_states=False)) == [
        "last_hidden_state",
        "pooler_output",
    ]


def test_the_last_hidden_state_is_the_normed_last_of_the_hidden_states() -> None:
    """Hidden states themselves are not normed."""
    model = registers()
    found = model(pixels(), output_hidden_states=True)
    assert torch.equal(model.layernorm(found.hidden_states[-1]), found.last_hidden_state)
    assert torch.equal(model.embeddings(pixels()), found.hidden_states[0])


def test_registers_are_no_patches_to_the_classifier() -> None:
    """Its input is the class token and the mean over patches only."""
    torch.manual_seed(0)
    model = Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**TINY, num_labels=0)).eval()
    tokens = model.dinov2_with_registers(pixels()).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
    assert isinstance(model.classifier, nn.Identity)
    assert max_error(model(pixels()).logits, expected) == 0.0
    with pytest.raises(ValueError, match="num_labels is 0"):
        model(pixels(), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(), "You have to specify pixel_values"),
        (
            lambda m: m(torch.zeros(1, 1, 70, 70)),
            "Make sure that the channel dimension of the pixel values match with the one set in the configuration. "
            "Expected 3 but got 1.",
        ),
        (lambda m: m(torch.zeros(3, 70, 70)), r"\(3, 70, 70\)"),
        (lambda m: m(torch.zeros(1, 3, 10, 70)), "10 x 70"),
        (lambda m: m(pixels(), bool_masked_pos=torch.ones(2, 24)), r"\(2, 24\)"),
        (lambda m: m(pixels(), head_mask=torch.ones(3)), "head_mask"),
    ],
)
def test_wrong_inputs_are_value_errors(call: Any, message: str) -> None:
    """Those of the documents in their words."""
    with pytest.raises(ValueError, match=message):
        call(plain())


def test_a_model_without_a_mask_token_refuses_masks() -> None:
    """And gives the same tokens otherwise."""
    model = plain(use_mask_token=False)
    with pytest.raises(ValueError, match="use_mask_token"):
        model(pixels(), torch.zeros(2, 25))
    model.load_state_dict({n: t for n, t in plain().state_dict().items() if "mask" not in n})
    assert torch.equal(model(pixels())[0], plain()(pixels())[0])


def test_a_configuration_of_the_other_kind_is_refused() -> None:
    """The message names both."""
    with pytest.raises(ValueError, match="Dinov2WithRegistersConfig"):
        Dinov2Model(Dinov2WithRegistersConfig(**TINY))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Dinov2Config"):
        Dinov2WithRegistersBackbone(Dinov2Config(**TINY))
    with pytest.raises(ValueError, match="Dinov2Config"):
        Dinov2Model(TINY)  # type: ignore[arg-type]


@pytest.mark.parametrize("act", ["gelu", "relu", "selu", "gelu_new", torch.nn.functional.relu])
def test_every_documented_activation_runs(act: Any) -> None:
    """By name or as a function."""
    model = plain(hidden_act=act)
    x = torch.linspace(-2, 2, 9)
    function = {"selu": torch.selu, "relu": torch.relu}.get(act, act)
    if callable(function):
        assert torch.equal(model.encoder.layer[0].mlp.act(x), function(x))
    assert torch.isfinite(model(pixels())[0]).all()


def test_weights_start_as_in_transformers() -> None:
    """Normal of `initializer_range`; biases, mask and register tokens 0; layer scale as configured."""
    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(**TINY | {"hidden_size": 64}, initializer_range=0.1, layerscale_value=0.3)
    model = Dinov2WithRegistersForImageClassification(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias") or "mask_token" in name or "register_tokens" in name:
            assert (tensor == 0).all(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        elif "lambda1" in name:
            assert torch.equal(tensor, torch.full((64,), 0.3)), name
        else:
            assert 0.07 < tensor.std() < 0.13, name


@pytest.mark.parametrize("cls", [Dinov2ForImageClassification, Dinov2WithRegistersForImageClassification])
def test_classifiers_expose_their_parts(cls: Any) -> None:
    """Under the names that fine-tuning code uses."""
    model = cls(cls.config_class(**TINY, num_labels=3))
    assert model.base_model is getattr(model, cls.base_model_prefix)
    assert model.classifier.out_features == model.num_labels == model.config.num_labels == 3
    assert model.base_model.base_model is model.base_model
    for parameter in model.base_model.parameters():
        parameter.requires_grad = False
    assert model.num_parameters(only_trainable=True) == 3 * 64 + 3


def test_users_find_their_way_inside() -> None:
    """Blocks, embeddings, layer norm, device, dtype, sizes."""
    model = registers()
    assert len(model.encoder.layer) == 2
    assert model.get_input_embeddings() is model.embeddings.patch_embeddings
    assert model.get_output_embeddings() is None
    assert model.embeddings.position_embeddings.shape == (1, 26, 32)
    assert model.embeddings.register_tokens.shape == (1, 4, 32)
    assert model.embeddings.mask_token.shape == (1, 32)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.half().dtype == torch.float16
    count = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == count
    assert model.num_parameters(exclude_embeddings=True) == count - 32 * 3 * 14 * 14 - 32
    assert (model.main_input_name, model.base_model_prefix) == ("pixel_values", "dinov2_with_registers")


def test_a_hook_on_a_block_sees_its_tokens() -> None:
    """As users collect features."""
    model, seen = plain(), []
    model.encoder.layer[1].register_forward_hook(lambda *args: seen.append(args[2]))
    found = model(pixels(), output_hidden_states=True)
    assert torch.equal(seen[0], found.hidden_states[2])


def test_backbones_have_the_documented_attributes() -> None:
    """And stages can be chosen anew."""
    model = Dinov2Backbone(Dinov2Config(**TINY, out_features=["stem", "stage2"])).eval()
    assert model.stage_names == ["stem", "stage1", "stage2"]
    assert model.num_features == [32, 32, 32]
    assert model.channels == [32, 32]
    assert model.out_feature_channels == {"stem": 32, "stage1": 32, "stage2": 32}
    model.out_indices = [1]
    assert (model.out_features, model.config.out_features) == (["stage1"], ["stage1"])
    found = model(pixels(56, 84))
    assert [tuple(t.shape) for t in found.feature_maps] == [(2, 32, 4, 6)]
    assert list(found) == ["feature_maps"]
    assert found.feature_maps[0].is_contiguous()
    assert isinstance(model(pixels(), return_dict=False)[0], tuple)
    found = model.forward_with_filtered_kwargs(pixels(), output_attentions=True, interpolate_pos_encoding=True)
    assert len(found.attentions) == 2


def test_a_rectangular_position_table_works() -> None:
    """At its own size it is used as it is; transformers fails."""
    model = registers(image_size=(42, 84))
    x = pixels(42, 84)
    assert model.embeddings.position_embeddings.shape == (1, 19, 32)
    assert model(x).last_hidden_state.shape == (2, 23, 32)
    table = model.embeddings.position_embeddings
    cls = model.embeddings(x)[:, 0]
    assert max_error(cls, (model.embeddings.cls_token[:, 0] + table[:, 0]).expand(2, -1)) <= SAME_MATH


def test_meta_offset_is_a_switch_that_shows_only_at_other_sizes() -> None:
    """`interpolate_offset=0.1` gives Meta's numbers and transformers 4.34's."""
    plain_model, meta = plain(), plain(interpolate_offset=0.1)
    assert torch.equal(plain_model(pixels())[0], meta(pixels())[0])
    assert max_error(plain_model(pixels(98, 98))[0], meta(pixels(98, 98))[0]) > 1e-4


@pytest.mark.parametrize("make", [plain, registers, classifier])
def test_models_are_pickled_whole(make: Any) -> None:
    """As `torch.save(model)` and spawned processes do."""
    model = make()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(pixels())[0], model(pixels())[0])
    assert again.state_dict().keys() == model.state_dict().keys()


def test_auto_classes_build_from_configurations() -> None:
    """The twin follows from the configuration."""
    for config, prefix in (
        (Dinov2Config(**TINY), "Dinov2"),
        (Dinov2WithRegistersConfig(**TINY), "Dinov2WithRegisters"),
    ):
        for auto, head in (
            (AutoModel, "Model"),
            (AutoBackbone, "Backbone"),
            (AutoModelForImageClassification, "ForImageClassification"),
        ):
            assert type(auto.from_config(config)).__name__ == prefix + head
    with pytest.raises(ValueError, match="supported are Dinov2Config, Dinov2WithRegistersConfig"):
        AutoModel.from_config(object())  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"AutoModel\.from_pretrained"):
        AutoModel()


def test_building_under_the_meta_device_takes_no_memory() -> None:
    """As large-model tools do."""
    with torch.device("meta"):
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig())
    assert model.device.type == "meta"
    assert model.num_parameters() > 80_000_000
