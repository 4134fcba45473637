"""`look`: everything that the pictures of one image need, from one run of the network.

Norms of all layers, attention of the class token and the registers in one block, tokens after that block. The model keeps its fast
path: attention is computed again for one block, and only the rows that are shown are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from dinokit.analysis.detectors import robust
from dinokit.images import Decoded, ImageTransform, ShortestEdge
from dinokit.images.decode import Source
from dinokit.model import VisionTransformer
from dinokit.model.capture import block_attention, block_indices
from dinokit.tokens import Tokens
from dinokit.weights.load import Pretrained


@dataclass(frozen=True, kw_only=True)
class Look:
    """One image seen by one network, on the CPU in float32.

    `photo` is what the patches cover, as the network saw it. `layer` is the block (0-based) of `attention` and `tokens`.
    `norms` are those of all tokens after the embedding and after each block, before the final norm. `outliers` says which patches
    stand out in each of these layers, by `rule`. `attention` has a row for the class token and each register, a column for each
    key: the tokens, and after them those that a repair by attention bias adds. `tokens` are after the final norm.
    """

    photo: Image.Image
    name: str
    model: str
    depth: int
    patch_size: int
    layer: int
    norms: Float[Tensor, "layers t"]
    outliers: Bool[Tensor, "layers n"]
    rule: str
    attention: Float[Tensor, "heads q keys"]
    tokens: Tokens

    @property
    def grid(self) -> tuple[int, int]:
        """(Rows, columns) of patches."""
        return self.tokens.grid

    @property
    def num_registers(self) -> int:
        """Tokens between the class token and the patches."""
        return self.tokens.num_registers

    @property
    def prefix(self) -> int:
        """Tokens before the first patch."""
        return 1 + self.num_registers

    @property
    def features(self) -> Float[Tensor, "d gh gw"]:
        """Patches after the final norm, as an image of features."""
        return self.tokens.patch_map[0]

    @property
    def outlier_map(self) -> Bool[np.ndarray, "gh gw"]:
        """Patches that stand out after block `layer`."""
        return self.outliers[self.layer + 1].reshape(self.grid).numpy()

    def attention_map(self, query: int = 0) -> Float[Tensor, "heads gh gw"]:
        """Attention to the patches, of the class token (0) or of register `query` (from 1)."""
        last = self.prefix + self.grid[0] * self.grid[1]
        maps: Tensor = self.attention[:, query, self.prefix : last].unflatten(1, self.grid)
        return maps

    def norm_map(self, layer: int) -> Float[np.ndarray, "gh gw"]:
        """Norms of the patches after `layer` blocks; 0 is what enters the first."""
        return self.norms[layer, self.prefix :].reshape(self.grid).numpy()

    @property
    def sizes(self) -> str:
        """For a subtitle: pixels and tokens."""
        rows, columns = self.grid
        registers = f" + {self.num_registers} registers" if self.num_registers else ""
        return (
            f"{self.photo.height} x {self.photo.width} pixels = 1 class token{registers} + "
            f"{rows} x {columns} patches of {self.patch_size}"
        )


@torch.no_grad()
def look(pre: Pretrained, image: Source | Decoded, *, layer: int = -1, name: str = "") -> Look:
    """Run the network once over one image and keep what pictures need.

    `layer` is the block whose attention and tokens are kept, 0-based or negative from the end. A denoised form of a network
    (`dinokit.repair`) runs once more for each of its shifts, and gives tokens of the last block only.

    Raises:
        ImageError: as `dinokit.images.decode`.
        ValueError: a block that is not there, or a network that does not read three colours.
    """
    model, pixels = pre.model, pre.pixels(image)
    (index,) = block_indices([layer], pre.config.depth)
    size = (pixels.shape[-2], pixels.shape[-1])
    norms, entering = [], pixels
    attention = normed = None
    for at, x in enumerate(model.stream(pixels)):  # after `at` blocks
        norms.append(torch.linalg.vector_norm(x[0].float(), dim=-1).cpu())
        if at == index + 1:
            tokens = model.tokens(x, size)
            rows = block_attention(model, index, entering)[0, :, : 1 + tokens.num_registers]
            attention = rows.float().cpu()
            normed = model.norm(x)
        entering = x
    assert attention is not None
    assert normed is not None
    averaged = type(model).forward is not VisionTransformer.forward and index == pre.config.depth - 1
    tokens = model(pixels) if averaged else model.tokens(normed, size)
    together = torch.stack(norms)
    found = robust(together[:, 1 + tokens.num_registers :])
    return Look(
        photo=photo_of(pre.transform, pixels[0], tokens.grid, pre.config.patch_size),
        name=name,
        model=pre.provenance.name + (f", repaired: {pre.provenance.form}" if pre.provenance.form else ""),
        depth=pre.config.depth,
        patch_size=pre.config.patch_size,
        layer=index,
        norms=together,
        outliers=found.mask,
        rule=found.rule,
        attention=attention,
        tokens=Tokens(tokens.sequence.float().cpu(), tokens.num_registers, tokens.grid),
    )


def photo_of(
    transform: ImageTransform, pixels: Float[Tensor, "3 h w"], grid: tuple[int, int], patch_size: int
) -> Image.Image:
    """Normalised pixels back as the picture that they came from, without what no whole patch covers.

    Raises:
        ValueError: not three colours.
    """
    if pixels.shape[0] != len(transform.mean):
        raise ValueError(f"pixels have {pixels.shape[0]} channels; a picture has three colours.")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    levels = ((pixels.float().cpu() * std + mean) / transform.rescale).round().clamp(0, 255)
    covered = levels[:, : grid[0] * patch_size, : grid[1] * patch_size]
    return Image.fromarray(covered.permute(1, 2, 0).to(torch.uint8).numpy())


def with_view(pre: Pretrained, size: tuple[int, int] | None = None, *, crop: bool = True) -> Pretrained:
    """The same network with another view of its images.

    `size` (height, width) is the crop in pixels, the resize before it growing in proportion. Without `crop` the whole image is
    shown: its shorter edge becomes that of `size`, or of the model's own crop, and its shape stays.
    """
    transform = pre.transform
    if not crop:
        edge = min(size or transform.crop or (0, 0)) or None
        if edge is None:
            return pre
        return replace(pre, transform=replace(transform, resize=ShortestEdge(edge), crop=None))
    return pre if size is None else replace(pre, transform=transform.at_size(size))
