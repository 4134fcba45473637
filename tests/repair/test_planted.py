"""Repairs on the planted model, where every number has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinokit.analysis.planted import (
    LOCKED,
    OUTLIER_BLOCK,
    OUTLIER_NORM,
    READOUT_CHANNEL,
    REGISTER_NEURONS,
    direction,
    planted,
    planted_image,
)
from dinokit.model import VisionTransformer, attention_weights, hidden_states
from dinokit.repair import (
    AttentionBias,
    Denoised,
    MaskedKeys,
    MovedOutliers,
    NeighbourMedian,
    TestTimeRegisters,
    calibrate,
    mean_keys_and_values,
    rank_neurons,
    without_registers,
)
from dinokit.repair.form import robust_outliers
from tests.tolerances import CLOSED_FORM

REGISTER_NORM = math.hypot(300, 40)


def model_of(num_registers: int = 0, **options) -> VisionTransformer:
    config, weights = planted(num_registers, **options)
    model = VisionTransformer(config).eval()
    model.load_state_dict(weights)
    return model


def last(model: VisionTransformer, images: Tensor) -> Tensor:
    with torch.no_grad():
        return hidden_states(model, images)[-1]


def written(model: VisionTransformer, images: Tensor) -> Tensor:
    """The sequence after the block that writes the outliers."""
    with torch.no_grad():
        return hidden_states(model, images)[OUTLIER_BLOCK + 1]


def patch_norms(model: VisionTransformer, images: Tensor) -> Tensor:
    return written(model, images)[:, model.config.num_prefix_tokens :].norm(dim=-1)


def outliers(model: VisionTransformer, images: Tensor) -> set[int]:
    return set(robust_outliers(patch_norms(model, images), 4.0)[0].nonzero().flatten().tolist())


@pytest.fixture
def model() -> VisionTransformer:
    return model_of()


@pytest.fixture
def image() -> Tensor:
    return planted_image((3, 9))


def test_neurons_are_ranked_by_their_activation_at_outliers(model, image):
    """(3,5) 39.46, (2,11) 25, (2,3) 20, (2,7) 8, and no others (row P5)."""
    ranked, found, images = rank_neurons(
        model, [image], outliers=lambda norms: robust_outliers(norms, 4.0), sparse=False
    )
    assert (found, images) == (2, 1)
    expected = {(3, 5): 39.46, (2, 11): 25.0, (2, 3): 20.0, (2, 7): 8.0}
    assert [neuron for neuron, _ in ranked] == list(expected)
    for neuron, score in ranked:
        assert score == pytest.approx(expected[neuron], abs=5e-3)


def test_filters_leave_the_neurons_that_write_the_outliers(model, image):
    """Sparse: not the one that fires everywhere. Up to the block of the outliers: not the one that follows them (row P6)."""
    found = calibrate(model, [image])
    assert found.neurons == ((3, 5), *REGISTER_NEURONS)
    found = calibrate(model, [image], top_block=2)
    assert found.neurons == REGISTER_NEURONS
    assert found.scores == pytest.approx((20.0, 8.0), abs=1e-4)
    assert (found.num_images, found.num_outliers, found.image_size) == (1, 2, (16, 16))


def test_calibrating_on_clean_images_says_that_nothing_is_to_repair(model):
    """No outliers, no neurons, no silent default."""
    with pytest.raises(ValueError, match="needs no repair"):
        calibrate(model, [planted_image(())])
    with pytest.raises(ValueError, match="no images"):
        calibrate(model, [])


@pytest.mark.parametrize("registers", [0, 2])
def test_a_test_time_register_takes_the_norm_and_the_attention(image, registers):
    """Its norm is hypot(300, 40); patches are clean at 8; the class token attends to it with 0.95747 (row P7)."""
    model = model_of(registers)
    if registers:  # the planted register is an outlier of its own; take it out to see the added one alone
        model.register_tokens.data[:, 0] = model.register_tokens.data[:, 1]
    form = TestTimeRegisters(model, REGISTER_NEURONS)
    added = 1 + registers
    states = written(form, image)
    assert states[0, added].norm().item() == pytest.approx(REGISTER_NORM, abs=1e-3)
    assert patch_norms(form, image).max().item() == pytest.approx(8.0, abs=1e-4)
    with torch.no_grad():
        weights = attention_weights(form, image, [3])[0][0, 0, 0]
    others = form.config.num_prefix_tokens - 1 + 16
    sink = math.exp(6 * 300 / REGISTER_NORM)
    assert weights[added].item() == pytest.approx(sink / (sink + others), abs=CLOSED_FORM)
    if not registers:
        assert weights[added].item() == pytest.approx(0.95747, abs=1e-5)
        assert weights[2:].max().item() <= 0.00251


def test_quirk_the_reference_writes_one_value_into_all_neurons(model, image):
    """Norm hypot(300, 100) instead of hypot(300, 40); only on request (row P8)."""
    form = TestTimeRegisters(model, REGISTER_NEURONS, mode="reference")
    assert written(form, image)[0, 1].norm().item() == pytest.approx(316.228, abs=1e-3)


def test_every_image_of_a_batch_is_repaired(model):
    """Item 1 is the same as alone, bit for bit on its norms, though its outliers are elsewhere (row P9)."""
    both = torch.cat([planted_image((3, 9)), planted_image((0, 5, 14))])
    form = TestTimeRegisters(model, REGISTER_NEURONS)
    assert torch.equal(last(form, both)[1], last(form, both[1:])[0])
    assert patch_norms(form, both).max().item() == pytest.approx(8.0, abs=1e-4)
    assert patch_norms(model, both)[1].max().item() == pytest.approx(OUTLIER_NORM, abs=1e-3)


def test_zeroing_loses_what_shifting_keeps(model, image):
    """The class token's read-out: 0.9718 as it is, 0 zeroed, 0.9491 shifted (row P10)."""

    def readout(form: VisionTransformer) -> float:
        return last(form, image)[0, 0, READOUT_CHANNEL].item()

    assert readout(model) == pytest.approx(0.9718, abs=5e-5)
    assert readout(TestTimeRegisters(model, REGISTER_NEURONS, mode="zero")) == pytest.approx(0.0, abs=1e-6)
    assert readout(TestTimeRegisters(model, REGISTER_NEURONS)) == pytest.approx(0.9491, abs=5e-5)


def test_the_bias_equals_the_register_on_all_other_tokens(model, image):
    """Class token and patches as with the added token; no norm above 8.11 anywhere (row P11)."""
    pairs = mean_keys_and_values(model, REGISTER_NEURONS, [image])
    bias, register = AttentionBias(model, REGISTER_NEURONS, pairs), TestTimeRegisters(model, REGISTER_NEURONS)
    with_token = last(register, image)
    without = torch.cat([with_token[:, :1], with_token[:, 2:]], dim=1)
    assert (last(bias, image) - without).abs().max().item() <= 1e-5
    with torch.no_grad():
        largest = max(state.norm(dim=-1).max().item() for state in hidden_states(bias, image))
    assert largest == pytest.approx(8.11, abs=5e-3)


def test_outliers_appear_where_they_are_sent(model, image):
    """Moved to patch 12, there is exactly one, of the full norm (row P12)."""
    form = MovedOutliers(model, REGISTER_NEURONS, [12])
    assert outliers(form, image) == {12}
    assert patch_norms(form, image)[0, 12].item() == pytest.approx(OUTLIER_NORM, abs=1e-3)


def test_random_neurons_change_nothing(model, image):
    """The outliers stay at 3 and 9 (row P16)."""
    assert outliers(TestTimeRegisters(model, [(2, 4), (2, 20)]), image) == outliers(model, image) == {3, 9}


def test_denoising_leaves_an_nth_of_what_is_locked_to_a_place():
    """An artefact of length 10 at one position: 10/5 at each of the five places where it lands, nothing elsewhere (row P17)."""
    model = model_of(locked={5: 10.0})
    flat = planted_image((), codes=[0] * 16)

    def locked_part(form: VisionTransformer) -> Tensor:
        # the final norm is the identity up to a factor, which undoing keeps the sums of tokens linear
        form.norm = torch.nn.Identity()
        with torch.no_grad():
            return (form(flat).patches[0] @ direction(LOCKED).float()).reshape(4, 4)

    plain = locked_part(model_of(locked={5: 10.0}))
    assert plain.nonzero().tolist() == [[1, 1]]
    assert plain[1, 1].item() == pytest.approx(10.0, abs=1e-4)
    averaged = locked_part(Denoised(model, shifts=[(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]))
    landing = {(1, 1), (1, 0), (0, 1), (1, 2), (2, 1)}
    for row in range(4):
        for column in range(4):
            valid = sum(
                0 <= row + down < 4 and 0 <= column + right < 4
                for down, right in [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
            )
            expected = 10.0 / valid if (row, column) in landing else 0.0
            assert averaged[row, column].item() == pytest.approx(expected, abs=1e-4), (row, column)
    assert averaged[1, 1].item() == pytest.approx(2.0, abs=1e-4)


def test_dropping_the_register_that_holds_the_artefact_spreads_attention_again():
    """With it 0.95739 of the class token's attention, without it 1/17 for each token (row P18)."""
    model, clean = model_of(1), planted_image(())
    with torch.no_grad():
        weights = attention_weights(model, clean, [3])[0][0, 0, 0]
        dropped = attention_weights(without_registers(model), clean, [3])[0][0, 0, 0]
    assert weights[1].item() == pytest.approx(0.95739, abs=1e-5)
    assert dropped.tolist() == pytest.approx([1 / 17] * 17, abs=1e-6)
    assert written(model, clean)[0, 1].norm().item() == pytest.approx(302.7604, abs=1e-3)


def test_masked_keys_draw_no_attention_and_keep_their_norm(model, image):
    """Weights at the outliers are 0 in the last block; the norms stay, as this repairs attention alone."""
    form = MaskedKeys(model)
    with torch.no_grad():
        weights = attention_weights(form, image, [3])[0]
    assert weights[..., [1 + 3, 1 + 9]].max().item() == 0.0
    assert outliers(form, image) == {3, 9}


def test_the_median_of_neighbours_hides_outliers(model, image):
    """Nothing stands out afterwards; the other patches have the same bits."""
    form = NeighbourMedian(model)
    assert robust_outliers(last(model, image)[:, 1:].norm(dim=-1), 4.0).sum() == 2
    assert robust_outliers(last(form, image)[:, 1:].norm(dim=-1), 4.0).sum() == 0
    others = [1 + i for i in range(16) if i not in (3, 9)]
    assert torch.equal(last(form, image)[:, others], last(model, image)[:, others])


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_bfloat16_finds_the_same_neurons_and_outliers(size):
    """Half precision changes digits, not conclusions."""
    image = planted_image((3, 9), grid=(size[0] // 4, size[1] // 4))
    model = model_of()
    half = model_of().bfloat16()
    assert outliers(model, image) == outliers(half, image.bfloat16()) == {3, 9}
    assert calibrate(half, [image.bfloat16()], top_block=2).neurons == REGISTER_NEURONS
    assert outliers(TestTimeRegisters(half, REGISTER_NEURONS), image.bfloat16()) == set()
