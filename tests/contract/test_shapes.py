"""The shapes that stand in signatures are true: the main walks run with every annotation checked."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np, torch
from pathlib import Path
from jaxtyping import install_import_hook

PACKAGES = ["dinokit.model", "dinokit.tokens", "dinokit.images", "dinokit.extract", "dinokit.weights.load", "dinokit.engine"]
with install_import_hook(PACKAGES, "beartype.beartype"):
    import dinokit.model.export
    from dinokit.config import OFFSET_PLAIN, ViTConfig
    from dinokit.engine import Plan, optimize
    from dinokit.extract import embed_images
    from dinokit.images import FastTransform, ImageTransform
    from dinokit.model import *
    from dinokit.model.capture import block_attention, cast_head_mask
    from dinokit.weights.load import load

checked = 0
for registers, ffn in ((0, "mlp"), (3, "swiglu")):
    config = ViTConfig(embed_dim=32, depth=5, num_heads=2, ffn_dim=24, ffn=ffn, num_register_tokens=registers,
                       image_size=(70, 70), drop_path=(0.5,) * 5, position=OFFSET_PLAIN)
    plans = Plan(), Plan(in_place=True, pad_tokens=16)
    fast = [optimize(VisionTransformer(config).eval(), plan=plan) for plan in plans]
    for model in (VisionTransformer(config).eval(), VisionTransformer(config).train(), *fast):
        for size in ((70, 70), (56, 98)):
            images = torch.randn(2, 3, *size)
            grid = model.grid_of(*size)
            masks = torch.zeros(2, grid[0] * grid[1], dtype=torch.bool)
            tokens = model(images, masks, cast_head_mask(torch.ones(2), 5, 2))
            for pool in ("cls", "mean", "cls+mean", "patches"):
                tokens.pool(pool)
            tokens.patch_map, tokens.registers
            for inputs in ("cls", "cls+mean", "4cls+mean"):
                head = LinearHead(32, 7, inputs)
                head(*intermediate_tokens(model, images, head.num_layers))
            attention_weights(model, images, 2, masks)
            block_attention(model, 1, hidden_states(model, images)[1], torch.ones(5, 2))
            if model not in fast:
                resize_positions(model, (84, 42))(torch.randn(1, 3, 84, 42))
            checked += 1
pictures = [np.zeros((20, 30, 3), np.uint8), np.zeros((90, 30, 3), np.uint8)]
ImageTransform.dinov2().batch(pictures), ImageTransform.squash(28)(pictures[0])
FastTransform(ImageTransform.dinov2()).batch(pictures)
pre = load(sys.argv[1])
pre(pictures), pre.pixels(pictures[0])
rows = list(embed_images(pre, ["no.png"]))
try:
    VisionTransformer(config)(torch.zeros(3, 70, 70))
except Exception as error:
    assert "TypeCheckError" in type(error).__name__, type(error)
else:
    raise SystemExit("the checker is not at work")
print("checked", checked)
"""


def test_shapes_in_signatures_hold(formats):
    """With and without registers, both feed-forward kinds, in training and evaluation, native and other sizes."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(formats / "reg" / "hf")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "checked 16", done.stderr[-3000:]
