"""Objects of this interpreter in the hands of the library: references to arrays, their memory, and capsules of DLPack.

Nothing here is called back as Python code: the library gives references back and empties capsules itself, at any time
and on any thread.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p, py_object
from typing import Any

import numpy as np

from . import _ffi
from ._ffi import lib

# Before 1.24, numpy takes back an array that it has lent by DLPack without the interpreter's lock, which can end the
# process.
if tuple(int(part) for part in np.__version__.split(".")[:2]) < (1, 24):
    raise ImportError(
        f"gradaccum needs numpy 1.24 or later, and this is {np.__version__}: pip install 'numpy>=1.24'"
    )

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


# With the lock held. Without types of arguments, as the conversion of seven takes longer than the call: all that is
# passed is of ctypes already.
_array_addresses = ctypes.PyDLL(lib._name, handle=lib._handle).ga_python_array_addresses
_array_addresses.restype = c_int64
_NDARRAY, _HEAD_BYTES = py_object(np.ndarray), c_int64(object.__basicsize__)


class Arrays:
    """Reads where the elements of numpy arrays are, of a list for which it knows the shapes."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        numbers = [number for shape in shapes for number in (len(shape), *shape)]
        self._shapes = (c_int64 * len(numbers))(*numbers)
        self._type = c_void_p * len(shapes)
        self._count = c_int64(len(shapes))

    def addresses(self, arrays: tuple[Any, ...], dtype: np.dtype[Any]) -> Any:
        """An array of the addresses, NULL for None; or None, unless each is a contiguous array of its shape and this
        dtype, and nothing that only behaves like one."""
        found = self._type()
        read: int = _array_addresses(
            found, py_object(arrays), self._count, self._shapes, py_object(dtype), _NDARRAY, _HEAD_BYTES
        )
        return found if read == len(found) else None


def _can_read() -> bool:
    """Whether arrays are laid out here as the library reads them."""
    samples = (np.zeros((2, 3), np.float32), None, np.zeros((), np.float32))
    found = Arrays([(2, 3), (7,), ()]).addresses(samples, np.dtype(np.float32))
    return found is not None and list(found) == [None if x is None else x.ctypes.data for x in samples]


CAN_READ_ARRAYS = _can_read()


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


class _ExchangeAPI(ctypes.Structure):
    """The start of DLPackExchangeAPI, the functions by which a library gives its arrays away without Python code."""

    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("prev_api", c_void_p),
        ("managed_tensor_allocator", c_void_p),
        ("managed_tensor_from_py_object", ctypes.PYFUNCTYPE(c_int, py_object, ctypes.POINTER(c_void_p))),
    ]


_EXCHANGE_API = b"dlpack_exchange_api"


# By type of arrays; those that are there live as long as the process.
_exchange_apis: weakref.WeakKeyDictionary[type, _ExchangeAPI | None] = weakref.WeakKeyDictionary()


def _exchange_api(kind: type) -> _ExchangeAPI | None:
    """That of a type of arrays, or None if it has none that is known here."""
    if kind not in _exchange_apis:
        holder, api = getattr(kind, "__dlpack_c_exchange_api__", None), None
        if _capsule_is_valid(holder, _EXCHANGE_API):
            api = _ExchangeAPI.from_address(_capsule_pointer(holder, _EXCHANGE_API))
        _exchange_apis[kind] = api if api is not None and api.major == 1 else None
    return _exchange_apis[kind]


def exchanged(x: object) -> Any:
    """A capsule around what an array's library gives by DLPack's functions in C, or None where it does not, or where
    its __dlpack__ has to have a say: that of PyTorch refuses tensors that require a gradient, and its functions in C do
    not."""
    api = _exchange_api(type(x))
    if api is None or getattr(x, "requires_grad", False):
        return None
    out = c_void_p()
    try:
        failed = api.managed_tensor_from_py_object(x, ctypes.byref(out))
    except Exception:  # __dlpack__ has a sentence for it
        return None
    return None if failed or out.value is None else capsule(out.value, VERSIONED)


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
