"""Does training train? Two minutes of procedural textures on one core, with controls beside.

python benchmarks/training_sanity.py [--seeds 0 1 2] [--only full koleo_only ...] [--split validation] [--contrast 0.4] [--json FILE]

k-NN accuracy alone proves nothing about DINO or iBOT: KoLeo alone raises it. So there is a control with KoLeo alone, and numbers that
need the teacher: how often an augmented view finds its image again, and the class-token loss against ln K. Images are resized whole.
Settings are chosen on the split `validation`, whose images have a seed of their own; `test` is for reports.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch import Tensor

from dinokit.analysis.rank import rankme
from dinokit.evals.knn import knn
from dinokit.images import ImageTransform
from dinokit.model import VisionTransformer
from dinokit.train.data import Order, Plan, TensorBatches
from dinokit.train.data.textures import Textures
from dinokit.train.feed import TensorFeed
from dinokit.train.log import ALARM, TRAIN
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.recipes import resolve
from dinokit.train.run import Watched, build_network, read_log, train

SPLITS = {"test": 1, "validation": 2}  # seeds of the images; 0 is that of those to learn from
TRAIN_IMAGES, TEST_IMAGES, VIEWS, NEIGHBOURS = 8000, 2000, 1000, 20
VARIANTS = {
    "full": [],
    "koleo_only": ["losses.dino=0", "losses.ibot=0"],
    "dino_only": ["losses.ibot=0", "losses.koleo=0"],
    "koleo_0": ["losses.koleo=0"],
    "jitter_twice": ["*.jitter=.8,.8,.4,.2"],
}
FLOORS = {"knn": 0.60, "over_pixels": 0.20, "retrieval_over_random": 4.0, "dino_share_of_uniform": 0.97, "rankme": 35.0}


def prepared(recipe: TrainingRecipe, images: Textures) -> Tensor:
    """Whole images in the size of a global crop."""
    augmentation = recipe.augmentation
    transform = replace(
        ImageTransform.squash(augmentation.global_crops.size), mean=augmentation.mean, std=augmentation.std
    )
    return torch.stack([transform(image) for image in images.batch(range(len(images)))])


@torch.no_grad()
def features(backbone: VisionTransformer, pixels: Tensor) -> Tensor:
    return torch.cat([backbone(x).cls for x in pixels.split(500)])


def accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    return knn(train_x, train_y, test_x, test_y, ks=(NEIGHBOURS,), centred=True).top1[NEIGHBOURS]


@torch.no_grad()
def retrieval(backbone: VisionTransformer, recipe: TrainingRecipe, images: Tensor) -> float:
    """Share of first global crops whose nearest second global crop is of the same image."""
    plan = Plan(Order(len(images), shuffle=False), len(images))
    views = TensorBatches(images, recipe.augmentation, plan)[0]
    crops, _, _ = recipe.augmentation.finish(views)
    one, two = (F.normalize(x - x.mean(0), dim=1) for x in features(backbone, crops).chunk(2))
    return ((one @ two.T).argmax(dim=1) == torch.arange(len(one))).float().mean().item()


class Judge:
    """The labelled images, and all numbers about a backbone."""

    def __init__(self, recipe: TrainingRecipe, split: str = "test", contrast: float = 0.0) -> None:
        self.recipe = recipe
        train_set = Textures(TRAIN_IMAGES, contrast=contrast)
        test_set = Textures(TEST_IMAGES, seed=SPLITS[split], contrast=contrast)
        self.images = train_set.tensor()
        self.test_images = test_set.tensor()
        self.x, self.y = prepared(recipe, train_set), torch.from_numpy(train_set.labels())
        self.test_x, self.test_y = prepared(recipe, test_set), torch.from_numpy(test_set.labels())

    def pixels(self) -> dict[str, float]:
        raw = [x.flatten(1) for x in (self.x, self.test_x)]
        standard = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-6) for x in raw]
        return {
            name: accuracy(a, self.y, b, self.test_y) for name, (a, b) in {"raw": raw, "standardised": standard}.items()
        }

    def __call__(self, backbone: VisionTransformer) -> dict[str, float]:
        backbone = backbone.eval()
        test = features(backbone, self.test_x)
        return {
            "knn": accuracy(features(backbone, self.x), self.y, test, self.test_y),
            "retrieval": retrieval(backbone, self.recipe, self.test_images[:VIEWS]),
            "rankme": rankme(test),
        }


def trained(judge: Judge, variant: str, seed: int, steps: int, settings: list[str]) -> dict[str, object]:
    recipe = resolve("two_minutes", [*settings, *VARIANTS[variant], f"seed={seed}", f"steps={steps}"])
    with tempfile.TemporaryDirectory() as folder:
        begun, cpu = time.perf_counter(), time.process_time()
        state = train(recipe, TensorFeed(judge.images), Path(folder), watched=Watched(judge.test_x[:512]))
        spent = time.process_time() - cpu
        records = read_log(Path(folder))
    last = [r["dino"] for r in records if r["kind"] == TRAIN][-5:]
    dino = sum(last) / len(last)
    return {
        "seed": seed,
        **judge(state.teacher.backbone),
        "dino": dino,
        "dino_share_of_uniform": dino / math.log(recipe.heads.prototypes),
        "alarms": sorted({r["name"] for r in records if r["kind"] == ALARM}),
        "cpu_seconds": spent,
        "seconds": time.perf_counter() - begun,
    }


def verdict(full: dict, random: dict, pixels: dict, koleo_0: dict | None) -> dict[str, bool]:
    found = {
        "knn": full["knn"] >= FLOORS["knn"],
        "over_pixels": full["knn"] >= max(pixels.values()) + FLOORS["over_pixels"],
        "retrieval_over_random": full["retrieval"] >= FLOORS["retrieval_over_random"] * random["retrieval"],
        "dino_share_of_uniform": full["dino_share_of_uniform"] < FLOORS["dino_share_of_uniform"],
        "rankme": full["rankme"] > FLOORS["rankme"],
        "no_alarm": not full["alarms"],
    }
    return found if koleo_0 is None else found | {"koleo_0_raises_alarm": "rank" in koleo_0["alarms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=["full", "koleo_only", "koleo_0"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="of the recipe, for all variants")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--contrast", type=float, default=0.0, help="least distance of an image's two colours")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge(resolve("two_minutes", options.settings), options.split, options.contrast)
    found: dict[str, object] = {"pixels": judge.pixels()}
    randoms = [judge(build_network(resolve("two_minutes", [f"seed={seed}"])).backbone) for seed in options.seeds]
    found["random"] = randoms
    print(json.dumps(found), flush=True)
    for variant in options.only:
        found[variant] = [trained(judge, variant, seed, options.steps, options.settings) for seed in options.seeds]
        print(variant, json.dumps(found[variant]), flush=True)
    if "full" in options.only:
        for i, full in enumerate(found["full"]):
            print("verdict", verdict(full, randoms[i], found["pixels"], (found.get("koleo_0") or [None] * 9)[i]))
    about = {key: getattr(options, key) for key in ("seeds", "steps", "settings", "split", "contrast")}
    common.write_result(options.json, "training_sanity", about, **found)


if __name__ == "__main__":
    main()
