"""The projection head: outputs and gradients of the reference, names, and what a new one holds."""

from __future__ import annotations

import pytest
import torch

from dinokit.train.heads import ProjectionHead, fan_in_std, parametrized_names, read_names
from tests.train.golden import DTYPES, assert_equal, leaves

LAYERS = {"one_layer": 1, "two_layers": 2, "three_layers": 3}


def head_of(data, case: str) -> ProjectionHead:
    head = ProjectionHead(24, 56, hidden_dim=40, bottleneck_dim=16, num_layers=LAYERS[case])
    prefix = f"{case}/weights/"
    head.load_state_dict({name: data[prefix + name] for name in data.names(prefix)})
    return head.to(data.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYERS)
def test_head_is_the_references(recorded, case, dtype):
    """Bottleneck, logits, and the gradient of input and of every tensor, under the reference's names."""
    data = recorded("head", dtype)
    head = head_of(data, case)
    (x,) = leaves(data[f"{case}/x"])
    y = head(x)
    (y * data[f"{case}/cotangent"]).sum().backward()
    assert_equal(head.bottleneck(x), data[f"{case}/bottleneck"])
    assert_equal(y, data[f"{case}/y"])
    assert_equal(x.grad, data[f"{case}/grad_x"])
    grads = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert set(grads) == set(data.names(f"{case}/grad/"))
    for name, grad in grads.items():
        assert_equal(grad, data[f"{case}/grad/{name}"])


def test_both_ways_of_naming_a_weight_norm_are_read_and_written():
    """`weight_g`, `weight_v` and PyTorch's parametrization, which makes the same weights of them."""
    head = ProjectionHead(8, 12, hidden_dim=8, bottleneck_dim=4)
    state = head.state_dict()
    torch.nn.init.uniform_(head.last_layer.weight_g)
    foreign = parametrized_names(state)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 12, bias=False))
    theirs.load_state_dict({name.removeprefix("last_layer."): t for name, t in foreign.items() if "last" in name})
    assert torch.allclose(theirs.weight, head.last_layer(), atol=1e-7)
    assert list(read_names(foreign)) == list(read_names(state)) == list(state)
    assert list(read_names({f"student.ibot_head.{n}": t for n, t in foreign.items()})) == [
        f"student.ibot_head.{n}" for n in state
    ]


def test_a_new_head_is_initialised_as_asked():
    """Official: 0.02 everywhere; by fan-in: the signal keeps its size; norms 1, no biases, directions that differ."""
    torch.manual_seed(0)
    official, scaled = ProjectionHead(64, 500), ProjectionHead(64, 500, hidden_dim=256, std=fan_in_std)
    assert official.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert official.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert scaled.mlp[0].weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert scaled.mlp[4].weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    for head in (official, scaled):
        assert torch.equal(head.last_layer.weight_g, torch.ones(500, 1))
        assert not any(p.any() for n, p in head.named_parameters() if n.endswith("bias"))
        assert head.num_prototypes == 500
        assert head(torch.randn(3, 64)).abs().max() <= 1.0 + 1e-6
    with pytest.raises(ValueError, match="num_layers is 0"):
        ProjectionHead(8, 8, num_layers=0)


def test_the_bottleneck_is_normalised_in_single_precision_under_autocast():
    """Its length is 1 to seven digits although the layers before ran in half precision."""
    head = ProjectionHead(32, 16, hidden_dim=32, bottleneck_dim=8, std=fan_in_std)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = head.bottleneck(torch.randn(5, 32))
        y = head(torch.randn(5, 32))
    assert x.dtype == torch.float32
    assert (x.norm(dim=1) - 1).abs().max() < 1e-6
    assert y.dtype == torch.bfloat16
