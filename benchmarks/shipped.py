"""What the networks that come with the package are worth, beside pixels, random weights, and KoLeo alone.

python benchmarks/shipped.py [--quick] [--only stereo ...] [--subjects reg4 pixels ...]

Everything is calculated or comes inside scikit-learn and scikit-image, so nothing is downloaded. All subjects get the same images at
the same size and the same protocol. Writes results/shipped.json unless --quick or a choice is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import HERE, RESULTS, write_result
from PIL import Image
from torch import Tensor

import dinokit
from dinokit.analysis.matching import end_point_error, nearest, patch_centres
from dinokit.evals import depth, segmentation
from dinokit.evals.fewshot import few_shot
from dinokit.evals.knn import knn, knn_leave_one_out
from dinokit.evals.logreg import logreg
from dinokit.images import IMAGENET_MEAN, IMAGENET_STD
from dinokit.model import VisionTransformer
from dinokit.model.dense.spec import DepthRule, dense_spec
from dinokit.train.data import Order, Plan, TensorBatches
from dinokit.train.data.mosaic import Mosaic
from dinokit.train.data.pixelops import hue_shifted
from dinokit.train.data.procedural import Procedural
from dinokit.train.data.shapes import HELD_OUT_SHAPES, HELD_OUT_TEXTURES, TEXTURE_NAMES
from dinokit.train.data.shapetex import ShapeTex
from dinokit.train.data.textures import Textures
from dinokit.train.finetune.recipe import FinetuneRecipe
from dinokit.train.finetune.run import finetune_dense
from dinokit.train.finetune.tasks import Ranging, Segmenting
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
    """Of n images: class tokens, mean patches, both (for linear layers), and patches."""

    cls: Tensor
    mean: Tensor
    wide: Tensor
    tokens: Tensor


class Network:
    """A vision transformer: class tokens, class tokens with mean patches, patches."""

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model.eval()
        card = dinokit.load("dinokit/tiny-procedural")  # how images are read, the same for all
        self.pretrained = replace(card, model=self.model, transform=card.transform.at_size((SIZE, SIZE)))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Of images (n, 3, h, w) in [0, 1]."""
        found = [self.model((x - MEAN) / STD) for x in pixels.split(AT_ONCE)]
        cls, patches = (torch.cat([getattr(t, name) for t in found]) for name in ("cls", "patches"))
        mean = patches.mean(dim=1)
        return Features(cls, mean, torch.cat([cls, mean], dim=1), patches)


class Pixels:
    """Images of 16 x 16 as vectors; the pixels of a patch as its token."""

    def __call__(self, pixels: Tensor) -> Features:
        small = F.interpolate(pixels, (16, 16), mode="area").flatten(1)
        tokens = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
        return Features(small, small, small, tokens)


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
        sizes = int(share * 1000), int(share * (800 if held_out else 400))
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
        self.x = F.interpolate(x, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
        self.y = torch.from_numpy(data.target[:keep].astype(np.int64))

    def __call__(self, subject: Subject) -> Numbers:
        found = subject(self.x)
        cut = len(self.y) * 2 // 3
        train, test = (
            Features(*(getattr(found, f.name)[s] for f in fields(found))) for s in (slice(cut), slice(cut, None))
        )
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


def _lights(right: Tensor) -> dict[str, Tensor]:
    """The photograph as another exposure, another lamp, or a lamp from the side would have it."""
    falling = torch.linspace(0.4, 1.6, right.shape[-1])
    return {
        "darker": right**2.2,
        "lighter": right**0.45,
        "dimmer": 0.4 * right,
        "other_hues": right[:, [1, 2, 0]],
        "from_the_side": (right * falling).clamp(0, 1),
    }


class Stereo:
    """The motorcycle pair: which place in the right photograph shows what one in the left does; disparity from one alone.

    Places are patches, any of which may match any other, or windows of the size that networks were trained on, described by their mean
    patch. A match is right within a patch's width of the true place. The right photograph comes as it is and in five other lights.
    """

    HEIGHT, WIDTH, BLOCK = 496, 736, 12
    WINDOW, DOWN, ACROSS = 40, 24, 8

    def __init__(self, share: float) -> None:
        import skimage

        h, w = self.HEIGHT, self.WIDTH
        self.left, right = (tensor(photograph(f"motorcycle_{side}.png")[None, :h, :w]) for side in ("left", "right"))
        self.rights = {"same": right, **_lights(right)}
        with np.load(Path(skimage.__file__).parent / "data/motorcycle_disp.npz") as file:
            self.disparity = torch.from_numpy(file["arr_0"][:h, :w].astype(np.float32))
        self.centres = patch_centres((h // PATCH, w // PATCH), PATCH)
        self.true, self.known = self.truth(self.centres, 0)
        half, down = self.WINDOW // 2, self.DOWN if share == 1 else 4 * self.DOWN
        self.places = torch.cartesian_prod(
            torch.arange(half, h - half + 1, down), torch.arange(half, w - half + 1, self.ACROSS)
        )

    def truth(self, places: Tensor, margin: int) -> tuple[Tensor, Tensor]:
        """Disparities at places (row, column), and which are known and end inside the right photograph."""
        rows, columns = places.long().unbind(1)
        true = self.disparity[rows, columns]
        return true, torch.isfinite(true) & (columns - true > margin)

    def windows(self, image: Tensor) -> Tensor:
        half = self.WINDOW // 2
        return torch.stack([image[0, :, r - half : r + half, c - half : c + half] for r, c in self.places.tolist()])

    def __call__(self, subject: Subject) -> Numbers:
        left = subject(self.left).tokens[0]
        described = subject(self.windows(self.left)).mean
        true, known = self.truth(self.places, self.WINDOW // 2)
        found: dict[str, dict[str, float]] = {"patches": {}, "windows": {}}
        for light, right in self.rights.items():
            found["patches"][light] = self.right(left, subject(right).tokens[0], self.centres, self.true, self.known)
            others = subject(self.windows(right)).mean
            found["windows"][light] = self.right(described, others, self.places.float(), true, known)
        numbers = {"disparity_r2": self.read(left)}
        for kind, shares in found.items():
            numbers[kind] = shares.pop("same")
            numbers[f"{kind}_other_light"] = sum(shares.values()) / len(shares)
        return numbers

    def right(self, left: Tensor, right: Tensor, places: Tensor, true: Tensor, known: Tensor) -> float:
        """Share of the known places whose nearest is within a patch's width of where it should be."""
        expected = places - torch.stack([torch.zeros_like(true), true], dim=1)
        pairs = nearest(left - left.mean(0), right - right.mean(0), mask_a=known)
        error = end_point_error(places[pairs.second], expected[pairs.first])
        return float((error <= PATCH).float().mean())

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


# Patterns that repeat, so that how fine they are can be seen
REGULAR = "checks", "dots", "bricks", "hatch", "zigzag", "waves"


class Dense:
    """Mosaics: which of twelve textures; of up to three regular ones, how far.

    By linear heads on frozen tokens (of `dinokit eval`), and, for networks, by heads that read four blocks (of `dinokit finetune`).
    """

    FITTED_AT = (16, 16)  # a quarter of the pixels a side: faster, and the same for all
    NEAREST, FARTHEST = 0.5, 2.1

    def __init__(self, share: float) -> None:
        self.pairs: dict[str, list[list[tuple[np.ndarray, Tensor]]]] = {"segmentation": [], "depth": []}
        for part, n in enumerate((int(600 * share), int(200 * share))):
            for task, settings in (("segmentation", {}), ("depth", {"textures": REGULAR, "regions": (1, 3)})):
                made = Mosaic(n, SIZE, SEED + 10 + part, **settings)
                scenes = [made.scene(i) for i in range(n)]
                truth = [s.semantic.astype(np.int64) if task == "segmentation" else s.depth for s in scenes]
                self.pairs[task].append([(s.pixels, torch.from_numpy(y)) for s, y in zip(scenes, truth, strict=True)])

    def __call__(self, subject: Subject) -> Numbers:
        found = self.linear(subject)
        if isinstance(subject, Network):
            for task, key in (("segmentation", "mIoU"), ("depth", "rmse")):
                train, test = self.pairs[task]
                found[f"{task}_four_blocks"] = self.tuned(subject, task, train, test)[key]
        return found

    def linear(self, subject: Subject) -> Numbers:
        grid, size, classes = (SIZE // PATCH,) * 2, self.FITTED_AT, len(TEXTURE_NAMES)
        same = {"steps": 300, "batch_size": 32, "rate": 3e-3}
        reach = depth.DepthRange(self.NEAREST, self.FARTHEST)
        found = {}
        for task, (train, test) in self.pairs.items():
            x, test_x = (subject(tensor(np.stack([image for image, _ in pairs]))).tokens for pairs in (train, test))
            truth, test_truth = (torch.stack([y for _, y in pairs]) for pairs in (train, test))
            if task == "segmentation":
                head = segmentation.fit_segmentation(
                    x.__getitem__, truth.__getitem__, len(x), grid, x.shape[2], classes, size, **same
                ).eval()
                score = segmentation.judge_segmentation(
                    lambda i, head=head, x=test_x: head(x[i : i + 1], grid)[0],
                    test_truth.__getitem__,
                    len(test),
                    classes,
                )
                found[task] = score.mean_iou
            else:
                deep = depth.fit_depth(
                    x.__getitem__, truth.__getitem__, len(x), grid, x.shape[2], size, reach=reach, **same
                ).eval()
                judged = depth.judge_depth(
                    lambda i, head=deep, x=test_x: depth.depth_of_scores(head(x[i : i + 1], grid), reach)[0],
                    test_truth.__getitem__,
                    len(test),
                    reach=reach,
                )
                found[task] = judged.errors.rmse
        return found

    def tuned(self, subject: Network, task: str, train: list, test: list) -> dict[str, float]:
        """The measures of the last step on images that were not learned from."""
        recipe = FinetuneRecipe(steps=200, batch_size=16, lr=3e-3, size=SIZE, flip=0.0)
        outputs = len(TEXTURE_NAMES) if task == "segmentation" else None
        rule = DepthRule(nearest=self.NEAREST, farthest=self.FARTHEST)
        spec = dense_spec(task, "ms", subject.model.config.embed_dim, subject.model.config.depth, outputs, rule)
        with tempfile.TemporaryDirectory() as folder:
            tuned, _ = finetune_dense(subject.pretrained, spec, train, [], folder, recipe, workers=0)
        judge = (
            Segmenting(subject.pretrained.transform, len(TEXTURE_NAMES))
            if task == "segmentation"
            else Ranging(subject.pretrained.transform, rule)
        )
        return judge.judge(tuned.model.eval(), test, recipe)


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
LESS_IS_BETTER = ("dense/depth",)
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
    "stereo/windows": "stereo pair: windows matched within 8 pixels",
    "stereo/windows_other_light": "same, one in another light (mean of five)",
    "stereo/patches": "stereo pair: patches matched within 8 pixels",
    "stereo/patches_other_light": "same, one in another light (mean of five)",
    "stereo/disparity_r2": "depth in the left photograph, linear from patches: R2",
    "dense/segmentation": "mosaics: which of 12 textures, linear head: mIoU",
    "dense/segmentation_four_blocks": "same, head that reads four blocks",
    "dense/depth": "mosaics of regular textures: depth, linear head: RMSE (less is better; a constant has 0.34)",
    "dense/depth_four_blocks": "same, head that reads four blocks",
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
            best = min(values) if key.startswith(LESS_IS_BETTER) else max(values)
            of_all = (numbers.get(key) for numbers in found.values())
            cells = ("" if x is None else f"**{x:.3f}**" if x == best else f"{x:.3f}" for x in of_all)
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
