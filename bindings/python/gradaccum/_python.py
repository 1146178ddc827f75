"""Objects of this interpreter in the hands of the library: references to arrays, and capsules of DLPack.

Nothing here is called back as Python code: the library gives references back and empties capsules itself, at any time
and on any thread.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_int32, c_uint64, c_void_p, py_object
from typing import Any

from . import _ffi
from ._ffi import lib

_api = ctypes.PyDLL(None)  # our own, since the types of ctypes.pythonapi's functions are everybody's


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(_api, name)
    function.restype, function.argtypes = restype, argtypes
    return function


_increment = _function("Py_IncRef", None, py_object)
_decrement = _function("Py_DecRef", None, py_object)
_capsule_new = _function("PyCapsule_New", py_object, c_void_p, c_char_p, c_void_p)
_capsule_is_valid = _function("PyCapsule_IsValid", c_int, py_object, c_char_p)
_capsule_pointer = _function("PyCapsule_GetPointer", c_void_p, py_object, c_char_p)
_capsule_set_name = _function("PyCapsule_SetName", c_int, py_object, c_char_p)

# Names of capsules, which point to them: kept for good.
VERSIONED, UNVERSIONED = b"dltensor_versioned", b"dltensor"
_USED = {VERSIONED: b"used_dltensor_versioned", UNVERSIONED: b"used_dltensor"}
for _name in (VERSIONED, UNVERSIONED, *_USED.values()):
    _increment(_name)

_destroy = ctypes.cast(lib.ga_python_capsule_destroy, c_void_p)

release = ctypes.cast(lib.ga_python_release, _ffi.WrapReleaseFn)
"""The release function of memory that a Python object owns; its `user` comes from lend()."""


def lend(owner: object) -> int:
    """Takes a reference to an object, for `release` or take_back() to drop."""
    _increment(owner)
    return id(owner)


def take_back(owner: object) -> None:
    """Drops a reference that the library did not take over."""
    _decrement(owner)


def capsule(managed: int, name: bytes) -> Any:
    """A capsule around a struct of DLPack, which it gives back unless somebody takes it over."""
    return _capsule_new(managed, name, _destroy)


def name_of(capsule: object) -> bytes | None:
    """What kind of capsule of DLPack an object is that nobody has taken over, or None if it is none."""
    return next((name for name in (VERSIONED, UNVERSIONED) if _capsule_is_valid(capsule, name)), None)


def pointer_of(capsule: object, name: bytes) -> int:
    address: int = _capsule_pointer(capsule, name)
    return address


def mark_used(capsule: object, name: bytes) -> None:
    """Says that the struct was taken over, so that the capsule leaves it alone."""
    _capsule_set_name(capsule, _USED[name])


class _Managed(ctypes.Structure):
    """The start of DLManagedTensorVersioned, from DLPack 1.0 on."""

    _fields_ = [
        ("major", c_int32),
        ("minor", c_int32),
        ("manager_ctx", c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, c_void_p)),
        ("flags", c_uint64),
    ]


IS_COPIED = 2


def is_copied(managed: int) -> bool:
    """Whether a producer says that a versioned struct is on a copy of its elements."""
    head = _Managed.from_address(managed)
    return head.major == 1 and bool(head.flags & IS_COPIED)


class Share:
    """A reference to the memory of a tensor, whatever becomes of the tensor's handle; numpy makes arrays of it.

    Its attribute is the array interface of numpy, which keeps this object as the base of the array.
    """

    def __init__(self, managed: int, interface: dict[str, Any]) -> None:
        self._managed = managed
        self._deleter = _Managed.from_address(managed).deleter
        self.__array_interface__ = interface

    def __del__(self) -> None:
        self._deleter(self._managed)
