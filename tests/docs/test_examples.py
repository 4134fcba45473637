"""Every file of `examples/` runs, and every Python block of the documents: in a folder where the hub's names are tiny local models."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinokit.atomic import write_json

ROOT = Path(__file__).parents[2]
TINY_TRANSFORM = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 80},
    "crop_size": {"height": 70, "width": 70},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
HUB_NAMES = {
    "facebook/dinov2-with-registers-small": "reg", "facebook/dinov2-with-registers-base": "reg",
    "facebook/dinov2-small": "noreg", "facebook/dinov2-base": "noreg",
}  # fmt: skip


@pytest.fixture
def place(formats, tmp_path, monkeypatch) -> Path:
    """A working folder with `cat.jpg`, `photos/`, and tiny networks under the names of released ones."""
    for name, variant in HUB_NAMES.items():
        shutil.copytree(formats / variant / "hf", tmp_path / name)
        write_json(tmp_path / name / "preprocessor_config.json", TINY_TRANSFORM)
    shutil.copy(formats / "reg" / "dinov2_tiny14_reg4_pretrain.pth", tmp_path / "my_checkpoint.pth")
    rng = np.random.default_rng(0)
    for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(4):
            noise = rng.integers(-30, 30, (80, 90, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                tmp_path / "photos" / label / f"{i}.png"
            )
    Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


EXAMPLES = {
    "embed_and_compare.py": (("cat.jpg", "photos/red/0.png"), "1.000"),
    "attention_map.py": (("cat.jpg", "map.png"), "map.png: 1 heads, 5 x 5 patches each"),
    "train_a_classifier.py": (("photos", "out", "--steps", "60"), "training accuracy 1.00"),
    "export_to_onnx.py": (("m.onnx", "--size", "56"), "tokens (2, 21, 64)"),
}


def test_no_example_is_left_out():
    """The table above is the folder."""
    assert set(EXAMPLES) == {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(place, name):
    """With the command that stands in their first lines, and print what they should."""
    arguments, expected = EXAMPLES[name]
    assert expected in run(ROOT / "examples" / name, *arguments)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# These need names of their own; tests/compat runs their blocks.
ELSEWHERE = ("birder.md", "huggingface.md", "torch-hub.md")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if p.name not in ELSEWHERE and BLOCK.search(p.read_text())], ids=lambda p: p.name
)
def test_the_blocks_of_the_documents_run(place, path, monkeypatch):
    """All blocks of a page after each other, as a reader would type them."""
    namespace: dict[str, object] = {}
    for block in BLOCK.findall(path.read_text()):
        exec(compile(block, str(path), "exec"), namespace)
    assert namespace


def test_links_between_documents_lead_somewhere():
    """No link to a file that is not there."""
    broken = [
        f"{path.name}: {target}"
        for path in [*DOCUMENTS, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert broken == []
