"""Outputs are dataclasses, dicts and tuples at once."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from dinokit.compat.hf import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

A, B = torch.zeros(1, 3, 2), torch.ones(1, 2)


def output() -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B)


def test_attribute_key_and_position_give_the_same_tensor() -> None:
    """Three ways to read one field, and slices."""
    found = output()
    assert found.last_hidden_state is found["last_hidden_state"] is found[0]
    assert found[1:] == (B,)
    assert found[-1] is B
    assert found.to_tuple() == (A, B)
    assert isinstance(found, dict)


def test_none_is_no_key_and_takes_no_place() -> None:
    """Absent fields do not count."""
    found = ImageClassifierOutput(logits=B)
    assert found.loss is None
    assert list(found) == ["logits"]
    assert len(found) == 1
    assert found[0] is B
    with pytest.raises(KeyError):
        found["loss"]
    with pytest.raises(IndexError):
        found[1]


def test_iteration_gives_keys_and_unpacking_gives_arguments() -> None:
    """As dicts do."""
    found = output()
    assert [*found] == ["last_hidden_state", "pooler_output"]
    assert dict(**found)["pooler_output"] is B


def test_attributes_and_items_stay_in_step() -> None:
    """Setting either sets both; a field set late takes its own place; None takes it away."""
    found = ImageClassifierOutput(logits=B)
    found["logits"] = A
    assert found.logits is A
    found.loss = B
    assert found.to_tuple() == (B, A)
    found.loss = None
    assert list(found) == ["logits"]
    found["extra"] = 1
    assert found.extra == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out.pop("pooler_output"),
        lambda out: out.update(pooler_output=A),
        lambda out: out.setdefault("pooler_output", A),
        lambda out: out.__delitem__("pooler_output"),
    ],
)
def test_items_cant_be_removed(change: object) -> None:
    """What the model gave stays."""
    with pytest.raises(TypeError):
        change(output())  # type: ignore[operator]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda out: pickle.loads(pickle.dumps(out))])
def test_outputs_are_copied_and_pickled_whole(again: object) -> None:
    """Data loaders, processes and users do."""
    found = again(BackboneOutput(feature_maps=(A, B)))  # type: ignore[operator]
    assert type(found) is BackboneOutput
    assert torch.equal(found.feature_maps[1], B)
    assert list(found) == ["feature_maps"]


def test_outputs_are_trees_to_pytorch() -> None:
    """`torch.compile`, `torch.export` and data parallelism take them apart and put them together."""
    found = pytree.tree_map(lambda tensor: tensor + 1, output())
    assert type(found) is BaseModelOutputWithPooling
    assert torch.equal(found.pooler_output, B + 1)


def test_outputs_are_rebuilt_from_a_mapping_or_from_pairs() -> None:
    """As gathering helpers do: the type called on a dict, or on an iterator of pairs."""
    for content in (
        {"last_hidden_state": A, "pooler_output": B},
        iter([("last_hidden_state", A), ("pooler_output", B)]),
    ):
        found = BaseModelOutputWithPooling(content)  # type: ignore[arg-type]
        assert found.last_hidden_state is A
        assert list(found) == ["last_hidden_state", "pooler_output"]
