"""Where tokens look: maps of heads and registers, the class token's budget, value-weighted attention, rollout, a mass threshold.

Attention after the softmax goes in, (b, heads, queries, keys) with the keys in the order class token, registers, patches; row i is
how token i spreads. Keys after the patches, as an attention bias adds, are allowed and belong to no token.
Source: Caron et al. 2021 (DINO), Fig. 1; Darcet et al. 2024, Figs. 9 and 16; Abnar & Zuidema 2020 (rollout); Kobayashi et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HeadFusion = Literal["mean", "max", "min"]


def cls_maps(
    attention: Float[Tensor, "b heads t keys"], num_registers: int, grid: tuple[int, int]
) -> Float[Tensor, "b heads gh gw"]:
    """How much the class token attends to each patch, a map a head.

    In [0, 1]; a map sums to at most 1, the rest having gone to the class token itself and the registers.

    Raises:
        ValueError: the grid and registers do not fit the attention.
    Source: Caron et al. 2021, Fig. 1.
    """
    return query_maps(attention, 0, num_registers, grid)


def query_maps(
    attention: Float[Tensor, "b heads t keys"], query: int, num_registers: int, grid: tuple[int, int]
) -> Float[Tensor, "b heads gh gw"]:
    """How much one token attends to each patch, a map a head; 0 is the class token, then registers, then patches.

    Raises:
        ValueError: the grid and registers do not fit the attention.
    """
    return _on_grid(attention, num_registers, grid)[:, :, query]


def register_maps(
    attention: Float[Tensor, "b heads t keys"], num_registers: int, grid: tuple[int, int]
) -> Float[Tensor, "b heads r gh gw"]:
    """How much each register attends to each patch, a map a head and register; empty (r = 0) without registers.

    Raises:
        ValueError: the grid and registers do not fit the attention.
    Source: Darcet et al. 2024, Fig. 9.
    """
    return _on_grid(attention, num_registers, grid)[:, :, 1 : 1 + num_registers]


@dataclass(frozen=True, kw_only=True)
class AttentionBudget:
    """What a query's attention goes to; shares in [0, 1] that sum to 1.

    `cls` is the class token (itself, for its own budget), `elsewhere` keys that are no token.
    """

    cls: Float[Tensor, "b heads"]
    registers: Float[Tensor, "b heads r"]
    outliers: Float[Tensor, "b heads"]
    normal: Float[Tensor, "b heads"]
    elsewhere: Float[Tensor, "b heads"]

    def of_patches(self) -> AttentionBudget:
        """The same among patches alone: what a map shows that leaves out class token and registers and is scaled up again.

        It hides how much went to those; look at both. Zero where patches get nothing.
        """
        whole = self.outliers + self.normal
        scale = torch.where(whole > 0, 1 / whole, 0.0)
        return AttentionBudget(
            cls=torch.zeros_like(self.cls),
            registers=torch.zeros_like(self.registers),
            outliers=self.outliers * scale,
            normal=self.normal * scale,
            elsewhere=torch.zeros_like(self.elsewhere),
        )

    def to_dict(self) -> dict[str, float]:
        """Means over images and heads: `cls`, `register_1` and so on, `outliers`, `normal`, `elsewhere`."""
        parts = {"cls": self.cls}
        parts |= {f"register_{i + 1}": self.registers[..., i] for i in range(self.registers.shape[-1])}
        parts |= {"outliers": self.outliers, "normal": self.normal, "elsewhere": self.elsewhere}
        return {name: share.double().mean().item() for name, share in parts.items()}


def attention_budget(
    attention: Float[Tensor, "b heads t keys"], outliers: Bool[Tensor, "b n"], num_registers: int = 0, query: int = 0
) -> AttentionBudget:
    """How the class token (or another `query`) divides its attention; `outliers` says which patches are artefacts.

    Raises:
        ValueError: more tokens than keys.
    """
    first = 1 + num_registers
    last = first + outliers.shape[1]
    if last > attention.shape[-1]:
        raise ValueError(
            f"1 class token, {num_registers} registers and {outliers.shape[1]} patches are more than the {attention.shape[-1]} keys."
        )
    row = attention[:, :, query].float()  # b heads keys
    patches, marked = row[..., first:last], outliers.to(row.device)[:, None]
    return AttentionBudget(
        cls=row[..., 0],
        registers=row[..., 1:first],
        outliers=(patches * marked).sum(dim=-1),
        normal=(patches * ~marked).sum(dim=-1),
        elsewhere=row[..., last:].sum(dim=-1),
    )


def value_weighted(
    attention: Float[Tensor, "b heads t keys"],
    values: Float[Tensor, "b heads keys k"],
    projection: Float[Tensor, "d d"],
) -> Float[Tensor, "b heads t keys"]:
    """What attention really moves: |a_ij W_h v_j|, the length of what token j adds to token i through head h.

    Zero or more, in units of the residual stream. `projection` is the weight of the output layer, whose columns are the heads' in turn.
    A token with much attention and a small value counts little, as artefacts in some networks do.

    Raises:
        ValueError: widths that do not fit.
    Source: Kobayashi et al. 2020 (arXiv 2004.10102), Eq. 5.
    """
    heads, width = values.shape[1], values.shape[-1]
    if attention.shape[-1] != values.shape[2]:
        raise ValueError(f"attention to {attention.shape[-1]} keys and values of {values.shape[2]}; one value a key.")
    if projection.shape[1] != heads * width:
        raise ValueError(
            f"the projection reads {projection.shape[1]} channels; {heads} heads of {width} give another number."
        )
    per_head = projection.to(values.dtype).unflatten(1, (heads, width))  # d heads k
    lengths: Tensor = torch.einsum("dhk,bhjk->bhjd", per_head, values).norm(dim=-1)
    return attention * lengths[:, :, None]


def rollout(
    attentions: Sequence[Float[Tensor, "b heads t t"]], fusion: HeadFusion = "mean", residual: float = 0.5
) -> Float[Tensor, "b t t"]:
    """How much of each input token (column) arrives at each token after all blocks (row): the product A_L ... A_1.

    Each A is (1 - residual) x attention, heads fused, + residual x identity, its rows scaled to sum to 1. `attentions` come in the
    order of the blocks, each of the same tokens, class token and registers among them.

    Raises:
        ValueError: no attention, or matrices that are not square.
    Source: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3.
    """
    if not attentions:
        raise ValueError("there is no attention to roll out; give that of every block, first block first.")
    product: Tensor | None = None
    for weights in attentions:
        if weights.shape[-1] != weights.shape[-2]:
            raise ValueError(f"attention of shape {tuple(weights.shape)}: rollout needs as many keys as queries.")
        fused = _fuse(weights.float(), fusion)
        mixed = (1 - residual) * fused + residual * torch.eye(fused.shape[-1], device=fused.device)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        product = mixed if product is None else mixed @ product
    assert product is not None
    return product


def mass_mask(weights: Float[Tensor, "*b n"], mass: float = 0.6) -> Bool[Tensor, "*b n"]:
    """The fewest patches that together hold this share of the weights' sum; of equal ones the earlier are taken.

    Raises:
        ValueError: a share outside of 0 to 1.
    Source: Caron et al. 2021 (DINO), the 60 % masks of Fig. 8.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}; a share lies in 0 to 1, without 0.")
    ordered, places = weights.double().sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = (before < mass * ordered.sum(dim=-1, keepdim=True) * (1 - 1e-9)) & (ordered > 0)
    return torch.zeros_like(kept).scatter(-1, places, kept)


def _fuse(weights: Tensor, fusion: HeadFusion) -> Tensor:
    match fusion:
        case "mean":
            return weights.mean(dim=1)
        case "max":
            return weights.amax(dim=1)
        case "min":
            return weights.amin(dim=1)
    raise ValueError(f"fusion is {fusion!r}; it must be 'mean', 'max' or 'min'.")


def _on_grid(attention: Tensor, num_registers: int, grid: tuple[int, int]) -> Tensor:
    first, num = 1 + num_registers, grid[0] * grid[1]
    if attention.shape[-2] != first + num or attention.shape[-1] < first + num:
        raise ValueError(
            f"attention of {attention.shape[-2]} x {attention.shape[-1]} tokens; a class token, {num_registers} registers and a "
            f"grid of {grid[0]} x {grid[1]} are {first + num}."
        )
    maps: Tensor = attention[..., first : first + num].unflatten(-1, grid)
    return maps
