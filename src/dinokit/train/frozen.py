"""Trained networks that a run begins with: read with their heads, and told apart by the sha256 of their file.

Promise: heads are read or said to be missing, never made up. Source: Meta's training checkpoints (names `backbone`, `dino_head`,
`ibot_head` under the key `teacher`), which is what `export` writes, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from dinokit.errors import WeightsError
from dinokit.model import VisionTransformer
from dinokit.train.export import HEADS, WEIGHTS
from dinokit.train.heads import ProjectionHead, read_names
from dinokit.train.network import Network
from dinokit.train.recipe import Heads
from dinokit.weights import files
from dinokit.weights.convert import to_native
from dinokit.weights.load import load
from dinokit.weights.peel import TRAINING_HEADS, WRAPPER_SEGMENTS


@dataclass(frozen=True)
class Found:
    """A network with the heads that its file had, if any."""

    name: str
    network: Network
    sha256: str

    @property
    def backbone(self) -> VisionTransformer:
        """The network without its heads."""
        return self.network.backbone


def read_network(name: str) -> Found:
    """An export's folder, a file with or without heads, or whatever else `dinokit.load` takes.

    Raises:
        UnknownModelError, HubError, WeightsError: as `dinokit.load`; or heads of another kind than the official ones.
    """
    path = Path(name)
    with_heads = path / HEADS if path.is_dir() else path
    if not with_heads.is_file():
        pre = load(name)
        return Found(name, Network(pre.model), pre.provenance.sha256)
    stored = files.read(with_heads)
    # the folder beside a file of ours knows what tensors alone don't say, such as the number of attention heads
    beside = with_heads.parent / WEIGHTS
    if with_heads.name == HEADS and beside.is_dir():
        backbone = load(beside).model
        backbone.load_state_dict(to_native(stored.tensors, source=str(with_heads)).state)
    else:
        backbone = load(with_heads).model
    dino, ibot = (_head(stored.tensors, kind, str(with_heads)) for kind in TRAINING_HEADS)
    return Found(name, Network(backbone, dino, ibot), stored.sha256())


def _head(tensors: Mapping[str, Tensor], kind: str, source: str) -> ProjectionHead | None:
    """The head whose names begin with `kind`, in the shape that its tensors have."""
    bare = {".".join(p for p in name.split(".") if p not in WRAPPER_SEGMENTS): t for name, t in tensors.items()}
    state = read_names({name.removeprefix(kind): t for name, t in bare.items() if name.startswith(kind)})
    if not state:
        return None
    layers = sorted((name for name in state if name.startswith("mlp.") and name.endswith(".weight")), key=_number)
    wanted = {"last_layer.weight_g", "last_layer.weight_v"}
    if not layers or not wanted <= state.keys():
        raise WeightsError(
            f"{source}: {kind.rstrip('.')} has {', '.join(sorted(state)[:6])}; a head as DINOv2's has linear layers mlp.N.weight and "
            f"prototypes with a norm each ({', '.join(sorted(wanted))}). Distil its features: distill.mode=features."
        )
    hidden, width = state[layers[0]].shape
    bottleneck = state[layers[-1]].shape[0]
    head = ProjectionHead(
        width,
        len(state["last_layer.weight_g"]),
        hidden_dim=hidden,
        bottleneck_dim=bottleneck,
        num_layers=len(layers),
    )
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{source}: {kind.rstrip('.')} is no head as DINOv2's: {error}") from error
    return head


def _number(name: str) -> int:
    part = name.split(".")[1]
    return int(part) if part.isdigit() else 0


def shape_of(network: Network, heads: Heads) -> Heads:
    """Settings of heads as a network has them."""
    dino, ibot = network.dino_head, network.ibot_head
    if dino is None:
        return heads
    linear = [layer for layer in dino.mlp.modules() if isinstance(layer, nn.Linear)]
    return replace(
        heads,
        prototypes=dino.num_prototypes,
        patch_prototypes=0 if ibot is None else ibot.num_prototypes,
        hidden_dim=linear[0].out_features,
        bottleneck_dim=dino.last_layer.weight_v.shape[1],
        patch_bottleneck_dim=heads.patch_bottleneck_dim if ibot is None else ibot.last_layer.weight_v.shape[1],
        num_layers=len(linear),
    )
