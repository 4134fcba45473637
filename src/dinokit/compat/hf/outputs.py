"""What the Hugging Face classes return: dataclasses that are also dicts and can be read like tuples.

Promise: a field that is None is not a key, takes no place in the tuple and does not count in `len`; attributes and keys agree.
Source: transformers' documentation of `ModelOutput`, `BaseModelOutputWithPooling`, `ImageClassifierOutput`, `BackboneOutput`.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(OrderedDict[str, Any]):
    """Base of the outputs: `out.logits`, `out["logits"]` and `out[0]` are the same tensor.

    Iterating gives keys, as dicts do; `to_tuple()` gives the values. Items can be set, not removed.
    """

    def __init_subclass__(cls) -> None:
        """Tell PyTorch's tree functions (`torch.compile`, `torch.export`, data parallelism) how to take outputs apart."""
        pytree.register_pytree_node(
            cls,
            _flatten,
            lambda values, keys: cls(**dict(zip(keys, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
            flatten_with_keys_fn=_flatten_with_keys,
        )

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]  # subclasses are dataclasses
        first = getattr(self, names[0])
        others = [name for name in names[1:] if getattr(self, name) is not None]
        items = None if others else _as_items(first)
        if items is None:
            items = {name: getattr(self, name) for name in names}
        else:  # as data-parallel helpers rebuild a dict of its own type: from a mapping or from pairs
            object.__setattr__(self, names[0], None)
        for name, value in items.items():
            if value is not None:
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in the order of the fields."""
        return tuple(self[key] for key in self.keys())

    def __getitem__(self, key: Any) -> Any:
        """By name, by position, or a slice of positions."""
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if not self:  # not filled yet: the dataclass sets its fields
            return
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        if value is not None and name in (*names, *self.keys()):
            super().__setitem__(name, value)
            for field in names:  # a field that was None takes its place, not the last one
                if field in self.keys():
                    self.move_to_end(field)
        elif value is None and name in self.keys():
            super().__delitem__(name)

    def __delitem__(self, key: str) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} keeps its items; set the attribute {key!r} to None instead of deleting it."
        )

    def setdefault(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: the items of an output are what the model gave."""
        raise TypeError(f"{type(self).__name__} has no setdefault; assign the item.")

    def pop(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: the items of an output are what the model gave."""
        raise TypeError(f"{type(self).__name__} has no pop; read the item, or set the attribute to None.")

    def update(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: the items of an output are what the model gave."""
        raise TypeError(f"{type(self).__name__} has no update; assign the items one by one.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied by its fields."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]


def _as_items(value: Any) -> dict[str, Any] | None:
    """`value` as the items of an output, where it is a mapping or an iterable of (name, value) pairs."""
    if isinstance(value, Mapping):
        return dict(value)
    if value is None or isinstance(value, Tensor) or not isinstance(value, Iterable):
        return None
    pairs = list(value)
    if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return dict(pairs)
    return None


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output.keys())


def _flatten_with_keys(output: ModelOutput) -> tuple[list[tuple[Any, Any]], list[str]]:
    return [(pytree.MappingKey(key), value) for key, value in output.items()], list(output.keys())


@dataclass(eq=False)
class BaseModelOutputWithPooling(ModelOutput):
    """Of a bare model.

    `last_hidden_state` is the sequence [class token, registers, patches] after the final layer norm; `pooler_output` is its
    class token as it is, with no further layer. `hidden_states` (depth + 1 tensors: after the embedding and after each
    block, not normed) and `attentions` (one a block, after the softmax) are there when asked for.
    """

    last_hidden_state: Float[Tensor, "b t d"] | None = None
    pooler_output: Float[Tensor, "b d"] | None = None
    hidden_states: tuple[Float[Tensor, "b t d"], ...] | None = None
    attentions: tuple[Float[Tensor, "b heads t t"], ...] | None = None


@dataclass(eq=False)
class ImageClassifierOutput(ModelOutput):
    """Of a classifier: `loss` when labels were given, `logits` before the softmax, the rest as in the bare model."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "b classes"] | None = None
    hidden_states: tuple[Float[Tensor, "b t d"], ...] | None = None
    attentions: tuple[Float[Tensor, "b heads t t"], ...] | None = None


@dataclass(eq=False)
class BackboneOutput(ModelOutput):
    """Of a backbone: one feature map a stage asked for, in stage order; the rest as in the bare model, when asked for.

    A map is (b, d, rows, columns), or (b, t, d) with class token and registers when `reshape_hidden_states` is false.
    """

    feature_maps: tuple[Float[Tensor, "b ..."], ...] | None = None
    hidden_states: tuple[Float[Tensor, "b t d"], ...] | None = None
    attentions: tuple[Float[Tensor, "b heads t t"], ...] | None = None
