"""`artefact_report`: what the tokens of a network hide, over any number of images, in bounded memory.

One forward pass an image: norms of all tokens in all layers before the final norm, which patches are artefacts by which rule, where
in the grid they are, and what the class token's attention in the last block goes to. Nothing is kept of an image but counts.
Source: Darcet et al. 2024, section 2.1, Figs. 3, 4, 10, 15, 16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dinokit.analysis.attention import AttentionBudget, attention_budget
from dinokit.analysis.detectors import DETECTORS, Detection, Detector, is_artifact_present
from dinokit.analysis.norms import NormHistogram, token_norms
from dinokit.errors import ImageError
from dinokit.images import Decoded
from dinokit.images.decode import Source
from dinokit.model import VisionTransformer
from dinokit.model.capture import block_attention
from dinokit.weights.load import Pretrained

MAIN_RULE = "robust"
Grid = tuple[int, int]


@dataclass(kw_only=True)
class RuleCount:
    """What one rule marked in one layer. `thresholds` are those of single images, where there was one."""

    num_outliers: int = 0
    num_images: int = 0
    thresholds: NormHistogram = field(default_factory=NormHistogram)

    def add(self, found: Detection) -> None:
        """Count a batch."""
        self.num_outliers += int(found.mask.sum())
        self.num_images += int(found.mask.any(dim=1).sum())
        self.thresholds.add(found.threshold[found.threshold.isfinite()])


@dataclass(kw_only=True)
class LayerFindings:
    """One layer of the stream (0: what enters the first block; i: what block i - 1 leaves), before the final norm.

    `rules` counts what each rule marked, image by image; `places` is, for each grid, in how many images each patch was an artefact by
    the main rule.
    """

    layer: int
    cls: NormHistogram
    registers: tuple[NormHistogram, ...]
    patches: NormHistogram
    rules: dict[str, RuleCount]
    places: dict[Grid, Float64[Tensor, "gh gw"]] = field(default_factory=dict)

    @property
    def has_artefacts(self) -> bool:
        """Whether the norms of all images together fall into ordinary ones and a population of outliers."""
        return is_artifact_present(self.patches.sample())


@dataclass(frozen=True, kw_only=True)
class ArtefactReport:
    """What `artefact_report` found. `grids` says how many images came out as which (rows, columns) of patches.

    `budget` holds shares of the class token's attention in the last block, means over images and heads; `budget_of_patches` the same
    with class token and registers left out and the rest scaled up. Artefacts are there those that enter the block. `failed` are
    images that could not be read, with why. `rules` says each rule in words.
    """

    model: str
    num_registers: int
    num_images: int
    grids: dict[Grid, int]
    layers: tuple[LayerFindings, ...]
    budget: dict[str, float]
    budget_of_patches: dict[str, float]
    rules: dict[str, str]
    failed: tuple[tuple[str, str], ...]

    @property
    def first_outlier_layer(self) -> int | None:
        """The first layer of the stream with artefacts; they were written by the block before it."""
        return next((found.layer for found in self.layers if found.has_artefacts), None)

    def position_frequency(self, layer: int = -1, grid: Grid | None = None) -> Float64[Tensor, "gh gw"]:
        """Share of images in which each patch is an artefact in this layer (negative: from the end), in [0, 1].

        Of the grid that most images have, or of `grid`.

        Raises:
            KeyError: no image has this grid.
        """
        chosen = grid or max(self.grids, key=lambda each: self.grids[each])
        return self.layers[layer].places[chosen] / self.grids[chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        first = self.first_outlier_layer
        return {
            "model": self.model,
            "num_registers": self.num_registers,
            "num_images": self.num_images,
            "grids": [{"grid": list(grid), "num_images": count} for grid, count in self.grids.items()],
            "measured": "norms before the final layer norm; layer i is what block i - 1 leaves, layer 0 the embedding",
            "rules": self.rules,
            "main_rule": MAIN_RULE,
            "first_outlier_layer": first,
            "first_outlier_block": first - 1 if first else None,
            "layers": [self._layer(found) for found in self.layers],
            "attention_block": len(self.layers) - 2,
            "attention_budget": self.budget,
            "attention_budget_of_patches": self.budget_of_patches,
            "failed": [{"image": name, "error_code": code} for name, code in self.failed],
        }

    def _layer(self, found: LayerFindings) -> dict[str, Any]:
        outliers = {}
        for name, count in found.rules.items():
            threshold = count.thresholds.quantile(0.5)
            outliers[name] = {
                "share": count.num_outliers / max(found.patches.total + found.patches.num_nonfinite, 1),
                "num_outliers": count.num_outliers,
                "share_of_images": count.num_images / self.num_images,
                "median_threshold": threshold if count.thresholds.total else None,
            }
        return {
            "layer": found.layer,
            "has_artefacts": found.has_artefacts,
            "norms": {
                "cls": found.cls.to_dict(),
                "registers": [register.to_dict() for register in found.registers],
                "patches": found.patches.to_dict(),
            },
            "outliers": outliers,
            "position_frequency": [
                {
                    "grid": list(grid),
                    "frequency": [[round(value, 5) for value in row] for row in (counts / self.grids[grid]).tolist()],
                }
                for grid, counts in found.places.items()
            ],
        }


@torch.no_grad()
def artefact_report(
    pre: Pretrained,
    images: Iterable[Source | Decoded],
    *,
    batch_size: int = 8,
    detectors: Mapping[str, Detector] = DETECTORS,
) -> ArtefactReport:
    """Measure a network on images (paths, arrays, Pillow images), read one after the other; a bar shows progress on a terminal.

    `detectors` are rules by name; "robust" must be among them, as positions and attention follow it. Norms depend on the image size:
    give `pre` the transform that you will use it with.

    Raises:
        ValueError: no image could be read, or no robust rule.
    """
    if MAIN_RULE not in detectors:
        raise ValueError(f"detectors are {', '.join(detectors)}; {MAIN_RULE!r} must be among them.")
    totals = _Totals(pre.model, detectors)
    for pixels in _batches(pre, images, batch_size, totals.failed):
        totals.add(pixels.to(device=pre.device, dtype=pre.dtype))
    if not totals.grids:
        why = "; ".join(f"{name}: {code}" for name, code in totals.failed[:3])
        raise ValueError(f"there is no image to report on{' (' + why + ')' if why else ''}.")
    return totals.report(pre)


class _Totals:
    """Counts over the images seen so far; its size does not depend on how many they are."""

    def __init__(self, model: VisionTransformer, detectors: Mapping[str, Detector]) -> None:
        self.model, self.detectors = model, detectors
        self.grids: Counter[Grid] = Counter()
        self.failed: list[tuple[str, str]] = []
        self.rules: dict[str, str] = {}
        self.budget: Counter[str] = Counter()
        self.budget_of_patches: Counter[str] = Counter()
        self.layers = [
            LayerFindings(
                layer=layer,
                cls=NormHistogram(),
                registers=tuple(NormHistogram() for _ in range(model.config.num_register_tokens)),
                patches=NormHistogram(),
                rules={name: RuleCount() for name in detectors},
            )
            for layer in range(model.config.depth + 1)
        ]

    def add(self, pixels: Float[Tensor, "b c h w"]) -> None:
        """One batch, of one size."""
        grid = self.model.grid_of(pixels.shape[-2], pixels.shape[-1])
        self.grids[grid] += len(pixels)
        last = self.model.config.depth - 1
        for findings, x in zip(self.layers, self.model.stream(pixels), strict=True):
            mask = self._add_layer(findings, x, grid)
            if findings.layer == last:
                for index in range(len(x)):  # attention of one image at a time: it is the largest tensor of all
                    self._add_attention(x[index : index + 1], mask[index : index + 1])

    def _add_layer(self, findings: LayerFindings, x: Tensor, grid: Grid) -> Bool[Tensor, "b n"]:
        norms = token_norms(x, self.model.config.num_register_tokens)
        patches = norms.patches.cpu()
        findings.cls.add(norms.cls)
        findings.patches.add(patches)
        for index, register in enumerate(findings.registers):
            register.add(norms.registers[:, index])
        found = {name: detector(patches) for name, detector in self.detectors.items()}
        for name, detection in found.items():
            findings.rules[name].add(detection)
            self.rules[name] = detection.rule
        mask = found[MAIN_RULE].mask
        counts = mask.sum(dim=0).double().view(grid)
        findings.places[grid] = findings.places.get(grid, torch.zeros(grid, dtype=torch.float64)) + counts
        return mask

    def _add_attention(self, x: Float[Tensor, "1 t d"], outliers: Bool[Tensor, "1 n"]) -> None:
        weights = block_attention(self.model, self.model.config.depth - 1, x)
        budget: AttentionBudget = attention_budget(weights, outliers, self.model.config.num_register_tokens)
        self.budget.update(budget.to_dict())
        self.budget_of_patches.update(budget.of_patches().to_dict())

    def report(self, pre: Pretrained) -> ArtefactReport:
        num = self.grids.total()
        form = pre.provenance.form
        return ArtefactReport(
            model=pre.provenance.name + (f", repaired: {form}" if form else ""),
            num_registers=self.model.config.num_register_tokens,
            num_images=num,
            grids=dict(self.grids),
            layers=tuple(self.layers),
            budget={name: total / num for name, total in self.budget.items()},
            budget_of_patches={name: total / num for name, total in self.budget_of_patches.items()},
            rules=self.rules,
            failed=tuple(self.failed),
        )


def _batches(
    pre: Pretrained, images: Iterable[Source | Decoded], batch_size: int, failed: list[tuple[str, str]]
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Pixels of images of equal size that follow each other; those that can't be read go to `failed`."""
    from tqdm import tqdm

    waiting: list[Tensor] = []
    total = len(images) if isinstance(images, Sized) else None
    for index, image in enumerate(tqdm(images, total=total, unit="img", desc="artefacts", disable=None)):
        try:
            pixels = pre.transform(image)
        except ImageError as error:
            failed.append((str(image) if isinstance(image, str | Path) else f"image {index}", error.code))
            continue
        if waiting and (pixels.shape != waiting[0].shape or len(waiting) == batch_size):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)
