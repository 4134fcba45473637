"""Nested frozen dataclasses as settings: `key=value` texts in, JSON in and out, typed by their fields.

Promise: `from_json(cls, to_json(x)) == x`; an unknown key is refused with the nearest known ones, a value of
the wrong type with the type.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all values, in the order of their fields."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        found |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def with_settings(settings: T, assignments: Iterable[str]) -> T:
    """A copy with `key=value` texts applied, one after the other.

    A key is a dotted name, its last part alone where only one name ends so, or a pattern with `*`, which sets all it fits.

    Raises:
        ValueError: an unknown or ambiguous key, or a value that is none of its type or that the settings refuse.
    """
    content = to_json(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is no setting; write key=value.")
        for name in _names_of(key.strip(), list(flatten(settings))):
            *path, last = name.split(".")
            section, kind = content, type(settings)
            for part in path:
                section, kind = section[part], typing.get_type_hints(kind)[part]
            section[last] = parse(typing.get_type_hints(kind)[last], text.strip(), name)
    return from_json(type(settings), content)  # all at once: settings that fit each other only together pass


def _names_of(key: str, names: list[str]) -> list[str]:
    if key in names:
        return [key]
    if "*" in key:
        found = [name for name in names if fnmatch.fnmatchcase(name, key)]
    else:
        found = [name for name in names if name.endswith(f".{key}")]
        if len(found) > 1:
            raise ValueError(f"{key!r} could be {', '.join(found)}; write one of them, or *.{key} for all.")
    if not found:
        # the last parts alone are compared, too: somebody who writes `lr` with a slip means `schedule.lr`
        short = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
        close = difflib.get_close_matches(key, [*names, *short], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(dict.fromkeys(short.get(name, name) for name in close))}?" if close else ""
        raise ValueError(f"no setting {key!r}.{hint}")
    return found


def parse(kind: Any, text: str, name: str) -> Any:
    """The value that `text` writes: numbers, true or false, one of some words, several with commas between them, or none.

    Raises:
        ValueError: it is none of this type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() in ("none", ""):
            return None
        return parse(next(a for a in arguments if a is not type(None)), text, name)
    if origin is Literal:
        if text in arguments:
            return text
        raise ValueError(f"{name} is {text!r}; it must be one of {', '.join(map(str, arguments))}.")
    fields = _tuple_of(kind)
    if fields is not None:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        kinds = [fields[0]] * len(parts) if fields[1:] == (...,) else list(fields)
        if len(parts) != len(kinds):
            raise ValueError(f"{name} is {text!r}; write {len(kinds)} values with commas between them.")
        values = [parse(each, part, name) for each, part in zip(kinds, parts, strict=True)]
        return kind(*values) if hasattr(kind, "_fields") else tuple(values)
    try:
        if kind is bool:
            return BOOLEANS[text.lower()]
        if kind is int:
            return _whole(text)
        if kind is float:
            return float(text)
    except (ValueError, KeyError):
        word = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name} is {text!r}; it must be {word}.") from None
    return text


def _whole(text: str) -> int:
    """`20_000` and `2e4` are whole numbers, too."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number != int(number):
            raise
        return int(number)


def _tuple_of(kind: Any) -> tuple[Any, ...] | None:
    if get_origin(kind) is tuple:
        return get_args(kind)
    if hasattr(kind, "_fields"):
        return tuple(typing.get_type_hints(kind).values())
    return None


def to_json(settings: Any) -> dict[str, Any]:
    """Nested dictionaries of plain values."""
    return {
        field.name: to_json(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(settings)
        for value in [getattr(settings, field.name)]
    }


def from_json(cls: type[T], content: Mapping[str, Any]) -> T:
    """The settings that `to_json` wrote. Fields that are not there keep their defaults.

    Raises:
        ValueError: a field that there is not.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no setting of {cls.__name__}; another version wrote this.")
    return cls(**{name: _from_plain(hints[name], value) for name, value in content.items()})


def _from_plain(kind: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_json(kind, value)
    if isinstance(value, list):
        values = tuple(_from_plain(None, each) for each in value)
        return kind(*values) if hasattr(kind, "_fields") else values
    return value
