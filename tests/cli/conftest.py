"""The command line in this process: its exit code, stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dinokit.cli import main as entry


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def dinokit_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        code = entry._run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
