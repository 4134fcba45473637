"""Native tensors into a model of the Hugging Face style, strictly, and the report of what did not go one to one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dinokit.compat.hf import naming
from dinokit.compat.hf.base import ModelBase
from dinokit.compat.hf.config import Dinov2ConfigBase
from dinokit.errors import WeightsError
from dinokit.model.unfilled import unfilled
from dinokit.weights.convert import Converted
from dinokit.weights.layouts import HF


class SizeMismatchError(WeightsError, RuntimeError):
    """Tensors whose shapes the configuration contradicts; a `RuntimeError` too, as in transformers."""


@dataclass
class LoadingInfo:
    """What did not go one to one, under the hub's names; the dict form is what `output_loading_info` gives."""

    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    error_msgs: list[str] = field(default_factory=list)


def fill(
    cls: type[ModelBase],
    config: Dinov2ConfigBase,
    converted: Converted,
    extra: Mapping[str, Tensor],
    source: str,
    *,
    ignore_mismatched_sizes: bool,
    fewer_layers: bool,
) -> tuple[ModelBase, LoadingInfo]:
    """A model with the tensors in it, in evaluation mode, and what did not go one to one.

    `extra` are tensors beside the network and the classifier, for the layers of a model of the user's. `fewer_layers`:
    blocks beyond the configuration's were given up on purpose.

    Raises:
        WeightsError: a tensor is missing, left over, or (unless they are ignored) of another shape.
    """
    with unfilled():
        model = cls(config)
    vit = model.network
    if not config.has_mask_token:
        vit.mask_token = torch.zeros_like(vit.mask_token, device="cpu")  # type: ignore[assignment]  # a buffer here
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    names = {native: prefix + foreign[0] for native, foreign in naming.table(vit).items()}
    expected = vit.state_dict()
    info = LoadingInfo(unexpected_keys=list(converted.dropped))
    state = _without_leftovers(converted, expected, info, prefix, source, vit.config.depth if fewer_layers else None)
    lost = [names[native] for native in expected if native not in state]
    if lost:
        raise WeightsError(
            f"{source} does not fit its configuration: missing {len(lost)}: {', '.join(lost[:10])}"
            f"{', ...' if len(lost) > 10 else ''}. Is num_hidden_layers ({config.num_hidden_layers}), qkv_bias or "
            f"use_swiglu_ffn wrong?"
        )
    info.missing_keys += [names[native] for native in converted.filled if native in expected]
    wrong = [native for native in state if state[native].shape != expected[native].shape]
    info.mismatched_keys += [(names[n], tuple(state[n].shape), tuple(expected[n].shape)) for n in wrong]
    rest = {} if not prefix else {n: t for n, t in model.state_dict().items() if not n.startswith(prefix)}
    given = {**extra, **{f"classifier.{leaf}": tensor for leaf, tensor in (converted.head or {}).items()}}
    fitting = _fitting(rest, given, info)
    if info.mismatched_keys and not ignore_mismatched_sizes:
        raise SizeMismatchError(_size_text(info.mismatched_keys, config, source))
    if wrong:
        fresh = cls(config).network.state_dict()
        state.update({native: fresh[native] for native in wrong})
    dtype = config.torch_dtype or torch.float32
    vit.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, strict=True, assign=True)
    drawn = [name for name in rest if name not in fitting]
    if drawn:
        warnings.warn(
            f"{source} has no {', '.join(drawn)} of this size: drawn at random. Train the model before you use what it gives.",
            UserWarning,
            stacklevel=4,
        )
    _fill_rest(model, fitting, drawn, dtype)
    return model.eval(), info


def _without_leftovers(
    converted: Converted,
    expected: Mapping[str, Tensor],
    info: LoadingInfo,
    prefix: str,
    source: str,
    depth: int | None,
) -> dict[str, Tensor]:
    """The native state without a mask token that the configuration does not want, and without blocks from `depth` on."""
    state = dict(converted.state)
    for native in sorted(state.keys() - expected.keys()):
        del state[native]
        too_deep = depth is not None and native.startswith("blocks.") and int(native.split(".")[1]) >= depth
        if not too_deep and native != "mask_token":
            raise WeightsError(
                f"{source} does not fit its configuration: it has {native} (its native name), which the configuration has "
                f"no place for. Is num_hidden_layers, qkv_bias or use_swiglu_ffn wrong?"
            )
        foreign = dict(HF.rows(converted.depth, converted.ffn))[native]
        info.unexpected_keys += [prefix + name for name in foreign if native not in converted.filled]
    return state


def _fitting(rest: Mapping[str, Tensor], given: Mapping[str, Tensor], info: LoadingInfo) -> dict[str, Tensor]:
    """What is given for the layers outside of the network, where it fits; the others are noted in `info`."""
    info.unexpected_keys += [name for name in given if name not in rest]
    info.missing_keys += [name for name in rest if name not in given]
    wrong = [name for name in rest if name in given and given[name].shape != rest[name].shape]
    info.mismatched_keys += [(name, tuple(given[name].shape), tuple(rest[name].shape)) for name in wrong]
    return {name: given[name] for name in rest if name in given and name not in wrong}


def _fill_rest(model: ModelBase, fitting: Mapping[str, Tensor], drawn: list[str], dtype: torch.dtype) -> None:
    """Put tensors into the layers outside of the network; those of `drawn` are initialised."""
    values = dict(fitting)
    classifier = getattr(model, "classifier", None)
    if set(drawn) <= {"classifier.weight", "classifier.bias"} and isinstance(classifier, nn.Linear):
        classifier.to_empty(device="cpu")
        model.post_init()
        values = {f"classifier.{leaf}": tensor for leaf, tensor in classifier.state_dict().items()} | values
    elif drawn:  # layers of the user's: only their constructor knows how they start
        fresh = type(model)(model.config).state_dict()
        values = {name: fresh[name] for name in drawn} | values
    for name, tensor in values.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        value = tensor.to(dtype) if tensor.is_floating_point() else tensor
        is_parameter = isinstance(getattr(owner, leaf), nn.Parameter)
        setattr(owner, leaf, nn.Parameter(value) if is_parameter else value)


def _size_text(
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]], config: Dinov2ConfigBase, source: str
) -> str:
    name, found, expected = min(mismatched, key=lambda row: _rank(row[0]))
    more = f" ({len(mismatched) - 1} more tensors differ.)" if len(mismatched) > 1 else ""
    return (
        f"{source} does not fit its configuration: {name} is {'x'.join(map(str, found))}, the configuration needs "
        f"{'x'.join(map(str, expected))}. {_cause(name, found, expected, config)}{more}"
    )


def _rank(name: str) -> int:
    """Rank of a tensor by how plainly its shape names the wrong key; the convolution's names most of them."""
    return next((rank for rank, part in enumerate(("projection", "register_tokens", "position")) if part in name), 9)


def _cause(name: str, found: tuple[int, ...], expected: tuple[int, ...], config: Dinov2ConfigBase) -> str:
    if name.startswith("classifier"):
        return f"num_labels is {config.num_labels}; for a new classifier give ignore_mismatched_sizes=True."
    if "projection" in name and found[1:2] != expected[1:2]:
        return f"num_channels is {config.num_channels}."
    if "projection" in name and found[2:] != expected[2:]:
        return f"patch_size is {config.patch_size}; the released DINOv2 weights use 14."
    if "position_embeddings" in name:
        return (
            f"image_size is {config.image_size} and patch_size {config.patch_size}; image_size is that of the trained table "
            f"(518 for the released weights), and images of other sizes need no other configuration."
        )
    if "register_tokens" in name:
        return f"num_register_tokens is {config.register_count}; the released weights have 4."
    return f"hidden_size is {config.hidden_size}, mlp_ratio {config.mlp_ratio}."
