"""Teacher's logits to targets: the reference's numbers, where its exponential overflows too, and the teacher's movement."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dinokit.train.targets import (
    TARGET_RULES,
    by_centring,
    by_sinkhorn,
    centred,
    follow,
    mean_of_rows,
    next_center,
    sinkhorn,
)
from tests.train.golden import DTYPES, assert_equal, relative_error


def sinkhorn_by_logarithms(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """The definition, in log space and double precision."""
    q = logits.double() / temperature
    for _ in range(iterations):
        q = q - q.logsumexp(dim=0, keepdim=True)
        q = q - q.logsumexp(dim=1, keepdim=True)
    return q.exp()


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_of_class_tokens_are_the_references(recorded, dtype):
    """Centres of three steps, each used one step after its batch, and both kinds of targets."""
    data = recorded("dino_loss", dtype)
    center = torch.zeros(64, dtype=dtype)
    for step, temperature in enumerate(data["teacher_temps"].tolist()):
        logits = data["teacher_logits"][step].flatten(0, 1)
        assert relative_error(center, data["centers"][step]) <= 1e-6 or step == 0
        targets, center = by_centring(logits, center, temperature, None)
        assert_equal(targets.unflatten(0, (2, 4)), data["probs_centering"][step])
        targets, same = by_sinkhorn(logits, center, temperature, None)
        assert same is center
        assert_equal(targets.unflatten(0, (2, 4)), data["probs_sinkhorn"][step])
    assert_equal(center, data["centers"][3])
    assert_equal(sinkhorn(logits, temperature, 1).unflatten(0, (2, 4)), data["probs_sinkhorn_1_iteration"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_of_masked_patches_are_the_references(recorded, dtype):
    """The number of masked patches differs from step to step."""
    data = recorded("ibot_loss", dtype)
    last = data["teacher_logits"].flatten(0, 1)[data["mask_indices"]]
    center = torch.zeros(40, dtype=dtype)
    steps = [data["teacher_masked_logits_0"], data["teacher_masked_logits_1"], last]
    for step, (logits, temperature) in enumerate(zip(steps, data["teacher_temps"].tolist(), strict=True)):
        assert_equal(centred(logits, center, temperature), data[f"probs_centering_{step}"])
        center = next_center(center, logits)
        assert_equal(center, data["centers"][step + 1])
    assert_equal(sinkhorn(last, temperature), data["probs_sinkhorn"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["shifted", "wide"])
def test_sinkhorn_stays_exact_where_the_exponential_overflows(recorded, kind, dtype):
    """The reference gives NaN here in single precision."""
    data = recorded("dino_loss", dtype)
    logits, temperature = data[f"overflow_{kind}_logits"], data.number("overflow_temp")
    assert not torch.isfinite((logits.float() / temperature).exp()).all()
    assert_equal(sinkhorn(logits, temperature), data[f"overflow_{kind}_probs_sinkhorn"])


def test_a_rows_maximum_may_not_come_off_before_the_first_totals(recorded):
    """Sinkhorn-Knopp begins with the prototypes, so a row's factor matters: off first, targets move by a tenth and more."""
    data = recorded("dino_loss")
    for step, temperature in enumerate(data["teacher_temps"].tolist()):
        logits = data["teacher_logits"][step].flatten(0, 1)
        row_first = sinkhorn(logits - logits.amax(dim=1, keepdim=True), temperature)
        assert relative_error(row_first, data["probs_sinkhorn"][step].flatten(0, 1)) > 0.1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40), prototypes=st.integers(1, 300), spread=st.floats(0.0, 300.0), shift=st.floats(0.0, 300.0),
    seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_sinkhorn_equals_its_definition_for_any_logits(rows, prototypes, spread, shift, seed):
    """Finite, rows sum to 1, and close to log space in double precision, for spreads of thousands of temperatures."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, prototypes, generator=generator)
    logits += shift * torch.randn(rows, 1, generator=generator)
    before = logits.clone()
    z = logits / 0.05  # rounded as single precision must round it
    targets = sinkhorn(z, 1.0)
    assert torch.equal(before, logits)
    assert torch.isfinite(targets).all()
    assert (targets.sum(dim=1) - 1).abs().max() < 1e-5
    # three exponentials of differences, each difference rounded at the size of the scores
    rounding = 1e-5 + 8 * torch.finfo(torch.float32).eps * z.abs().max().item()
    assert (targets - sinkhorn_by_logarithms(z, 1.0)).abs().max() <= rounding


def test_sinkhorn_and_centring_need_no_autocast_and_no_rows():
    """Half precision logits are worked on in single precision; a batch without masked patches is fine."""
    logits = torch.randn(6, 9, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for rule in TARGET_RULES.values():
            targets, center = rule(logits, torch.zeros(9), 0.05, None)
            expected, _ = rule(logits.float(), torch.zeros(9), 0.05, None)
            assert targets.dtype == center.dtype == torch.float32
            assert relative_error(targets, expected) < 1e-6
            empty, kept = rule(logits[:0], torch.arange(9.0), 0.05, None)
            assert empty.shape == (0, 9)
            assert torch.allclose(kept, torch.arange(9.0))
    assert torch.equal(mean_of_rows(logits[:0], torch.arange(9.0), None), torch.arange(9.0))
    assert relative_error(mean_of_rows(logits, torch.zeros(9), None), logits.float().mean(0)) < 1e-6
    with pytest.raises(ValueError, match="iterations is 0"):
        sinkhorn(logits, 0.1, 0)


def test_a_teacher_follows_its_student():
    """t <- m t + (1 - m) s for every parameter, no buffer, and only between networks of one shape of names."""
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        student[1].running_mean.add_(1.0)
    old = {name: tensor.detach().clone() for name, tensor in teacher.named_parameters()}
    follow(teacher, student, 0.9)
    for name, parameter in teacher.named_parameters():
        expected = 0.9 * old[name] + 0.1 * dict(student.named_parameters())[name]
        assert torch.allclose(parameter, expected, atol=1e-6)
    assert not teacher[1].running_mean.any()
    with pytest.raises(ValueError, match="parameter '0\\.bias'"):
        follow(teacher, nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)), 0.9)
