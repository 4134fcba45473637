"""`Identity`: which model, preprocessing and pooling made vectors, so that only like is compared with like.

Promise: two vectors with one `compat_id` came from the same weights, form, positions, preprocessing, block and pooling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dinokit.tokens import Pool
from dinokit.weights.load import Pretrained

SCHEMA = 1
StoredDtype = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of vectors.

    `block` counts from 0; None is the network's output. Either is after the final norm. `dim` numbers a vector; `normalized`
    vectors have length 1, the length they had is in the column `norm_column`.
    """

    column: str = "embedding"
    pooling: Pool = "cls"
    block: int | None = None
    dim: int
    normalized: bool = True
    dtype: StoredDtype = "float32"

    @property
    def norm_column(self) -> str:
        """The column of lengths before normalising."""
        return "norm" if self.column == "embedding" else f"{self.column}_norm"

    @property
    def name(self) -> str:
        """For people: "cls", or "mean of block 8"."""
        return self.pooling if self.block is None else f"{self.pooling} of block {self.block}"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What made a collection of vectors. `made_with` is for the record and does not take part in `compat_id`."""

    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    features: tuple[Feature, ...]
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def compat_id(self, feature: Feature) -> str:
        """16 hexadecimal digits; vectors are comparable if and only if these are equal."""
        model = {name: self.model[name] for name in ("weights_sha256", "form", "positions")}
        parts = [model, self.preprocess["fingerprint"], self.preprocess.get("decode"), feature.pooling, feature.block]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def feature(self, column: str | None = None) -> Feature:
        """The column of this name; the first without one.

        Raises:
            KeyError: there is none of this name.
        """
        if column is None:
            return self.features[0]
        found = {feature.column: feature for feature in self.features}
        if column not in found:
            raise KeyError(f"no vectors are called {column!r} here; there are {', '.join(found)}.")
        return found[column]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. The first feature's stand at the top, too, for readers who want one."""
        first = self.features[0]
        return {
            "schema": SCHEMA,
            "compat_id": self.compat_id(first),
            "model": dict(self.model),
            "preprocess": dict(self.preprocess),
            "pooling": first.pooling,
            "normalized": first.normalized,
            "dim": first.dim,
            "dtype": first.dtype,
            "features": [asdict(feature) | {"compat_id": self.compat_id(feature)} for feature in self.features],
            "made_with": dict(self.made_with),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """The inverse of `to_dict`.

        Raises:
            ValueError: another schema, or fields missing.
        """
        if values.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {values.get('schema')!r}; this version of dinokit reads {SCHEMA}.")
        try:
            features = tuple(
                Feature(**{name: value for name, value in feature.items() if name != "compat_id"})
                for feature in values["features"]
            )
            found = cls(
                model=values["model"],
                preprocess=values["preprocess"],
                features=features,
                made_with=values.get("made_with", {}),
            )
            found.compat_id(found.features[0])
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"its identity is damaged ({type(error).__name__}: {error}).") from error
        return found


def identify(
    pre: Pretrained,
    features: Iterable[Feature],
    *,
    decode: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> Identity:
    """The identity of vectors that `pre` makes.

    `decode` holds what was set otherwise than by default when files were decoded; `fingerprint` is that of the preparation that was
    used, if it was not the transform itself.
    """
    import PIL
    import torch

    from dinokit._version import __version__

    found = pre.provenance
    return Identity(
        model={
            "name": found.name,
            "revision": found.revision,
            "weights_sha256": found.sha256,
            "layout": found.layout,
            "form": found.form,
            "positions": list(pre.config.position),
            "embed_dim": pre.config.embed_dim,
            "patch_size": pre.config.patch_size,
            "registers": pre.config.num_register_tokens,
        },
        preprocess=pre.transform.to_dict()
        | {"fingerprint": fingerprint or pre.transform.fingerprint, "decode": dict(decode) if decode else None},
        features=tuple(features),
        made_with={
            "dinokit": __version__,
            "torch": torch.__version__,
            "pillow": PIL.__version__,  # 13 resizes tall images in another order than 12
            "dtype": str(pre.dtype).removeprefix("torch."),
            **(made_with or {}),
        },
    )
