"""The keys that a mistyped or abbreviated key may mean."""

import dataclasses
import difflib
import typing
from typing import Any


def near_keys(key: str, schema: Any) -> list[str]:
    """Return keys of a section, or of the sections in it, that are spelled alike, the likeliest first.

    `learning_rate` and `lr` are alike too, as are a key and the same key in a section.

    Args:
        key: the unknown key, without its section.
        schema: dataclass of the section.
    """
    known: dict[str, list[str]] = {}
    for name, kind in typing.get_type_hints(schema).items():
        known.setdefault(name, []).append(name)
        for inner in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            known.setdefault(inner.name, []).append(f"{name}.{inner.name}")
    same = [name for name in known if key in (name, _initials(name)) or name == _initials(key)]
    alike = difflib.get_close_matches(key, known, cutoff=0.7)
    found = [full for name in dict.fromkeys([*same, *alike]) for full in sorted(known[name], key=_depth)]
    return found[:3]


def _depth(key: str) -> int:
    return key.count(".")


def _initials(key: str) -> str:
    """Return the initials of a key's words; empty for a single word."""
    words = key.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""
