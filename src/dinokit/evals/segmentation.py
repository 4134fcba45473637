"""Semantic segmentation on frozen patch tokens: a trained linear layer, or none at all (nearest labelled patches).

Both give scores a patch; these are enlarged to the mask's pixels and the largest wins. Images are squashed to a square.
Source: linear: Oquab et al. 2023, section 7.4, with DINOv3's published settings (AdamW, 1e-3, weight decay 1e-3, batch norm);
in-context: Balazevic et al. 2023 (Hummingbird): 30 neighbours, temperature 0.02.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from dinokit.evals.linear import shuffled_batches
from dinokit.evals.metrics import IGNORED, Segmentation, confusion

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-3
STEPS, WARMUP, BATCH_SIZE = 40_000, 1500, 16
NEIGHBOURS, TEMPERATURE = 30, 0.02
BANK_SIZE = 100_000
QUERY_ROWS = 512

TokensOf = Callable[[Sequence[int]], Float[Tensor, "b n f"]]
MaskOf = Callable[[int], Int64[Tensor, "h w"]]
Watched = Callable[[Iterable[int]], Iterable[int]]


class PatchHead(nn.Module):
    """Batch norm over tokens, then a linear layer: a 1 x 1 convolution of the token map."""

    def __init__(self, width: int, outputs: int, *, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=affine)
        self.linear = nn.Linear(width, outputs)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "b n f"], grid: tuple[int, int]) -> Float[Tensor, "b o gh gw"]:
        """Outputs of every patch, as a map."""
        out: Tensor = self.linear(self.norm(tokens.flatten(0, 1))).unflatten(0, tokens.shape[:2])
        found: Tensor = out.transpose(1, 2).unflatten(2, grid)
        return found


def fit_patch_head(
    head: PatchHead,
    loss: Callable[[PatchHead, Sequence[int]], Tensor],
    num: int,
    *,
    steps: int,
    batch_size: int,
    rate: float,
    weight_decay: float = WEIGHT_DECAY,
    warmup: int = WARMUP,
    seed: int = 0,
    watched: Watched = iter,
) -> PatchHead:
    """Train with AdamW on `loss` of batches of numbers below `num`; the rate rises linearly, then falls to 0 as a cosine.

    Ready for use when it comes back: in evaluation mode.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=weight_decay)
    warmup = min(warmup, max(steps // 10, 1))
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warmup, 1))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])
    head.train()
    batches = shuffled_batches(num, min(batch_size, num), seed)
    for _, numbers in zip(watched(range(steps)), batches, strict=False):
        optimizer.zero_grad()
        loss(head, numbers.tolist()).backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def fit_segmentation(
    tokens: TokensOf,
    masks: MaskOf,
    num: int,
    grid: tuple[int, int],
    width: int,
    num_classes: int,
    size: tuple[int, int],
    *,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    rate: float = LEARNING_RATE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watched: Watched = iter,
) -> PatchHead:
    """A linear layer that says the class of each pixel, trained at masks of `size` (height, width): the input's, as published.

    Smaller sizes are faster and cost accuracy at edges. The same seed gives the same head.

    Raises:
        ValueError: no image, or fewer than two classes.
    """
    if num < 1 or num_classes < 2:
        raise ValueError(f"{num} images of {num_classes} classes; it takes an image and two classes.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PatchHead(width, num_classes).to(device)

    def loss(head: PatchHead, numbers: Sequence[int]) -> Tensor:
        truth = torch.stack([resize_mask(masks(i), size) for i in numbers]).to(device)
        scores = enlarge(head(tokens(numbers).to(device), grid), size)
        # a batch without a labelled pixel has no mean, and nothing to teach
        kept = (truth != IGNORED).sum().clamp_min(1)
        return F.cross_entropy(scores, truth, ignore_index=IGNORED, reduction="sum") / kept

    return fit_patch_head(head, loss, num, steps=steps, batch_size=batch_size, rate=rate, seed=seed, watched=watched)


@torch.no_grad()
def judge_segmentation(
    scores_of: Callable[[int], Float[Tensor, "c gh gw"]],
    masks: MaskOf,
    num: int,
    num_classes: int,
    *,
    watched: Watched = iter,
) -> Segmentation:
    """Scores of each image, enlarged to its own mask's size, against it."""
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for number in watched(range(num)):
        truth = masks(number)
        scores = enlarge(scores_of(number)[None], (truth.shape[0], truth.shape[1]))
        matrix += confusion(scores[0].argmax(dim=0).cpu(), truth, num_classes)
    return Segmentation.of(matrix)


@torch.no_grad()
def build_bank(
    tokens: TokensOf,
    masks: MaskOf,
    num: int,
    grid: tuple[int, int],
    patch_size: int,
    num_classes: int,
    *,
    bank_size: int = BANK_SIZE,
    seed: int = 0,
    watched: Watched = iter,
) -> tuple[Float[Tensor, "m f"], Float[Tensor, "m c"]]:
    """Patches to compare with, of length 1, and which share of each patch's pixels has which class.

    Of each image an equal number is drawn, together at most `bank_size`. Patches without a labelled pixel are left out.

    Raises:
        ValueError: no patch has a label.
    """
    generator = torch.Generator().manual_seed(seed)
    share = max(bank_size // max(num, 1), 1)
    keys, labels = [], []
    for number in watched(range(num)):
        shares = patch_labels(masks(number), grid, patch_size, num_classes)
        known = (shares.sum(dim=1) > 0).nonzero()[:, 0]
        chosen = known[torch.randperm(len(known), generator=generator)[:share]]
        keys.append(F.normalize(tokens([number])[0][chosen].float(), dim=1).cpu())
        labels.append(shares[chosen])
    bank = torch.cat(keys) if keys else torch.zeros(0, 1)
    if not len(bank):
        raise ValueError("no patch of the train images has a labelled pixel; there is nothing to compare with.")
    return bank, torch.cat(labels)


def in_context(
    queries: Float[Tensor, "n f"],
    bank: Float[Tensor, "m f"],
    labels: Float[Tensor, "m c"],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "n c"]:
    """Labels of the `k` nearest patches of the bank by cosine, weighted by exp(cosine / temperature); rows sum to 1.

    Raises:
        ValueError: k below 1, or a temperature that is not above 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k is {k}, the temperature {temperature}; k is at least 1, the temperature above 0.")
    units, parts = F.normalize(queries.float(), dim=1), []
    bank, labels = bank.to(units.device), labels.to(units.device)
    for start in range(0, len(units), QUERY_ROWS):
        best = (units[start : start + QUERY_ROWS] @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = (best.values / temperature).softmax(dim=1)
        parts.append((weights[..., None] * labels[best.indices]).sum(dim=1))
    return torch.cat(parts)


def patch_labels(
    mask: Int64[Tensor, "h w"], grid: tuple[int, int], patch_size: int, num_classes: int
) -> Float[Tensor, "n c"]:
    """Share of each class among a patch's labelled pixels; a row of zeros where it has none.

    Raises:
        ValueError: a label outside of 0 to num_classes - 1.
    """
    small = resize_mask(mask, (grid[0] * patch_size, grid[1] * patch_size))
    known = small != IGNORED
    if bool(known.any()) and not (int(small.min()) >= 0 and int(small[known].max()) < num_classes):
        raise ValueError(
            f"labels lie in {int(small.min())} to {int(small[known].max())}; {num_classes} classes count from 0."
        )
    cells = small.view(grid[0], patch_size, grid[1], patch_size).permute(0, 2, 1, 3).reshape(grid[0] * grid[1], -1)
    counts = torch.zeros(len(cells), max(num_classes, IGNORED + 1)).scatter_add_(1, cells, torch.ones(cells.shape))[
        :, :num_classes
    ]
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)


def resize_mask(mask: Shaped[Tensor, "h w"], size: tuple[int, int]) -> Shaped[Tensor, "h2 w2"]:
    """Each new pixel is the nearest old one: classes, or depths; nothing in between."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long().clamp_max(old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns[None]]


def enlarge(scores: Float[Tensor, "b c gh gw"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Between the centres of patches in proportion."""
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)
