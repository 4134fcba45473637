"""What shortens the start of a command that computes: its process is its own, so its loader may be set.

Promise: nothing here changes a result; where a system has no such setting, nothing is done.
"""

from __future__ import annotations

import os
import sys


def import_torch() -> None:
    """Import PyTorch, the functions of its libraries looked up when they are called: of 50,000 a command calls few.

    A thirtieth of a start. For PyTorch alone: a library that lacks a function shall say so when it is imported.
    """
    if "torch" in sys.modules or not hasattr(sys, "setdlopenflags"):
        return
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        import torch  # noqa: F401 - for its libraries
    finally:
        sys.setdlopenflags(before)
