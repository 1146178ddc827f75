"""What objects of the library have in common."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import GAInvalidArgumentError

_Self = TypeVar("_Self", bound="Handle")


class Handle:
    """An object of the library, which is freed when this is closed or goes away."""

    def _own(self, address: int | None, free: Callable[[Any], Any], name: str) -> None:
        """Takes over an object. name: what sentences call it."""
        self._address = address
        self._name = name
        self._finalizer = weakref.finalize(self, free, address)
        self._is_borrowed = False

    def _disown(self) -> None:
        """Leaves the object to somebody else, who frees it."""
        self._finalizer.detach()
        self._is_borrowed = True

    @property
    def handle(self) -> int:
        """The object's address, for calls of the C library."""
        if self._address is None:
            raise GAInvalidArgumentError(f"the {self._name} was closed")
        return self._address

    def close(self) -> None:
        """Frees the handle now. Closing twice does nothing."""
        self._address = None
        self._finalizer()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
