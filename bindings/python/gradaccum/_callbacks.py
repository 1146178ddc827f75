"""What the library calls back for."""

from __future__ import annotations

import itertools
from typing import Any, Generic, TypeVar

from . import _ffi

Entry = TypeVar("Entry")


class Callbacks(Generic[Entry]):
    """What functions of the caller need, by the numbers that the library passes as `user`, until it releases them.

    A callback of its own would refer to its entry and be referred to by it, and such a cycle keeps what a function has
    captured until a garbage collection.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._numbers = itertools.count(1)
        self.release = _ffi.UserReleaseFn(self.remove)

    def add(self, entry: Entry) -> int:
        number = next(self._numbers)
        self._entries[number] = entry
        return number

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def remove(self, number: Any) -> None:
        self._entries.pop(number, None)
