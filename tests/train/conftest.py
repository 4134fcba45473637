"""The recorded numbers, unpacked once."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.train.golden import Recorded

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "ssl" / "golden.tar.xz"


@pytest.fixture(scope="session")
def ssl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the reference's numbers (tests/fixtures/ssl/README.md tells what is what)."""
    target = tmp_path_factory.mktemp("ssl")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(target, filter="data")
    return target


@pytest.fixture
def recorded(ssl: Path) -> Callable[[str, torch.dtype], Recorded]:
    """Opens one recorded file in one precision."""
    return lambda name, dtype=torch.float64: Recorded(ssl / f"{name}.npz", dtype)
