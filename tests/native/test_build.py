"""hatch_build.py compiles the kernels where that can be done, and says what went wrong where not; a package is made all the same."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dinokit.native import library

ROOT = Path(__file__).parents[2]
INTERFACE = "hatchling.builders.hooks.plugin.interface"
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64") or shutil.which("gcc") is None,
    reason="the kernels are compiled on Linux on x86-64, by gcc",
)


class Hook:
    """As much of hatchling's base class as a hook of ours uses."""

    def __init__(self, root: Path, target_name: str = "wheel") -> None:
        self.root, self.target_name, self.warnings = str(root), target_name, []
        self.app = SimpleNamespace(display_warning=self.warnings.append)


@pytest.fixture
def build(monkeypatch) -> ModuleType:
    """hatch_build.py, on a stand-in of hatchling; nothing asked for by the environment."""
    interface = ModuleType(INTERFACE)
    interface.BuildHookInterface = Hook
    parts = INTERFACE.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    monkeypatch.setitem(sys.modules, INTERFACE, interface)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("DINOKIT_BUILD_NATIVE", raising=False)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path) -> Path:
    """A project with kernels that compile at once."""
    folder = tmp_path / "src" / "dinokit" / "native"
    folder.mkdir(parents=True)
    (folder / "one.c").write_text("#ifndef VALUE\n#define VALUE 7\n#endif\nint one(void) { return VALUE; }\n")
    (folder / "two.c").write_text(
        'int one(void);\n__attribute__((visibility("default"))) int two(void) { return 2 * one(); }\n'
    )
    return tmp_path


def built_in(root: Path) -> Path:
    """Where the library goes."""
    return root / "src" / "dinokit" / "native" / "_kernels.so"


def files(folder: Path) -> set[str]:
    """What lies there."""
    return {path.name for path in folder.iterdir()}


@needs_compiler
def test_the_sources_compile_to_the_library_that_the_package_opens(build, tmp_path):
    """Without a warning, in one file, and nothing left beside it."""
    for source in (ROOT / "src" / "dinokit" / "native").glob("*.[ch]"):
        shutil.copy(source, tmp_path)
    before = files(tmp_path)
    build.FLAGS += " -Werror"
    assert build.compile_kernels(tmp_path / "_kernels.so") == ""
    assert files(tmp_path) == before | {"_kernels.so"}
    assert torch.get_num_threads() > 0  # PyTorch has brought OpenMP
    assert ctypes.CDLL(str(tmp_path / "_kernels.so")).dinokit_version() == library.VERSION


@needs_compiler
def test_a_source_that_does_not_compile_gives_the_compiler_s_words_and_no_library(build, root):
    """Nor anything else beside the sources."""
    built = built_in(root)
    (built.parent / "three.c").write_text("int broken(void) { return nonsense; }\n")
    before = files(built.parent)
    problem = build.compile_kernels(built)
    assert "three.c" in problem
    assert "failed:\n" in problem
    assert "nonsense" in problem
    assert files(built.parent) == before


@needs_compiler
@pytest.mark.parametrize("compiler", ["there-is-no-such-compiler", "there-is-no-such-compiler -m64"])
def test_a_compiler_that_is_not_there_is_named(build, root, monkeypatch, compiler):
    """With the way out."""
    monkeypatch.setenv("CC", compiler)
    assert build.compile_kernels(built_in(root)) == "there is no C compiler (there-is-no-such-compiler); name one by CC"
    assert not built_in(root).exists()


@needs_compiler
def test_without_any_compiler_the_usual_one_is_named(build, root, monkeypatch, tmp_path):
    """An empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert build.compile_kernels(built_in(root)) == "there is no C compiler (gcc); name one by CC"


@needs_compiler
def test_cc_may_have_arguments(build, root, monkeypatch):
    """As make's has."""
    monkeypatch.setenv("CC", "gcc -DVALUE=40")
    assert build.compile_kernels(built_in(root)) == ""
    assert ctypes.CDLL(str(built_in(root))).two() == 80


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_platforms_are_told_whom_the_kernels_are_for(build, root, monkeypatch, system, machine):
    """Nothing is tried there."""
    monkeypatch.setattr(build, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(build, "platform", SimpleNamespace(machine=lambda: machine))
    expected = f"they are for Linux on x86-64, this is {system} on {machine}"
    assert build.compile_kernels(built_in(root)) == expected


def initialized(build: ModuleType, root: Path, target: str = "wheel") -> tuple[dict[str, Any], list[str]]:
    """What the hook adds to a build, and its warnings."""
    hook, data = build.NativeHook(root, target), {"artifacts": []}
    hook.initialize("standard", data)
    return data, hook.warnings


@needs_compiler
def test_a_wheel_with_kernels_is_for_this_platform(build, root):
    """Any Python 3 there."""
    data, warnings = initialized(build, root)
    assert built_in(root).is_file()
    assert data == {
        "artifacts": ["src/dinokit/native/_kernels.so"],
        "pure_python": False,
        "tag": f"py3-none-linux_{platform.machine()}",
    }
    assert warnings == []


@pytest.mark.parametrize(("asked", "target"), [("0", "wheel"), ("", "sdist")])
def test_kernels_can_be_left_out(build, root, monkeypatch, asked, target):
    """As asked, or because a source archive has none; the wheel is then for every platform."""
    monkeypatch.setenv("DINOKIT_BUILD_NATIVE", asked)
    data, warnings = initialized(build, root, target)
    assert (data, warnings) == ({"artifacts": []}, [])
    assert not built_in(root).exists()


def test_a_wheel_is_made_without_kernels_where_they_can_t_be_built_unless_they_were_insisted_on(
    build, root, monkeypatch
):
    """A warning, or an error, with the reason; no older library goes into it."""
    monkeypatch.setattr(build, "compile_kernels", lambda built: "the reason")
    built_in(root).write_bytes(b"of older sources")
    data, warnings = initialized(build, root)
    assert data == {"artifacts": []}
    assert warnings == ["dinokit is built without its compiled kernels: the reason"]
    assert not built_in(root).exists()
    monkeypatch.setenv("DINOKIT_BUILD_NATIVE", "1")
    with pytest.raises(RuntimeError, match="dinokit's kernels can't be built: the reason"):
        initialized(build, root)
