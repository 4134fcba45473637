"""Builds the kernels of src/dinokit/native/*.c into the package where that can be done: Linux on x86-64 with a C compiler.

Elsewhere the package is built without them and computes with PyTorch alone. DINOKIT_BUILD_NATIVE=0 leaves them out, =1 insists.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ASKED = "DINOKIT_BUILD_NATIVE"
# OpenMP's symbols stay open: they are those of the runtime that PyTorch brings, so that there is one set of threads.
FLAGS = "-std=gnu11 -O3 -mavx2 -mfma -fopenmp -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra"


class NativeHook(BuildHookInterface):
    """Compiles, and says so in the wheel's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Before a wheel, editable or not, is put together."""
        asked = os.environ.get(ASKED, "")
        if self.target_name != "wheel":
            return
        built = Path(self.root, "src/dinokit/native/_kernels.so")
        built.unlink(missing_ok=True)
        if asked == "0":
            return
        problem = compile_kernels(built)
        if problem and asked == "1":
            raise RuntimeError(f"dinokit's kernels can't be built: {problem}")
        if problem:
            self.app.display_warning(f"dinokit is built without its compiled kernels: {problem}")
            return
        build_data["artifacts"].append("src/dinokit/native/_kernels.so")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"


def compile_kernels(built: Path) -> str:
    """Compile into `built`, which appears whole or not at all; what went wrong, or nothing."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    compiler = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler ({compiler[0]}); name one by CC"
    sources = sorted(built.parent.glob("*.c"))
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        objects = [Path(folder, source.stem + ".o") for source in sources]
        commands = [
            [*compiler, *FLAGS.split(), "-c", str(source), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        whole = Path(folder, built.name)
        commands.append([*compiler, "-shared", "-s", *map(str, objects), "-o", str(whole)])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the compiler that the user has
            if done.returncode:
                return f"{shlex.join(command)} failed:\n{done.stderr}"
        whole.replace(built)
    return ""
