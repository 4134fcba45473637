"""The list of inputs: kept as it was, read in parts, compared with what is there now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.errors import StorageError
from dinokit.extract import Container, Entry, inputs
from dinokit.extract.inputs import Inputs, compare, list_inputs, restamped

Stamps = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Listed:
    """A source that is a list."""

    found: tuple[Entry, ...]
    name: str = "listed"

    def entries(self) -> Iterator[Entry]:
        """As given."""
        yield from self.found


def inputs_of(stamps: Stamps) -> Inputs:
    return list_inputs([Listed(tuple(Entry(i, i, None, 0, *stamp) for i, stamp in stamps.items()))], prefixed=False)[0]


stamps = st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1)


@settings(deadline=None)
@given(stamps, stamps)
def test_changes_are_those_that_a_dictionary_shows(before: Stamps, now: Stamps) -> None:
    """Removed, modified and added, whatever the order of the two lists."""
    old, names = inputs_of(before), list(before)
    change = compare(old, inputs_of(now))
    assert [names[row] for row in change.removed] == [name for name in before if name not in now]
    assert [names[row] for row in change.modified] == [n for n in before if n in now and now[n] != before[n]]
    assert [row.id for row in change.added.rows(0, len(change.added))] == [name for name in now if name not in before]
    again = restamped(old, inputs_of(now), change.modified)
    assert compare(again, inputs_of(now)).modified == []


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_any_part_of_a_stored_list_is_what_was_listed(
    tmp_path_factory, rows: int, batch: int, data: st.DataObject
) -> None:
    """Across the borders of the batches that it is stored in, ids with prefixes, containers by number."""
    containers = [Container("tar", f"{n}.tar", "", n) for n in range(3)]
    entries = tuple(Entry(f"é{i}", f"p/{i}", containers[i % 3] if i % 4 else None, i, i, i) for i in range(rows))
    path = tmp_path_factory.mktemp("list") / "l.arrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "ROWS_AT_A_TIME", batch)
        listed, doubled = list_inputs([Listed(entries)], prefixed=True)
        listed.save(path)
    stored = Inputs.load(path)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    found = stored.rows(start, stop)
    assert doubled == 0
    assert found == listed.rows(start, stop)
    assert [row.id for row in found] == [f"listed/é{i}" for i in range(start, stop)]
    for row, entry in zip(found, entries[start:stop], strict=True):
        assert (stored.containers[row.container] if row.container >= 0 else None) == entry.container
    assert (len(stored), stored.sha256) == (rows, listed.sha256)


def test_a_damaged_list_is_said(tmp_path: Path) -> None:
    """Without it the job can't go on."""
    (tmp_path / "l.arrow").write_text("text")
    with pytest.raises(StorageError, match="start in another folder"):
        Inputs.load(tmp_path / "l.arrow")
    with pytest.raises(StorageError, match="start in another folder"):
        Inputs.load(tmp_path / "none.arrow")
