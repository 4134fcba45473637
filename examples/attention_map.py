"""Where the class token looks: the attention of the last block as a picture, one panel a head.

python examples/attention_map.py cat.jpg attention.png [--model NAME_OR_PATH]
"""

import argparse

import numpy as np
import torch
from PIL import Image

import dinokit
from dinokit.model import attention_weights

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("image")
parser.add_argument("out")
parser.add_argument("--model", default="facebook/dinov2-with-registers-small")
arguments = parser.parse_args()

pre = dinokit.load(arguments.model)
pixels = pre.pixels(arguments.image)
with torch.no_grad():
    (weights,) = attention_weights(pre.model, pixels, blocks=1)  # (1, heads, tokens, tokens)

rows, columns = pre.model.grid_of(*pixels.shape[-2:])
maps = weights[0, :, 0, pre.config.num_prefix_tokens :].unflatten(1, (rows, columns))  # heads gh gw
panels = [map_ / map_.max() for map_ in maps]
strip = (255 * torch.cat(panels, dim=1)).numpy().astype(np.uint8)
picture = Image.fromarray(strip).resize((16 * strip.shape[1], 16 * strip.shape[0]), Image.Resampling.NEAREST)
picture.save(arguments.out)
print(f"{arguments.out}: {len(panels)} heads, {rows} x {columns} patches each")
