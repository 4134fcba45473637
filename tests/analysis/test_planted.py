"""The planted model: the closed forms that its documentation states (rows P1, P4, P5, P6, P13, P18)."""

from __future__ import annotations

import math

import pytest
import torch

from dinokit.analysis.planted import (
    OUTLIER_BLOCK,
    OUTLIER_NORM,
    READOUT_CHANNEL,
    REGISTER_NEURONS,
    direction,
    planted,
    planted_image,
)
from dinokit.model import VisionTransformer, attention_weights, hidden_states
from tests.tolerances import CLOSED_FORM, max_error

PLANTED_NORM = 1e-4  # float32 at a norm of 300


def planted_model(num_registers: int = 0, **options: object) -> VisionTransformer:
    config, weights = planted(num_registers, **options)
    model = VisionTransformer(config).eval()
    model.load_state_dict(weights)
    return model.requires_grad_(False)


def test_outliers_have_the_norm_of_the_closed_form_from_block_2_on():
    """Before it all norms are 8.0; after it two patches are at 302.7606 and the others where they were."""
    states = hidden_states(planted_model(), planted_image({3, 9}))
    norms = [state[0, 1:].norm(dim=-1) for state in states]
    for before in norms[: OUTLIER_BLOCK + 1]:
        assert max_error(before, torch.full((16,), 8.0)) <= CLOSED_FORM
    after = norms[OUTLIER_BLOCK + 1]
    assert (after > 100).nonzero().flatten().tolist() == [3, 9]
    assert max_error(after[[3, 9]], torch.full((2,), 302.7606)) <= PLANTED_NORM
    assert math.sqrt(64 + 300**2 + 40**2) == OUTLIER_NORM
    assert after[after < 100].max().item() == pytest.approx(8.0, abs=CLOSED_FORM)


def test_attention_drains_into_the_outliers():
    """The class token gives each of the two 0.49037 in the last block, in both heads; earlier blocks look everywhere alike."""
    weights = attention_weights(planted_model(), planted_image({3, 9}), 4)
    c = 300 / OUTLIER_NORM
    expected = math.exp(6 * c) / (2 * math.exp(6 * c) + 15)
    assert expected == pytest.approx(0.49037, abs=5e-6)
    for head in range(2):
        assert max_error(weights[3][0, head, 0, [4, 10]], torch.full((2,), expected)) <= CLOSED_FORM
    for early in weights[:3]:
        assert max_error(early, torch.full_like(early, 1 / 17)) <= CLOSED_FORM


def test_the_class_token_reads_what_attention_gathered():
    """0.9718 in its read-out channel, 0 where nothing is planted."""
    model = planted_model()
    gathered = hidden_states(model, planted_image({3, 9}))[-1][0, 0, READOUT_CHANNEL].item()
    assert gathered == pytest.approx(0.9718, abs=5e-5)
    assert hidden_states(model, planted_image(()))[-1][0, 0, READOUT_CHANNEL].abs().item() < CLOSED_FORM


def test_neurons_at_outliers_are_ranked_as_stated():
    """(3, 5) 39.46, (2, 11) 25, (2, 3) 20, (2, 7) 8; without the dense one and the late one the two writers are on top."""
    model, image = planted_model(), planted_image({3, 9})
    states = hidden_states(model, image)
    score, everywhere = {}, {}
    for index, block in enumerate(model.blocks):
        hidden = block.mlp.neurons(block.norm2(block.attend(states[index])))[0, 1:]
        for neuron in range(hidden.shape[1]):
            score[index, neuron] = hidden[[3, 9], neuron].mean().item()
            everywhere[index, neuron] = (hidden[:, neuron].abs() < 0.5).float().mean().item()
    ranked = sorted(score, key=score.get, reverse=True)
    assert ranked[:4] == [(3, 5), (2, 11), (2, 3), (2, 7)]
    assert [score[at] for at in ranked[:4]] == pytest.approx([39.46, 25, 20, 8], abs=5e-3)
    sparse = [at for at in ranked if everywhere[at] >= 0.5]
    assert (2, 11) not in sparse[:3]
    assert tuple(at for at in sparse if at[0] <= 2)[:2] == REGISTER_NEURONS


def test_a_real_register_takes_the_place_of_the_outliers():
    """Patches stay at 8.0, the register is at 302.7606 and draws 0.95739; dropped, attention is uniform again (1/17)."""
    model, image = planted_model(1), planted_image(())
    state = hidden_states(model, image)[OUTLIER_BLOCK + 1][0]
    assert state[1].norm().item() == pytest.approx(302.7606, abs=PLANTED_NORM)
    assert max_error(state[2:].norm(dim=-1), torch.full((16,), 8.0)) <= CLOSED_FORM
    assert attention_weights(model, image)[0][0, 0, 0, 1].item() == pytest.approx(0.95739, abs=5e-6)
    without = attention_weights(planted_model(0), image)[0]
    assert max_error(without, torch.full_like(without, 1 / 17)) <= CLOSED_FORM


def test_after_the_final_norm_every_token_has_the_same_norm():
    """8.0, which is why norms are measured before it."""
    norms = planted_model()(planted_image({3, 9})).sequence.norm(dim=-1)
    assert max_error(norms, torch.full_like(norms, 8.0)) <= CLOSED_FORM


@pytest.mark.parametrize("registers", [0, 1, 4, 8, 9])
@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (6, 2)])
def test_the_marked_patches_are_the_outliers_with_any_registers_and_grid(registers, grid):
    """Square or not, and one register at most is an outlier itself."""
    state = hidden_states(planted_model(registers), planted_image({1, 11}, grid))[-1][0]
    high = (state.norm(dim=-1) > 100).nonzero().flatten().tolist()
    first = 1 + registers
    assert high == ([1] if registers else []) + [first + 1, first + 11]


def test_permuting_registers_permutes_them_and_changes_nothing_else():
    """Registers have no place in the image."""
    model, image = planted_model(4), planted_image({5})
    before = model(image)
    order = [2, 0, 3, 1]
    model.register_tokens.data = model.register_tokens.data[:, order]
    after = model(image)
    assert max_error(after.registers, before.registers[:, order]) <= CLOSED_FORM
    assert max_error(after.patches, before.patches) <= CLOSED_FORM
    assert max_error(after.cls, before.cls) <= CLOSED_FORM


def test_locked_positions_carry_their_vector_whatever_the_image():
    """An artefact of the place, for denoising by shifts."""
    model = planted_model(locked={6: 10.0})
    for image in (planted_image(()), planted_image({2})):
        tokens = hidden_states(model, image)[0][0, 1:].double()
        along = tokens @ direction(6)
        assert max_error(along, torch.eye(16, dtype=torch.float64)[6] * 10) <= CLOSED_FORM


def test_what_can_not_be_planted_is_refused():
    """With what can be."""
    with pytest.raises(ValueError, match="0 to 9"):
        planted(10)
    with pytest.raises(ValueError, match="0 to 15"):
        planted(locked={16: 1.0})
    with pytest.raises(ValueError, match="0 to 15"):
        planted_image({16})
    with pytest.raises(ValueError, match="one a patch"):
        planted_image((), codes=[1, 2])
