"""`train`: a recipe, images and a folder to a trained network; the folder holds all that the run is.

    run/recipe.json  log.jsonl  timing.jsonl  page.html  checkpoints/step-N/  captures/  export/  export-best/

Promise: started again with `resume`, it goes on from the last checkpoint as if nothing had been.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from dinokit.atomic import write_json
from dinokit.errors import DinokitError, OutputError
from dinokit.train import checkpoint, log
from dinokit.train.begin import begin, build_network
from dinokit.train.export import export
from dinokit.train.feed import Feed
from dinokit.train.guides import Guides
from dinokit.train.log import ALARM, SKIPPED, STOPPED, TRAIN, WATCH, JsonLines, Logger, Record
from dinokit.train.loop import BAD_IN_A_ROW, Clock, Hooks, loop
from dinokit.train.network import Batch, Network
from dinokit.train.optim import GroupRule, adamw, parameter_groups
from dinokit.train.page import write_page
from dinokit.train.parallel import Placed, Spread, World, place, plain
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.settings import from_json, to_json
from dinokit.train.state import TrainState
from dinokit.train.watch import TokenWatcher, Watcher, alarms, is_news

RECIPE, LOG, TIMING, PAGE = "recipe.json", "log.jsonl", "timing.jsonl", "page.html"
CHECKPOINTS, CAPTURES, EXPORT, BEST = "checkpoints", "captures", "export", "export-best"


class TrainingError(DinokitError, ArithmeticError):
    """A run that can't go on: its numbers are not finite."""


@dataclass(frozen=True)
class Watched:
    """What a run looks at: normalised images for attention, ranks and pictures, and functions of the teacher's backbone."""

    pixels: Float[Tensor, "n c h w"] | None = None
    functions: Sequence[Watcher] = ()


def read_recipe(folder: str | Path) -> TrainingRecipe:
    """The recipe that a run's folder holds."""
    return from_json(TrainingRecipe, json.loads((Path(folder) / RECIPE).read_text(encoding="utf-8")))


def read_log(folder: str | Path) -> list[Record]:
    """What a run's folder has logged so far."""
    return log.read_log(Path(folder) / LOG)


def ended_by_itself(folder: str | Path, step: int) -> str | None:
    """Why a run that is after `step` ended before its recipe's end, if its guard ended it: the step after what it saw."""
    ends = [record for record in read_log(folder) if record["kind"] == STOPPED]
    return str(ends[-1]["text"]) if ends and ends[-1]["step"] == step - 1 else None


def train(
    recipe: TrainingRecipe,
    feed: Feed,
    folder: str | Path,
    *,
    world: World | None = None,
    spread: Spread = "ddp",
    resume: bool = False,
    watched: Watched | None = None,
    loggers: Sequence[Logger] = (),
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> TrainState:
    """Run a recipe. `about` (where the images are from, their licence) goes into the model card.

    Raises:
        OutputError: the folder holds a run, and `resume` is off.
        TrainingError: three steps in a row gave numbers that are not finite.
        WeightsError: the checkpoint to continue from does not fit the recipe, or a teacher is not the one that the run began with.
    """
    world = world or World(0, 1, torch.device("cpu"))
    folder = Path(folder)
    found = checkpoint.latest(folder / CHECKPOINTS) if resume else None
    if found is None and (folder / RECIPE).exists() and not resume:
        raise OutputError(f"{folder} holds a run already; continue it (--resume auto), or choose another folder.")
    if resume and (folder / RECIPE).is_file():
        recipe = _same_teachers(recipe, read_recipe(folder))
    world.barrier()  # all have looked before anybody writes
    recipe, network, guides = begin(recipe, found is None, say if world.first else lambda _: None)
    run = Run(recipe, folder, world, spread, network, guides, watched or Watched(), loggers, about or {}, progress, say)
    with run.opened(found):
        loop(run.placed, recipe, feed, world, run.hooks, run.guides)
        run.finish()
    return run.placed.state


def _same_teachers(recipe: TrainingRecipe, stored: TrainingRecipe) -> TrainingRecipe:
    """The recipe with the sums of the files that the run began with, which `begin` compares."""
    return replace(
        recipe,
        distill=replace(recipe.distill, sha256=recipe.distill.sha256 or stored.distill.sha256),
        gram=replace(recipe.gram, sha256=recipe.gram.sha256 or stored.gram.sha256),
    )


class Run:
    """A run that is going on: the state, the folder, and what happens between steps."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        folder: Path,
        world: World,
        spread: Spread,
        network: Network,
        guides: Guides,
        watched: Watched,
        loggers: Sequence[Logger],
        about: Mapping[str, Any],
        progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.folder, self.world, self.watched, self.loggers = recipe, folder, world, watched, loggers
        self.about = about
        self.say: Callable[[str], object] = say if world.first else lambda _: None
        rule = GroupRule(recipe.optimizer.layerwise_decay, recipe.optimizer.patch_embed)
        o = recipe.optimizer

        def optimizers(student: Network) -> list[torch.optim.Optimizer]:
            return [adamw(parameter_groups(student, rule), (o.beta1, o.beta2), o.eps)]

        self.placed: Placed = place(network, optimizers, world, spread)
        self.guides = guides.to(world.device)
        _prepare(self.placed.state, recipe)
        self.functions: list[Watcher] = [
            *([TokenWatcher(watched.pixels)] if watched.pixels is not None else []),
            *watched.functions,
        ]
        self.stop = False
        self.hooks = Hooks(self.log, self.watch, self.save, self.bad, lambda: self.stop)
        self.progress = progress and world.first

    @contextlib.contextmanager
    def opened(self, found: Path | None) -> Iterator[None]:
        """Files open, state loaded, the signal that asks for an end heard."""
        state = self.placed.state
        if found is not None:
            checkpoint.load(state, found, self.world)
            self.say(f"continuing from {found}")
        with contextlib.ExitStack() as stack:
            if self.world.first:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / RECIPE, to_json(self.recipe))
                self.records = stack.enter_context(contextlib.closing(JsonLines(self.folder / LOG, state.step)))
                self.times = stack.enter_context((self.folder / TIMING).open("a", encoding="utf-8"))
                self.bar = stack.enter_context(
                    tqdm(
                        total=self.recipe.steps, initial=state.step, unit="step", file=sys.stderr,
                        disable=None if self.progress else True, smoothing=0.05,
                    )
                )  # fmt: skip
            stack.enter_context(self._asked_to_stop())
            yield

    @contextlib.contextmanager
    def _asked_to_stop(self) -> Iterator[None]:
        """A scheduler that takes the machine away sends SIGTERM: finish the step, save, end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(*_: object) -> None:
            self.stop = True

        before = signal.signal(signal.SIGTERM, heard)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def log(self, step: int, values: Mapping[str, float], clock: Clock) -> None:
        """Numbers of a step, and the time it took."""
        lap = clock.lap()
        if not self.world.first:
            return
        self.records.add({"step": step, "kind": TRAIN, **values})
        memory = _memory(self.world.device)
        self.times.write(json.dumps({"step": step, **lap, "memory_gib": memory}) + "\n")
        self.times.flush()
        for logger in self.loggers:
            logger.numbers(step, {**values, **lap, "memory_gib": memory})
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {lap['images_per_second']:.0f} img/s, wait {lap['data_wait']:.0%}, {memory:.1f} GiB"
        )

    def watch(self, step: int) -> None:
        """Look at the teacher, raise alarms, write the page."""
        teacher = self.teacher()
        if not self.world.first:
            return
        values: dict[str, float] = {}
        for function in self.functions:
            values |= function(teacher.backbone)
        self.records.add({"step": step, "kind": WATCH, **values})
        for logger in self.loggers:
            logger.numbers(step, {f"watch/{name}": value for name, value in values.items()})
        pixels = self.watched.pixels
        limit = min(self.recipe.model.embed_dim, len(pixels)) if pixels is not None else self.recipe.model.embed_dim
        for alarm in alarms(self.records.records, self.recipe, limit):
            if is_news(alarm, self.records.records):
                self._words(step, f"alarm ({alarm.name}) at step {step}: {alarm.text}")
            self.records.add({"step": step, "kind": ALARM, "name": alarm.name, "text": alarm.text})
        write_page(self.folder / PAGE, self.recipe, self.records.records, teacher.backbone, pixels)
        if self.recipe.watch.keep_best or self.recipe.watch.stop:
            self._guard(step, teacher)

    def _guard(self, step: int, teacher: Network) -> None:
        """Keep the best teacher by k-NN accuracy; end the run where it has fallen too far below that, if asked to.

        A run that begins with trained weights is guarded from its first step on, for that is when they are forgotten.
        """
        w = self.recipe.watch
        scores = {r["step"]: r["knn"] for r in self.records.records if r["kind"] == WATCH and "knn" in r}
        if step not in scores:
            return
        best = max(scores, key=lambda at: scores[at])  # the first of equals
        if best == step:
            self._export(teacher, BEST)
        early = step < w.grace * self.recipe.steps and not self.recipe.init
        if w.stop and not self.stop and not early and scores[step] < (1 - w.knn_drop) * scores[best]:
            text = (
                f"ended after step {step}: k-NN accuracy is {scores[step]:.3f}, and was {scores[best]:.3f} at step {best}, which is "
                f"kept in {self.folder / BEST}"
            )
            self.records.add({"step": step, "kind": STOPPED, "text": text})
            self._words(step, text)
            self.stop = True

    def _export(self, teacher: Network, name: str) -> None:
        """The folder `name`, whole or as it was before."""
        target = self.folder / name
        part, old = (self.folder / f".{name}.{word}" for word in ("tmp", "old"))
        for each in (part, old):
            shutil.rmtree(each, ignore_errors=True)
        export(teacher, self.recipe, self.records.records, part, self.about)
        if target.exists():
            target.rename(old)
        part.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def save(self, _: int) -> None:
        """A checkpoint, never ahead of its log."""
        if self.world.first:
            self.records.sync()
        folder = self.folder / CHECKPOINTS
        checkpoint.save(self.placed.state, folder, self.world)
        if self.world.first:
            checkpoint.prune(folder, self.recipe.save.keep, self.recipe.save.keep_every)

    def finish(self) -> None:
        """At the end of the recipe, the export; also where a run ended between its last checkpoint and this."""
        if self.placed.state.step < self.recipe.steps:
            return
        teacher = self.teacher()
        if self.world.first:
            export(teacher, self.recipe, self.records.records, self.folder / EXPORT, self.about)

    def bad(self, step: int, batch: Batch, values: Mapping[str, float], in_a_row: int) -> None:
        """Keep what a look at a step that was skipped needs; the third in a row ends the run."""
        target = self.folder / CAPTURES / f"step-{step:09d}"
        checkpoint.save(self.placed.state, target, self.world)
        content = {"step": step, "values": dict(values), "recipe": to_json(self.recipe), "batch": vars(batch)}
        content["batch"] = {**vars(batch), "masks": batch.masks.masks}
        torch.save(content, target / f"batch-{self.world.rank}.pt")
        odd = ", ".join(sorted(name for name, value in values.items() if not math.isfinite(value)))
        text = f"step {step} was skipped: {odd} not finite; batch and state are in {target}"
        if self.world.first:
            self.records.add({"step": step, "kind": SKIPPED, "text": text})
        self._words(step, text)
        if in_a_row >= BAD_IN_A_ROW:
            raise TrainingError(
                f"{in_a_row} steps in a row gave numbers that are not finite, the last being {step}. Continue from an earlier "
                f"checkpoint with a lower learning rate (--set schedule.lr=..., now {self.recipe.schedule.lr:g}) or a stricter clip "
                f"(--set optimizer.clip=..., now {self.recipe.optimizer.clip:g}); where precision is bf16, try fp32. "
                f"What these steps were given is in {self.folder / CAPTURES}."
            )

    def teacher(self) -> Network:
        """The teacher in one piece; all processes must ask."""
        return plain(self.placed.state.teacher, lambda: build_network(self.recipe, teacher_dim=self.guides.width))

    def _words(self, step: int, text: str) -> None:
        self.say(text)
        if self.world.first:
            for logger in self.loggers:
                logger.words(step, text)


def _prepare(state: TrainState, recipe: TrainingRecipe) -> None:
    """What changes speed and memory, but no number that matters."""
    state.student.backbone.set_gradient_checkpointing(recipe.activation_checkpointing)
    if recipe.compile:
        for network in (state.student, state.teacher):
            for block in network.backbone.blocks:
                # stochastic depth calls the branches, not the block
                compiled = [block.attn, block.mlp] if network is state.student and recipe.drop_path else [block]
                for module in compiled:
                    assert isinstance(module, nn.Module)
                    module.compile()


def _memory(device: torch.device) -> float:
    """The most that was in use so far, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
