"""Repaired forms of any network: what they share, what they leave alone, and that they are networks like any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import dinokit
from dinokit.errors import OutputError, WeightsError
from dinokit.model import VisionTransformer, attention_weights, hidden_states, resize_positions
from dinokit.repair import (
    ABLATIONS,
    AblatedRegisters,
    AttentionBias,
    Calibration,
    Denoised,
    MaskedKeys,
    MovedOutliers,
    NeighbourAttention,
    NeighbourMedian,
    TestTimeRegisters,
    ablate,
    mean_keys_and_values,
    without_registers,
)
from dinokit.repair.cosmetic import fill_from_neighbours
from dinokit.repair.shift import shift
from dinokit.weights.repaired import METHODS, load_calibration, repair, save_calibration
from tests.model.test_vit import make
from tests.tolerances import SAME_MATH, max_error

NEURONS = [(0, 3), (1, 5), (1, 7)]
SIZES = [(70, 70), (56, 98)]


def forms(model: VisionTransformer) -> dict[str, VisionTransformer]:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    found = {
        "registers": TestTimeRegisters(model, NEURONS, num_added=2),
        "zero": TestTimeRegisters(model, NEURONS, mode="zero"),
        "moved": MovedOutliers(model, NEURONS, [3]),
        "bias": AttentionBias(model, NEURONS, mean_keys_and_values(model, NEURONS, [images])),
        "masked keys": MaskedKeys(model, factor=1.05),
        "neighbours": NeighbourAttention(model, sigma=1.0),
        "median": NeighbourMedian(model, factor=1.05),
        "denoised": Denoised(model, flip=True),
    }
    if model.config.num_register_tokens:
        found |= {how: AblatedRegisters(model, how, block=1) for how in ABLATIONS if how != "shuffle"}
    return found


@pytest.mark.parametrize("registers", [0, 1, 4, 8])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_every_form_gives_tokens_and_leaves_the_network_alone(tiny, registers, ffn):
    """Same bits before and after, no hooks, shared parameters; right grid and register count, finite, and different."""
    model = make(tiny.replace(num_register_tokens=registers, ffn=ffn))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for size in SIZES:
        images = torch.randn(3, 3, *size)
        with torch.no_grad():
            before = model(images).sequence
            for name, form in forms(model).items():
                tokens = form(images)
                assert tokens.grid == (size[0] // 14, size[1] // 14), name
                assert tokens.num_registers == registers + (2 if name == "registers" else 0), name
                assert torch.isfinite(tokens.sequence).all(), name
                assert form.blocks[0].mlp is model.blocks[0].mlp
                difference = (tokens.patches - model(images).patches).abs().max().item()
                # the mean over a batch that had one input anyway changes nothing, all else does
                assert difference > 1e-6 or name == "mean", name
            assert torch.equal(before, model(images).sequence)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_equals_its_single_images_in_every_form(tiny, size):
    """No image touches another one (ablations that use the batch excepted)."""
    model = make(tiny)
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        for name, form in forms(model).items():
            if name in ABLATIONS and name != "zero":
                continue
            alone = torch.cat([form(image[None]).sequence for image in images])
            assert max_error(form(images).sequence, alone) <= SAME_MATH, name


def test_forms_can_be_read_like_networks(tiny):
    """Hidden states end in what forward norms; attention weights follow the form's own attention."""
    model = make(tiny)
    images = torch.randn(2, 3, 56, 98)
    with torch.no_grad():
        for name, form in forms(model).items():
            if name == "denoised":
                continue
            states = hidden_states(form, images)
            assert torch.equal(form.norm(states[-1]), form(images).sequence), name
            if name in ("bias", "masked keys"):
                weights = attention_weights(form, images, [1])[0]
                block = form.blocks[1]
                _, _, v = block.attn.split(block.norm1(states[1]))
                if name == "bias":
                    v = torch.cat([v, form.keys_and_values[1][1].expand(2, 1, -1, -1).transpose(1, 2)], dim=2)
                out = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
                middle = states[1] + block.ls1(out)
                neurons = torch.tensor([5, 7])
                edit = (lambda h, neurons=neurons: shift(h, neurons, [], "zero")) if name == "bias" else None
                assert max_error(block.feed(middle, edit), states[2]) <= SAME_MATH, name


def test_moving_neurons_takes_the_strongest_value_with_its_sign():
    """Per neuron and image; zero elsewhere; other neurons untouched; the quirk of the reference only on request."""
    hidden = torch.tensor([[[1.0, -9.0, 5.0], [3.0, 2.0, 6.0], [0.0, 4.0, 7.0]]])
    moved = shift(hidden, torch.tensor([0, 1]), slice(2, 3), "per_neuron")
    assert moved.tolist() == [[[0.0, 0.0, 5.0], [0.0, 0.0, 6.0], [3.0, -9.0, 7.0]]]
    assert shift(hidden, torch.tensor([0]), slice(0, 0), "zero").tolist()[0][1] == [0.0, 2.0, 6.0]
    quirk = shift(hidden.abs(), torch.tensor([0, 1]), slice(2, 3), "reference")
    assert quirk[0, 2].tolist() == [9.0, 9.0, 7.0]


def test_no_shift_is_no_denoising(tiny):
    """One shift of nothing gives the network's own tokens."""
    model, images = make(tiny), torch.randn(2, 3, 70, 56)
    assert max_error(Denoised(model, shifts=[(0, 0)])(images).sequence, model(images).sequence) <= SAME_MATH


def test_neighbour_median_fills_holes_from_clean_neighbours():
    """The median of those around; of all clean patches where none is around."""
    patches = torch.arange(9.0).reshape(1, 9, 1)
    bad = torch.zeros(1, 9, dtype=torch.bool)
    bad[0, 4] = True
    assert fill_from_neighbours(patches, bad, (3, 3))[0, 4, 0] == 3.0  # lower median of 0 1 2 3 5 6 7 8
    bad[0, [0, 1, 2, 3, 5, 6, 7]] = True
    assert fill_from_neighbours(patches, bad, (3, 3))[0, 0, 0] == 8.0
    clean = fill_from_neighbours(patches, torch.zeros(1, 9, dtype=torch.bool), (3, 3))
    assert torch.equal(clean, patches)


def test_ablations_replace_registers_and_nothing_else(tiny):
    """Zero, the batch's mean, noise of its deviation, another image's; dropping leaves them out of the sequence."""
    registers = torch.randn(4, 3, 5)
    assert ablate(registers, "zero").abs().max() == 0
    assert torch.equal(ablate(registers, "mean")[0], registers.mean(0))
    assert torch.equal(ablate(registers, "shuffle")[1], registers[0])
    assert torch.equal(ablate(registers, "noise", seed=1), ablate(registers, "noise", seed=1))
    with pytest.raises(ValueError, match="no other"):
        ablate(registers[:1], "shuffle")
    with pytest.raises(ValueError, match="use one of zero"):
        ablate(registers, "burn")
    model, images = make(tiny), torch.randn(2, 3, 70, 70)
    after = AblatedRegisters(model, "zero", block=2)
    with torch.no_grad():
        assert torch.equal(hidden_states(after, images)[2][:, 5:], hidden_states(model, images)[2][:, 5:])
        assert hidden_states(after, images)[2][:, 1:5].abs().max() == 0
        dropped = without_registers(model)(images)
    assert dropped.num_registers == 0
    assert dropped.sequence.shape[1] == 26
    plain = dinokit.VisionTransformer(model.config.replace(num_register_tokens=0)).eval()
    plain.load_state_dict({**model.state_dict(), "register_tokens": torch.zeros(1, 0, 32)})
    with torch.no_grad():
        assert torch.equal(plain(images).sequence, dropped.sequence)


def test_forms_refuse_what_makes_no_sense(tiny):
    """Neurons that are not there, no neurons, patches that are not there, no registers, unknown modes."""
    model = make(tiny)
    for neurons, message in (([], "no register neurons"), ([(9, 0)], "2 blocks of 64"), ([(0, 64)], "2 blocks of 64")):
        with pytest.raises(ValueError, match=message):
            TestTimeRegisters(model, neurons)
    with pytest.raises(ValueError, match="mode is"):
        TestTimeRegisters(model, NEURONS, mode="max")
    with pytest.raises(ValueError, match="at least one"):
        TestTimeRegisters(model, NEURONS, num_added=0)
    with pytest.raises(ValueError, match="lies beyond"):
        MovedOutliers(model, NEURONS, [25])(torch.randn(1, 3, 70, 70))
    with pytest.raises(ValueError, match="at least one patch"):
        MovedOutliers(model, NEURONS, [])
    with pytest.raises(ValueError, match="one pair a block"):
        AttentionBias(model, NEURONS, [])
    with pytest.raises(ValueError, match="no registers to ablate"):
        AblatedRegisters(make(tiny.replace(num_register_tokens=0)), "zero")
    with pytest.raises(ValueError, match="takes no masks"):
        Denoised(model)(torch.randn(1, 3, 70, 70), torch.zeros(1, 25))
    with pytest.raises(ValueError, match="resize the network first"):
        resize_positions(TestTimeRegisters(model, NEURONS), (56, 98))


@pytest.fixture
def pre(formats):
    return dinokit.load(formats / "reg" / "hf")


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        neurons=((0, 3), (1, 5)), scores=(2.0, 1.0), top_block=1, norm_block=1, factor=4.0,
        num_images=2, num_outliers=3, image_size=(70, 70),
    )  # fmt: skip


def test_calibrations_are_files_for_one_set_of_weights(pre, calibration, tmp_path, formats):
    """They come back as they were, are refused for other weights, never overwritten unasked."""
    images = torch.randn(2, 3, 70, 70)
    pairs = mean_keys_and_values(pre.model, calibration.neurons, [images])
    path = save_calibration(tmp_path / "c.safetensors", calibration, pre, pairs)
    with pytest.raises(OutputError):
        save_calibration(path, calibration, pre)
    back = load_calibration(path)
    assert back.calibration == calibration
    assert all(
        torch.equal(a, b) for x, y in zip(back.keys_and_values, pairs, strict=True) for a, b in zip(x, y, strict=True)
    )
    for method in METHODS:
        repaired = repair(pre, method, path)
        assert repaired.provenance.form.startswith(method)
        assert repaired(torch.randint(0, 255, (80, 90, 3), dtype=torch.uint8)).cls.shape == (1, 64)
        with pytest.raises(WeightsError, match="no layout can hold"):
            dinokit.save(repaired, tmp_path / "x")
    other = dinokit.load(formats / "noreg" / "hf")
    with pytest.raises(WeightsError, match="Calibrate again"):
        repair(other, "registers", path)
    with pytest.raises(ValueError, match="needs a calibration"):
        repair(pre, "registers")
    with pytest.raises(ValueError, match="unknown"):
        repair(pre, "magic")
    with pytest.raises(ValueError, match="--bias"):
        repair(pre, "bias", save_calibration(tmp_path / "d.safetensors", calibration, pre))
    with pytest.raises(WeightsError, match="no calibration"):
        load_calibration(formats / "reg" / "timm_reg4.safetensors")


def test_a_repaired_model_is_replaced_not_changed(pre):
    """`pre` gives the same bits before and after, and its fields are its own."""
    images = torch.randn(1, 3, 70, 70)
    with torch.no_grad():
        before = pre.model(images).sequence
        repaired = repair(pre, "median")
        repaired.model(images)
        assert torch.equal(before, pre.model(images).sequence)
    assert replace(repaired, model=pre.model, provenance=pre.provenance) == pre
