"""Writers of `dinokit embed` for one file: JSON lines, .npz, .npy; all rows of a run, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from dinokit.cli.common import say
from dinokit.errors import EXIT_OK, EXIT_SOME_INPUTS_FAILED, OutputError

if TYPE_CHECKING:
    from dinokit.extract import Row
    from dinokit.weights.load import Pretrained

    Writer = Callable[[Iterator[Row], Pretrained, str], int]

SCHEMA = 1
FILE_SUFFIXES = (".npz", ".npy", ".jsonl")


def watched(rows: Iterator[Row], total: int, fail_fast: bool) -> Iterator[Row]:
    """Rows with a progress bar, the failures counted, and a sentence at the end."""
    from tqdm import tqdm

    failures: Counter[str] = Counter()
    start, done = time.perf_counter(), 0
    with tqdm(total=total, unit="img", disable=None, desc="embed") as bar:
        for row in rows:
            done += 1
            if row.error_code:
                failures[row.error_code] += 1
                bar.write(f"{row.error_code}: {row.error}", file=sys.stderr)
                bar.set_postfix(failed=failures.total())
            yield row
            bar.update()
            if row.error_code and fail_fast:
                say("stopped at the first bad image (--fail-fast).")
                break
    bad = failures.total()
    listed = ", ".join(f"{count} {code}" for code, count in failures.most_common())
    seconds = time.perf_counter() - start
    say(
        f"embedded {done - bad:,} of {total:,} images in {seconds:.1f} s"
        + (f"; {bad:,} failed ({listed})." if bad else ".")
    )


def _identity(pre: Pretrained, pool: str) -> dict[str, Any]:
    """What made the vectors. Only those with one `compat_id` may be compared."""
    import PIL

    from dinokit._version import __version__

    found = pre.provenance
    parts = [found.sha256, found.form, pre.transform.fingerprint, str(tuple(pre.config.position)), pool]
    return {
        "schema": SCHEMA,
        "compat_id": hashlib.sha256("|".join(parts).encode()).hexdigest()[:16],
        "tool": f"dinokit {__version__}",
        "pillow": PIL.__version__,  # 13 resizes tall images in another order than 12
        "model": {
            "name": found.name,
            "revision": found.revision,
            "weights_sha256": found.sha256,
            "layout": found.layout,
        },
        "repair": found.form or None,
        "positions": list(pre.config.position),
        "preprocess": pre.transform.to_dict() | {"fingerprint": pre.transform.fingerprint},
        "pooling": pool,
        "normalized": False,
        "dtype": str(pre.dtype).removeprefix("torch."),
    }


def _record(row: Row, compat_id: str) -> dict[str, Any]:
    """A row as JSON; what does not apply is left out."""
    import numpy as np

    record: dict[str, Any] = {"path": row.path, "status": row.status}
    for name in ("error_code", "error", "width", "height", "mode", "frames"):
        if getattr(row, name) is not None:
            record[name] = getattr(row, name)
    if row.notes:
        record["notes"] = list(row.notes)
    if row.embedding is not None:
        record["compat_id"] = compat_id
        if row.embedding.ndim == 1:
            record["norm"] = float(np.linalg.norm(row.embedding))
        record["embedding"] = row.embedding.tolist()
    return record


def writer(out: Path | None, overwrite: bool) -> Writer:
    """The function that writes rows as the suffix of `out` says; refuses before anything is computed."""
    if out is None:
        return _to_stdout
    kinds: dict[str, Callable[[Path, Iterator[Row], Pretrained, str], int]]
    kinds = {".npz": _to_npz, ".npy": _to_npy, ".jsonl": _to_jsonl}
    if out.suffix not in kinds:
        raise click.BadParameter(f"{out.name!r} ends in none of {', '.join(kinds)}.", param_hint="--out")
    for path in (out, *_beside(out)):
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; choose another name or use --overwrite.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out} can't be written: the folder {out.parent} does not exist.")
    return lambda rows, pre, pool: kinds[out.suffix](out, rows, pre, pool)


def _beside(out: Path) -> list[Path]:
    """Files that go with `out`: the identity of the vectors, and for a bare array the index of its rows."""
    suffixes: dict[str, list[str]]
    suffixes = {".npz": [], ".jsonl": [".identity.json"], ".npy": [".identity.json", ".index.jsonl"]}
    return [out.with_suffix(suffix) for suffix in suffixes[out.suffix]]


def _to_stdout(rows: Iterator[Row], pre: Pretrained, pool: str) -> int:
    bad, compat_id = 0, _identity(pre, pool)["compat_id"]
    for row in rows:
        bad += row.status != "ok"
        click.echo(_line(_record(row, compat_id)), nl=False)
    return EXIT_SOME_INPUTS_FAILED if bad else EXIT_OK


def _to_jsonl(out: Path, rows: Iterator[Row], pre: Pretrained, pool: str) -> int:
    """One JSON object a line and input."""
    from dinokit.atomic import write_atomically, write_json

    bad, identity = 0, _identity(pre, pool)

    def write(file: IO[bytes]) -> None:
        nonlocal bad
        for row in rows:
            bad += row.status != "ok"
            file.write(_line(_record(row, identity["compat_id"])))
        write_json(_beside(out)[0], identity)  # before the rows appear, after nothing can go wrong with them

    write_atomically(out, write)
    say(f"wrote {out}")
    return EXIT_SOME_INPUTS_FAILED if bad else EXIT_OK


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _stacked(rows: list[Row]) -> Any:
    """All embeddings as one array; images of different sizes can't share one for `--pool patches`."""
    import numpy as np

    found = [row.embedding for row in rows if row.embedding is not None]
    shapes = {embedding.shape for embedding in found}
    if len(shapes) > 1:
        raise click.UsageError(
            "embeddings differ in shape (patches of images of several sizes); write .jsonl, or use --image-size."
        )
    return np.stack(found) if found else np.zeros((0, 0), np.float32)


def _to_npz(out: Path, rows: Iterator[Row], pre: Pretrained, pool: str) -> int:
    """Arrays `embeddings` and `paths` of the good images, `failed_paths` and `failed_codes` of the others, `identity` as JSON."""
    import numpy as np

    from dinokit.atomic import write_atomically

    kept = list(rows)
    bad = [row for row in kept if row.status != "ok"]
    arrays = {
        "embeddings": _stacked(kept),
        "paths": np.array([row.path for row in kept if row.status == "ok"], dtype=str),
        "failed_paths": np.array([row.path for row in bad], dtype=str),
        "failed_codes": np.array([row.error_code for row in bad], dtype=str),
        "identity": np.array(json.dumps(_identity(pre, pool))),
    }
    write_atomically(out, lambda file: np.savez(file, allow_pickle=False, **arrays))
    say(f"wrote {out}: embeddings {arrays['embeddings'].shape}")
    return EXIT_SOME_INPUTS_FAILED if bad else EXIT_OK


def _to_npy(out: Path, rows: Iterator[Row], pre: Pretrained, pool: str) -> int:
    """The array alone, and beside it an index: a line an input, with the number of its row in the array."""
    import numpy as np

    from dinokit.atomic import write_atomically, write_json

    kept, identity = list(rows), _identity(pre, pool)
    array = _stacked(kept)
    lines, number = [], 0
    for row in kept:
        record = _record(row, identity["compat_id"])
        record.pop("embedding", None)
        record["row"] = number if row.status == "ok" else None
        number += row.status == "ok"
        lines.append(_line(record))
    identity_path, index_path = _beside(out)
    write_json(identity_path, identity)
    write_atomically(index_path, lambda file: file.writelines(lines))
    write_atomically(out, lambda file: np.save(file, array, allow_pickle=False))
    say(f"wrote {out}: {array.shape}, and {index_path.name}")
    return EXIT_SOME_INPUTS_FAILED if number < len(kept) else EXIT_OK
