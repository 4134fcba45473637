"""The network: shapes, sizes, registers, masks, training behaviour, compilation and export."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.config import OFFSET_PLAIN, VARIANTS, ViTConfig, linear_drop_path
from dinokit.model import VisionTransformer, attention_weights, hidden_states, intermediate_tokens, resize_positions
from dinokit.model.capture import block_attention
from dinokit.model.cost import flops, num_parameters
from dinokit.model.export import TokenSequence
from tests.tolerances import COMPILED, EXACT, SAME_MATH, max_error


def make(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@settings(max_examples=25, deadline=None)
@given(
    registers=st.integers(0, 5),
    ffn=st.sampled_from(["mlp", "swiglu"]),
    patch=st.sampled_from([2, 4, 7]),
    channels=st.integers(1, 4),
    height=st.integers(7, 40),
    width=st.integers(7, 40),
)
def test_any_size_patch_channels_and_registers_give_finite_tokens(registers, ffn, patch, channels, height, width):
    """Whatever the sizes, the tokens are one class token, the registers and one token a whole patch."""
    config = ViTConfig(
        embed_dim=16, depth=1, num_heads=2, ffn_dim=24, ffn=ffn, patch_size=patch, image_size=(4 * patch, 3 * patch),
        num_channels=channels, num_register_tokens=registers,
    )  # fmt: skip
    tokens = make(config)(torch.randn(2, channels, height, width))
    grid = (height // patch, width // patch)
    assert tokens.grid == grid
    assert tokens.sequence.shape == (2, 1 + registers + grid[0] * grid[1], 16)
    assert tokens.cls.shape == (2, 16)
    assert tokens.registers.shape == (2, registers, 16)
    assert tokens.patch_map.shape == (2, 16, *grid)
    assert torch.isfinite(tokens.sequence).all()
    rebuilt = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    assert torch.equal(rebuilt, tokens.sequence)


def test_patch_map_keeps_rows_and_columns(tiny):
    """The patch at row i, column j of the map is the token number i * columns + j."""
    tokens = make(tiny)(torch.randn(1, 3, 56, 98))
    assert tokens.grid == (4, 7)
    assert torch.equal(tokens.patch_map[0, :, 2, 5], tokens.patches[0, 2 * 7 + 5])


def test_trailing_pixels_do_not_count(tiny):
    """Rows and columns that fill no whole patch change nothing."""
    model, images = make(tiny), torch.randn(1, 3, 83, 79)
    assert torch.equal(model(images).sequence, model(images[..., :70, :70]).sequence)


def test_a_batch_equals_its_single_images(tiny):
    """Images of a batch do not influence each other."""
    model, images = make(tiny), torch.randn(4, 3, 56, 70)
    alone = torch.cat([model(image[None]).sequence for image in images])
    assert max_error(model(images).sequence, alone) <= SAME_MATH


def test_zero_registers_is_an_empty_tensor(tiny):
    """A model without registers has a register table of length 0, and pooling registers says so."""
    model = make(tiny.replace(num_register_tokens=0))
    assert model.register_tokens.shape == (1, 0, 32)
    with pytest.raises(ValueError, match="no register tokens"):
        model(torch.randn(1, 3, 70, 70)).pool("registers")


def test_pooling_names_the_documented_features(tiny):
    """Means are over patches alone."""
    tokens = make(tiny)(torch.randn(2, 3, 70, 70))
    mean = tokens.sequence[:, 5:].mean(dim=1)
    assert torch.equal(tokens.pool("cls"), tokens.sequence[:, 0])
    assert torch.equal(tokens.pool("mean"), mean)
    assert torch.equal(tokens.pool("cls+mean"), torch.cat([tokens.cls, mean], dim=-1))
    assert tokens.pool("registers").shape == (2, 4, 32)
    assert tokens.pool("patches").shape == (2, 25, 32)
    with pytest.raises(ValueError, match="must be one of"):
        tokens.pool("max")


def test_masked_patches_are_replaced_by_the_mask_token(tiny):
    """Masking all patches makes the result independent of the image; masking none changes nothing."""
    model, images = make(tiny), torch.randn(2, 3, 70, 70)
    everything = torch.ones(2, 25, dtype=torch.bool)
    first = model(images, everything).sequence
    assert torch.equal(first, model(images + 1, everything).sequence)
    assert torch.equal(model(images).sequence, model(images, ~everything).sequence)
    assert torch.equal(first, model(images, everything.long()).sequence)
    with pytest.raises(ValueError, match=r"\(2, 25\)"):
        model(images, everything[:, :-1])


def test_a_head_mask_of_ones_changes_nothing_and_zeros_remove_attention(tiny):
    """Scaling what heads give equals scaling their weights."""
    model, images = make(tiny), torch.randn(1, 3, 70, 70)
    ones = torch.ones(2, 2)
    assert max_error(model(images, head_mask=ones).sequence, model(images).sequence) == EXACT
    one_head = ones.clone()
    one_head[1, 0] = 0
    with torch.no_grad():
        rows = model.blocks[1].attn.qkv.weight
        rows[64:80] = 0  # the first head's values
        model.blocks[1].attn.qkv.bias[64:80] = 0
    assert max_error(model(images, head_mask=one_head).sequence, model(images).sequence) <= SAME_MATH


@pytest.mark.parametrize("shape", [(3, 70, 70), (1, 4, 70, 70)])
def test_wrong_image_shapes_are_refused(tiny, shape):
    """The message says what was expected."""
    with pytest.raises(ValueError, match=r"expected \(batch, 3, height, width\)"):
        make(tiny)(torch.randn(shape))


def test_an_image_smaller_than_a_patch_is_refused(tiny):
    """No silent empty grid."""
    with pytest.raises(ValueError, match="one patch needs 14 x 14"):
        make(tiny)(torch.randn(1, 3, 13, 70))


def test_the_stream_ends_in_what_forward_norms(tiny):
    """`forward` has a loop of its own; it gives exactly what readers of the stream see."""
    model, images = make(tiny), torch.randn(2, 3, 56, 70)
    states = hidden_states(model, images)
    assert len(states) == 3
    assert torch.equal(model.norm(states[-1]), model(images).sequence)
    assert torch.equal(states[0], model.embed(images))


def test_intermediate_tokens_are_the_asked_blocks_in_order(tiny):
    """Counts from the end, lists, negative indices; ascending always."""
    model, images = make(tiny.replace(depth=3)), torch.randn(1, 3, 70, 70)
    states = hidden_states(model, images)
    last_two = intermediate_tokens(model, images, 2)
    assert [torch.equal(t.sequence, model.norm(s)) for t, s in zip(last_two, states[2:], strict=True)] == [True, True]
    first, last = intermediate_tokens(model, images, [-1, 0], norm=False)
    assert torch.equal(first.sequence, states[1])
    assert torch.equal(last.sequence, states[3])
    for wrong in (0, 4, [], [3], [-4], [0, -3]):
        with pytest.raises(ValueError, match="blocks"):
            intermediate_tokens(model, images, wrong)


def test_attention_weights_are_what_the_block_applies(tiny):
    """Rows sum to 1 and, applied to the values, they give the block's attention output."""
    model, images = make(tiny), torch.randn(2, 3, 56, 70)
    weights = attention_weights(model, images, [1])[0]
    assert weights.shape == (2, 2, 25, 25)
    assert max_error(weights.sum(-1), torch.ones(2, 2, 25)) <= SAME_MATH
    block, x = model.blocks[1], model.norm(hidden_states(model, images)[1])
    x = hidden_states(model, images)[1]
    _, _, v = block.attn.split(block.norm1(x))
    explicit = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    assert max_error(explicit, block.attn(block.norm1(x))) <= SAME_MATH
    mask = torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    assert torch.equal(block_attention(model, 1, x, mask)[:, 1], torch.zeros(2, 25, 25))


def test_reading_leaves_the_model_as_it_was(tiny):
    """Capturing changes no output, keeps no hook and no state."""
    model, images = make(tiny), torch.randn(1, 3, 70, 70)
    before = model(images).sequence
    attention_weights(model, images, 2)
    intermediate_tokens(model, images, 2)
    assert torch.equal(before, model(images).sequence)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_drop_path_drops_whole_samples_and_keeps_the_mean(tiny):
    """In training a dropped branch is zero for the sample and a kept one is scaled; outside of it nothing happens."""
    from dinokit.model.layers import DropPath

    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = drop(x)
    per_sample = out[:, 0, 0]
    assert set(per_sample.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(out, per_sample[:, None, None].expand_as(out))
    assert abs(per_sample.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)
    assert linear_drop_path(0.3, 4) == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_stochastic_depth_acts_in_training_only(tiny):
    """The same network with rates gives the same tokens in evaluation mode."""
    model = make(tiny.replace(drop_path=(0.9, 0.9)))
    plain = make(tiny)
    images = torch.randn(8, 3, 70, 70)
    assert torch.equal(model(images).sequence, plain(images).sequence)
    model.train()
    torch.manual_seed(0)
    assert max_error(model(images).sequence, plain(images).sequence) > 1e-3


def test_gradient_checkpointing_gives_the_same_gradients(tiny):
    """Bit for bit; and it can be switched off again."""
    images = torch.randn(2, 3, 70, 70)
    gradients = []
    for enabled in (False, True):
        model = make(tiny).train()
        model.set_gradient_checkpointing(enabled)
        model(images).sequence.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_initialisation_follows_the_paper_s_code():
    """Linear weights and positions 0.02, biases and mask token 0, class and register tokens 1e-6, scale as configured."""
    torch.manual_seed(0)
    model = VisionTransformer(
        ViTConfig(embed_dim=128, depth=2, num_heads=2, ffn_dim=512, num_register_tokens=4, layer_scale_init=1e-5)
    )
    assert abs(model.pos_embed.std().item() - 0.02) < 1e-3
    assert abs(model.blocks[0].mlp.fc1.weight.std().item() - 0.02) < 1e-3
    assert model.blocks[0].attn.qkv.bias.abs().max() == 0
    assert model.mask_token.abs().max() == 0
    for tokens in (model.cls_token, model.register_tokens):
        assert 1e-7 < tokens.std().item() < 1e-5
    assert torch.all(model.blocks[1].ls2.gamma == 1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes_have_the_published_parameter_counts(name):
    """Counted by formula and on the meta device; figures of Meta's shapes."""
    published = {
        "vits14": 22_056_576, "vitb14": 86_580_480, "vitl14": 304_368_640, "vitg14": 1_136_480_768,
        "vits14_reg": 22_058_112, "vitb14_reg": 86_583_552, "vitl14_reg": 304_372_736, "vitg14_reg": 1_136_486_912,
    }  # fmt: skip
    with torch.device("meta"):
        model = VisionTransformer(VARIANTS[name])
    assert num_parameters(VARIANTS[name]) == sum(p.numel() for p in model.parameters()) == published[name]


def test_flops_are_those_of_torch_s_own_counter(tiny):
    """Matrix products, convolution and attention, two operations a multiply-add."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = make(tiny)
    # The fused attention of CPUs is unknown to the counter, the plain one is not.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.randn(1, 3, 56, 84))
    assert flops(tiny, (56, 84)) == counter.get_total_flops()


@pytest.mark.parametrize(("registers", "percent"), [(4, 1.62), (16, 6.49)])
def test_registers_cost_what_the_closed_form_of_a_block_says(registers, percent):
    """24 N D^2 + 4 N^2 D operations a block: 4 registers cost ViT-L/14 at 224 px 1.62 % more, 16 cost 6.49 %."""

    def block(tokens: int, width: int = 1024) -> int:
        return 24 * tokens * width**2 + 4 * tokens**2 * width

    config = VARIANTS["vitl14"]
    more = flops(config.replace(num_register_tokens=registers), (224, 224)) - flops(config, (224, 224))
    assert more == 24 * (block(257 + registers) - block(257))
    assert 100 * more / (24 * block(257)) == pytest.approx(percent, abs=5e-3)


def test_configurations_that_make_no_sense_are_refused():
    """Before any memory is asked for."""
    good = {"embed_dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64}
    for change, message in [
        ({"num_heads": 3}, "multiple of the heads"),
        ({"depth": 10**6}, "depth is 1000000"),
        ({"embed_dim": 2**20}, "embed_dim"),
        ({"image_size": (10, 518)}, "smaller than one patch"),
        ({"image_size": (100_000, 100_000)}, "number of patches"),
        ({"num_register_tokens": -1}, "num_register_tokens"),
        ({"attention_dropout": 1.0}, "rate"),
        ({"drop_path": (0.1,)}, "one a block"),
        ({"ffn": "moe"}, "ffn"),
        ({"depth": 2.0}, "whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            ViTConfig(**{**good, **change})


def test_unknown_activations_are_refused(tiny):
    """With the list of known ones."""
    with pytest.raises(ValueError, match="gelu_new"):
        VisionTransformer(tiny.replace(activation="gulu"))


def test_resized_positions_give_the_same_tokens_at_that_size(tiny):
    """Resampling once or in each forward is the same; the other parameters are shared."""
    for rule in (tiny.position, OFFSET_PLAIN):
        model = make(tiny.replace(position=rule))
        resized = resize_positions(model, (56, 98))
        images = torch.randn(1, 3, 56, 98)
        assert torch.equal(resized(images).sequence, model(images).sequence)
        assert resized.config.grid == (4, 7)
        assert resized.blocks[0].mlp.fc1.weight is model.blocks[0].mlp.fc1.weight


def test_resizing_positions_keeps_what_is_frozen_frozen(tiny):
    """In the new network and in the one it came from."""
    model = make(tiny).requires_grad_(False)
    model.norm.requires_grad_(True)
    resized = resize_positions(model, (56, 98))
    for network in (model, resized):
        trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert trainable == {"norm.weight", "norm.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_the_model_compiles_as_one_graph(tiny, registers):
    """`torch.compile(fullgraph=True)`, native and other sizes, one graph for all sizes when embedding."""
    model = make(tiny.replace(num_register_tokens=registers))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((70, 70), (56, 98), (84, 70)):
            images = torch.randn(2, 3, *size)
            assert max_error(compiled(images).sequence, model(images).sequence) <= COMPILED


@pytest.mark.slow
def test_training_compiles_as_one_graph(tiny):
    """Gradients too. One graph a size: PyTorch can't trace the gradient of antialiased resampling with free sizes."""
    model = make(tiny)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    for size in ((70, 70), (56, 98)):
        images = torch.randn(2, 3, *size)
        gradients = []
        for network in (compiled, model):
            model.zero_grad()
            network(images).sequence.square().mean().backward()
            gradients.append(model.pos_embed.grad.clone())
        assert max_error(*gradients) <= COMPILED


@pytest.mark.slow
def test_the_model_exports(tiny):
    """`torch.export` gives a program with the same tokens, also with a free batch size."""
    model = make(tiny)
    images = torch.randn(2, 3, 56, 98)
    program = torch.export.export(
        TokenSequence(model), (images,), dynamic_shapes=({0: torch.export.Dim("b", min=1, max=64)},)
    )
    more = torch.randn(5, 3, 56, 98)
    assert max_error(program.module()(more), model(more).sequence) <= COMPILED
    tokens = torch.export.export(model, (images,)).module()(images)
    assert max_error(tokens.sequence, model(images).sequence) <= COMPILED
