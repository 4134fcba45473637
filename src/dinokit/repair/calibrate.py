"""Which neurons write the artefacts of a network: found on a few images, and kept as data.

Source: Jiang et al. 2025 (arXiv 2506.08010), Algorithm 1, with their sparsity filter and layer limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.model import VisionTransformer
from dinokit.model.capture import capture
from dinokit.repair.attention import KeyValue
from dinokit.repair.form import robust_outliers
from dinokit.repair.shift import Neuron, TestTimeRegisters

# Share of tokens at which a sparse neuron is silent, and what silent means (Jiang et al., reference settings).
SILENT_SHARE, SILENT_BELOW = 0.5, 0.5


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Register neurons, strongest first, with their scores (mean activation at outliers), and how they were found."""

    neurons: tuple[Neuron, ...]
    scores: tuple[float, ...]
    top_block: int
    norm_block: int
    factor: float
    num_images: int
    num_outliers: int
    image_size: tuple[int, int]


@torch.no_grad()
def rank_neurons(
    model: VisionTransformer,
    batches: Iterable[Float[Tensor, "b c h w"]],
    *,
    outliers: Callable[[Float[Tensor, "b n"]], Bool[Tensor, "b n"]],
    norm_block: int = -1,
    top_block: int | None = None,
    sparse: bool = True,
) -> tuple[list[tuple[Neuron, float]], int, int]:
    """All neurons up to block `top_block` by their mean |activation| at outlier patches, strongest first.

    With them the number of outliers and of images.

    An outlier is what `outliers` says of the patch norms (b n) after block `norm_block` (negative from the end). With `sparse`,
    neurons that fire at more than half of all tokens do not count: they write elsewhere too.
    """
    depth = model.config.depth
    norm_at = norm_block % depth
    last = depth - 1 if top_block is None else top_block
    prefix = model.config.num_prefix_tokens
    total = torch.zeros(last + 1, model.config.ffn_dim, dtype=torch.float64)
    silent, tokens, found, images_seen = torch.zeros_like(total), 0, 0, 0
    for images in batches:
        read = capture(model, images, mlp=range(last + 1), residual=[norm_at + 1])
        flagged = outliers(read.residual[norm_at + 1][:, prefix:].norm(dim=-1))
        for block, hidden in read.mlp.items():
            strength = hidden.abs()
            total[block] += strength[:, prefix:][flagged].sum(dim=0).double().cpu()
            silent[block] += (strength < SILENT_BELOW).sum(dim=(0, 1)).double().cpu()
        tokens += read.mlp[0].shape[0] * read.mlp[0].shape[1]
        found += int(flagged.sum())
        images_seen += images.shape[0]
    if not found:
        return [], 0, images_seen
    scores = total / found
    if sparse:
        scores = torch.where(silent / tokens >= SILENT_SHARE, scores, -torch.inf)
    order = scores.flatten().argsort(descending=True, stable=True)
    ranked = [
        ((int(i) // model.config.ffn_dim, int(i) % model.config.ffn_dim), float(scores.flatten()[i])) for i in order
    ]
    return [(neuron, score) for neuron, score in ranked if score > 0], found, images_seen


def calibrate(
    model: VisionTransformer,
    batches: Iterable[Float[Tensor, "b c h w"]],
    *,
    num_neurons: int = 10,
    factor: float = 4.0,
    norm_block: int = -1,
    top_block: int | None = None,
    sparse: bool = True,
) -> Calibration:
    """Find register neurons on a few images (`batches` of normalised pixels; 100 to 1000 images in the paper).

    A patch is an outlier where its norm after block `norm_block` exceeds `factor` times its image's median. `top_block` is the last
    block searched: the first one after which outliers show (later neurons follow them, they don't make them). Calibrate at the
    resolution at which the network will run: norms and counts differ, the neurons carry over.

    Raises:
        ValueError: no patch is an outlier, so there is nothing to repair.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("no images were given to calibrate on.")
    ranked, found, images = rank_neurons(
        model,
        batches,
        outliers=lambda norms: robust_outliers(norms, factor),
        norm_block=norm_block,
        top_block=top_block,
        sparse=sparse,
    )
    if not ranked:
        raise ValueError(
            f"none of {images} images has a patch above {factor} times its median norm after block {norm_block % model.config.depth}: "
            f"this network needs no repair at this resolution, or the norms must be read after another block."
        )
    kept = ranked[:num_neurons]
    return Calibration(
        neurons=tuple(neuron for neuron, _ in kept),
        scores=tuple(score for _, score in kept),
        top_block=model.config.depth - 1 if top_block is None else top_block,
        norm_block=norm_block % model.config.depth,
        factor=factor,
        num_images=images,
        num_outliers=found,
        image_size=(batches[0].shape[-2], batches[0].shape[-1]),
    )


@torch.no_grad()
def mean_keys_and_values(
    model: VisionTransformer, neurons: Iterable[Neuron], batches: Iterable[Float[Tensor, "b c h w"]]
) -> tuple[KeyValue, ...]:
    """For each block the key and value (heads, k) of one test-time register, averaged over images; for `AttentionBias`."""
    form = TestTimeRegisters(model, neurons)
    place = model.config.num_prefix_tokens
    sums: list[list[Tensor]] = []
    count = 0
    for images in batches:
        states = form.stream(images)
        for index in range(model.config.depth):
            block = form.block(index)
            x = next(states)
            _, k, v = block.attn.split(block.norm1(x))
            parts = [k[:, :, place].sum(dim=0), v[:, :, place].sum(dim=0)]
            if len(sums) <= index:
                sums.append(parts)
            else:
                sums[index] = [a + b for a, b in zip(sums[index], parts, strict=True)]
        count += images.shape[0]
    if not count:
        raise ValueError("no images were given to average over.")
    return tuple((key / count, value / count) for key, value in sums)
