"""Dense heads and files: Meta's released segmentation and depth heads, and ours in the same layout.

Promise: strict; what does not fit is named, and nothing is guessed from a file's name. Heads released for plain backbones fit those;
on register backbones they load as well, since the layout is the same, but they were not trained for them.
Source: facebookresearch/dinov2, hub/depthers.py, and the names of the released files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinokit._version import __version__
from dinokit.config import ViTConfig
from dinokit.errors import OutputError, WeightsError
from dinokit.images import ImageTransform, ShortestEdge, decode
from dinokit.model.dense import DenseHead, DenseModel, DenseSpec, DepthRule, HeadKind, Task, build_head, dense_spec
from dinokit.weights import files, hub, zoo
from dinokit.weights.hub import HubOptions
from dinokit.weights.load import Pretrained, load

PREFIX = "decode_head."
DPT_READS = "reassemble_blocks.projects.3.conv.weight"
SPEC, LABELS, SIZE = "dinokit.head", "dinokit.labels", "dinokit.size"
NYU, KITTI = DepthRule(nearest=0.001, farthest=10.0), DepthRule(nearest=0.001, farthest=80.0)
# Ranges of the released depth heads. Meta's hub gives its linear heads 80 m on NYU as well, which is taken for a slip.
RELEASED_HEADS: dict[str, DepthRule | None] = {
    **{f"{data}_{kind}": None for data in ("ade20k", "voc2012") for kind in ("linear", "ms")},
    **{f"nyu_{kind}": NYU for kind in ("linear", "linear4", "dpt")},
    **{f"kitti_{kind}": KITTI for kind in ("linear", "linear4", "dpt")},
}


@dataclass(frozen=True, kw_only=True)
class DensePretrained:
    """A backbone with a dense head, the transform its images need, and class names where they are known.

    Images are resized to `transform`'s shortest edge and never cropped; answers come at the size of the image that was given.
    """

    model: DenseModel
    transform: ImageTransform
    labels: Mapping[int, str] | None = field(default=None, repr=False)

    @property
    def spec(self) -> DenseSpec:
        """What the head is."""
        return self.model.head.spec

    @torch.no_grad()
    def maps(self, image: Any) -> Float[Tensor, "o h w"]:
        """Scores of classes, or depth in metres, of each pixel of the upright image.

        Raises:
            ImageError: the image can't be read.
        """
        decoded = decode(image)
        weight = self.model.backbone.cls_token
        pixels = self.transform(decoded)[None].to(device=weight.device, dtype=weight.dtype)
        found = self.model(pixels).float()
        return F.interpolate(found, (decoded.height, decoded.width), mode="bilinear", align_corners=False)[0].cpu()

    def segment(self, image: Any) -> Int64[Tensor, "h w"]:
        """The class of each pixel.

        Raises:
            ValueError: the head is one for depth.
            ImageError: the image can't be read.
        """
        if self.spec.task != "segmentation":
            raise ValueError("this head gives depth, not classes; use depth(image).")
        return self.maps(image).argmax(dim=0)

    def depth(self, image: Any) -> Float[Tensor, "h w"]:
        """Depth of each pixel in metres, within the head's range.

        Raises:
            ValueError: the head is one for segmentation.
            ImageError: the image can't be read.
        """
        if self.spec.task != "depth":
            raise ValueError("this head gives classes, not depth; use segment(image).")
        return self.maps(image)[0].clamp(self.spec.rule.nearest, self.spec.rule.farthest)


def load_dense(
    backbone: str | Path | Pretrained,
    head: str | Path,
    *,
    rule: DepthRule | None = None,
    size: int = 518,
    **options: Any,
) -> DensePretrained:
    """A backbone, by name, path or loaded, with a dense head.

    `head` is a file, or the name of a released one (`RELEASED_HEADS`), which needs the backbone by its name. `rule` says how a file
    of Meta's becomes metres; by default NYU's range. `size` is the shortest edge of images in pixels; a file written by a fine-tuning
    run says its own. `options` are those of `dinokit.load`.

    Raises:
        WeightsError: the file is no dense head, is incomplete, or was made for a network of another width or depth.
        ValueError: an unknown name.
    """
    pre = backbone if isinstance(backbone, Pretrained) else load(backbone, **options)
    path = Path(head)
    if not path.exists():
        path, released = _fetch(str(head), pre, HubOptions(cache_dir=options.get("cache_dir")))
        rule = rule or released
    found, about = load_dense_head(path, pre.config, rule=rule)
    found.to(device=pre.device, dtype=pre.dtype)
    transform = uncropped(pre.transform, int(about.get(SIZE, size)))
    labels = {int(k): str(v) for k, v in json.loads(about.get(LABELS, "{}")).items()}
    return DensePretrained(model=DenseModel(pre.model, found).eval(), transform=transform, labels=labels or None)


def uncropped(transform: ImageTransform, size: int) -> ImageTransform:
    """The same colours, the shortest edge at `size`, nothing cut off."""
    return replace(transform, resize=ShortestEdge(size), crop=None)


def load_dense_head(
    path: str | Path, config: ViTConfig, *, rule: DepthRule | None = None
) -> tuple[DenseHead, dict[str, Any]]:
    """A head for a network of `config`, in evaluation mode, and what the file says besides.

    Raises:
        WeightsError: no dense head, tensors missing or left over, or for a network of another width or depth.
    """
    read = files.read(path)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read.tensors.items()}
    if SPEC in read.metadata:
        try:
            spec = DenseSpec.from_dict(json.loads(read.metadata[SPEC]))
        except ValueError as error:
            raise WeightsError(f"{path}: what the file says of its head can't be used: {error}") from error
        spec = spec if rule is None else replace(spec, rule=rule)
    else:
        spec = _spec_of(tensors, config, rule or DepthRule(), str(path))
    if spec.embed_dim != config.embed_dim or max(spec.blocks) >= config.depth:
        raise WeightsError(
            f"{path} was made for a network {spec.embed_dim} wide whose block {max(spec.blocks)} it reads; this one is "
            f"{config.embed_dim} wide and has blocks 0 to {config.depth - 1}. Take the head that belongs to the backbone."
        )
    head = build_head(spec)
    _check(head, tensors, str(path))
    head.load_state_dict(tensors)
    return head.eval(), {name: value for name, value in read.metadata.items() if name != SPEC}


def save_dense_head(
    head: DenseHead,
    path: str | Path,
    *,
    labels: Mapping[int, str] | None = None,
    size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a head under Meta's names: safetensors with a description, or, by suffix, a pickle {"state_dict"} as Meta's files are.

    A pickle keeps the description out, which Meta's code would not know; then `rule` must be given again when it is loaded.

    Raises:
        OutputError: something is there already.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name, or allow it to be replaced (overwrite).")
    tensors = {PREFIX + name: tensor.detach().cpu() for name, tensor in head.state_dict().items()}
    if path.suffix not in files.SAFETENSORS_SUFFIXES:
        return files.write_pickle(path, {"state_dict": tensors})
    about = {SPEC: json.dumps(head.spec.to_dict()), "writer": f"dinokit {__version__}"}
    if labels:
        about[LABELS] = json.dumps({str(number): name for number, name in labels.items()})
    if size is not None:
        about[SIZE] = str(size)
    return files.write_safetensors(path, tensors, about)


def _spec_of(tensors: Mapping[str, Tensor], config: ViTConfig, rule: DepthRule, source: str) -> DenseSpec:
    """From names and shapes alone, as Meta's files hold no more."""
    task: Task = "segmentation" if "conv_seg.weight" in tensors else "depth"
    last = next((n for n in ("conv_seg.weight", "conv_depth.weight", "conv_depth.head.4.weight") if n in tensors), None)
    if last is None:
        raise WeightsError(
            f"{source} is no dense head: it holds {', '.join(sorted(tensors)[:4])}; expected decode_head.conv_seg, "
            f"decode_head.conv_depth or decode_head.conv_depth.head (Mask2Former is not read)."
        )
    outputs, width = tensors[last].shape[:2]
    kind: HeadKind = "dpt"
    if not any(name.startswith("reassemble_blocks.") for name in tensors):
        own = config.embed_dim * (1 if task == "segmentation" else 2)
        if width not in (own, 4 * own):
            raise WeightsError(
                f"{source}: the head reads {width} channels; of a network {config.embed_dim} wide it can read {own} (the last block) "
                f"or {4 * own} (four). Take the head that belongs to the backbone."
            )
        kind = "linear" if width == own else "ms"
    elif (found := tensors.get(DPT_READS)) is not None and found.shape[1] != config.embed_dim:
        raise WeightsError(
            f"{source}: the head reads tokens {found.shape[1]} wide; this network's are {config.embed_dim}. Take the head that "
            f"belongs to the backbone."
        )
    try:
        return dense_spec(task, kind, config.embed_dim, config.depth, outputs, rule)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error


def _check(head: DenseHead, tensors: Mapping[str, Tensor], source: str) -> None:
    wanted = head.state_dict()
    for words, names in (
        ("lacks", sorted(wanted.keys() - tensors.keys())),
        ("has left over", sorted(tensors.keys() - wanted.keys())),
    ):
        if names:
            shown = ", ".join(PREFIX + name for name in names[:4])
            raise WeightsError(
                f"{source} {words} {shown}{f' and {len(names) - 4} more' if len(names) > 4 else ''}; it is no {head.spec.kind} head "
                f"for {head.spec.task} as released. Download it again, or name another file."
            )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise WeightsError(
                f"{source}: {PREFIX}{name} is {tuple(tensors[name].shape)}, a head for this network has {tuple(tensor.shape)}."
            )


def _fetch(name: str, pre: Pretrained, options: HubOptions) -> tuple[Path, DepthRule | None]:
    if name not in RELEASED_HEADS:
        raise ValueError(f"{name!r} is neither a file nor a released head: {', '.join(RELEASED_HEADS)}.")
    source = zoo.lookup(pre.provenance.name.partition("@")[0])
    if source is None or source.release is None or source.release.registers:
        raise ValueError(
            f"{name} was released for the plain backbones alone, known by name; {pre.provenance.name} is none of them. Give a file, or "
            f"train a head (dinokit finetune)."
        )
    url = f"{zoo.META_BASE_URL}/{source.release.meta_stem}_{name}_head.pth"
    return hub.fetch_url(url, (), options), RELEASED_HEADS[name]
