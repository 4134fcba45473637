"""Collections of vectors on disk come back as they went in, in bounded blocks, and only with vectors of their own kind."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinokit.errors import IdentityError, StorageError
from dinokit.store import Feature, FeatureSet, Identity
from dinokit.store.schema import FACTS, arrow_schema, write_table

DIM = 6


def an_identity(*, weights: str = "a", pooling: str = "cls", dtype: str = "float32", **more: object) -> Identity:
    model = {"weights_sha256": weights, "form": "", "positions": [0.0, True], "name": "toy"}
    feature = Feature(dim=DIM, pooling=pooling, dtype=dtype, **more)  # type: ignore[arg-type]
    return Identity(model=model, preprocess={"fingerprint": "f"}, features=(feature,))


def write_part(path: Path, identity: Identity, vectors: list[np.ndarray | None], first: int = 0) -> None:
    schema = arrow_schema(identity)
    column = identity.features[0].column
    rows = [
        dict.fromkeys(FACTS)
        | {"id": f"i{first + i}", "path": f"p/i{first + i}", "status": "error" if vector is None else "ok"}
        | {column: None if vector is None else vector.tolist(), "norm": None if vector is None else 1.0}
        for i, vector in enumerate(vectors)
    ]
    with path.open("wb") as file:
        write_table(pa.Table.from_pylist(rows, schema=schema), file, identity.features)


@pytest.fixture
def collection(tmp_path: Path) -> tuple[Path, list[np.ndarray | None]]:
    """Three parts of 7, 1 and 5 rows, some without a vector, one part without any."""
    rng = np.random.default_rng(0)
    vectors: list[np.ndarray | None] = [rng.standard_normal(DIM).astype(np.float32) for _ in range(13)]
    for bad in (0, 3, 7, 12):
        vectors[bad] = None
    for number, (start, stop) in enumerate([(0, 7), (7, 8), (8, 13)]):
        write_part(tmp_path / f"part-{number:08}.parquet", an_identity(), vectors[start:stop], start)
    return tmp_path, vectors


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_blocks_give_every_vector_once_in_order(collection: tuple[Path, list[np.ndarray | None]], rows: int) -> None:
    """However small the blocks, ids and vectors come in order, rows without a vector left out."""
    folder, vectors = collection
    found = FeatureSet(folder)
    kept = [(f"i{i}", v) for i, v in enumerate(vectors) if v is not None]
    blocks = list(found.blocks(rows))
    assert [name for block in blocks for name in block.ids] == [name for name, _ in kept] == found.ids()
    assert np.array_equal(np.concatenate([block.vectors for block in blocks]), np.stack([v for _, v in kept]))
    assert [block.start for block in blocks] == list(np.cumsum([0, *(len(b.ids) for b in blocks)]))[:-1]
    assert max(len(block.ids) for block in blocks) <= rows
    assert (len(found), found.num_rows) == (9, 13)


def test_rows_are_found_by_number_of_their_vector(collection: tuple[Path, list[np.ndarray | None]]) -> None:
    """Any order, repeats allowed, across files."""
    found = FeatureSet(collection[0])
    ids = found.ids()
    assert [row["id"] for row in found.rows([8, 0, 8, 5])] == [ids[8], ids[0], ids[8], ids[5]]
    with pytest.raises(IndexError, match="numbered 0 to 8"):
        found.rows([9])


def test_normalized_blocks_have_length_one(collection: tuple[Path, list[np.ndarray | None]]) -> None:
    """Also where vectors were stored as they are."""
    lengths = np.linalg.norm(FeatureSet(collection[0]).vectors(normalize=True), axis=1)
    assert np.allclose(lengths, 1, atol=1e-6)


def test_half_precision_comes_back_as_float32(tmp_path: Path) -> None:
    """Vectors stored in 16 bits are read as the nearest float32."""
    vector = np.linspace(-1, 1, DIM).astype(np.float32)
    write_part(tmp_path / "one.parquet", an_identity(dtype="float16"), [vector])
    assert np.array_equal(
        FeatureSet(tmp_path / "one.parquet").vectors()[0], vector.astype(np.float16).astype(np.float32)
    )


def test_equal_rows_give_equal_bytes() -> None:
    """What is written does not depend on the time, the process or what was written before."""
    identity = an_identity()
    table = pa.Table.from_pylist(
        [{"id": "a", "path": "a", "status": "ok", "embedding": [0.5] * DIM, "norm": 1.0}], schema=arrow_schema(identity)
    )
    written = []
    for _ in range(2):
        file = io.BytesIO()
        write_table(table, file, identity.features)
        written.append(file.getvalue())
    assert written[0] == written[1]
    meta = pq.ParquetFile(io.BytesIO(written[0])).metadata.row_group(0)
    encodings = {meta.column(i).path_in_schema: meta.column(i).encodings for i in range(meta.num_columns)}
    assert "BYTE_STREAM_SPLIT" in encodings["embedding.list.element"]


@pytest.mark.parametrize("change", [{"weights": "b"}, {"pooling": "mean"}, {"block": 3}])
def test_vectors_of_another_kind_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Other weights, pooling or block: an error, not a distance."""
    vector = [np.ones(DIM, np.float32)]
    write_part(tmp_path / "part-0.parquet", an_identity(), vector)
    write_part(tmp_path / "part-1.parquet", an_identity(**change), vector)  # type: ignore[arg-type]
    with pytest.raises(IdentityError, match="another kind"):
        FeatureSet(tmp_path)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    """A Parquet file that does not name its model, a file that is none, an empty folder."""
    pq.write_table(pa.table({"embedding": [[1.0]]}), tmp_path / "foreign.parquet")
    with pytest.raises(IdentityError, match="does not say which model"):
        FeatureSet(tmp_path / "foreign.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(StorageError, match=r"text\.parquet is no Parquet file"):
        FeatureSet(tmp_path / "text.parquet")
    with pytest.raises(StorageError, match="holds no part"):
        FeatureSet(tmp_path)


def test_an_identity_survives_json() -> None:
    """`from_dict` is the inverse of `to_dict`; what is damaged is refused."""
    identity = an_identity(block=2, column="middle")
    again = Identity.from_dict(identity.to_dict())
    assert again.to_dict() == identity.to_dict()
    with pytest.raises(ValueError, match="schema is 9"):
        Identity.from_dict(identity.to_dict() | {"schema": 9})
    with pytest.raises(ValueError, match="damaged"):
        Identity.from_dict({"schema": 1})


def test_another_preparation_is_another_kind_of_vectors(formats: Path) -> None:
    """The same network and transform, but pixels made in another way: vectors are not taken for each other."""
    import dinokit
    from dinokit.store import identify

    pre = dinokit.load(formats / "reg" / "hf")
    feature = Feature(dim=64)
    exact, fast = identify(pre, [feature]), identify(pre, [feature], fingerprint="fast")
    assert exact.preprocess["fingerprint"] == pre.transform.fingerprint
    assert exact.compat_id(feature) != fast.compat_id(feature)
    window = identify(pre, [feature], decode={"window": [0, 1]})
    assert window.compat_id(feature) != exact.compat_id(feature)
    assert identify(pre, [feature], made_with={"threads": 7}).compat_id(feature) == exact.compat_id(feature)
