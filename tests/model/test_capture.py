"""Reading a network: everything that `capture` gives is what the blocks really compute, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dinokit.model import VisionTransformer, attention_weights, hidden_states
from dinokit.model.capture import capture
from tests.model.test_vit import make
from tests.tolerances import SAME_MATH, max_error

SIZES = [(70, 70), (56, 98)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("registers", [0, 1, 4, 8])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_what_is_captured_rebuilds_each_block(tiny, registers, ffn, size):
    """From queries, keys, values and neurons of a block its output follows; attention is the softmax of queries and keys."""
    model = make(tiny.replace(num_register_tokens=registers, ffn=ffn, depth=3))
    images = torch.randn(2, 3, *size)
    read = capture(model, images, residual="all", normed="all", q="all", k="all", v="all", attention="all", mlp="all")
    assert read.grid == (size[0] // 14, size[1] // 14)
    assert read.num_registers == registers
    for index, block in enumerate(model.blocks):
        x, after = read.residual[index], read.residual[index + 1]
        weights = (read.q[index] @ read.k[index].transpose(-2, -1) * block.attn.scale).softmax(-1)
        assert max_error(read.attention[index], weights) <= SAME_MATH
        mixed = (weights @ read.v[index]).transpose(1, 2).flatten(2)
        middle = x + block.ls1(block.attn.proj(mixed))
        assert max_error(middle + block.ls2(block.mlp.project(read.mlp[index])), after) <= 10 * SAME_MATH
    for layer, state in enumerate(hidden_states(model, images)):
        assert torch.equal(read.residual[layer], state)
        assert torch.equal(read.normed[layer], model.norm(state))


def test_neurons_are_the_hidden_activations(tiny):
    """After the activation for an MLP, the gated product for SwiGLU."""
    images = torch.randn(1, 3, 70, 70)
    for ffn in ("mlp", "swiglu"):
        model = make(tiny.replace(ffn=ffn))
        block = model.blocks[1]
        read = capture(model, images, residual=[1], mlp=[1])
        z = block.norm2(block.attend(read.residual[1]))
        if ffn == "mlp":
            expected = F.gelu(block.mlp.fc1(z))
        else:
            gate, up = block.mlp.w12(z).chunk(2, dim=-1)
            expected = F.silu(gate) * up
        assert torch.equal(read.mlp[1], expected)


def test_only_what_was_asked_for_is_kept_and_computed(tiny, monkeypatch):
    """Negative indices count from the end, the pass ends with the last layer asked for."""
    model, images = make(tiny.replace(depth=4)), torch.randn(1, 3, 70, 70)
    read = capture(model, images, residual=[-5, 2], attention=[-3])
    assert set(read.residual) == {0, 2}
    assert set(read.attention) == {1}
    assert not any([read.normed, read.q, read.k, read.v, read.mlp])
    ran = []
    inner = VisionTransformer.run_block
    monkeypatch.setattr(VisionTransformer, "run_block", lambda self, i, *a: (ran.append(i), inner(self, i, *a))[1])
    capture(model, images, k=[2])
    assert ran == [0, 1]
    assert torch.equal(read.attention[1], attention_weights(model, images, [1])[0])


def test_captured_parts_have_names(tiny):
    """Registers and patches of any layer, and of keys with their heads side by side."""
    model, images = make(tiny), torch.randn(2, 3, 56, 98)
    read = capture(model, images, residual=[2], normed=[2], k=[1])
    assert torch.equal(read.tokens(2, normed=True).sequence, model(images).sequence)
    assert read.tokens(2).patches.shape == (2, 28, 32)
    keys = read.heads_joined("k", 1)
    assert keys.patch_map.shape == (2, 32, 4, 7)
    assert torch.equal(keys.sequence[:, :, :16], read.k[1][:, 0])
    with pytest.raises(KeyError):
        read.tokens(1)


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_read_as_its_single_images(tiny, size):
    """In every quantity."""
    model, images = make(tiny), torch.randn(3, 3, *size)
    everything = dict.fromkeys(("residual", "normed", "q", "k", "v", "attention", "mlp"), "all")
    together = capture(model, images, **everything)
    alone = [capture(model, image[None], **everything) for image in images]
    for name in everything:
        for index, value in getattr(together, name).items():
            assert max_error(value, torch.cat([getattr(one, name)[index] for one in alone])) <= 10 * SAME_MATH


def test_capturing_leaves_the_model_bit_identical(tiny):
    """No hook, no state, the same output and the same parameters."""
    model, images = make(tiny), torch.randn(2, 3, 70, 70)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(images).sequence
    capture(model, images, residual="all", q="all", attention="all", mlp="all")
    assert torch.equal(before, model(images).sequence)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert "forward" not in vars(model)


def test_permuting_registers_permutes_what_is_read_of_them(tiny):
    """And nothing else."""
    model, images = make(tiny), torch.randn(1, 3, 70, 70)
    before = capture(model, images, residual="all", attention=[-1])
    order = torch.tensor([0, 3, 1, 4, 2, *range(5, 30)])
    with torch.no_grad():
        model.register_tokens.copy_(model.register_tokens[:, order[1:5] - 1])
    after = capture(model, images, residual="all", attention=[-1])
    for layer, state in after.residual.items():
        assert max_error(state, before.residual[layer][:, order]) <= 10 * SAME_MATH
    assert max_error(after.attention[1], before.attention[1][:, :, order][..., order]) <= SAME_MATH


def test_what_can_not_be_read_is_refused(tiny):
    """Nothing, and what the network does not have."""
    model, images = make(tiny), torch.randn(1, 3, 70, 70)
    with pytest.raises(ValueError, match="nothing was asked for"):
        capture(model, images)
    with pytest.raises(ValueError, match=r"layers \[3\]: this network has 0 to 2"):
        capture(model, images, residual=[3])
    with pytest.raises(ValueError, match=r"blocks \[2\]: this network has 0 to 1"):
        capture(model, images, mlp=[2])


def test_neurons_of_a_repaired_form_are_refused(tiny):
    """Its blocks are not run as they stand, so the plain answer would be wrong."""
    from dinokit.repair import TestTimeRegisters

    form, images = TestTimeRegisters(make(tiny), [(0, 3)]), torch.randn(1, 3, 70, 70)
    assert capture(form, images, residual=[-1], attention=[-1]).num_registers == 5
    with pytest.raises(ValueError, match="repaired form"):
        capture(form, images, mlp=[0])
