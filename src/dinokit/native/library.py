"""The compiled library: found, checked, opened once; or the reason why not."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

BUILT = Path(__file__).with_name("_kernels.so")
# Raise with every change of a C function's arguments, here and in common.h: a library of other sources is then left alone.
VERSION = 3
OFF = "DINOKIT_NATIVE"
SHOWN = ("AVX2", "AVX512")  # what PyTorch calls CPUs that have AVX2


def available() -> bool:
    """Whether the kernels can be called here."""
    return not missing()


def missing() -> str:
    """Why the kernels can't be called here; empty where they can."""
    opened = _open()
    return opened if isinstance(opened, str) else ""


def library() -> ctypes.CDLL:
    """The opened library.

    Raises:
        RuntimeError: it is not there, and why.
    """
    opened = _open()
    if isinstance(opened, str):
        raise RuntimeError(f"dinokit's compiled kernels can't be used: {opened}")
    return opened


@functools.cache
def _open() -> ctypes.CDLL | str:
    if os.environ.get(OFF, "") == "0":
        return f"they are switched off by {OFF}=0"
    if not BUILT.is_file():
        return "they were not built with this package (Linux on x86-64 and a C compiler at installation)"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in SHOWN:
        return f"PyTorch sees {capability} here; they need AVX2"
    try:
        # its threads are those of the OpenMP runtime that PyTorch has brought into the process
        opened = ctypes.CDLL(str(BUILT))
        version = opened.dinokit_version()
    except (OSError, AttributeError) as error:
        return f"the library can't be opened: {error}"
    if version != VERSION:
        return f"the library is of version {version}, not {VERSION}; install dinokit again"
    return opened
