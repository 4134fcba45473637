"""What the documents' pages show runs with only the import changed, given files under the names that the pages use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dinokit
from dinokit.compat.hf import ModelOutput
from tests.compat.hf_tiny import TINY

PROCESSOR = {
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 64},
}


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models and their processor in folders named like the pages' hub ids."""
    monkeypatch.chdir(tmp_path)
    labels = {0: "dog", 1: "tabby, tabby cat"}
    plain, registers = dinokit.Dinov2Config(**TINY), dinokit.Dinov2WithRegistersConfig(**TINY)
    labelled = dinokit.Dinov2WithRegistersConfig(**TINY, id2label=labels)
    models: dict[str, Any] = {
        "facebook/dinov2-base": dinokit.Dinov2Model(plain),
        "facebook/dinov2_with_registers-base": dinokit.Dinov2WithRegistersModel(registers),
        "facebook/dinov2_with_registers-small-imagenet1k-1-layer": dinokit.Dinov2WithRegistersForImageClassification(
            labelled
        ),
    }
    models["facebook/dinov2-with-registers-base"] = models["facebook/dinov2_with_registers-base"]
    for name, model in models.items():
        model.save_pretrained(name)
        dinokit.BitImageProcessor(**PROCESSOR).save_pretrained(name)


@pytest.mark.parametrize(
    ("config", "model"), [("Dinov2Config", "Dinov2Model"), ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel")]
)
def test_a_model_from_a_configuration(config: str, model: str) -> None:
    """The first example of each page, at the size of the base network."""
    configuration = getattr(dinokit, config)()
    with torch.device("meta"):  # the pages draw 86 million numbers here
        network = getattr(dinokit, model)(configuration)
    configuration = network.config
    assert configuration.hidden_size == 768


@pytest.mark.parametrize(
    ("model", "name", "tokens"),
    [
        ("Dinov2Model", "facebook/dinov2-base", 17),
        ("Dinov2WithRegistersModel", "facebook/dinov2_with_registers-base", 21),
        ("AutoModel", "facebook/dinov2_with_registers-base", 21),
    ],
)
def test_the_last_hidden_state_of_an_image(model: str, name: str, tokens: int, image: Image.Image) -> None:
    """The registers' page prints a length without registers; a model of that kind has four more tokens."""
    image_processor = dinokit.AutoImageProcessor.from_pretrained(name)
    network = getattr(dinokit, model).from_pretrained(name)
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    last_hidden_states = outputs.last_hidden_state
    assert list(last_hidden_states.shape) == [1, tokens, 32]
    assert isinstance(outputs, ModelOutput)


def test_the_label_of_an_image(image: Image.Image) -> None:
    """With a checkpoint that has a head, the labels are its own."""
    name = "facebook/dinov2_with_registers-small-imagenet1k-1-layer"
    image_processor = dinokit.AutoImageProcessor.from_pretrained(name)
    model = dinokit.Dinov2WithRegistersForImageClassification.from_pretrained(name)
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_label = logits.argmax(-1).item()
    assert model.config.id2label[predicted_label] in ("dog", "tabby, tabby cat")


def test_a_classifier_from_a_checkpoint_without_one_says_so(image: Image.Image) -> None:
    """The plain page does this; the two classes it gives are random."""
    image_processor = dinokit.AutoImageProcessor.from_pretrained("facebook/dinov2-base")
    with pytest.warns(UserWarning, match="drawn at random"):
        model = dinokit.Dinov2ForImageClassification.from_pretrained("facebook/dinov2-base")
    with torch.no_grad():
        logits = model(**image_processor(image, return_tensors="pt")).logits
    assert logits.shape == (1, 2)


def test_a_backbone_of_chosen_stages(image: Image.Image) -> None:
    """The maps that detection and segmentation frameworks read."""
    processor = dinokit.AutoImageProcessor.from_pretrained("facebook/dinov2-base")
    model = dinokit.AutoBackbone.from_pretrained("facebook/dinov2-base", out_features=["stage1", "stage2"])
    feature_maps = model(**processor(image, return_tensors="pt")).feature_maps
    assert list(feature_maps[-1].shape) == [1, 32, 4, 4]


def test_the_page_about_this_surface_runs(image: Image.Image) -> None:
    """Every block of docs/huggingface.md, in order."""
    page = Path(__file__).parents[2] / "docs" / "huggingface.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {"image": image}
    for block in blocks:
        exec(compile(block, "docs/huggingface.md", "exec"), found)
    assert found["picture"].shape == (1, 2, 4, 4)
    assert found["model"].network.config.position.offset == 0.1
