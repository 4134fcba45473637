"""What the networks that come with the package are worth, beside pixels, random weights, and KoLeo alone.

python benchmarks/shipped.py [--quick] [--only stereo ...] [--subjects reg4 pixels ...]

Everything is calculated or comes inside scikit-learn and scikit-image, so nothing is downloaded. All subjects get the same images at
the same size and the same protocol. Writes results/shipped.json unless --quick or a choice is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import HERE, RESULTS, write_result
from PIL import Image
from torch import Tensor

import dinokit
from dinokit.analysis.matching import best_buddies, end_point_error, nearest, patch_centres
from dinokit.evals import depth, segmentation
from dinokit.evals.fewshot import few_shot
from dinokit.evals.knn import knn, knn_leave_one_out
from dinokit.evals.logreg import logreg
from dinokit.images import IMAGENET_MEAN, IMAGENET_STD
from dinokit.model import VisionTransformer
from dinokit.train.data import Order, Plan, TensorBatches
from dinokit.train.data.pixelops import hue_shifted
from dinokit.train.data.procedural import Procedural
from dinokit.train.data.shapes import HELD_OUT_SHAPES, HELD_OUT_TEXTURES
from dinokit.train.data.shapetex import BAR, ShapeTex
from dinokit.train.data.textures import Textures
from dinokit.train.recipes import resolve
from dinokit.train.run import build_network

CONTROL = HERE / "controls" / "koleo_alone"
SEED = 1000  # of images, and of random weights: none was trained on
SIZE, PATCH = 64, 8
NEIGHBOURS = 20
AT_ONCE = 128
MEAN, STD = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
CS = (0.01, 0.1, 1.0, 10.0)
QUICKLY = {"max_iterations": 100, "dtype": torch.float32}
Numbers = dict[str, float]


@dataclass(frozen=True)
class Features:
    """Of n images: what neighbours are sought by, what a linear layer reads, and tokens on a grid."""

    cls: Tensor
    wide: Tensor
    tokens: Tensor


class Network:
    """A vision transformer: class tokens, class tokens with mean patches, patches."""

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Of images (n, 3, h, w) in [0, 1]."""
        found = [self.model((x - MEAN) / STD) for x in pixels.split(AT_ONCE)]
        cls, patches = (torch.cat([getattr(t, name) for t in found]) for name in ("cls", "patches"))
        return Features(cls, torch.cat([cls, patches.mean(dim=1)], dim=1), patches)


class Pixels:
    """Images of 16 x 16 as vectors; the pixels of a patch as its token."""

    def __call__(self, pixels: Tensor) -> Features:
        small = F.interpolate(pixels, (16, 16), mode="area").flatten(1)
        tokens = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
        return Features(small, small, tokens)


Subject = Callable[[Tensor], Features]


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "reg4": lambda: Network(dinokit.load("dinokit/tiny-procedural-reg4").model),
    "reg0": lambda: Network(dinokit.load("dinokit/tiny-procedural").model),
    "random": lambda: Network(build_network(resolve("tiny_procedural", [f"seed={SEED}"])).backbone),
    "koleo_alone": lambda: Network(dinokit.load(CONTROL).model),
    "pixels": Pixels,
}


def tensor(images: np.ndarray) -> Tensor:
    """8-bit (n, h, w, 3) as (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def labelled(train: Features, y: Tensor, test: Features, test_y: Tensor) -> Numbers:
    near = knn(train.cls, y, test.cls, test_y, ks=(NEIGHBOURS,), centred=True)
    return {"knn": near.top1[NEIGHBOURS], "linear": logreg(train.wide, y, test.wide, test_y, cs=CS, **QUICKLY).top1}


class Shapes:
    """ShapeTex: which shape, which texture; of names that were trained on, in new scenes, or of names that never were."""

    def __init__(self, share: float, *, held_out: bool) -> None:
        names = {"shapes": HELD_OUT_SHAPES, "textures": HELD_OUT_TEXTURES} if held_out else {}
        sizes = int(share * (600 if held_out else 900)), int(share * (300 if held_out else 400))
        self.parts = []
        for part, n in enumerate(sizes):
            made = ShapeTex(n, SIZE, SEED + part, **names)
            scenes = [made.scene(i) for i in range(n)]
            x = tensor(np.stack([s.pixels for s in scenes]))
            self.parts.append((x, *(torch.tensor([getattr(s, k) for s in scenes]) for k in ("shape", "texture"))))

    def __call__(self, subject: Subject) -> Numbers:
        (x, *y), (test_x, *test_y) = self.parts
        train, test = subject(x), subject(test_x)
        found = {}
        for name, a, b in zip(("shape", "texture"), y, test_y, strict=True):
            found |= {f"{name}_{k}": v for k, v in labelled(train, a, test, b).items()}
        return found


TEXTURE_SIZE = 40  # the crops of training; the textures have 28


class TextureClasses:
    """Ten textures in any colours."""

    def __init__(self, share: float) -> None:
        self.parts = []
        for part, n in enumerate((int(1600 * share), int(800 * share))):
            made = Textures(n, seed=SEED + part)
            x = tensor(made.batch(range(n)))
            x = F.interpolate(x, (TEXTURE_SIZE,) * 2, mode="bicubic").clamp(0, 1)
            self.parts.append((x, torch.from_numpy(made.labels())))

    def __call__(self, subject: Subject) -> Numbers:
        (x, y), (test_x, test_y) = self.parts
        return labelled(subject(x), y, subject(test_x), test_y)


class TwoViews:
    """Share of crops whose nearest other crop is of the same image: dead leaves that were not trained on, cropped and coloured anew."""

    def __init__(self, share: float) -> None:
        images = Procedural(int(500 * share), SIZE, SEED).tensor()
        augmentation = resolve("tiny_procedural").augmentation
        views = TensorBatches(images, augmentation, Plan(Order(len(images), shuffle=False), len(images)))[0]
        crops, _, _ = augmentation.finish(views)
        self.crops = (crops * STD + MEAN).clamp(0, 1)

    def __call__(self, subject: Subject) -> Numbers:
        one, two = (F.normalize(x - x.mean(0), dim=1) for x in subject(self.crops).cls.chunk(2))
        return {"found": float(((one @ two.T).argmax(dim=1) == torch.arange(len(one))).float().mean())}


class Digits:
    """scikit-learn's 1797 handwritten digits of 8 x 8, enlarged."""

    def __init__(self, share: float) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        keep = int(1797 * max(share, 0.4))
        x = torch.from_numpy(data.images[:keep]).float()[:, None].expand(-1, 3, -1, -1) / 16
        self.x = F.interpolate(x, (40, 40), mode="bicubic").clamp(0, 1)
        self.y = torch.from_numpy(data.target[:keep].astype(np.int64))

    def __call__(self, subject: Subject) -> Numbers:
        found = subject(self.x)
        cut = len(self.y) * 2 // 3
        train, test = (Features(found.cls[s], found.wide[s], found.tokens[s]) for s in (slice(cut), slice(cut, None)))
        y, test_y = self.y[:cut], self.y[cut:]
        shots = few_shot(train.wide, y, test.wide, test_y, shots=(5,), learners=("logreg",), episodes=5)
        return labelled(train, y, test, test_y) | {"five_shot": shots[0].accuracy}


def photograph(name: str) -> np.ndarray:
    import skimage

    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))


class Faces:
    """scikit-image's 200 cut-outs of 25 x 25, half of them faces: the only faces that come without a download."""

    def __init__(self, share: float) -> None:  # noqa: ARG002 - few enough
        import skimage

        x = torch.from_numpy(np.load(Path(skimage.__file__).parent / "data/lfw_subset.npy")).float()
        self.x = F.interpolate(x[:, None].expand(-1, 3, -1, -1), (48, 48), mode="bicubic").clamp(0, 1)
        self.y = (torch.arange(len(x)) < 100).long()

    def __call__(self, subject: Subject) -> Numbers:
        found = subject(self.x)
        near = knn_leave_one_out(found.cls, self.y, ks=(5,), centred=True).top1[5]
        shots = few_shot(found.wide, self.y, found.wide, self.y, shots=(5,), learners=("logreg",), episodes=20)
        return {"knn": near, "five_shot": shots[0].accuracy}


class Photographs:
    """Which of twelve photographs a crop is from, each crop in colours of its own: real images, no labels but their names."""

    NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg",
             "camera.png", "coins.png", "grass.png", "gravel.png", "brick.png", "retina.jpg")  # fmt: skip

    def __init__(self, share: float) -> None:
        rng, count = np.random.default_rng(SEED), max(int(24 * share), 10)
        crops, labels = [], []
        for label, name in enumerate(self.NAMES):
            image = tensor(photograph(name)[None])[0]
            scale = 384 / min(image.shape[1:])
            image = F.interpolate(image[None], scale_factor=scale, mode="bicubic", antialias=True)[0].clamp(0, 1)
            for _ in range(count):
                top, left = (int(rng.integers(n - SIZE + 1)) for n in image.shape[1:])
                crops.append(image[:, top : top + SIZE, left : left + SIZE])
                labels.append(label)
        self.y = torch.tensor(labels)
        self.x = recoloured(torch.stack(crops), rng)

    def __call__(self, subject: Subject) -> Numbers:
        found = subject(self.x)
        return {"knn": knn_leave_one_out(found.cls, self.y, ks=(10,), centred=True).top1[10]}


def recoloured(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image with its hues turned by any angle, its contrast and brightness by up to a third."""
    n = len(images)
    turns = torch.from_numpy(rng.uniform(-0.5, 0.5, n).astype(np.float32))
    gain, lift = (
        torch.from_numpy(rng.uniform(a, b, (n, 1, 1, 1)).astype(np.float32)) for a, b in ((0.7, 1.3), (-0.15, 0.15))
    )
    return ((hue_shifted(images, turns) - 0.5) * gain + 0.5 + lift).clamp(0, 1)


class Stereo:
    """The motorcycle pair: which patch of the right photograph shows what one of the left does; disparity from one alone."""

    HEIGHT, WIDTH, BLOCK = 496, 736, 12

    def __init__(self, share: float) -> None:  # noqa: ARG002 - one pair
        import skimage

        h, w = self.HEIGHT, self.WIDTH
        self.pair = [tensor(photograph(f"motorcycle_{side}.png")[None, :h, :w]) for side in ("left", "right")]
        self.changed = recoloured(self.pair[1], np.random.default_rng(SEED))
        self.hw = h // PATCH, w // PATCH
        with np.load(Path(skimage.__file__).parent / "data/motorcycle_disp.npz") as file:
            disparity = torch.from_numpy(file["arr_0"][:h, :w].astype(np.float32))
        self.centres = patch_centres(self.hw, PATCH)
        rows, columns = self.centres.long().unbind(1)
        self.true = disparity[rows, columns]
        self.known = torch.isfinite(self.true) & (self.centres[:, 1] - self.true > 0)

    def __call__(self, subject: Subject) -> Numbers:
        left, right, changed = (subject(x).tokens[0] for x in (*self.pair, self.changed))
        found = self.matched(left, right) | {f"recoloured_{k}": v for k, v in self.matched(left, changed).items()}
        return found | {"disparity_r2": self.read(left)}

    def matched(self, left: Tensor, right: Tensor) -> Numbers:
        """Any patch may match any other; within a patch's width of the true place is right."""
        expected = self.centres - torch.stack([torch.zeros_like(self.true), self.true], dim=1)
        left, right = left - left.mean(0), right - right.mean(0)
        pairs = nearest(left, right, mask_a=self.known)
        error = end_point_error(self.centres[pairs.second], expected[pairs.first])
        buddies = best_buddies(left, right, mask_a=self.known)
        mutual = end_point_error(self.centres[buddies.second], expected[buddies.first])
        return {
            "within_a_patch": float((error <= PATCH).float().mean()),
            "buddies_right": float((mutual <= PATCH).float().sum() / self.known.sum()),
        }

    def read(self, left: Tensor) -> float:
        """Share of the disparity's variance that a linear layer says, in blocks of the photograph that it was not fitted on."""
        rows, columns = (self.centres / PATCH / self.BLOCK).long().unbind(1)
        fitted = ((rows + columns) % 2 == 0) & torch.isfinite(self.true)
        judged = ((rows + columns) % 2 == 1) & torch.isfinite(self.true)
        x = (left - left[fitted].mean(0)) / left[fitted].std(0).clamp_min(1e-6)
        x, y = torch.cat([x, torch.ones(len(x), 1)], dim=1).double(), self.true.double()
        weight = torch.linalg.solve(x[fitted].T @ x[fitted] + 100 * torch.eye(x.shape[1]), x[fitted].T @ y[fitted])
        error = (x[judged] @ weight - y[judged]).square().mean()
        return float(1 - error / (y[judged] - y[judged].mean()).square().mean())


class Dense:
    """Constructed scenes: ground, shape or bar; which of twelve shapes; how far; by the linear heads of `dinokit eval`."""

    STEPS, FITTED_AT = 200, (32, 32)  # half the pixels a side: faster, and the same for all

    def __init__(self, share: float) -> None:
        self.steps = max(int(self.STEPS * share), 100)
        self.parts = []
        for part, n in enumerate((int(400 * share), int(120 * share))):
            made = ShapeTex(n, SIZE, SEED + 10 + part)
            scenes = [made.scene(i) for i in range(n)]
            semantic = torch.from_numpy(np.stack([s.semantic for s in scenes]).astype(np.int64))
            coarse = torch.where(semantic == BAR, 2, (semantic > 0).long())
            far = torch.from_numpy(np.stack([s.depth for s in scenes]))
            self.parts.append((tensor(np.stack([s.pixels for s in scenes])), coarse, semantic, far))

    def __call__(self, subject: Subject) -> Numbers:
        (x, *truth), (test_x, *test_truth) = self.parts
        train, test = subject(x).tokens, subject(test_x).tokens
        grid, size, width = (SIZE // PATCH,) * 2, self.FITTED_AT, train.shape[2]
        same = {"steps": self.steps, "batch_size": 32, "rate": 1e-2}
        found = {}
        for name, a, b, classes in (("objects", truth[0], test_truth[0], 3), ("shapes", truth[1], test_truth[1], 13)):
            head = segmentation.fit_segmentation(
                lambda i: train[i], a.__getitem__, len(train), grid, width, classes, size, **same
            ).eval()
            score = segmentation.judge_segmentation(
                lambda i, head=head: head(test[i : i + 1], grid)[0], b.__getitem__, len(test), classes
            )
            found[f"{name}_miou"] = score.mean_iou
        reach = depth.DepthRange(0.2, 2.2)
        deep = depth.fit_depth(
            lambda i: train[i], truth[2].__getitem__, len(train), grid, width, size, reach=reach, **same
        ).eval()
        judged = depth.judge_depth(
            lambda i: depth.depth_of_scores(deep(test[i : i + 1], grid), reach)[0],
            test_truth[2].__getitem__,
            len(test),
            reach=reach,
        )
        return found | {"depth_rmse": judged.errors.rmse}


TASKS: dict[str, Callable[[float], Callable[[Subject], Numbers]]] = {
    "shapes": lambda share: Shapes(share, held_out=False),
    "shapes_never_seen": lambda share: Shapes(share, held_out=True),
    "textures": TextureClasses,
    "two_views": TwoViews,
    "digits": Digits,
    "faces": Faces,
    "photographs": Photographs,
    "stereo": Stereo,
    "dense": Dense,
}
LESS_IS_BETTER = ("depth_rmse",)
# Of each number, in the order of the pages
LABELS = {
    "shapes/shape_knn": "ShapeTex, new scenes: which of 12 shapes, 20-NN",
    "shapes/shape_linear": "same, linear",
    "shapes/texture_knn": "ShapeTex, new scenes: which of 12 textures, 20-NN",
    "shapes/texture_linear": "same, linear",
    "shapes_never_seen/shape_knn": "4 shapes never trained on, 20-NN",
    "shapes_never_seen/shape_linear": "same, linear",
    "shapes_never_seen/texture_knn": "4 textures never trained on, 20-NN",
    "shapes_never_seen/texture_linear": "same, linear",
    "textures/knn": "10 textures in any colours, 20-NN",
    "textures/linear": "same, linear",
    "two_views/found": "two views of 500 dead leaves: finds its own",
    "digits/knn": "scikit-learn's digits, 20-NN",
    "digits/linear": "same, linear",
    "digits/five_shot": "same, linear from 5 a class",
    "faces/knn": "scikit-image's faces or not, 5-NN",
    "faces/five_shot": "same, linear from 5 a class",
    "photographs/knn": "recoloured crops: which of 12 photographs, 10-NN",
    "stereo/within_a_patch": "stereo pair: patches matched within a patch's width",
    "stereo/buddies_right": "same, mutual matches that are right, of all patches",
    "stereo/recoloured_within_a_patch": "stereo, one recoloured: within a patch's width",
    "stereo/recoloured_buddies_right": "same, mutual matches that are right, of all patches",
    "stereo/disparity_r2": "depth in the left photograph, linear from patches: R2",
    "dense/objects_miou": "constructed scenes: ground, shape, bar, linear head: mIoU",
    "dense/shapes_miou": "same, which of 12 shapes or ground: mIoU",
    "dense/depth_rmse": "same, depth, linear head: RMSE (less is better)",
}
NAMES = {
    "reg4": "4 registers", "reg0": "0 registers", "random": "random weights", "koleo_alone": "KoLeo alone", "pixels": "pixels",
}  # fmt: skip
BEGIN, END = "<!-- figures of benchmarks/shipped.py -->", "<!-- end of figures -->"
PAGES = HERE.parent / "docs/shipped.md", *sorted((HERE.parent / "src/dinokit/weights/bundled").glob("*/README.md"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the images")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--subjects", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="other networks beside them, by their paths")
    parser.add_argument("--out", type=Path, help="numbers as JSON, here instead")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judged = {name: SUBJECTS[name]() for name in options.subjects}
    judged |= {str(path): Network(dinokit.load(path).model) for path in options.model}
    begun, found = time.perf_counter(), {name: {} for name in judged}
    for task in options.only:
        made = TASKS[task](0.25 if options.quick else 1.0)
        for name, subject in judged.items():
            found[name] |= {f"{task}/{key}": round(value, 4) for key, value in made(subject).items()}
        print(f"{task}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        return
    if not (options.quick or options.model or len(options.subjects) < len(SUBJECTS) or len(options.only) < len(TASKS)):
        seconds = round(time.perf_counter() - begun)
        write_result(RESULTS / "shipped.json", "shipped", {"threads": options.threads}, seconds=seconds, numbers=found)
        for page in PAGES:
            text = page.read_text()
            before, _, rest = text.partition(BEGIN)
            page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")


def table(found: dict[str, Numbers]) -> str:
    """Markdown; the best of each row in bold."""
    lines = ["| | " + " | ".join(NAMES.get(name, name) for name in found) + " |", "|---|" + "---|" * len(found)]
    for key, label in LABELS.items():
        values = [numbers[key] for numbers in found.values() if key in numbers]
        if values:
            best = min(values) if key.endswith(LESS_IS_BETTER) else max(values)
            cells = (f"**{value:.3f}**" if value == best else f"{value:.3f}" for value in values)
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
