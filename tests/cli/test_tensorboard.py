"""`dinokit train --tensorboard`: what reaches TensorBoard's writer, for which something stands in that writes it down."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_train import SMALL

SETTINGS = (*SMALL, "--set", "watch.every=2", "--set", "save.every=2")


class Writer:
    """The three of SummaryWriter's calls that we make, with its own names of arguments."""

    made: list[Writer] = []  # noqa: RUF012 - what a test looks at

    def __init__(self, log_dir: str, *, purge_step: int | None = None) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        Writer.made.append(self)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))

    def add_text(self, tag: str, text_string: str, global_step: int) -> None: ...

    def curve(self, tag: str) -> dict[int, float]:
        return {step: value for name, value, step in self.scalars if name == tag}


@pytest.fixture
def written(monkeypatch) -> list[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_curves_of_a_run_are_written(dinokit_cli, images, tmp_path, written):
    """Every number of the log, at its step and under its name; looks under `watch/`; in a folder of the run."""
    run = tmp_path / "run"
    done = dinokit_cli("train", images, "--out", run, "--steps", 3, "--tensorboard", *SETTINGS)
    assert done.code == 0, done.err
    (writer,) = written
    assert writer.log_dir == str(run / "tensorboard")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for kind, prefix, steps in (("train", "", {1, 2, 3}), ("watch", "watch/", {0, 2, 3})):
        found = [record for record in records if record["kind"] == kind]
        assert {record["step"] for record in found} == steps
        for name in found[0].keys() - {"kind", "step"}:
            assert writer.curve(prefix + name) == {record["step"]: record[name] for record in found}, name
    speed = writer.curve("images_per_second")
    assert speed.keys() == {1, 2, 3}
    assert all(math.isfinite(value) and value > 0 for value in speed.values())


def test_without_the_option_nothing_is_written(dinokit_cli, images, tmp_path, written):
    """The package is not even asked for."""
    done = dinokit_cli("train", images, "--out", tmp_path / "run", "--steps", 1, *SETTINGS)
    assert done.code == 0, done.err
    assert written == []


def test_a_run_that_goes_on_continues_its_curves(dinokit_cli, images, tmp_path, written):
    """In the same folder, from the step after the checkpoint."""
    for steps, more in ((2, ()), (4, ("--resume", "auto"))):
        options = ("--out", tmp_path / "run", "--steps", steps, "--tensorboard", *more)
        done = dinokit_cli("train", images, *options, *SETTINGS)
        assert done.code == 0, done.err
    first, second = written
    assert first.log_dir == second.log_dir
    assert set(first.curve("loss")) == {1, 2}
    assert set(second.curve("loss")) == {3, 4}
