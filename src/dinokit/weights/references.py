"""Published values of released models: what a checkpoint must give on one well-known photograph.

The photograph is 000000039769.jpg of COCO val2017 (two cats and two remote controls, 640 x 480), prepared by the model's own image
processor at 224 pixels. Values are last_hidden_state[0, :3, :3]: the first three tokens, three channels each.
Source: transformers' integration tests of Dinov2 (v4.35) and Dinov2WithRegisters.
"""

from __future__ import annotations

from dataclasses import dataclass

from dinokit.config import OFFSET_PLAIN, SIZE_ANTIALIAS, PositionRule

Slice = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`position` is the rule under which the values were recorded."""

    position: PositionRule
    values: Slice
    tolerance: float = 1e-3


REFERENCES: dict[str, Reference] = {
    "facebook/dinov2-base": Reference(
        position=OFFSET_PLAIN,
        values=((-2.1747, -0.4729, 1.0936), (-3.2780, -0.8269, -0.9210), (-2.9129, 1.1284, -0.7306)),
    ),
    "facebook/dinov2-with-registers-base": Reference(
        position=SIZE_ANTIALIAS,
        values=((-0.4638, -1.4563, -0.0289), (-1.4736, -0.8866, 0.3005), (0.0720, -0.2406, -1.5943)),
    ),
}
