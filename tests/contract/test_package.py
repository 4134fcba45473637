"""What the package promises as a whole: its public names, what importing it brings in, its floors, sizes of its files."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dinokit

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "dinokit"


def run(script: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_is_there_and_documented():
    """`dir(dinokit)` is the list, each name resolves, each class and function says what it is."""
    assert dir(dinokit) == sorted(dinokit.__all__)
    for name in dinokit.__all__:
        value = getattr(dinokit, name)
        if callable(value):
            assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dinokit.nonsense  # noqa: B018


def test_importing_brings_in_nothing_heavy():
    """Not even torch until something is used; loading needs neither transformers nor any extra."""
    heavy = "('transformers','timm','birder','torchvision','xformers','pyarrow','onnx','onnxscript','skimage','scipy','matplotlib')"
    assert run("import sys, dinokit; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False"
    script = f"""
import sys, dinokit
for name in dinokit.__all__: getattr(dinokit, name)
import dinokit.compat.birder, dinokit.compat.hub, dinokit.extract
print([name for name in {heavy} if name in sys.modules])
"""
    assert run(script) == "[]"


def test_nothing_touches_the_network_at_import():
    """Every module of the package imports with sockets forbidden."""
    modules = [
        ".".join(path.relative_to(SRC.parent).with_suffix("").parts)
        for path in sorted(SRC.rglob("*.py"))
        if path.name != "__init__.py"
    ]
    script = f"""
import socket
def forbidden(*args, **kwargs): raise SystemExit("the network was touched")
socket.socket.connect = forbidden
socket.getaddrinfo = forbidden
import importlib
for name in {modules!r}: importlib.import_module(name)
print("done")
"""
    assert run(script) == "done"


def test_the_core_asks_for_no_more_than_its_eight_dependencies():
    """Everything else is an extra or for tests; torch has no upper bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy", "Pillow", "safetensors", "huggingface_hub", "click", "tqdm", "jaxtyping"}
    assert "torch>=2.10" in project["dependencies"]
    assert not any("<" in requirement for requirement in project["dependencies"])


def test_no_file_is_longer_than_400_lines():
    """One story a file."""
    long = {
        str(path.relative_to(ROOT)): n for path in SRC.rglob("*.py") if (n := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_other_libraries_are_imported_nowhere_in_the_package():
    """transformers, timm, Birder, torchvision and xFormers are oracles and subjects, never dependencies."""
    import ast

    peers = {"transformers", "timm", "birder", "torchvision", "xformers"}
    found = [
        f"{path.name}: {name}"
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        )
        if name.split(".")[0] in peers
    ]  # fmt: skip
    assert found == []


def test_errors_keep_their_kind_across_processes():
    """Codes and exit codes survive pickling, and messages are what was said."""
    import pickle

    from dinokit import errors

    error = pickle.loads(pickle.dumps(errors.ImageError("truncated", "x.jpg is cut")))
    assert (error.code, str(error), error.exit_code) == ("truncated", "x.jpg is cut", 3)
    assert len(errors.IMAGE_ERROR_CODES) == 12
    assert issubclass(errors.HubError, OSError)
    assert issubclass(errors.WeightsError, ValueError)


def test_importing_leaves_the_garbage_collector_as_it_was():
    """It is switched off meanwhile, and on again only where it was on; what was frozen stays so."""
    assert run("import gc, dinokit; dinokit.load; print(gc.isenabled(), gc.get_freeze_count())") == "True 0"
    assert run("import gc, dinokit; gc.disable(); dinokit.load; print(gc.isenabled())") == "False"
    assert (
        run("import gc, dinokit; gc.freeze(); dinokit.load; print(gc.isenabled(), gc.get_freeze_count() > 0)")
        == "True True"
    )
