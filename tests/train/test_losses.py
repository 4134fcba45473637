"""DINO, iBOT, KoLeo: the reference's losses and gradients, the lean cross-entropy against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.train.crossentropy import Projection, cross_entropy, plain_cross_entropy
from dinokit.train.losses import dino_loss, ibot_loss, koleo
from tests.train.golden import ACCEPT, DTYPES, NEAR_DUPLICATES, assert_equal, leaves, relative_error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["centering", "sinkhorn"])
def test_dino_loss_is_the_references(recorded, kind, dtype):
    """Both parts and the gradient of every student row, from targets stored by the reference."""
    data = recorded("dino_loss", dtype)
    targets = data[f"probs_{kind}"][2]
    s_global, s_local = leaves(data["student_global_logits"], data["student_local_logits"])
    terms = dino_loss(s_global.flatten(0, 1), s_local.flatten(0, 1), targets)
    sum(terms).backward()
    for ours, part in ((terms.local_crops, "local"), (terms.global_crops, "global")):
        assert_equal(ours, torch.tensor(data.number(f"{kind}_loss_{part}")))
    assert_equal(sum(terms), torch.tensor(data.number(f"{kind}_loss")))
    assert_equal(s_global.grad, data[f"{kind}_grad_student_global"])
    assert_equal(s_local.grad, data[f"{kind}_grad_student_local"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["centering", "sinkhorn"])
def test_cross_entropy_of_each_pair_is_the_references(recorded, kind, dtype):
    """All twenty pairs, those of a crop with itself, too."""
    data = recorded("dino_loss", dtype)
    student = torch.cat([data["student_global_logits"], data["student_local_logits"]])
    weights = torch.full((4,), 0.25, dtype=dtype)
    ours = torch.stack(
        [torch.stack([cross_entropy(s, t, weights, 0.1) for s in student]) for t in data[f"probs_{kind}"][2]]
    )
    assert_equal(ours, data[f"{kind}_pair_ce"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "targets"), [("centering", "probs_centering_2"), ("sinkhorn", "probs_sinkhorn")])
def test_ibot_loss_is_the_references(recorded, kind, targets, dtype):
    """Loss, each token's cross-entropy, and a gradient that is zero where nothing is masked."""
    data = recorded("ibot_loss", dtype)
    (logits,) = leaves(data["student_logits"])
    masked = logits.flatten(0, 1)[data["mask_indices"]]
    weights = 1.0 / data["masks"].sum(dim=1).clamp(min=1).repeat_interleave(data["masks"].sum(dim=1)).to(dtype)
    assert relative_error(weights, data["masks_weight"]) < 1e-6
    loss = ibot_loss(masked, data[targets], weights, num_crops=6)
    loss.backward()
    for name in ("loss", "loss_weights_from_masks", "loss_dense"):
        assert_equal(loss, torch.tensor(data.number(f"{kind}_{name}")))
    assert_equal(logits.grad, data[f"{kind}_grad_student"])
    assert not logits.grad[~data["masks"]].any()
    pairs = zip(masked, data[targets], strict=True)
    tokens = torch.stack([cross_entropy(s[None], t[None], weights.new_ones(1), 0.1) for s, t in pairs])
    assert_equal(tokens, data[f"{kind}_token_ce"])


def test_a_batch_without_masks_has_no_ibot_loss(recorded):
    """0, not NaN, with a gradient of 0 for every parameter behind it, from logits and from features."""
    features, prototypes, logits = leaves(torch.randn(0, 5), torch.randn(7, 5), torch.randn(0, 7))
    for scores in (Projection(features, prototypes), logits):
        loss = ibot_loss(scores, torch.zeros(0, 7), torch.zeros(0), num_crops=4)
        assert loss.item() == recorded("ibot_loss").number("loss_without_any_mask") == 0.0
        loss.backward()
    assert torch.equal(prototypes.grad, torch.zeros(7, 5))


KOLEO_CASES = ["random_2", "random_3", "random_8", "random_16", "near_duplicates", "exact_duplicates"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", KOLEO_CASES)
def test_koleo_is_the_references(recorded, case, dtype):
    """Near and exact duplicates, too, where the gradient is steep."""
    data = recorded("koleo", dtype)
    (x,) = leaves(data[f"{case}/x"])
    loss = koleo(x)
    loss.backward()
    assert_equal(loss, torch.tensor(data.number(f"{case}/loss")))
    accept = NEAR_DUPLICATES[dtype] if case == "near_duplicates" else ACCEPT[dtype]
    assert_equal(x.grad, data[f"{case}/grad"], accept)


def test_koleo_has_its_epsilons_in_half_precision():
    """Duplicates in float16 give a finite loss and gradient, under autocast too; the official code's do not."""
    x = torch.randn(6, 16)
    x[5] = x[0]
    for dtype in (torch.float16, torch.bfloat16):
        (half,) = leaves(x.to(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = koleo(half)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(koleo(half.float()).item(), rel=1e-6)
        assert torch.isfinite(half.grad).all()


def test_koleo_of_one_image_is_left_out():
    """0 with zero gradients, instead of the constant 17 of an image paired with itself."""
    for rows in (0, 1):
        (x,) = leaves(torch.randn(rows, 8))
        loss = koleo(x)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(x.grad, torch.zeros(rows, 8))


def test_koleo_over_several_neighbours_is_the_mean_of_their_logarithms():
    """By brute force over sorted distances; more neighbours than rows means all of them."""
    x = torch.randn(7, 5, dtype=torch.float64)
    u = x / x.norm(dim=1, keepdim=True)
    distances = torch.cdist(u, u).sort(dim=1).values[:, 1:]
    for k in (1, 3, 6, 20):
        assert koleo(x, neighbours=k).item() == pytest.approx(-distances[:, :k].log().mean().item(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9), repeats=st.integers(1, 4), prototypes=st.integers(1, 20), chunk=st.integers(1, 12),
    scale=st.floats(0.01, 200.0), seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_lean_cross_entropy_equals_the_plain_one(rows, repeats, prototypes, chunk, scale, seed):
    """Value and all gradients, from logits and from features, for any chunk, in double precision."""
    torch.manual_seed(seed)
    features, weight = torch.randn(rows * repeats, 6).double(), torch.randn(prototypes, 6).double() * scale
    targets = torch.rand(rows, prototypes).double() * 2
    weights = torch.randn(rows * repeats).double()
    (f0, w0), (f1, w1), (f2, w2) = leaves(features, weight), leaves(features, weight), leaves(features, weight)
    logits = f1 @ w1.T
    losses = [
        plain_cross_entropy(Projection(f0, w0), targets, weights, 0.3),
        cross_entropy(logits, targets, weights, 0.3, chunk_rows=chunk),
        cross_entropy(Projection(f2, w2), targets, weights, 0.3, chunk_rows=chunk),
    ]
    for loss in losses:
        (loss * 1.7).backward()
    for loss, f, w in zip(losses[1:], (f1, f2), (w1, w2), strict=True):
        assert loss.item() == pytest.approx(losses[0].item(), rel=1e-9, abs=1e-9 * scale)
        assert relative_error(f.grad, f0.grad) < 1e-9 or f0.grad.abs().max() < 1e-12 * scale
        assert relative_error(w.grad, w0.grad) < 1e-9 or w0.grad.abs().max() < 1e-12


def test_under_autocast_only_the_product_is_in_half_precision():
    """Loss in single precision, gradients in the precision of what they belong to, close to those without autocast."""
    features, prototypes = torch.randn(12, 32), torch.randn(50, 32)
    features /= features.norm(dim=1, keepdim=True)
    prototypes /= prototypes.norm(dim=1, keepdim=True)
    targets, weights = torch.randn(6, 50).softmax(-1), torch.full((12,), 1 / 12)
    (f, w), (f32, w32) = leaves(features, prototypes), leaves(features, prototypes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(Projection(f, w), targets, weights, 0.1)
    loss.backward()
    reference = cross_entropy(Projection(f32, w32), targets, weights, 0.1)
    reference.backward()
    assert loss.dtype == f.grad.dtype == w.grad.dtype == torch.float32
    assert abs(loss.item() - reference.item()) < 0.02
    assert relative_error(f.grad, f32.grad) < 0.05
    assert relative_error(w.grad, w32.grad) < 0.05
    assert loss.item() != reference.item()


def test_float16_is_no_precision_for_unscaled_gradients():
    """Under autocast to float16 products stay in single precision: tiny weights leave gradients as they are."""
    features, prototypes = torch.randn(12, 8), torch.randn(300, 8)
    targets, weights = torch.randn(6, 300).softmax(-1), torch.full((12,), 1e-6)
    (f, w), (f32, w32) = leaves(features, prototypes), leaves(features, prototypes)
    with torch.autocast("cpu", dtype=torch.float16):
        cross_entropy(Projection(f, w), targets, weights, 0.1).backward()
    cross_entropy(Projection(f32, w32), targets, weights, 0.1).backward()
    assert torch.equal(f.grad, f32.grad)
    assert torch.equal(w.grad, w32.grad)


def test_only_what_fits_is_accepted():
    """Rows that are no whole number of repetitions, weights that are too few, three global crops."""
    with pytest.raises(ValueError, match="5 rows of scores, 2 of targets, 5 weights"):
        cross_entropy(torch.randn(5, 3), torch.rand(2, 3), torch.ones(5), 0.1)
    with pytest.raises(ValueError, match="4 weights"):
        cross_entropy(torch.randn(6, 3), torch.rand(2, 3), torch.ones(4), 0.1)
    with pytest.raises(ValueError, match="two global crops"):
        dino_loss(torch.randn(6, 3), torch.randn(8, 3), torch.rand(3, 2, 3))


def test_without_gradients_none_are_formed():
    """Evaluation of the loss keeps nothing."""
    f, w = leaves(torch.randn(4, 5), torch.randn(6, 5))
    with torch.no_grad():
        loss = cross_entropy(Projection(f, w), torch.rand(4, 6), torch.ones(4), 0.1)
    assert loss.grad_fn is None
