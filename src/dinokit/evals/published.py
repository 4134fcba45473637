"""Numbers of the papers and of the released models' cards, to stand beside one's own; none of them was measured here.

They are of the published protocols on the full data sets. Other data, sizes or protocols give other numbers; see docs/evaluation.md.
Sources: [card] facebookresearch/dinov2, MODEL_CARD.md; [paper] Oquab et al. 2023 (arXiv 2304.07193);
[registers] Darcet et al. 2024 (arXiv 2309.16588), Table 2a.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CARD, PAPER, REGISTERS = "DINOv2 model card", "Oquab et al. 2023", "Darcet et al. 2024, Table 2a"
SIZES = {384: "S", 768: "B", 1024: "L", 1536: "g"}  # by embed_dim of the released networks


@dataclass(frozen=True)
class Published:
    """One number: shares in percent as printed, depth errors in metres."""

    task: str
    data: str
    metric: str
    size: str
    registers: bool
    value: float
    source: str

    def __str__(self) -> str:
        """For a table."""
        network = f"ViT-{self.size}/14" + (" + registers" if self.registers else "")
        return f"{self.data}, {self.metric}, {network}: {self.value:g} ({self.source})"


# (task, data, metric, source): values of S, B, L, g without registers, then with; None where nothing was published
_TABLE: dict[tuple[str, str, str, str], tuple[tuple[float | None, ...], tuple[float | None, ...]]] = {
    ("knn", "ImageNet-1k", "top-1 %", CARD): ((79.0, 82.1, 83.5, 83.5), (79.1, 82.0, 83.8, 83.7)),
    ("linear", "ImageNet-1k", "top-1 %", CARD): ((81.1, 84.5, 86.3, 86.5), (80.9, 84.6, 86.7, 87.1)),
    ("linear", "ImageNet-V2", "top-1 %", CARD): ((70.8, 74.9, 77.6, 78.4), (71.0, 75.6, 78.5, 78.8)),
    ("linear", "iNaturalist 2018", "top-1 %", CARD): ((69.5, 76.3, 79.8, 81.6), (67.6, 73.8, 80.9, 81.5)),
    ("linear", "ImageNet-1k", "top-1 %", REGISTERS): ((None, None, 84.3, None), (None, None, 84.8, None)),
    ("retrieval", "Oxford, hard", "mAP %", CARD): ((43.2, 49.5, 54.0, 52.3), (39.5, 51.0, 55.7, 58.2)),
    ("segmentation", "ADE20K, linear", "mIoU %", PAPER): ((44.3, 47.3, 47.7, 49.0), ()),
    ("segmentation", "ADE20K, 4 blocks and scales", "mIoU %", PAPER): ((47.2, 51.3, 53.1, 53.0), ()),
    ("segmentation", "VOC 2012, linear", "mIoU %", PAPER): ((81.1, 82.5, 82.1, 83.0), ()),
    ("segmentation", "ADE20K, linear", "mIoU %", REGISTERS): ((None, None, 46.6, None), (None, None, 47.9, None)),
    ("depth", "NYU Depth, 1 block", "RMSE", PAPER): ((0.449, 0.399, 0.384, 0.344), ()),
    ("depth", "NYU Depth, 4 blocks", "RMSE", PAPER): ((0.417, 0.362, 0.333, 0.298), ()),
    ("depth", "NYU Depth", "RMSE", REGISTERS): ((None, None, 0.378, None), (None, None, 0.366, None)),
}


def rows() -> Iterator[Published]:
    """Every number of the table."""
    for (task, data, metric, source), pair in _TABLE.items():
        for registers, values in zip((False, True), pair, strict=True):
            for size, value in zip(SIZES.values(), values, strict=False):
                if value is not None:
                    yield Published(task, data, metric, size, registers, value, source)


def published(task: str, embed_dim: int, patch_size: int, num_registers: int) -> tuple[Published, ...]:
    """What was published for a task and a network of this size; nothing for other sizes than the released networks'."""
    size = SIZES.get(embed_dim) if patch_size == 14 else None
    return tuple(
        row for row in rows() if row.task == task and row.size == size and row.registers == (num_registers > 0)
    )
