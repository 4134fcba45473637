"""`optimize`: the fast form of a network for inference; the same images in, the same `Tokens` out.

Promise: the network it came from is not touched. The two may share weights, so change none of them in place afterwards. Source of the
techniques: docs/performance.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dinokit.engine.blocks import FastBlock, FastNorm, PatchLinear, fast_blocks, key_mask
from dinokit.engine.decision import Asked, Plan, decide
from dinokit.engine.machine import Machine, look
from dinokit.model.posembed import resample
from dinokit.model.vit import VisionTransformer
from dinokit.tokens import Tokens

MAX_TABLES = 8


class FastTransformer(VisionTransformer):
    """A network made for inference under a `Plan`. Has what `VisionTransformer` has, but for gradients, training and saving."""

    _positions: Tensor

    def __init__(self, model: VisionTransformer, plan: Plan, machine: Machine) -> None:
        nn.Module.__init__(self)
        self.config, self.plan, self.machine = model.config, plan, machine
        self.checkpoint_options = None
        for name in ("cls_token", "pos_embed", "register_tokens", "mask_token"):
            value = getattr(model, name).detach().to(plan.dtype)
            setattr(self, name, nn.Parameter(value, requires_grad=False))
        # positions are resampled from the exact table, whatever the plan's dtype
        self.register_buffer("_positions", model.pos_embed.detach().to(plan.residual), persistent=False)
        self.patch_embed = PatchLinear(model.patch_embed, plan)  # type: ignore[assignment]
        self.embed_dropout = nn.Identity()  # type: ignore[assignment]
        self.blocks = fast_blocks(model, plan, machine)
        self.norm = FastNorm(model.norm, plan)  # type: ignore[assignment]
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._run = torch.compile(self._through, **_compile_options(machine)) if plan.compiled else self._through
        self.eval()

    def embed(
        self, images: Float[Tensor, "b c h w"], masks: Shaped[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The sequence that enters the first block; the caller's own."""
        return self._embed(images, masks, self._num_tokens(images))

    def stream(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Shaped[Tensor, "b n"] | None = None,
        head_mask: Float[Tensor, "depth heads"] | None = None,
    ) -> Iterator[Float[Tensor, "b t d"]]:
        """The residual stream: the sequence after the embedding, then after each block; depth + 1 in all, none normed."""
        x, keys, count = self._enter(images, masks)
        yield self._own(x)[:, :count]
        for index, block in enumerate(self._blocks()):
            x = block.advance(x, keys, None if head_mask is None else head_mask[index])
            yield self._own(x)[:, :count]

    def _blocks(self) -> Iterator[FastBlock]:
        for block in self.blocks:
            assert isinstance(block, FastBlock)
            yield block

    def _own(self, x: Tensor) -> Tensor:
        """`x` for somebody to keep: the next block may write into the one it is given."""
        return x.clone() if self.plan.in_place else x

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Shaped[Tensor, "b n"] | None = None,
        head_mask: Float[Tensor, "depth heads"] | None = None,
    ) -> Tokens:
        """Tokens after the final layer norm, in the plan's dtype, without gradients."""
        x, keys, count = self._enter(images, masks)
        x = self._run(x, keys, head_mask)
        return self.tokens(self.norm(x[:, :count]), (images.shape[-2], images.shape[-1]))

    def _through(self, x: Tensor, keys: Tensor | None, head_mask: Tensor | None) -> Tensor:
        for index, block in enumerate(self._blocks()):
            x = block.advance(x, keys, None if head_mask is None else head_mask[index])
        return x

    def _enter(self, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Float[Tensor, "1 1 1 t"] | None, int]:
        """The sequence, padded as planned; a mask of its keys; how many tokens there are without padding."""
        count, multiple = self._num_tokens(images), self.plan.pad_tokens
        padded = -(-count // multiple) * multiple
        x = self._embed(images, masks, padded)
        return x, key_mask(count, padded, self.plan.dtype, x.device), count

    def _num_tokens(self, images: Tensor) -> int:
        config = self.config
        if images.ndim != 4 or images.shape[1] != config.num_channels:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (batch, {config.num_channels}, height, width)."
            )
        if torch.is_grad_enabled() and images.requires_grad:
            raise ValueError("the fast form gives no gradients; use the network that it was made from.")
        rows, columns = self.grid_of(images.shape[-2], images.shape[-1])
        return config.num_prefix_tokens + rows * columns

    def _embed(self, images: Tensor, masks: Tensor | None, length: int) -> Tensor:
        grid = self.grid_of(images.shape[-2], images.shape[-1])
        patches: Tensor = self.patch_embed(images)
        if masks is not None:
            if masks.shape != patches.shape[:2]:
                raise ValueError(
                    f"masks have shape {tuple(masks.shape)}; expected (batch, patches) = {tuple(patches.shape[:2])}."
                )
            patches = torch.where(masks.bool()[..., None], self.mask_token.to(patches.dtype), patches)
        table, prefix = self._table(grid), self.config.num_prefix_tokens
        count = prefix + patches.shape[1]
        x = patches.new_empty(patches.shape[0], length, self.config.embed_dim, dtype=self.plan.residual)
        x[:, 0] = self.cls_token[0].to(x.dtype) + table[:, 0]
        x[:, 1:prefix] = self.register_tokens
        x[:, prefix:count] = patches
        x[:, prefix:count] += table[:, 1:]
        x[:, count:] = 0
        return x

    def _table(self, grid: tuple[int, int]) -> Tensor:
        """Positions on `grid`, resampled once."""
        if grid not in self._tables:
            if len(self._tables) >= MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[grid] = resample(self._positions, self.config.grid, grid, self.config.position)
        return self._tables[grid]

    def train(self, mode: bool = True) -> FastTransformer:
        """Evaluation is all there is.

        Raises:
            ValueError: training was asked for.
        """
        if mode:
            raise ValueError(
                "the fast form can't be trained; train the network that it was made from, then optimize again."
            )
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> FastTransformer:  # noqa: ARG002 - torch's signature
        """Refuse to move or cast what was packed for one place."""
        raise ValueError("the fast form can't be moved or cast: it was made for one device and dtype; optimize again.")

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Refuse: the fast form's tensors are folded and packed.

        Raises:
            ValueError: always.
        """
        raise ValueError("the fast form can't be saved; save the network that it was made from.")


def optimize(
    model: VisionTransformer,
    device: torch.device | str | None = None,
    dtype: Asked = "float32",
    *,
    residual: torch.dtype | None = None,
    compiled: bool = False,
    plan: Plan | None = None,
) -> VisionTransformer:
    """The fast form of a network, on `device` (by default where it is), its tokens equal within the plan's precision.

    A repaired form stays one, its blocks replaced by fast ones. `plan` forces a decision; see `decide` for the others.

    Raises:
        ValueError: the network is training, has hooks, or is a fast form already.
    """
    _refuse(model)
    place = torch.device(device) if device is not None else model.cls_token.device
    machine = look(place)
    plan = plan or decide(machine, dtype, residual=residual, compiled=compiled)
    if place != model.cls_token.device:
        model = copy.deepcopy(model).to(place)
    if type(model) is VisionTransformer:
        return FastTransformer(model, plan, machine)
    return _with_fast_blocks(model, replace(plan, residual=plan.dtype, pad_tokens=1), machine)


def _with_fast_blocks(model: VisionTransformer, plan: Plan, machine: Machine) -> VisionTransformer:
    """A form of a network (it differs in how blocks are run) over fast blocks."""
    fast = copy.copy(model)
    for name in ("_modules", "_parameters", "_buffers"):
        setattr(fast, name, dict(getattr(model, name)))
    for name, parameter in model.named_parameters(recurse=False):
        setattr(fast, name, nn.Parameter(parameter.detach().to(plan.dtype), requires_grad=False))
    for name in ("patch_embed", "norm"):
        setattr(fast, name, copy.deepcopy(getattr(model, name)).to(plan.dtype).requires_grad_(False))
    fast.blocks = fast_blocks(model, plan, machine)
    fast.plan = plan  # type: ignore[assignment]
    return fast


def _refuse(model: VisionTransformer) -> None:
    if hasattr(model, "plan"):
        raise ValueError("this network is a fast form already; optimize the one that it was made from.")
    if model.training:
        raise ValueError(
            "the network is in training mode; call .eval() first: dropout and stochastic depth have no fast form."
        )
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = next((name for name, part in model.named_modules() if any(getattr(part, kind) for kind in kinds)), None)
    if hooked is not None:
        raise ValueError(
            f"{hooked or 'the network'} has hooks, which a fast form would not call; remove them, or read with "
            f"`dinokit.model.capture`."
        )


def _compile_options(machine: Machine) -> dict[str, Any]:
    """On GPUs CUDA graphs take the cost of launching kernels away."""
    return {"dynamic": False, "mode": "reduce-overhead"} if machine.kind == "cuda" else {"dynamic": False}
