"""What objects of the library have in common."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from ctypes import c_void_p
from typing import Any, TypeVar

from .errors import GAInvalidArgumentError, GAUnsupportedError

_Self = TypeVar("_Self", bound="Handle")


class Uncopied:
    """An object that refers to one of the library, which a copy would not own and another process would not have."""

    __slots__ = ()

    # What there is to copy, as sentences have it.
    _COPIED = "its state_dict()"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise GAUnsupportedError(
            f"{type(self).__name__} is an object of the library in this process, which copy and pickle would leave with "
            f"two owners or none: make another, and copy or save {self._COPIED}"
        )


class Handle(Uncopied):
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

    @property
    def _as_parameter_(self) -> c_void_p:
        """How ctypes takes the object: for an address alone, which a number could be taken for."""
        return c_void_p(self.handle)

    def close(self) -> None:
        """Frees the handle now. Closing twice does nothing."""
        self._address = None
        self._finalizer()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
