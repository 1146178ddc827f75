"""Structs of DLPack made by hand, right or wrong, for the tests to give to the library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

import numpy as np

READ_ONLY, IS_COPIED = 1, 2
INT, UINT, FLOAT, BFLOAT, COMPLEX = 0, 1, 2, 4, 5
CPU, CUDA = 1, 2

Deleter = CFUNCTYPE(None, c_void_p)

# What the library may call or read at any time lives as long as the process.
_kept: list[object] = []


class DLTensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class Unversioned(Structure):
    _fields_ = [("tensor", DLTensor), ("manager_ctx", c_void_p), ("deleter", Deleter)]


class Versioned(Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", Deleter),
        ("flags", c_uint64),
        ("tensor", DLTensor),
    ]


class Produced:
    """A struct of either kind on the memory of an array of float32; fields of DLTensor can be given other values.

    deleted counts the calls of its deleter, each with the address that it was called with.
    """

    def __init__(
        self,
        array: np.ndarray,
        *,
        versioned: bool = True,
        major: int = 1,
        flags: int = 0,
        strides: Sequence[int] | None = (),
        **fields: Any,
    ) -> None:
        self.deleted: list[int] = []
        self._array = array
        given = {
            "data": array.ctypes.data,
            "device_type": CPU,
            "ndim": array.ndim,
            "code": FLOAT,
            "bits": 32,
            "lanes": 1,
            "shape": array.shape,
            **fields,
        }
        steps = [step // array.itemsize for step in array.strides] if strides == () else strides
        self._arrays = [
            None if x is None else (c_int64 * max(len(x), 1))(*x) for x in (given.pop("shape"), steps)
        ]
        shape, own_strides = (
            POINTER(c_int64)() if x is None else ctypes.cast(x, POINTER(c_int64)) for x in self._arrays
        )
        tensor = DLTensor(shape=shape, strides=own_strides, **given)
        self._deleter = Deleter(self.deleted.append)
        if versioned:
            self.struct: Any = Versioned(
                major=major, minor=7, deleter=self._deleter, flags=flags, tensor=tensor
            )
        else:
            self.struct = Unversioned(tensor=tensor, deleter=self._deleter)
        self.versioned = versioned
        _kept.append(self)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)

    @property
    def function(self) -> str:
        return "ga_tensor_from_dlpack" if self.versioned else "ga_tensor_from_dlpack_unversioned"
