"""The compiled library is used, or it is said why not; nothing needs it."""

from __future__ import annotations

import _ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dinokit import native
from dinokit.engine import look
from dinokit.native import library

needs_library = pytest.mark.skipif(not native.available(), reason=native.missing())


@pytest.fixture(autouse=True)
def opened_anew() -> Iterator[None]:
    """Each test opens it for itself, and leaves nothing behind."""
    library._open.cache_clear()
    yield
    library._open.cache_clear()


def refused(words: str) -> None:
    """Not available, for that reason, to whoever asks."""
    assert words in native.missing()
    assert not native.available()
    assert not look().kernels
    with pytest.raises(RuntimeError, match="dinokit's compiled kernels can't be used: ") as caught:
        native.norm(torch.ones(1, 8), torch.ones(8), torch.ones(8), 1e-6)
    assert words in str(caught.value)


@needs_library
def test_a_library_that_is_there_is_opened_once():
    """And nothing is missing."""
    assert native.available()
    assert native.missing() == ""
    assert look().kernels
    assert library.library() is library.library()


def test_it_can_be_switched_off(monkeypatch):
    """By the environment, whatever else is there."""
    monkeypatch.setenv("DINOKIT_NATIVE", "0")
    refused("they are switched off by DINOKIT_NATIVE=0")


@pytest.mark.parametrize(
    ("content", "words"), [(b"not a library" * 100, "invalid ELF header"), (b"", "file too short")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="the loader's words are those of Linux")
def test_an_unreadable_library_is_left_alone(monkeypatch, tmp_path, content, words):
    """With the loader's words."""
    _with_library(monkeypatch, tmp_path / "_kernels.so", content)
    refused("the library can't be opened: ")
    assert words in native.missing()


def test_a_library_of_something_else_is_left_alone(monkeypatch, tmp_path):
    """One that has no version to ask for."""
    _with_library(monkeypatch, tmp_path / "_kernels.so", Path(_ctypes.__file__).read_bytes())
    refused("dinokit_version")


@needs_library
def test_a_library_of_other_sources_is_left_alone(monkeypatch):
    """Its functions might take other arguments."""
    built = library.VERSION
    monkeypatch.setattr(library, "VERSION", 999)
    refused(f"the library is of version {built}, not 999; install dinokit again")


def test_the_sources_and_the_package_agree_on_their_version():
    """Raised in both places, or in none."""
    header = (library.BUILT.parent / "common.h").read_text(encoding="utf-8")
    assert f"enum {{ VERSION = {library.VERSION} }};" in header


def test_a_package_without_the_library_says_so(monkeypatch, tmp_path):
    """Where none was built."""
    monkeypatch.setattr(library, "BUILT", tmp_path / "_kernels.so")
    refused("they were not built with this package")


@pytest.mark.parametrize("capability", ["DEFAULT", "NO AVX"])
def test_cpus_without_avx2_are_not_given_its_instructions(monkeypatch, tmp_path, capability):
    """The library is not even opened."""
    _with_library(monkeypatch, tmp_path / "_kernels.so", b"never read", capability)
    refused(f"PyTorch sees {capability} here; they need AVX2")


def test_without_kernels_a_network_runs_on_pytorch_alone():
    """In a process of its own: another plan, the same tokens, and a reason for whoever forces the kernels."""
    code = """
import torch
from dinokit import native
from dinokit.config import ViTConfig
from dinokit.engine import Plan, decide, look, optimize
from dinokit.model import VisionTransformer
assert native.missing() == "they are switched off by DINOKIT_NATIVE=0", native.missing()
machine = look()
assert not machine.kernels
assert decide(machine).linear == ("mkl" if machine.intel and machine.mkl else "plain")
for asked in ("float32", "int16", "int8"):
    assert not decide(machine, asked).kernels
assert "int16 would be slower than float32" in decide(machine, "int16").explain()
config = ViTConfig(embed_dim=32, depth=1, num_heads=2, ffn_dim=64, image_size=(28, 28))
model, images = VisionTransformer(config).eval(), torch.randn(1, 3, 28, 28)
fast = optimize(model)
assert (fast(images).sequence - model(images).sequence).abs().max() < 2e-5
try:
    optimize(model, plan=Plan(linear="avx2"))(images)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DINOKIT_NATIVE": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dinokit's compiled kernels can't be used: they are switched off by DINOKIT_NATIVE=0\n"


def _with_library(monkeypatch: pytest.MonkeyPatch, path: Path, content: bytes, capability: str = "AVX2") -> None:
    """A library of that content, on a CPU that PyTorch calls so."""
    path.write_bytes(content)
    monkeypatch.setattr(library, "BUILT", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
