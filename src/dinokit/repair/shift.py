"""Test-time registers and moved outliers: what register neurons write goes to a token of our choice.

In large ViTs a handful of MLP neurons fire at few patches and write the high norms. Their activation is taken off all tokens and
given, at its largest, to added tokens (which then serve as registers) or to chosen patches (which then become the outliers).
Source: Jiang et al. 2025 (arXiv 2506.08010), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dinokit.model import VisionTransformer
from dinokit.repair.form import Form

Neuron = tuple[int, int]
"""(Block, index among the hidden activations of its feed-forward network), both from 0."""

ShiftMode = Literal["per_neuron", "zero", "reference"]
SHIFT_MODES: tuple[ShiftMode, ...] = get_args(ShiftMode)


def by_block(neurons: Iterable[Neuron], model: VisionTransformer) -> dict[int, Tensor]:
    """Neurons grouped by block.

    Raises:
        ValueError: none given, or one that the network does not have.
    """
    grouped: dict[int, list[int]] = {}
    for block, neuron in neurons:
        if not (0 <= block < model.config.depth and 0 <= neuron < model.config.ffn_dim):
            raise ValueError(
                f"neuron ({block}, {neuron}): the network has {model.config.depth} blocks of {model.config.ffn_dim} neurons."
            )
        grouped.setdefault(block, []).append(neuron)
    if not grouped:
        raise ValueError("no register neurons were given; `calibrate` finds them.")
    return {block: torch.tensor(sorted(set(indices))) for block, indices in sorted(grouped.items())}


def shift(
    hidden: Float[Tensor, "b t hidden"], neurons: Tensor, targets: slice | list[int], mode: ShiftMode
) -> Float[Tensor, "b t hidden"]:
    """`hidden` with the activations of `neurons` at zero but for the tokens `targets`.

    There "per_neuron" puts each neuron's value of largest magnitude over the image's tokens, with its sign (SwiGLU's may be
    negative); "zero" puts nothing; "reference" puts the one largest value over all of the neurons into every neuron.
    """
    active = hidden[..., neurons]  # b t k
    strongest = active.gather(1, active.abs().argmax(dim=1, keepdim=True))  # b 1 k
    # quirk of the reference implementation, whose Algorithm 2 says per neuron; kept for comparison only
    if mode == "reference":
        strongest = strongest.amax(dim=2, keepdim=True).expand_as(strongest)
    moved = torch.zeros_like(active)
    if mode != "zero":
        moved[:, targets] = strongest
    edited = hidden.clone()
    edited[..., neurons] = moved
    return edited


class ShiftForm(Form):
    """A network in which what `neurons` write goes to the tokens `targets`; in what way, `mode` says (see `shift`)."""

    def __init__(
        self,
        model: VisionTransformer,
        neurons: Iterable[Neuron],
        targets: slice | list[int],
        mode: ShiftMode,
        added: int,
    ) -> None:
        super().__init__(model, added_registers=added)
        self.neurons: Mapping[int, Tensor] = by_block(neurons, model)
        self.targets = targets
        self.mode: ShiftMode = mode

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The block with the activations of its register neurons moved."""
        neurons = self.neurons.get(index)
        if neurons is None:
            return super().run_block(index, x, head_mask, grid)
        block = self.block(index)
        x = block.attend(x, None if head_mask is None else head_mask[index])
        return block.feed(x, lambda hidden: shift(hidden, neurons, self.targets, self.mode))


class TestTimeRegisters(ShiftForm):
    """A network without artefacts and without training: `num_added` zero tokens take over what `neurons` write at patches.

    The added tokens follow the class token and the trained registers and are registers in every respect (`Tokens.registers`), so
    patches stay in their place. Works on whole batches, each image on its own. `mode` as in `shift`; "zero" adds no token.

    Source: Jiang et al. 2025, Algorithm 2; one token suffices (their section 5).
    """

    __test__ = False  # not a test, whatever its name

    def __init__(
        self,
        model: VisionTransformer,
        neurons: Iterable[Neuron],
        *,
        num_added: int = 1,
        mode: ShiftMode = "per_neuron",
    ) -> None:
        if mode not in SHIFT_MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(SHIFT_MODES)}.")
        if num_added < 1:
            raise ValueError(f"num_added is {num_added}; at least one token must take what the neurons write.")
        added = 0 if mode == "zero" else num_added
        first = model.config.num_prefix_tokens
        super().__init__(model, neurons, slice(first, first + added), mode, added)


class MovedOutliers(ShiftForm):
    """A network whose outliers appear at `patches` (row-major numbers) instead of where it would put them.

    The causal test of register neurons: wherever they are made to fire, the high norm appears (Jiang et al. 2025, Fig. 4).
    """

    def __init__(self, model: VisionTransformer, neurons: Iterable[Neuron], patches: Iterable[int]) -> None:
        places = sorted(set(patches))
        if not places or places[0] < 0:
            raise ValueError("patches must name at least one patch, from 0.")
        prefix = model.config.num_prefix_tokens
        super().__init__(model, neurons, [prefix + patch for patch in places], "per_neuron", added=0)
        self.patches = places

    def embed(
        self, images: Float[Tensor, "b c h w"], masks: Shaped[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The sequence that enters the first block.

        Raises:
            ValueError: the image has fewer patches than were named.
        """
        rows, columns = self.grid_of(images.shape[-2], images.shape[-1])
        if self.patches[-1] >= rows * columns:
            raise ValueError(f"the image has {rows * columns} patches; patch {self.patches[-1]} lies beyond.")
        return super().embed(images, masks)
