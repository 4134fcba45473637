"""Two models, or one with and without a repair, on the same images: artefacts, attention, features, cost, side by side.

Cleaner maps are not proof of better features, so the table has a task beside them wherever images lie in folders by class.
Source: Darcet et al. 2024, sections 2 and 3.2 (norms, attention, cost of registers); k-NN: Caron et al. 2021, section 4.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.analysis.discovery import lost
from dinokit.analysis.probes import pixel_probe, position_probe
from dinokit.analysis.redundancy import patch_pixels
from dinokit.model.capture import capture
from dinokit.model.cost import flops, num_parameters
from dinokit.repair.form import Form, robust_outliers
from dinokit.weights.load import Pretrained


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one model gave on the images.

    Per layer (0 = embedding to depth, before the final norm): median patch norm, and share of patches above `factor` times their
    image's median. `budget` is where the class token's attention in the last block goes, heads and images averaged: itself,
    registers, outlier patches, other patches, and what is no token (a bias); these sum to 1. `neighbour_cosine` is the mean cosine
    of adjacent patches after the final norm (smoother maps are higher). `object_share` is how much of the image LOST's box covers on
    average (near 1: it found no object). `probes` has, where asked for, what linear maps read from single patch tokens: the place in
    the grid ("position_top1", "position_distance" in patches) and the pixels ("pixel_rmse"). `knn_accuracy` is leave-one-out 1-NN
    of class tokens, None without classes. `seconds` is the median time of one image's forward pass here.
    """

    name: str
    form: str
    num_registers: int
    parameters: int
    gflops: float
    seconds: float
    median_norm: tuple[float, ...]
    outlier_share: tuple[float, ...]
    budget: dict[str, float]
    neighbour_cosine: float
    object_share: float
    probes: dict[str, float] | None
    knn_accuracy: float | None

    @property
    def worst_layer(self) -> int:
        """The layer with the largest share of outliers."""
        return max(range(len(self.outlier_share)), key=lambda layer: self.outlier_share[layer])

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "worst_layer": self.worst_layer}


@torch.no_grad()
def inspect_model(
    pre: Pretrained,
    paths: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    factor: float = 4.0,
    probes: bool = False,
) -> Side:
    """Measure one model on images, one at a time.

    Memory does not grow with their number, but with `probes`, which keep all patch tokens and fit on a random half of the images.

    Raises:
        ValueError: no images; for `probes`, fewer than two or of several sizes.
    """
    if not paths:
        raise ValueError("there are no images to compare on.")
    pre(paths[0])  # the first pass of a process pays for what later ones find ready
    rows = [_measure(pre, path, factor, keep_patches=probes) for path in paths]
    count = len(rows)
    layers = range(pre.config.depth + 1)
    size = rows[0].size
    return Side(
        name=pre.provenance.name,
        form=pre.provenance.form,
        num_registers=pre.config.num_register_tokens,
        parameters=num_parameters(pre.config),
        gflops=(pre.model.num_passes if isinstance(pre.model, Form) else 1) * flops(pre.config, size) / 1e9,
        seconds=statistics.median(row.seconds for row in rows),
        median_norm=tuple(statistics.median(row.median_norm[layer] for row in rows) for layer in layers),
        outlier_share=tuple(sum(row.outlier_share[layer] for row in rows) / count for layer in layers),
        budget={name: sum(row.budget[name] for row in rows) / count for name in rows[0].budget},
        neighbour_cosine=sum(row.neighbour_cosine for row in rows) / count,
        object_share=sum(row.object_share for row in rows) / count,
        probes=_probes(pre, rows) if probes else None,
        knn_accuracy=_leave_one_out(torch.stack([row.cls for row in rows]), labels) if labels is not None else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    size: tuple[int, int]
    seconds: float
    median_norm: list[float]
    outlier_share: list[float]
    budget: dict[str, float]
    neighbour_cosine: float
    object_share: float
    cls: Tensor
    patches: Tensor | None
    pixels: Tensor | None


def _measure(pre: Pretrained, path: str, factor: float, *, keep_patches: bool) -> _Row:
    pixels = pre.pixels(path)
    start = time.perf_counter()
    tokens = pre.model(pixels)
    seconds = time.perf_counter() - start
    read = capture(pre.model, pixels, residual="all", attention=[-1], k=[-1])
    prefix = pre.config.num_prefix_tokens
    norms = [read.residual[layer][:, prefix:].float().norm(dim=-1) for layer in sorted(read.residual)]
    (attention,) = read.attention.values()
    flags = [robust_outliers(values, factor) for values in norms]
    box = lost(read.heads_joined("k", pre.config.depth - 1).patches[0].float(), read.grid, normalize=True).box
    return _Row(
        size=(pixels.shape[-2], pixels.shape[-1]),
        seconds=seconds,
        median_norm=[values.median().item() for values in norms],
        outlier_share=[flagged.float().mean().item() for flagged in flags],
        budget=_budget(attention.float().mean(dim=1)[0, 0], flags[-2][0], prefix),
        neighbour_cosine=_neighbour_cosine(tokens.patch_map[0].float()),
        object_share=(box[2] - box[0]) * (box[3] - box[1]) / math.prod(read.grid),
        cls=tokens.cls[0].float(),
        patches=tokens.patches[0].float() if keep_patches else None,
        pixels=patch_pixels(pixels.float(), pre.config.patch_size)[0] if keep_patches else None,
    )


def _budget(row: Float[Tensor, " keys"], outliers: Bool[Tensor, " n"], prefix: int) -> dict[str, float]:
    patches = row[prefix : prefix + len(outliers)]
    return {
        "itself": row[0].item(),
        "registers": row[1:prefix].sum().item(),
        "outlier patches": patches[outliers].sum().item(),
        "other patches": patches[~outliers].sum().item(),
        "no token": row[prefix + len(outliers) :].sum().item(),
    }


def _neighbour_cosine(features: Float[Tensor, "d gh gw"]) -> float:
    unit = torch.nn.functional.normalize(features, dim=0)
    pairs = [(unit[:, 1:] * unit[:, :-1]).sum(0).flatten(), (unit[:, :, 1:] * unit[:, :, :-1]).sum(0).flatten()]
    return torch.cat(pairs).mean().item()


def _probes(pre: Pretrained, rows: Sequence[_Row]) -> dict[str, float]:
    sizes = {row.size for row in rows}
    if len(rows) < 2 or len(sizes) > 1:
        raise ValueError(f"probes need two images or more of one size; there are {len(rows)} of {len(sizes)} sizes.")
    patches = torch.stack([row.patches for row in rows if row.patches is not None])
    pixels = torch.stack([row.pixels for row in rows if row.pixels is not None])
    nothing = torch.zeros(patches.shape[:2], dtype=torch.bool)  # all tokens count as one kind
    place = position_probe(patches, nothing, pre.model.grid_of(*rows[0].size))["normal"]
    colour = pixel_probe(patches, pixels, nothing)["normal"]
    assert place is not None
    assert colour is not None
    return {"position_top1": place.top1, "position_distance": place.distance, "pixel_rmse": colour.rmse}


def _leave_one_out(features: Float[Tensor, "b d"], labels: Sequence[str]) -> float | None:
    """Share of images whose nearest other image has their label; None where there are no two classes."""
    if len(set(labels)) < 2:
        return None
    unit = torch.nn.functional.normalize(features, dim=1)
    likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
    right = [labels[i] == labels[int(j)] for i, j in enumerate(likeness.argmax(dim=1))]
    return sum(right) / len(right)


def folder_labels(paths: Sequence[str]) -> list[str]:
    """The name of each image's folder, which stands for its class."""
    return [Path(path).parent.name for path in paths]


def table(sides: Sequence[Side]) -> Iterator[str]:
    """Lines of a table with a column a model, for reading."""
    width = max(14, *(len(title) + 2 for title in _titles(sides)))
    rows: list[tuple[str, list[str]]] = [
        ("", _titles(sides)),
        ("registers", [str(side.num_registers) for side in sides]),
        ("parameters", [f"{side.parameters / 1e6:.1f} M" for side in sides]),
        ("GFLOP an image", [f"{side.gflops:.2f}" for side in sides]),
        ("ms an image", [f"{1e3 * side.seconds:.1f}" for side in sides]),
        ("most outliers", [f"{side.outlier_share[side.worst_layer]:.2%} (layer {side.worst_layer})" for side in sides]),
        ("outliers, last", [f"{side.outlier_share[-1]:.2%}" for side in sides]),
        ("median norm, last", [f"{side.median_norm[-1]:.1f}" for side in sides]),
    ]
    rows += [(f"attention: {name}", [f"{side.budget[name]:.1%}" for side in sides]) for name in sides[0].budget]
    rows.append(("neighbour cosine", [f"{side.neighbour_cosine:.3f}" for side in sides]))
    rows.append(("LOST box, of the image", [f"{side.object_share:.1%}" for side in sides]))
    for name in sides[0].probes or {}:
        rows.append((f"probe: {name}", ["-" if s.probes is None else f"{s.probes[name]:.3g}" for s in sides]))
    if any(side.knn_accuracy is not None for side in sides):
        rows.append(("1-NN accuracy", ["-" if s.knn_accuracy is None else f"{s.knn_accuracy:.1%}" for s in sides]))
    for name, cells in rows:
        yield f"{name:<26}" + "".join(f"{cell:>{width}}" for cell in cells)


def _titles(sides: Sequence[Side]) -> list[str]:
    return [Path(side.name).name + (f" + {side.form.split()[0]}" if side.form else "") for side in sides]
