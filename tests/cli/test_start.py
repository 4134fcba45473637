"""What commands do to start sooner."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib.abc, os, sys
seen = {}
class Spy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        seen.setdefault(name, sys.getdlopenflags())
before = sys.getdlopenflags()
sys.meta_path.insert(0, Spy())
from dinokit.cli.start import import_torch
import_torch()
print("torch" in sys.modules, seen["torch._C"] == os.RTLD_LAZY, sys.getdlopenflags() == before)
import torch
print(torch.ones(3, 4).mm(torch.ones(4, 2)).sum().item())
sys.setdlopenflags(before + os.RTLD_GLOBAL)
import_torch()
print(sys.getdlopenflags() == before + os.RTLD_GLOBAL)
"""


@pytest.mark.skipif(not hasattr(sys, "setdlopenflags"), reason="the system's loader has no flags")
def test_only_torch_is_bound_lazily() -> None:
    """PyTorch is imported with its functions looked up when called, everything after it as before; a second time does nothing."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["True True True", "24.0", "True"]
