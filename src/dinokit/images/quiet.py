"""Hears what Pillow warns about while this thread decodes an image, and keeps it off the user's screen.

Pillow reports damaged metadata with `warnings.warn`. `warnings.catch_warnings` swaps the filters of the whole process
and so breaks in threads; here two filters stay in place that match only in a thread that is decoding, and do nothing
elsewhere.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from PIL import Image


class _Thread(threading.local):
    heard: list[str] | None = None


_thread = _Thread()


class _Metadata:
    """Stands where `warnings` expects a compiled message pattern; matches, and takes a note, only while decoding."""

    def match(self, text: str) -> bool:
        if _thread.heard is None:
            return False
        if text not in _thread.heard:
            _thread.heard.append(text)
        return True


class _Size:
    """The same for warnings about size: no note, since `max_pixels` has decided already."""

    def match(self, _text: str) -> bool:
        return _thread.heard is not None


_FILTERS = (
    ("ignore", _Metadata(), UserWarning, None, 0),
    ("ignore", _Size(), Image.DecompressionBombWarning, None, 0),
)


@contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Texts of the warnings that this thread gives inside the block; none of them is shown or raised.

    Whatever the filters in force are, `-W error` included.
    """
    # Whoever calls `simplefilter` or leaves a `catch_warnings` block puts other filters before ours or drops them.
    installed = cast("list[object]", warnings.filters)
    for entry in _FILTERS:
        if entry not in installed[: len(_FILTERS)]:
            installed.insert(0, entry)  # the new one first, so that at no moment there is none
            for index in range(len(installed) - 1, 0, -1):
                if installed[index] is entry:
                    del installed[index]
    outer = _thread.heard
    _thread.heard = []
    try:
        yield _thread.heard
    finally:
        _thread.heard = outer
