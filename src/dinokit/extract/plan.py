"""`Plan`: which inputs go into which shard and what makes their vectors, fixed when a job is first run.

On disk it is `_run.json` with the lists of inputs beside it. Inputs that come later are further extents: lists of their own, whose
shards follow; what was planned before is never touched.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from dinokit.atomic import write_json
from dinokit.errors import OutputError
from dinokit.extract.inputs import InputRow, Inputs
from dinokit.store.identity import Identity

SCHEMA = 1
RUN, SUCCESS = "_run.json", "_SUCCESS"
# For the record, but changing them goes on with the same job.
UNCOMPARED = ("made_with", "settings.threads", "settings.id_prefix", "model.name", "model.revision", "model.layout")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of a result besides the identity of its vectors."""

    shard_size: int
    batch_size: int
    hash: bool = True
    absolute: bool = False
    id_prefix: bool = False
    engine: str = "eager"
    threads: int = 1
    dense: tuple[str, ...] = ()
    dense_dtype: str = "float16"
    dense_format: str = "npy"


@dataclass(frozen=True)
class Extent:
    """Inputs that were planned together."""

    file: str
    rows: int
    sha256: str
    first_shard: int


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of the inputs of one extent."""

    index: int
    extent: Extent
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Of its file."""
        return f"part-{self.index:08d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of a job but its results."""

    folder: Path
    identity: Identity
    settings: Settings
    extents: tuple[Extent, ...]
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def num_rows(self) -> int:
        """Inputs in all."""
        return sum(extent.rows for extent in self.extents)

    @property
    def num_shards(self) -> int:
        """Files in all."""
        last = self.extents[-1]
        return last.first_shard - (-last.rows // self.settings.shard_size)

    def shards(self, rank: int = 0, world_size: int = 1) -> Iterator[Shard]:
        """Those of a rank: every `world_size`th."""
        return (self.shard(index) for index in range(rank, self.num_shards, world_size))

    def shard(self, index: int) -> Shard:
        """One of them.

        Raises:
            IndexError: there are not so many.
        """
        if not 0 <= index < self.num_shards:
            raise IndexError(f"shard {index}: this job has 0 to {self.num_shards - 1}.")
        extent = next(extent for extent in reversed(self.extents) if extent.first_shard <= index)
        start = (index - extent.first_shard) * self.settings.shard_size
        return Shard(index, extent, start, min(start + self.settings.shard_size, extent.rows))

    @cached_property
    def sha256(self) -> str:
        """Of all that decides the vectors and their form; the inputs are summed by extent."""
        return hashlib.sha256(json.dumps(_compared(self), sort_keys=True).encode()).hexdigest()

    @cached_property
    def _inputs(self) -> dict[str, Inputs]:
        return {}

    def inputs(self, extent: Extent) -> Inputs:
        """Its list, mapped from disk on first use."""
        if extent.file not in self._inputs:
            self._inputs[extent.file] = Inputs.load(self.folder / extent.file)
        return self._inputs[extent.file]

    def rows(self, shard: Shard) -> list[InputRow]:
        """The inputs of a shard."""
        return self.inputs(shard.extent).rows(shard.start, shard.stop)

    def extended(self, inputs: Inputs) -> Plan:
        """With more inputs; their list is written, the plan itself is not yet."""
        name = f"_inputs-{len(self.extents):04d}.arrow"
        inputs.save(self.folder / name)
        first = self.num_shards if self.extents else 0
        return replace(self, extents=(*self.extents, Extent(name, len(inputs), inputs.sha256, first)))

    def save(self) -> None:
        """Write `_run.json`."""
        write_json(
            self.folder / RUN,
            {
                "schema": SCHEMA,
                "created": self.created,
                "plan_sha256": self.sha256,
                "rows": self.num_rows,
                "shards": self.num_shards,
                "settings": asdict(self.settings),
                "extents": [asdict(extent) for extent in self.extents],
                "identity": self.identity.to_dict(),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Plan | None:
        """The plan of a folder; None if it has none.

        Raises:
            OutputError: it is damaged, or of another version.
        """
        path = folder / RUN
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA:
                raise OutputError(f"{path} has schema {found['schema']}; this version of dinokit reads {SCHEMA}.")
            settings = found["settings"] | {"dense": tuple(found["settings"]["dense"])}
            return cls(
                folder=folder,
                identity=Identity.from_dict(found["identity"]),
                settings=Settings(**settings),
                extents=tuple(Extent(**extent) for extent in found["extents"]),
                created=found["created"],
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is damaged ({error}). Choose another folder, or remove this one.") from error

    def require_same(self, other: Plan) -> None:
        """Refuse to go on with other settings.

        Raises:
            OutputError: says what differs.
        """
        if self.sha256 == other.sha256:
            return
        old, new = _flat(_compared(self)), _flat(_compared(other))
        lines = [
            f"  {name}: {_shown(old.get(name))} there, {_shown(new.get(name))} now"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        raise OutputError(
            f"{self.folder} was begun with other settings:\n"
            + "\n".join(lines)
            + "\nRepeat the command with those, or choose "
            "another folder; vectors of different kinds are never mixed."
        )


def _compared(plan: Plan) -> dict[str, Any]:
    """What must stay the same from run to run."""
    values = plan.identity.to_dict() | {"settings": asdict(plan.settings)}
    kept = {name: value for name, value in values.items() if name in ("model", "preprocess", "settings")}
    kept["features"] = {feature.column: asdict(feature) for feature in plan.identity.features}
    return _without(kept, UNCOMPARED)


def _without(values: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {
        name: _without(value, names, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in values.items()
        if f"{prefix}{name}" not in names
    }


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping):
        return {key: v for name, value in values.items() for key, v in _flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): list(values) if isinstance(values, tuple) else values}


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


@dataclass(frozen=True)
class Status:
    """How far a job is."""

    rows: int
    shards: int
    rows_done: int
    shards_done: int
    failed: Counter[str]

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return self.shards_done == self.shards

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"failed": dict(sorted(self.failed.items())), "complete": self.complete}
