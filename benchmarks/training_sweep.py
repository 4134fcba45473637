"""Which settings suit how many images? One setting at a time changed from `two_minutes`, at several sizes of the collection.

python benchmarks/training_sweep.py [--images 1000 8000 32000] [--steps 200] [--seeds 0] [--json FILE]
python benchmarks/training_sweep.py --table --json FILE

Images are textures of 28 pixels, networks have 130,000 parameters: an answer about such, and no more. Judged are 2000 images that are
neither trained on nor the sanity run's test. FILE grows by a line a point; points that it has are not run again, so that a sweep may be
stopped and go on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import common
import torch
from training_sanity import Judge

from dinokit.train.data.textures import Textures
from dinokit.train.feed import TensorFeed
from dinokit.train.log import TRAIN
from dinokit.train.recipes import resolve
from dinokit.train.run import read_log, train

SETTINGS = {
    "KoLeo": ("losses.koleo", ["0.1", "0.3", "1", "3"]),
    "teacher's temperature": ("schedule.teacher_temperature_end", ["0.02", "0.04", "0.07"]),
    "teacher's momentum": ("schedule.momentum", ["0.9", "0.95", "0.98", "0.992"]),
    "prototypes": ("heads.*prototypes", ["64", "256", "1024"]),
    "jitter": ("*.jitter", [".2,.2,.1,.05", ".4,.4,.2,.1", ".4,.4,.4,.5", ".8,.8,.4,.2"]),
}
KEPT = {
    "losses.koleo": "1",
    "schedule.teacher_temperature_end": "0.02",
    "schedule.momentum": "0.95",
    "heads.*prototypes": "64",
}


def points(base_jitter: str) -> list[tuple[str, str]]:
    """The settings as they are, as ("", ""), and every other value of each."""
    kept = KEPT | {"*.jitter": base_jitter}
    changed = [(key, value) for key, values in SETTINGS.values() for value in values if value != kept[key]]
    return [("", ""), *changed]


def run(judge: Judge, count: int, key: str, value: str, steps: int, seed: int) -> dict[str, object]:
    kept = [f"{name}={kept_value}" for name, kept_value in KEPT.items()]
    settings = [f"steps={steps}", f"warm_up={steps // 10}", "watch.every=0", "save.every=0", f"seed={seed}", *kept]
    recipe = resolve("two_minutes", [*settings, *([f"{key}={value}"] if key else [])])
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        images = judge.images[:count] if count <= len(judge.images) else Textures(count).tensor()
        state = train(recipe, TensorFeed(images), Path(folder))
        last = [record["dino"] for record in read_log(Path(folder)) if record["kind"] == TRAIN][-5:]
    share = sum(last) / len(last) / math.log(recipe.heads.prototypes)
    return {
        "images": count, "setting": key, "value": value, "seed": seed, "steps": steps, **judge(state.teacher.backbone),
        "dino_share_of_uniform": share, "cpu_seconds": time.process_time() - begun,
    }  # fmt: skip


def table(found: list[dict]) -> str:
    """k-NN accuracy and, in brackets, how often a view finds its image; a row a value, a column a number of images."""
    sizes = sorted({point["images"] for point in found})
    named = {key: name for name, (key, _) in SETTINGS.items()} | {"": "as it is"}
    rows: dict[tuple[str, str], dict[int, list[dict]]] = {}
    for point in found:
        rows.setdefault((point["setting"], point["value"]), {}).setdefault(point["images"], []).append(point)
    lines = []
    for (key, value), by_size in rows.items():
        cells = []
        for size in sizes:
            seen = by_size.get(size, [])
            mean = {name: sum(p[name] for p in seen) / len(seen) for name in ("knn", "retrieval")} if seen else None
            cells.append(f"{mean['knn']:.3f} ({mean['retrieval']:.3f})" if mean else "")
        lines.append([named[key], value, *cells])
    return common.table(lines, ["setting", "value", *(f"{size} images" for size in sizes)])


def read(path: Path | None) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 8000, 32_000])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print what FILE has, and run nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = read(options.json)
    if not options.table:
        torch.set_num_threads(1)
        recipe = resolve("two_minutes", [])
        judge = Judge(recipe, "validation")
        known = {(p["images"], p["setting"], p["value"], p["seed"], p["steps"]) for p in found}
        jitter = ",".join(f"{x:g}".removeprefix("0") for x in recipe.augmentation.first.jitter)
        wanted = [(n, k, v, s) for s in options.seeds for k, v in points(jitter) for n in options.images]
        for count, key, value, seed in wanted:
            if (count, key, value, seed, options.steps) in known:
                continue
            found.append(run(judge, count, key, value, options.steps, seed))
            print(found[-1], file=sys.stderr, flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
