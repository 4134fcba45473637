"""The loop: numbers that are not finite, accumulation's parts, freezing, an end on request, the log."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch

from dinokit.train.feed import ImageFeed, TensorFeed, parts_of
from dinokit.train.log import JsonLines, TensorBoard
from dinokit.train.parallel import World
from dinokit.train.recipes import resolve
from dinokit.train.run import TrainingError, build_network, read_log, train
from tests.train.small_run import feed, run, small, values

ALONE = World(0, 1, torch.device("cpu"))


class Spoilt(TensorFeed):
    """Textures whose batches hold a NaN at some steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__(feed().images)
        self.steps = steps

    def __call__(self, recipe, world, start):
        for step, batch in enumerate(super().__call__(recipe, world, start), start):
            if step in self.steps:
                batch.global_crops[0, 0, 0, 0] = torch.nan
            yield batch


def test_a_step_that_is_not_finite_is_skipped_and_kept(tmp_path):
    """Nothing changes but the number of the step; the batch and the state before it are there for a look; training goes on."""
    said = []
    a = train(small("steps=3"), Spoilt({1}), tmp_path / "a", say=said.append)
    kinds = [(r["step"], r["kind"]) for r in read_log(tmp_path / "a")]
    assert [k for k in kinds if k[1] != "watch"] == [(1, "train"), (2, "skipped"), (3, "train")]
    assert "step 2 was skipped: " in said[0]
    content = torch.load(tmp_path / "a/captures/step-000000002/batch-0.pt", weights_only=False)
    assert content["batch"]["global_crops"].isnan().any()
    assert content["recipe"]["name"] == "two_minutes"
    one = train(small("steps=3"), Stopping(1), tmp_path / "b")
    before = values_of(tmp_path / "a/captures/step-000000002", 2)
    assert torch.equal(before["student.backbone.pos_embed"], one.student.backbone.pos_embed)
    assert a.step == 3
    assert all(torch.isfinite(p).all() for p in (*a.student.parameters(), *a.teacher.parameters()))


class Stopping(TensorFeed):
    """Textures for so many steps only."""

    def __init__(self, steps: int) -> None:
        super().__init__(feed().images)
        self.stop = steps

    def __call__(self, recipe, world, start):
        for _, batch in zip(range(self.stop - start), super().__call__(recipe, world, start), strict=False):
            yield batch


def values_of(folder, step):
    """Tensors of a checkpoint that lies anywhere."""
    (folder / "checkpoints").symlink_to(folder)
    return values(folder, step)


def test_three_in_a_row_end_the_run_with_advice(tmp_path):
    """Two in a row do not; the message says which settings to turn, and their values."""
    train(small("steps=4"), Spoilt({0, 1, 3}), tmp_path / "a")
    with pytest.raises(TrainingError, match=r"3 steps in a row.*schedule.lr=..., now 0.0001") as caught:
        train(small(), Spoilt({1, 2, 3, 4}), tmp_path / "b")
    assert caught.value.exit_code == 1
    assert read_log(tmp_path / "b")[-1]["step"] == 4


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_a_batch_are_the_batch(count):
    """Each image with its crops and masks once, in order."""
    recipe = small()
    batch = next(feed()(recipe, ALONE, 0))
    parts = parts_of(batch, count)
    assert torch.equal(torch.cat([part.samples for part in parts]), batch.samples)
    joined = torch.cat([part.global_crops.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 1)
    assert torch.equal(joined, batch.global_crops)
    masks = torch.cat([part.masks.masks.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 1)
    assert torch.equal(masks, batch.masks.masks)
    assert sum(len(part.masks.indices) for part in parts) == len(batch.masks.indices)
    assert sum(part.masks.weights.sum() for part in parts) == pytest.approx(batch.masks.weights.sum().item())


def test_a_frozen_backbone_stays_while_heads_learn(tmp_path):
    """Student and teacher alike, for as many steps as asked."""
    start = build_network(small())
    frozen = run(tmp_path / "a", "steps=2", "backbone_freeze=2")
    free = run(tmp_path / "b", "steps=3", "backbone_freeze=2")
    assert torch.equal(frozen.student.backbone.pos_embed, start.backbone.pos_embed)
    assert not torch.equal(frozen.student.dino_head.mlp[0].weight, start.dino_head.mlp[0].weight)
    assert not torch.equal(free.student.backbone.pos_embed, start.backbone.pos_embed)


def test_a_request_to_end_saves_first(tmp_path):
    """SIGTERM in the middle: the step is finished and saved, and what continues equals a run that was never asked."""

    class Asked(TensorFeed):
        def __call__(self, recipe, world, start):
            for step, batch in enumerate(super().__call__(recipe, world, start), start):
                if step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    before = signal.getsignal(signal.SIGTERM)
    stopped = train(small("save.every=99"), Asked(feed().images), tmp_path / "a")
    assert 3 <= stopped.step < 6
    assert signal.getsignal(signal.SIGTERM) is before
    a = train(small("save.every=99"), feed(), tmp_path / "a", resume=True)
    b = train(small("save.every=99"), feed(), tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(a.student.parameters(), b.student.parameters(), strict=True))
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")


@pytest.mark.parametrize(
    "settings", [("activation_checkpointing=true",), ("activation_checkpointing=true", "drop_path=0")]
)
def test_activation_checkpointing_changes_no_number(tmp_path, settings):
    """Bit for bit, with and without stochastic depth."""
    a = run(tmp_path / "a", "steps=2", *settings)
    b = run(tmp_path / "b", "steps=2", *settings, "activation_checkpointing=false")
    assert all(torch.equal(x, y) for x, y in zip(a.student.parameters(), b.student.parameters(), strict=True))


def test_images_from_workers_train_like_images_here(tmp_path):
    """Decoded in this process or in another: the same run; unreadable ones are told."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, 30, 3), dtype=np.uint8) for _ in range(9)]
    images[4] = b"no image"
    told = []
    recipe = small("steps=2", "batch_size=8", "watch.every=0")
    a = train(recipe, ImageFeed(images, 0, told.append), tmp_path / "a")
    assert {each.index for each in told} == {4}
    b = train(recipe, ImageFeed(images, 1), tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(a.student.parameters(), b.student.parameters(), strict=True))


def test_the_log_is_cut_to_a_step(tmp_path):
    """Later records and half a line go; without a step, all."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "half')
    log = JsonLines(path, 2)
    log.add({"step": 3, "kind": "new"})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "kind": "new"},
    ]
    JsonLines(path).close()
    assert path.read_text() == ""


def test_loggers_hear_numbers_and_words(tmp_path, monkeypatch):
    """A logger is anything with two methods; TensorBoard that is not installed is named with the way to get it."""

    class Logger:
        def __init__(self):
            self.heard = []

        def numbers(self, step, values):
            self.heard.append((step, set(values)))

        def words(self, step, text):
            self.heard.append((step, text))

    train(small("steps=3"), Spoilt({1}), tmp_path / "run", loggers=[logger := Logger()])
    steps = [step for step, _ in logger.heard]
    assert steps == sorted(steps)
    assert any("skipped" in what for _, what in logger.heard if isinstance(what, str))
    assert {"loss", "lr", "images_per_second"} <= next(what for step, what in logger.heard if step == 1)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "dinokit\[tensorboard\]"'):
        TensorBoard(tmp_path)


def test_a_run_may_start_from_a_network(tmp_path):
    """`init` takes any checkpoint; the network has its shape, and its weights until the first step."""
    run(tmp_path / "first", "steps=1")
    recipe = resolve(
        "two_minutes", ["steps=1", "batch_size=4", f"init={tmp_path / 'first/export/model'}", "backbone_freeze=1"]
    )
    state = train(recipe, feed(), tmp_path / "second")
    one, two = (tmp_path / f"{name}/export/model/model.safetensors" for name in ("first", "second"))
    assert state.student.backbone.config.depth == 2
    assert one.read_bytes() == two.read_bytes()
