"""Shared by all tests: one thread, no network, the recorded fixtures unpacked once."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

from dinokit.config import ViTConfig

torch.set_num_threads(1)
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of recorded checkpoints, inputs and outputs of other implementations (its manifest.json tells what is what)."""
    target = tmp_path_factory.mktemp("fixtures")
    with tarfile.open(HERE / "fixtures" / "formats.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target / "formats"


@pytest.fixture
def tiny() -> ViTConfig:
    """Two blocks, 32 wide, 5 x 5 grid of 14-pixel patches, 4 registers."""
    return ViTConfig(embed_dim=32, depth=2, num_heads=2, ffn_dim=64, num_register_tokens=4, image_size=(70, 70))
