"""The Hugging Face style models against transformers 5.23, float32, random weights: within `tolerances.ORACLE`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracle.hf_pairs import NETWORKS, SIZES, gradient_error, images, pair, worst
from tests.tolerances import ORACLE, SAME_MATH, max_error

KINDS = ("plain", "registers")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_tokens_hidden_states_and_attentions_equal_transformers(network: str, size: str) -> None:
    """Everything that a forward pass can return is what transformers returns, at any image size."""
    theirs, mine = pair(network)
    x = images(mine, SIZES[size])
    a = theirs(x, output_hidden_states=True, output_attentions=True)
    b = mine(x, output_hidden_states=True, output_attentions=True)
    assert worst(a, b) <= ORACLE
    assert torch.equal(b.pooler_output, b.last_hidden_state[:, 0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_masked_patches_equal_transformers_whatever_the_masks_dtype(kind: str, dtype: torch.dtype) -> None:
    """The mask token replaces the same patches."""
    theirs, mine = pair(kind)
    x = images(mine, SIZES["wide"])
    masks = torch.rand(2, 32, generator=torch.Generator().manual_seed(1)) < 0.4
    assert worst(theirs(x, bool_masked_pos=masks), mine(x, masks.to(dtype))) <= ORACLE


PROBLEMS: dict[str, tuple[int, Tensor]] = {
    "regression": (1, torch.tensor([0.3, -1.0])),
    "single_label_classification": (5, torch.tensor([4, 1])),
    "multi_label_classification": (5, torch.tensor([[1.0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("network", ["plain", "registers", "registers, swiglu", "plain, no qkv bias"])
def test_logits_losses_and_all_gradients_equal_transformers(network: str, problem: str) -> None:
    """Training sees the same loss and the same gradient of every parameter; the problem type is written down alike."""
    number, labels = PROBLEMS[problem]
    theirs, mine = pair(network, "ForImageClassification", num_labels=number)
    x = images(mine, SIZES["tall"])
    a, b = theirs(x, labels=labels), mine(x, labels=labels)
    assert worst(a, b) <= ORACLE
    assert mine.config.problem_type == theirs.config.problem_type == problem
    a.loss.backward()
    b.loss.backward()
    assert gradient_error(theirs, mine) <= ORACLE


def test_regression_with_several_outputs_equals_transformers() -> None:
    """A stated problem type is followed where the labels alone would mean another."""
    theirs, mine = pair("plain", "ForImageClassification", num_labels=3, problem_type="regression")
    x, labels = images(mine, SIZES["native"]), torch.randn(2, 3)
    assert worst(theirs(x, labels=labels), mine(x, labels=labels)) <= ORACLE


def test_ignored_labels_take_no_part_in_the_loss() -> None:
    """-100 marks an image whose label does not count."""
    theirs, mine = pair("plain", "ForImageClassification", num_labels=3)
    x, labels = images(mine, SIZES["native"]), torch.tensor([-100, 2])
    assert worst(theirs(x, labels=labels), mine(x, labels=labels)) <= ORACLE


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_masked_forward_equal_transformers(kind: str) -> None:
    """The mask token and the position table (resampled here) get the same gradient."""
    theirs, mine = pair(kind)
    x = images(mine, SIZES["wide"])
    masks = torch.rand(2, 32, generator=torch.Generator().manual_seed(1)) < 0.4
    weight = torch.randn(theirs.config.hidden_size, generator=torch.Generator().manual_seed(2))
    for model in (theirs, mine):
        (model(x, bool_masked_pos=masks).last_hidden_state @ weight).square().mean().backward()
    assert gradient_error(theirs, mine) <= ORACLE


@pytest.mark.parametrize("reshape", [True, False])
@pytest.mark.parametrize("layernorm", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_backbone_maps_equal_transformers(kind: str, layernorm: bool, reshape: bool) -> None:
    """Feature maps of several stages, with and without norm and reshaping, of an image that is not square."""
    theirs, mine = pair(
        kind,
        "Backbone",
        out_features=["stem", "stage2", "stage3"],
        apply_layernorm=layernorm,
        reshape_hidden_states=reshape,
    )
    x = images(mine, SIZES["wide"])
    assert worst(theirs(x), mine(x)) <= ORACLE
    asked = {"output_hidden_states": True, "output_attentions": True}
    assert worst(theirs(x, **asked), mine(x, **asked)) <= ORACLE


@torch.no_grad()
def test_a_backbone_that_stops_early_gives_the_same_maps() -> None:
    """Blocks after the last stage asked for are not needed."""
    theirs, mine = pair("registers", "Backbone", out_features=["stage1"])
    x = images(mine, SIZES["trailing pixels"])
    assert worst(theirs(x), mine(x)) <= ORACLE
    ran: list[int] = []
    for index, block in enumerate(mine.encoder.layer):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    mine(x)
    assert ran == [0]


@pytest.mark.parametrize("rates", [{"drop_path_rate": 0.4}, {"hidden_dropout_prob": 0.3}])
@pytest.mark.parametrize("kind", KINDS)
def test_training_draws_the_same_random_numbers_as_transformers(kind: str, rates: dict[str, float]) -> None:
    """Under one seed stochastic depth and dropout drop the same samples and values."""
    theirs, mine = pair(kind, **rates)
    x = images(mine, SIZES["native"], batch=6)
    outputs = []
    for model in (theirs.train(), mine.train()):
        torch.manual_seed(3)
        outputs.append(model(x).last_hidden_state)
    assert max_error(*outputs) <= ORACLE
    assert max_error(outputs[1], mine.eval()(x).last_hidden_state) > 1e-2


def test_attention_dropout_draws_the_same_random_numbers_as_transformers() -> None:
    """Against transformers' default attention, which is fused as ours."""
    theirs, mine = pair("registers", attention_probs_dropout_prob=0.4)
    theirs.set_attn_implementation("sdpa")
    x = images(mine, SIZES["native"])
    outputs = []
    for model in (theirs.train(), mine.train()):
        torch.manual_seed(3)
        outputs.append(model(x).last_hidden_state)
    assert max_error(*outputs) <= ORACLE


@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_mask_equals_scaled_value_projections(kind: str, head: str) -> None:
    """Scaling what a head attends to is scaling its values: an oracle that needs no head mask."""
    theirs, mine = pair(kind, head)
    x = images(mine, SIZES["smaller"])
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(5))
    mask[1, 2] = 0.0
    scaled = copy.deepcopy(theirs)
    for layer, scales in zip(scaled.base_model.encoder.layer, mask, strict=True):
        values = layer.attention.v_proj
        values.weight.data *= scales.repeat_interleave(8)[:, None]
        values.bias.data *= scales.repeat_interleave(8)
    assert max_error(scaled(x)[0], mine(x, head_mask=mask)[0]) <= ORACLE
    shared = mask[0]
    assert max_error(mine(x, head_mask=shared)[0], mine(x, head_mask=shared.expand(3, 4))[0]) == 0.0


def test_the_gradient_of_a_head_mask_is_right() -> None:
    """It equals the derivative of the value-scaling oracle, taken by finite differences in float64."""
    _, mine = pair("registers")
    mine = mine.double()
    x = images(mine, SIZES["smaller"]).double()
    mask = torch.full((3, 4), 0.7, dtype=torch.float64, requires_grad=True)

    def score(scales: Tensor) -> Any:
        return mine(x, head_mask=scales).last_hidden_state.square().mean()

    assert torch.autograd.gradcheck(score, (mask,), atol=1e-6)


@torch.no_grad()
def test_attentions_are_scaled_by_the_head_mask() -> None:
    """What is returned is what was used: rows of a head at 0.25 sum to 0.25."""
    _, mine = pair("plain")
    mask = torch.tensor([0.25, 1.0, 0.0, 0.5])
    attentions = mine(images(mine, SIZES["native"]), head_mask=mask, output_attentions=True).attentions
    for layer in attentions:
        assert max_error(layer.sum(-1), mask[None, :, None].expand(2, 4, 26)) <= SAME_MATH


@torch.no_grad()
def test_asking_for_attentions_changes_nothing_else() -> None:
    """The fused kernel still computes the tokens, so they are the same bits."""
    _, mine = pair("registers")
    x = images(mine, SIZES["wide"])
    assert torch.equal(mine(x).last_hidden_state, mine(x, output_attentions=True).last_hidden_state)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients_as_transformers(use_reentrant: bool) -> None:
    """Recomputing blocks changes memory, not numbers, also with stochastic depth."""
    theirs, mine = pair("plain", drop_path_rate=0.3)
    mine.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert mine.is_gradient_checkpointing
    x = images(mine, SIZES["native"])
    for model in (theirs.train(), mine.train()):
        torch.manual_seed(3)
        model(x).last_hidden_state.square().mean().backward()
    assert gradient_error(theirs, mine) <= ORACLE
    mine.gradient_checkpointing_disable()
    assert not mine.is_gradient_checkpointing


@torch.no_grad()
def test_half_precision_input_is_cast_to_the_weights() -> None:
    """Images of another dtype than the weights work, and give the weights' dtype."""
    theirs, mine = pair("plain")
    x = images(mine, SIZES["larger"]).double()
    assert worst(theirs(x), mine(x)) <= ORACLE
    assert mine.to(torch.bfloat16)(x).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of the compiler's own import
@pytest.mark.parametrize(("kind", "backend"), [("plain", "aot_eager"), ("registers", "inductor")])
@torch.no_grad()
def test_a_compiled_model_is_one_graph_and_gives_the_same_outputs(kind: str, backend: str) -> None:
    """`torch.compile(fullgraph=True)` takes the model with its output class."""
    _, mine = pair(kind, num_hidden_layers=2)
    x = images(mine, SIZES["wide"])
    compiled = torch.compile(mine, fullgraph=True, backend=backend)
    found = compiled(x, output_hidden_states=True)
    assert type(found).__name__ == "BaseModelOutputWithPooling"
    assert worst(found, mine(x, output_hidden_states=True)) <= ORACLE
