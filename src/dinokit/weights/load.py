"""`load`: any checkpoint, by name or path, to a model with its transform and its provenance.

The walk: fetch -> read -> peel, detect, convert -> infer the architecture -> check it against what lies beside -> build.
Promise: strict unless told otherwise; nothing is guessed from a file's name.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dinokit.config import PositionRule, ViTConfig
from dinokit.errors import WeightsError
from dinokit.images import ImageTransform
from dinokit.model import LinearHead, VisionTransformer, intermediate_tokens
from dinokit.model.heads import HEAD_WIDTHS
from dinokit.tokens import Tokens
from dinokit.weights import files, hub, zoo
from dinokit.weights.beside import Beside, check_claims, look_beside
from dinokit.weights.convert import Converted, to_native
from dinokit.weights.digest import Digest
from dinokit.weights.files import Checkpoint
from dinokit.weights.hub import HubOptions
from dinokit.weights.infer import Hints, fill, infer_config, infer_network
from dinokit.weights.layouts import named_position_rule

if TYPE_CHECKING:
    from dinokit.engine import Plan


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model came from. `revision` is the hub's commit where the file lies in its cache, else None.

    `form` says how the network differs from the file's, where it was repaired. `filled` names native tensors that the file had no
    place for (zeros), `missing` and `unexpected` what was tolerated with `strict=False`; a model with either is not `verified`.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    layout: str
    container: str = ""
    form: str = ""
    license: str | None = None
    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    digest: Digest | None = field(default=None, repr=False, compare=False)

    @property
    def verified(self) -> bool:
        """Whether every tensor of the network came from the file and every tensor of the file went into the network."""
        return not self.missing and not self.unexpected

    @property
    def revision(self) -> str | None:
        """Commit of the hub repository."""
        parent = self.files[0].parent
        return parent.name if parent.parent.name == "snapshots" else None

    @functools.cached_property
    def sha256(self) -> str:
        """Of the weights (see `Checkpoint.sha256`); read on first use, unless `digest` began before."""
        if self.digest is not None and self.files == (self.digest.path,):
            return self.digest.result()
        return Checkpoint({}, self.path, self.files).sha256()


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model, the transform its images need, and where it came from.

    `head` is the linear classifier that came with it, `labels` its class names.
    """

    model: VisionTransformer
    transform: ImageTransform
    provenance: Provenance
    head: LinearHead | None = None
    labels: Mapping[int, str] | None = field(default=None, repr=False)

    @property
    def config(self) -> ViTConfig:
        """The architecture."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.model.cls_token.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pretrained:
        """The same with its modules moved or cast, in place as `torch.nn.Module.to` does."""
        for module in (self.model, self.head):
            if module is not None:
                module.to(device=device, dtype=dtype)
        return self

    def pixels(self, images: Any) -> Float[Tensor, "b c h w"]:
        """One image or a list of them, in any form that `dinokit.images.decode` takes, as a normalised batch on the model's device."""
        batch = self.transform.batch(list(images) if isinstance(images, (list, tuple)) else [images])
        return batch.to(device=self.device, dtype=self.dtype)

    @property
    def plan(self) -> Plan | None:
        """How the fast form of the network is run; None for the network as it is."""
        plan: Any = getattr(self.model, "plan", None)
        return plan  # type: ignore[no-any-return]

    def optimize(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | Literal["int16", "int8"] | None = None,
        *,
        residual: torch.dtype | None = None,
        compiled: bool = False,
        plan: Plan | None = None,
    ) -> Pretrained:
        """The same with the fast form of its network, for inference on `device`; what was chosen and why is in `plan`.

        `dtype` is what is wanted, by default what the weights are; a machine that would be slower with it gets float32.
        `residual=torch.float32` makes bfloat16 more exact; `compiled` goes through `torch.compile`, for GPUs; `plan` forces a
        decision. Tokens are those of the network within the plan's precision (docs/performance.md). The network itself stays as it is.

        Raises:
            ValueError: the network is training, has hooks, or is fast already.
        """
        from dinokit.engine import optimize

        wanted: Any = str(dtype or self.dtype).removeprefix("torch.")
        fast = optimize(self.model, device, wanted, residual=residual, compiled=compiled, plan=plan)
        head = self.head
        if head is not None:
            head = copy.deepcopy(head).to(device=fast.cls_token.device, dtype=fast.cls_token.dtype)
        return replace(self, model=fast, head=head)

    @torch.no_grad()
    def __call__(self, images: Any) -> Tokens:
        """Tokens after the final norm, without gradients. For gradients call `model` on `pixels(images)`."""
        return self.model(self.pixels(images))  # type: ignore[no-any-return]

    @torch.no_grad()
    def logits(self, images: Any) -> Float[Tensor, "b classes"]:
        """Class scores before the softmax.

        Raises:
            ValueError: the checkpoint has no classifier.
        """
        if self.head is None:
            raise ValueError(
                f"{self.provenance.name} has no classifier. Load one that has (facebook/dinov2-base-imagenet1k-1-layer), or give one: "
                f"load(name, head=PATH)."
            )
        return self.head(*intermediate_tokens(self.model, self.pixels(images), self.head.num_layers))  # type: ignore[no-any-return]


def load(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    position: PositionRule | str | None = None,
    head: str | Path | int | None = None,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    strict: bool = True,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> Pretrained:
    """Load a DINOv2 network of any layout.

    `name_or_path` is a file, a folder, a hub id (`@revision` may follow), or a name of Meta's, timm's or Birder's; `dinokit models`
    lists them. `position` resamples positions as another implementation does ("official", "transformers", "timm", "birder", or a
    `PositionRule`); by default as the one that the file comes from. `head` is a file with a linear classifier, or 1 or 4 for
    Meta's ImageNet classifiers of that many blocks. `num_heads` and `image_size` (height, width) say what bare files of unusual
    networks don't. In evaluation mode.

    Raises:
        UnknownModelError: no such name or path.
        HubError: not on disk, and the hub can't be reached or refuses.
        WeightsError: damaged, incomplete or contradictory; with `strict=False` missing and left-over tensors are only reported.
    """
    options = HubOptions(
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        force_download=force_download,
    )
    name = str(name_or_path)
    known = None if Path(name).exists() else zoo.lookup(name.partition("@")[0])
    checkpoint = files.read(hub.fetch_model(name_or_path, options))
    converted = to_native(checkpoint.tensors, source=str(checkpoint.path), strict=strict)
    beside = look_beside(checkpoint, converted)
    if position is not None:
        rule = named_position_rule(position, converted.num_registers) if isinstance(position, str) else position
        position = PositionRule(*rule)
    network = _network(
        checkpoint, converted, beside, Hints(num_heads=num_heads, image_size=image_size, position=position)
    )
    config = network.config
    if head is None and known is not None and known.head_layers:
        head = known.head_layers
    weights = _head_weights(head, converted, known, options)
    pretrained = Pretrained(
        model=fill(network, converted, dtype=dtype),
        transform=_transform(checkpoint, converted, config, beside),
        provenance=Provenance(
            name=name,
            path=checkpoint.path,
            files=checkpoint.files,
            layout=converted.layout.name,
            container=checkpoint.container,
            license=zoo.LICENSE if known is not None else None,
            filled=converted.filled,
            missing=converted.missing,
            unexpected=converted.unexpected,
        ),
        head=_build_head(weights, config, str(checkpoint.path), dtype) if weights else None,
        labels=beside.labels if weights else None,
    )
    return pretrained.to(device) if device is not None else pretrained


def _network(checkpoint: Checkpoint, converted: Converted, beside: Beside, given: Hints) -> VisionTransformer:
    """Without values yet, and checked against what lies beside the tensors."""
    hints = replace(
        beside.hints,
        num_heads=given.num_heads or beside.hints.num_heads,
        image_size=given.image_size or beside.hints.image_size,
        position=given.position or beside.hints.position,
    )
    source = str(checkpoint.path)
    try:
        network = infer_network(converted, hints, source=source)
    except WeightsError:
        # A configuration of another model often fails here first; its plain contradictions explain more.
        bare = infer_config(converted, Hints(num_heads=1, image_size=given.image_size), source=source)
        check_claims(bare, beside, converted, source)
        raise
    check_claims(network.config, beside, converted, source)
    return network


def _transform(checkpoint: Checkpoint, converted: Converted, config: ViTConfig, beside: Beside) -> ImageTransform:
    """As the implementation that wrote the file prepares images."""
    layout = converted.layout.name
    try:
        if checkpoint.preprocessor is not None:
            return ImageTransform.from_hf(checkpoint.preprocessor)
        cfg = (checkpoint.config or {}).get("pretrained_cfg")
        if layout == "timm" and (cfg or config.image_size[0] == config.image_size[1]):
            return ImageTransform.from_timm(cfg or {"input_size": (3, *config.image_size), "crop_pct": 1.0})
    except ValueError as error:
        raise WeightsError(f"{checkpoint.path}: the preprocessing beside the weights can't be used: {error}") from error
    if layout == "timm" or layout.startswith("birder"):
        squash = ImageTransform.squash(config.image_size)
        return replace(squash, mean=beside.rgb_stats[0], std=beside.rgb_stats[1]) if beside.rgb_stats else squash
    return ImageTransform.dinov2("half_even" if layout == "official" else "floor")


def _head_weights(
    head: str | Path | int | None, converted: Converted, known: zoo.Source | None, options: HubOptions
) -> Mapping[str, Tensor] | None:
    if head is None:
        return converted.head
    if isinstance(head, int):
        if head not in (1, 4):
            raise ValueError(f"head={head}: Meta published classifiers that read 1 or 4 blocks; or give a file.")
        if known is None or known.release is None:
            raise ValueError(f"head={head} needs a released network by name; for a file give the head's file too.")
        head = hub.fetch_url(zoo.head_url(known.release, head), (), options)
    tensors = files.read(head).tensors
    if set(tensors) != {"weight", "bias"}:
        raise WeightsError(
            f"{head} is no linear classifier: it holds {', '.join(sorted(tensors)[:5])}; expected weight and bias."
        )
    return tensors


def _build_head(weights: Mapping[str, Tensor], config: ViTConfig, source: str, dtype: torch.dtype) -> LinearHead:
    weight, bias = weights.get("weight"), weights.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        raise WeightsError(
            f"{source}: the classifier's tensors are {shapes}; expected a weight (classes, features) and a bias (classes)."
        )
    factor, rest = divmod(weight.shape[1], config.embed_dim)
    if rest or factor not in HEAD_WIDTHS:
        allowed = ", ".join(str(width * config.embed_dim) for width in HEAD_WIDTHS)
        raise WeightsError(
            f"{source}: the classifier reads {weight.shape[1]} features; of a network {config.embed_dim} wide it can read {allowed}."
        )
    head = LinearHead(config.embed_dim, weight.shape[0], HEAD_WIDTHS[factor])
    head.linear.load_state_dict({"weight": weight.to(dtype), "bias": bias.to(dtype)}, assign=True)
    head.requires_grad_(True)
    return head.eval()
