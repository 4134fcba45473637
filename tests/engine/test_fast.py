"""The fast form of a network gives what the network gives, by every technique, and leaves the network alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dinokit import native
from dinokit.engine import FastTransformer, Machine, Plan, decide, optimize
from dinokit.engine.linears import REPACK_AFTER, Int8Linear, MklLinear
from dinokit.model import VisionTransformer, attention_weights, hidden_states, intermediate_tokens
from dinokit.model.capture import capture
from dinokit.repair import AttentionBias, MaskedKeys, NeighbourAttention, TestTimeRegisters, mean_keys_and_values
from tests.model.test_vit import make
from tests.tolerances import FAST, INT8_COSINE, INT8_GATED_COSINE, INT16_COSINE, REDUCED_COSINE, max_error

SIZES = [(70, 70), (56, 98)]
EXACT_PLANS = {
    "plain": Plan(),
    "in place": Plan(in_place=True),
    "mkl": Plan(linear="mkl"),
    "padded": Plan(pad_tokens=16),
    "padded in place": Plan(pad_tokens=16, in_place=True),
    "avx2": Plan(linear="avx2", in_place=True),
}
needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")


@pytest.fixture(params=EXACT_PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    """Each float32 technique in turn."""
    if request.param == "mkl" and not torch.backends.mkl.is_available():
        pytest.skip("this PyTorch has no MKL")
    if request.param == "avx2" and not native.available():
        pytest.skip(native.missing())
    return EXACT_PLANS[request.param]


@pytest.fixture
def onednn_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's two operators in plain words where this CPU lacks the instructions that they insist on."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, _: weight)
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", _linear_pointwise)


def _linear_pointwise(x, weight, bias, after, scalars, algorithm):
    assert (after, scalars, algorithm) in (("none", [], ""), ("gelu", [], "none"))
    y = F.linear(x, weight, bias)
    return F.gelu(y) if after == "gelu" else y


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("registers", [0, 1, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_float32_techniques_give_the_same_tokens(tiny, plan, registers, ffn, size):
    """Packed, padded, in place, with cached positions or without: one result, also with masked patches and heads."""
    model = make(tiny.replace(num_register_tokens=registers, ffn=ffn, depth=3))
    fast, images = optimize(model, plan=plan), torch.randn(3, 3, *size)
    grid = model.grid_of(*size)
    masks = torch.rand(3, grid[0] * grid[1]) < 0.3
    head_mask = torch.rand(3, 2)
    with torch.no_grad():
        for given in [(images,), (images[:1],), (images, masks), (images, masks, head_mask)]:
            got, expected = fast(*given), model(*given)
            assert (got.num_registers, got.grid) == (expected.num_registers, expected.grid)
            assert max_error(got.sequence, expected.sequence) <= FAST


def test_everything_that_is_read_from_a_network_is_read_from_its_fast_form(tiny, plan):
    """Hidden states, intermediate tokens, attention, queries, keys, values and neurons; none overwritten by later blocks."""
    model = make(tiny.replace(depth=3))
    fast, images = optimize(model, plan=plan), torch.randn(2, 3, 56, 98)
    with torch.no_grad():
        for got, expected in zip(hidden_states(fast, images), hidden_states(model, images), strict=True):
            assert max_error(got, expected) <= FAST
        for a, b in zip(intermediate_tokens(fast, images, 2), intermediate_tokens(model, images, 2), strict=True):
            assert max_error(a.sequence, b.sequence) <= FAST
        for a, b in zip(attention_weights(fast, images, [0, 2]), attention_weights(model, images, [0, 2]), strict=True):
            assert max_error(a, b) <= FAST
        wanted = {"residual": "all", "normed": [-1], "q": [0], "k": [1], "v": [2], "attention": [1], "mlp": [0, 2]}
        got, expected = capture(fast, images, **wanted), capture(model, images, **wanted)
        for name in wanted:
            for index, value in getattr(expected, name).items():
                assert max_error(getattr(got, name)[index], value) <= FAST, (name, index)


def test_a_batch_equals_its_single_images(tiny, plan):
    """Within float32's rounding."""
    fast, images = optimize(make(tiny), plan=plan), torch.randn(5, 3, 70, 70)
    together = fast(images).sequence
    for image, tokens in zip(images, together, strict=True):
        assert max_error(fast(image[None]).sequence[0], tokens) <= FAST


def test_the_network_it_came_from_is_not_touched(tiny, plan):
    """The same bits before and after, and no shared state: editing the network does not change its fast form."""
    model, images = make(tiny), torch.randn(2, 3, 70, 70)
    before = model(images).sequence
    fast = optimize(model, plan=plan)
    first = fast(images).sequence
    assert torch.equal(model(images).sequence, before)
    assert torch.equal(fast(images).sequence, first)
    assert not images.isnan().any()


@pytest.mark.parametrize("padded", [1, 16])
@pytest.mark.parametrize("residual", [None, torch.float32])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_bfloat16_keeps_every_token_s_direction(tiny, onednn_by_hand, padded, residual, ffn):
    """Each token's cosine to float32's stays above the bound, with a bfloat16 or a float32 residual stream."""
    model = make(tiny.replace(ffn=ffn, depth=3))
    machine = Machine(bf16=True, amx=padded > 1, onednn=True)
    plan = decide(machine, "bfloat16", residual=residual)
    assert (plan.linear, plan.pad_tokens) == ("onednn", padded)
    images = torch.randn(2, 3, 56, 98)
    tokens = optimize(model, plan=plan)(images)
    assert tokens.sequence.dtype == torch.bfloat16
    cosine = F.cosine_similarity(tokens.sequence.float(), model(images).sequence, dim=-1)
    assert cosine.min() >= REDUCED_COSINE[torch.bfloat16]


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no 8-bit matrices here")
def test_int8_is_close_and_one_loud_token_does_not_drown_the_others(tiny):
    """Scales are a token's own: a token a thousand times larger leaves the others' precision as it was."""
    layer_weight, bias = torch.randn(48, 64), torch.randn(48)
    layer = Int8Linear(layer_weight, bias, reduce_range=True)
    x = torch.randn(1, 20, 64)
    quiet = layer(x)
    x[0, 7] *= 1000
    assert max_error(layer(x)[0, :7], quiet[0, :7]) == 0
    assert F.cosine_similarity(layer(x), F.linear(x, layer_weight, bias), dim=-1).min() >= INT8_COSINE
    model, images = make(tiny), torch.randn(2, 3, 70, 70)
    fast = optimize(model, plan=Plan(linear="int8"))
    got = fast(images).sequence
    assert torch.equal(fast(images[1:]).sequence, got[1:])
    assert F.cosine_similarity(got, model(images).sequence, dim=-1).min() >= INT8_COSINE


@pytest.mark.skipif(not native.available(), reason=native.missing())
@pytest.mark.parametrize(
    ("asked", "ffn", "cosine"),
    [
        ("int16", "mlp", INT16_COSINE),
        ("int16", "swiglu", INT16_COSINE),
        ("int8", "mlp", INT8_COSINE),
        ("int8", "swiglu", INT8_GATED_COSINE),
    ],
)
def test_kernels_with_integers_keep_every_token_s_direction(tiny, asked, ffn, cosine):
    """Plain or repaired, with masked patches and heads, of an image as of its batch to the bit."""
    plan = Plan(linear=f"avx2-{asked}", in_place=True)
    model, images = make(tiny.replace(ffn=ffn, depth=3)), torch.randn(3, 3, 56, 98)
    fast, masks, head_mask = optimize(model, plan=plan), torch.rand(3, 28) < 0.3, torch.rand(3, 2)
    with torch.no_grad():
        for given in [(images,), (images, masks), (images, masks, head_mask)]:
            got, expected = fast(*given).sequence, model(*given).sequence
            assert F.cosine_similarity(got, expected, dim=-1).min() >= cosine
            assert not torch.equal(got, optimize(model, plan=EXACT_PLANS["avx2"])(*given).sequence)
        assert torch.equal(fast(images[1:2]).sequence, fast(images).sequence[1:2])
        for got, expected in zip(hidden_states(fast, images), hidden_states(model, images), strict=True):
            assert F.cosine_similarity(got, expected, dim=-1).min() >= cosine
        repaired = TestTimeRegisters(model, [(0, 5), (1, 7)]).eval()
        got, expected = optimize(repaired, plan=plan)(images).sequence, repaired(images).sequence
        assert F.cosine_similarity(got, expected, dim=-1).min() >= cosine


@pytest.mark.skipif(not native.available(), reason=native.missing())
def test_heads_that_kernels_do_not_take_are_left_to_pytorch(tiny):
    """Widths that are no multiple of 16."""
    model, images = make(tiny.replace(embed_dim=48, num_heads=2)), torch.randn(2, 3, 70, 70)
    fast = optimize(model, plan=EXACT_PLANS["avx2"])
    assert not fast.blocks[0].attn.kernels
    with torch.no_grad():
        assert max_error(fast(images).sequence, model(images).sequence) <= FAST


@needs_mkl
def test_packed_weights_follow_the_number_of_rows():
    """Whatever order of row counts comes, the result is right; weights are packed again only for one that stays."""
    weight, bias = torch.randn(8, 16), torch.randn(8)
    layer = MklLinear(weight, bias)
    for rows in [4, 4, 9, 4, 9, 9, 9, 9, 1, 4]:
        x = torch.randn(rows, 16)
        assert max_error(layer(x), F.linear(x, weight, bias)) <= FAST
        assert layer._packed is not None
    assert layer._packed[0] == 9
    assert REPACK_AFTER == 3


@pytest.mark.parametrize("form", ["registers", "bias", "masked", "neighbours"])
def test_a_repaired_form_stays_repaired_and_becomes_fast(tiny, plan, form):
    """Its tokens are those of the slow repaired form."""
    model = make(tiny)
    images = torch.randn(2, 3, 70, 70)
    neurons = [(0, 5), (1, 7)]
    forms = {
        "registers": lambda: TestTimeRegisters(model, neurons),
        "bias": lambda: AttentionBias(model, neurons, mean_keys_and_values(model, neurons, [images])),
        "masked": lambda: MaskedKeys(model, factor=1.0),
        "neighbours": lambda: NeighbourAttention(model),
    }
    repaired = forms[form]().eval()
    fast = optimize(repaired, plan=plan)
    assert type(fast) is type(repaired)
    with torch.no_grad():
        assert max_error(fast(images).sequence, repaired(images).sequence) <= FAST
        assert max_error(repaired(images).sequence, forms[form]().eval()(images).sequence) == 0


def test_what_a_fast_form_cannot_do_it_refuses(tiny):
    """Training, hooks, gradients, moving, saving, and being optimized twice: each with the way out."""
    model = make(tiny)
    with pytest.raises(ValueError, match=r"call \.eval\(\) first"):
        optimize(make(tiny).train())
    hooked = make(tiny)
    hooked.blocks[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp has hooks"):
        optimize(hooked)
    fast = optimize(model)
    assert isinstance(fast, FastTransformer)
    with pytest.raises(ValueError, match="fast form already"):
        optimize(fast)
    with pytest.raises(ValueError, match="can't be trained"):
        fast.train()
    with pytest.raises(ValueError, match="moved or cast"):
        fast.double()
    with pytest.raises(ValueError, match="can't be saved"):
        fast.state_dict()
    with pytest.raises(ValueError, match="no gradients"):
        fast.embed(torch.randn(1, 3, 70, 70, requires_grad=True))
    with pytest.raises(ValueError, match="expected \\(batch, 3"):
        fast(torch.randn(1, 4, 70, 70))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_the_compiled_plan_gives_the_same_tokens(tiny):
    """Blocks through torch.compile, any batch."""
    model = make(tiny.replace(depth=1))
    fast = optimize(model, compiled=True)
    assert isinstance(fast, VisionTransformer)
    images = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        assert max_error(fast(images).sequence, model(images).sequence) <= FAST
