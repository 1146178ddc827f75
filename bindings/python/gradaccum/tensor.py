"""Tensors, scopes and recording."""

from __future__ import annotations

import enum
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_double, c_int32, c_int64, c_void_p
from typing import Any, Union

import numpy as np

from . import _ffi, _python
from ._ffi import lib
from .errors import GADTypeError, GAInvalidArgumentError, GAUnsupportedError


class DType(enum.IntEnum):
    """Element types. numpy has no bfloat16: such tensors are read as the bits, in uint16, and written as those or as
    the bfloat16 of ml_dtypes."""

    FLOAT32 = _ffi.FLOAT32
    BFLOAT16 = _ffi.BFLOAT16
    FLOAT16 = _ffi.FLOAT16
    INT32 = _ffi.INT32
    INT64 = _ffi.INT64


float32, bfloat16, float16, int32, int64 = DType

_TO_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.FLOAT32: np.dtype(np.float32),
    DType.BFLOAT16: np.dtype(np.uint16),
    DType.FLOAT16: np.dtype(np.float16),
    DType.INT32: np.dtype(np.int32),
    DType.INT64: np.dtype(np.int64),
}
_FROM_NUMPY = {numpy_dtype: dtype for dtype, numpy_dtype in _TO_NUMPY.items()}

Operand = Union["Tensor", float, int]


def numpy_dtype_of(array: np.ndarray) -> DType:
    """The element type that a numpy array's has here; uint16 stands for the bits of bfloat16."""
    try:
        return _FROM_NUMPY[array.dtype]
    except (AttributeError, KeyError):
        if not isinstance(getattr(array, "dtype", None), np.dtype):
            raise GADTypeError(f"{type(array).__name__} is no array of numpy: pass np.asarray() of it") from None
        if _is_bfloat16(array.dtype):
            return DType.BFLOAT16
        names = ", ".join(str(dtype) for dtype in _FROM_NUMPY)
        raise GADTypeError(f"arrays of {array.dtype} are not supported: convert to one of {names}") from None


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is the bfloat16 that ml_dtypes adds to numpy, which JAX uses."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def _as_bits(array: np.ndarray) -> np.ndarray:
    """The same memory, in a type that numpy has."""
    return array.view(np.uint16) if _is_bfloat16(array.dtype) else array


def int64_array(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


class Tensor:
    """A handle on a tensor of the library. It is freed with the last reference, by close(), or by the scope
    that it was made in; the memory goes when no view, graph or accumulator needs it any more."""

    __slots__ = ("_address", "_finalizer", "_shape", "__weakref__")

    # numpy leaves operators with arrays to this class, through which gradients flow.
    __array_ufunc__ = None

    def __init__(self, address: int) -> None:
        """Takes over a handle that the library made. Users call tensor(), from_numpy() or zeros()."""
        self._address: int | None = address
        self._shape: tuple[int, ...] | None = None
        self._finalizer = weakref.finalize(self, lib.ga_tensor_free, address)
        scopes = _open_scopes()
        if scopes:
            scopes[-1]._made.add(self)

    @classmethod
    def borrow(cls, handle: int) -> Tensor:
        """The tensor of a ga_tensor handle that somebody else owns, such as the C program that this interpreter
        runs in. It is not freed here; once its owner has freed it, it is refused."""
        borrowed = cls(handle)
        borrowed._finalizer.detach()
        for scope in _open_scopes():
            scope._made.discard(borrowed)
        return borrowed

    @property
    def handle(self) -> int:
        """The ga_tensor address, for calls of the C library."""
        if self._address is None:
            raise GAInvalidArgumentError("the tensor was closed, by close() or with the scope it was made in")
        return self._address

    @property
    def closed(self) -> bool:
        return self._address is None

    def close(self) -> None:
        """Frees the handle now. Closing twice does nothing."""
        self._address = None
        self._finalizer()

    def _forget(self) -> None:
        """The library has freed the handle itself."""
        self._address = None
        self._finalizer.detach()

    def __enter__(self) -> Tensor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------ what it is ------

    @property
    def shape(self) -> tuple[int, ...]:
        handle = self.handle
        if self._shape is None:
            rank = c_int32()
            lib.ga_tensor_rank(handle, byref(rank))
            sizes = (c_int64 * rank.value)()
            lib.ga_tensor_shape(handle, sizes, rank)
            self._shape = tuple(sizes)
        return self._shape

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, as everywhere in the library; numpy's are in bytes."""
        strides = (c_int64 * len(self.shape))()
        lib.ga_tensor_strides(self.handle, strides, len(strides))
        return tuple(strides)

    @property
    def dtype(self) -> DType:
        value = c_int32()
        lib.ga_tensor_dtype(self.handle, byref(value))
        return DType(value.value)

    @property
    def size(self) -> int:
        value = c_int64()
        lib.ga_tensor_element_count(self.handle, byref(value))
        return value.value

    @property
    def requires_grad(self) -> bool:
        value = c_int32()
        lib.ga_tensor_requires_grad(self.handle, byref(value))
        return value.value != 0

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        lib.ga_tensor_set_requires_grad(self.handle, int(value))

    def set_name(self, name: str) -> Tensor:
        """Names the tensor for error sentences."""
        lib.ga_tensor_set_name(self.handle, name.encode())
        return self

    def __repr__(self) -> str:
        if self.closed:
            return "Tensor(closed)"
        return f"Tensor(shape={self.shape}, dtype={self.dtype.name.lower()})"

    @property
    def read_only(self) -> bool:
        """Whether the library refuses to write to the elements. Setting it, to True only, holds for all tensors on
        the same memory."""
        value = c_int32()
        lib.ga_tensor_read_only(self.handle, byref(value))
        return value.value != 0

    @read_only.setter
    def read_only(self, value: bool) -> None:
        if value:
            lib.ga_tensor_set_read_only(self.handle)
        elif self.read_only:
            raise GAInvalidArgumentError("read_only is False, but the tensor is read-only for good: copy it")

    # ------ in other libraries, on the same memory ------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The same memory as a numpy array, which keeps it alive, also when the tensor is closed. bfloat16 is uint16
        there, or with that dtype the bfloat16 of ml_dtypes. No gradient flows through it."""
        bits = _TO_NUMPY[self.dtype]
        wanted = bits if dtype is None else np.dtype(dtype)
        address = c_void_p()
        lib.ga_tensor_data(self.handle, byref(address))
        interface = {
            "version": 3,
            "shape": self.shape,
            "typestr": bits.str,
            "data": (address.value, self.read_only),
            "strides": tuple(stride * bits.itemsize for stride in self.strides),
        }
        array: np.ndarray = np.asarray(_python.Share(self._managed(versioned=True, copy=False), interface))
        if self.dtype == DType.BFLOAT16 and _is_bfloat16(wanted):
            array = array.view(wanted)
        if array.dtype == wanted:
            return array.copy() if copy else array
        if copy is False:
            raise ValueError(f"the elements are {array.dtype}, so {wanted} needs a copy: leave copy out")
        return array.astype(wanted)

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for the from_dlpack of another library, on the same memory unless copy is True. No gradient flows
        through it."""
        if stream is not None:
            raise BufferError(f"stream is {stream!r}, and memory of the CPU has none")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(
                f"dl_device is {dl_device}, and tensors are on {self.__dlpack_device__()}, the CPU"
            )
        versioned = max_version is not None and max_version[0] >= 1
        name = _python.VERSIONED if versioned else _python.UNVERSIONED
        try:
            return _python.capsule(self._managed(versioned=versioned, copy=bool(copy)), name)
        except GAUnsupportedError as error:
            raise BufferError(str(error)) from error

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def _managed(self, *, versioned: bool, copy: bool) -> int:
        """The address of a new struct of DLPack on this memory, or on a copy."""
        out = c_void_p()
        function = lib.ga_tensor_to_dlpack if versioned else lib.ga_tensor_to_dlpack_unversioned
        function(byref(out), self.handle, int(copy))
        assert out.value is not None
        return out.value

    # ------ elements ------

    def numpy(self) -> np.ndarray:
        """A copy of the elements; np.asarray of a tensor shares its memory."""
        array: np.ndarray = np.empty(self.shape, _TO_NUMPY[self.dtype])
        lib.ga_tensor_copy_out(self.handle, array.ctypes.data, array.nbytes)
        return array

    def item(self) -> float:
        """The single element."""
        value = c_double()
        lib.ga_tensor_item(self.handle, byref(value))
        return value.value

    def copy_(self, array: Any) -> Tensor:
        """Copies the elements of an array of the same shape in."""
        given = _as_bits(np.asarray(array)) if self.dtype == DType.BFLOAT16 else array
        source = np.ascontiguousarray(given, _TO_NUMPY[self.dtype]).reshape(np.shape(given))
        if source.shape != self.shape:
            raise GAInvalidArgumentError(f"array has shape {source.shape} and the tensor {self.shape}")
        lib.ga_tensor_copy_in(self.handle, source.ctypes.data, source.nbytes)
        return self

    def fill_(self, value: float) -> Tensor:
        lib.ga_tensor_fill(self.handle, value)
        return self

    def normal_(self, mean: float = 0.0, std: float = 1.0, *, seed: int) -> Tensor:
        lib.ga_tensor_fill_normal(self.handle, mean, std, seed)
        return self

    def uniform_(self, low: float = 0.0, high: float = 1.0, *, seed: int) -> Tensor:
        lib.ga_tensor_fill_uniform(self.handle, low, high, seed)
        return self

    def detach(self) -> Tensor:
        """A tensor on the same memory that no gradient flows through."""
        return make(lib.ga_tensor_detach, self.handle)

    # ------ operators ------

    def __add__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_add, self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_add, other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_subtract, self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_subtract, other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_multiply, self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_multiply, other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_divide, self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return _binary(lib.ga_divide, other, self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return _binary(lib.ga_matmul, self, other)


def make(function: Callable[..., int], *arguments: Any) -> Tensor:
    """Calls a function whose first parameter is the address of a new tensor."""
    out = c_void_p()
    function(byref(out), *arguments)
    assert out.value is not None
    return Tensor(out.value)


def _binary(function: Callable[..., int], a: Operand, b: Operand) -> Tensor:
    a, b = (x if isinstance(x, Tensor) else tensor(np.float32(x)) for x in (a, b))
    return make(function, a.handle, b.handle)


# ====== Making tensors ======


def tensor(data: Any, *, dtype: DType | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of the elements. Without dtype, float64 becomes float32."""
    array = np.asarray(data)
    if _is_bfloat16(array.dtype) and dtype in (None, DType.BFLOAT16):
        array, dtype = _as_bits(array), DType.BFLOAT16
    elif dtype is not None:
        array = array.astype(_TO_NUMPY[dtype], copy=False)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    kind = numpy_dtype_of(array) if dtype is None else dtype
    contiguous = np.ascontiguousarray(array)  # at least one axis, so the shape is taken from the original
    shape = int64_array(array.shape)
    made = make(lib.ga_tensor_from_data, _ffi.DEVICE_CPU, kind, array.ndim, shape, contiguous.ctypes.data)
    if requires_grad:
        made.requires_grad = True
    return made


def zeros(shape: Sequence[int], *, dtype: DType = float32, requires_grad: bool = False) -> Tensor:
    made = make(lib.ga_tensor_create, _ffi.DEVICE_CPU, dtype, len(shape), int64_array(shape))
    if requires_grad:
        made.requires_grad = True
    return made


def from_numpy(array: Any, *, requires_grad: bool = False) -> Tensor:
    """A tensor on the array's own memory: what one writes, the other sees. The array is kept alive for as
    long as the tensor, or anything made from it, needs its memory. Of a read-only array the tensor is read-only.

    array: of numpy, of the bfloat16 of ml_dtypes too, or of what has numpy's array interface.
    """
    array = np.asarray(array)
    kind = numpy_dtype_of(array)
    if any(stride % array.itemsize for stride in array.strides):
        raise GAInvalidArgumentError(
            "array has strides that are no multiple of its element size: use tensor()"
        )
    strides = int64_array([stride // array.itemsize for stride in array.strides])
    owner = _python.lend(array)
    try:
        made = make(
            lib.ga_tensor_wrap,
            _ffi.DEVICE_CPU,
            kind,
            array.ndim,
            int64_array(array.shape),
            strides,
            array.ctypes.data,
            _python.release,
            owner,
        )
    except BaseException:
        _python.take_back(array)
        raise
    if not array.flags.writeable:
        made.read_only = True
    if requires_grad:
        made.requires_grad = True
    return made


def from_dlpack(x: Any, *, read_only: bool | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor on the memory of an array of another library, by DLPack: what one writes, the other sees.

    x: an object with __dlpack__, such as a tensor of PyTorch or an array of numpy or JAX, or a capsule of it. Its
    memory is kept alive for as long as the tensor, or anything made from it, needs it, and is never copied.
    read_only: None for what the producer says, and True where it says nothing, as those of DLPack 0.x do (JAX).
    """
    capsule = _capsule_of(x)
    name = _python.name_of(capsule)
    if name is None:
        raise GAInvalidArgumentError(
            f"x is {type(x).__name__}, and what was to be a capsule of DLPack is none, or was used: each can be taken "
            "over once"
        )
    managed = _python.pointer_of(capsule, name)
    if name == _python.VERSIONED:
        if capsule is not x and _python.is_copied(managed):
            raise GAInvalidArgumentError(
                f"x is {type(x).__name__}, whose __dlpack__ has made a copy though none was wanted: use tensor()"
            )
        made = make(lib.ga_tensor_from_dlpack, managed)
    else:
        made = make(lib.ga_tensor_from_dlpack_unversioned, managed)
        read_only = read_only is not False
    _python.mark_used(capsule, name)
    if read_only:
        made.read_only = True
    elif read_only is False and made.read_only:
        made.close()
        raise GAInvalidArgumentError(
            "read_only is False, but the producer of x says that x must not be written to"
        )
    if requires_grad:
        made.requires_grad = True
    return made


def _capsule_of(x: Any) -> Any:
    """The capsule that an object makes of itself, in the newest way that it knows; a capsule as it is."""
    if not hasattr(x, "__dlpack__"):
        return x
    if hasattr(x, "is_neg") and x.is_neg():
        raise GAInvalidArgumentError(
            "x is a tensor of PyTorch whose elements are negated when they are read, which DLPack does not tell: pass "
            "x.resolve_neg()"
        )
    exchanged = _python.exchanged(x)
    if exchanged is not None:
        return exchanged
    if hasattr(x, "__dlpack_device__"):
        device = tuple(int(part) for part in x.__dlpack_device__())
        if device[0] != 1:
            raise GAUnsupportedError(
                f"x is on device {device} of DLPack, and this version has the CPU only, (1, 0): move x there first"
            )
    try:
        return x.__dlpack__(max_version=(1, 1), copy=False)
    except TypeError:  # of a producer from before DLPack 1.0
        return x.__dlpack__()


# ====== Scopes and recording ======

_threads = threading.local()


def _open_scopes() -> list[Scope]:
    """The scopes that are open on this thread, the innermost last."""
    scopes: list[Scope] | None = getattr(_threads, "scopes", None)
    if scopes is None:
        scopes = _threads.scopes = []
    return scopes


class Scope:
    """Frees the tensors made in a with block at its end, except those given to keep().

    Python frees a tensor with its last reference anyway; a scope does so at a known place, whatever still
    refers to it, and leaves such tensors closed.
    """

    def __init__(self) -> None:
        self._address: int | None = None
        self._made: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self._kept: list[Tensor] = []

    def keep(self, kept: Tensor) -> Tensor:
        """Lets a tensor outlive the scope, in the one around it if there is one."""
        self._kept.append(kept)
        return kept

    def __enter__(self) -> Scope:
        out = c_void_p()
        lib.ga_scope_open(byref(out))
        self._address = out.value
        _open_scopes().append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        kept = [x for x in self._kept if not x.closed]
        lib.ga_scope_close(self._address, (c_void_p * len(kept))(*(x.handle for x in kept)), len(kept))
        scopes = _open_scopes()
        scopes.remove(self)
        for made in list(self._made):
            if not any(made is x for x in kept):
                made._forget()
            elif scopes:
                scopes[-1]._made.add(made)
        self._made.clear()
        self._kept.clear()


@contextmanager
def no_grad() -> Iterator[None]:
    """Operations on this thread are not recorded inside of the with block, as for an evaluation."""
    before = c_int32()
    lib.ga_recording(byref(before))
    lib.ga_set_recording(0)
    try:
        yield
    finally:
        lib.ga_set_recording(before)
