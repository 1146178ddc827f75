"""Tensors, scopes and recording."""

from __future__ import annotations

import enum
import numbers
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_double, c_int32, c_int64, c_void_p
from typing import Any, Union

import numpy as np

from . import _ffi, _python
from ._arguments import TENSOR, flag, int64_array, require, shown
from ._ffi import lib
from ._handle import Uncopied
from .errors import GADTypeError, GAInvalidArgumentError, GAOverflowError, GAUnsupportedError


class DType(enum.IntEnum):
    """Element types. numpy has no bfloat16: such tensors are read as the bits, in uint16, and written as those, as the
    bfloat16 of ml_dtypes, or from other floating types, which are rounded."""

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
        kind = _FROM_NUMPY[array.dtype]
    except (AttributeError, KeyError):
        if not isinstance(getattr(array, "dtype", None), np.dtype):
            raise GADTypeError(f"{type(array).__name__} is no array of numpy: pass np.asarray() of it") from None
        if not _is_bfloat16(array.dtype):
            raise _unsupported(array.dtype) from None
        kind = DType.BFLOAT16
    if type(array) is not np.ndarray:
        _require_no_mask(array)
    return kind


def dtype_of(value: Any) -> DType:
    try:
        return DType(value)
    except ValueError:
        raise GADTypeError(f"dtype is {shown(value)}: it must be a DType, such as gradaccum.float32") from None


def _array_of(data: Any) -> np.ndarray:
    """Of real numbers, as numpy makes one."""
    if type(data) is not np.ndarray:
        _require_no_mask(data)
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise GAInvalidArgumentError(f"the data is {shown(data)}, which is no array of numbers: {error}") from None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise _unsupported(array.dtype)
    return array


def _unsupported(dtype: np.dtype[Any]) -> GADTypeError:
    if not dtype.isnative:
        return GADTypeError(
            f"arrays of {dtype.name} in the byte order of another machine are not supported: convert by "
            'astype(dtype.newbyteorder("="))'
        )
    names = ", ".join(str(dtype) for dtype in _FROM_NUMPY)
    return GADTypeError(f"arrays of {dtype} are not supported: convert to one of {names}")


def _require_no_mask(array: object) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise GADTypeError("a masked array is given, whose mask would be lost: pass its filled(), or its data")


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is the bfloat16 that ml_dtypes adds to numpy, which JAX uses, in this machine's byte order."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2 and dtype.isnative


def _is_real(dtype: np.dtype[Any]) -> bool:
    """Whether it is a floating type of numpy, or bfloat16 in any byte order."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _as_bits(array: np.ndarray) -> np.ndarray:
    """The elements as bfloat16, in the type that numpy has for it: where they lie if they are that, or are the bits."""
    if _is_bfloat16(array.dtype):
        return array.view(np.uint16)
    if _is_real(array.dtype):
        array = make(lib.ga_cast, tensor(array.astype(np.float32)), DType.BFLOAT16).numpy()
    return array.astype(np.uint16, copy=False)


class Tensor(Uncopied):
    """A handle on a tensor of the library. It is freed with the last reference, by close(), or by the scope
    that it was made in; the memory goes when no view, graph or accumulator needs it any more."""

    __slots__ = ("_address", "_as_parameter_", "_finalizer", "_shape", "__weakref__")

    _COPIED = "its numpy()"

    # numpy leaves operators with arrays to this class, through which gradients flow.
    __array_ufunc__ = None

    def __init__(self, address: int) -> None:
        """Takes over a handle that the library made. Users call tensor(), from_numpy() or zeros()."""
        self._address: int | None = address
        # How ctypes takes the tensor until it is closed: for an address alone, as an integer would be one for a number too.
        self._as_parameter_ = c_void_p(address)
        self._shape: tuple[int, ...] | None = None
        self._finalizer = weakref.finalize(self, lib.ga_tensor_free, address)
        scopes = _open_scopes()
        if scopes:
            scopes[-1]._made.add(self)

    @classmethod
    def borrow(cls, handle: int) -> Tensor:
        """The tensor of a ga_tensor handle that somebody else owns, such as the C program that this interpreter
        runs in. It is not freed here; once its owner has freed it, it is refused."""
        require("handle", handle, int, "the address of a ga_tensor")
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
        self._end()
        self._finalizer()

    def _forget(self) -> None:
        """The library has freed the handle itself."""
        self._end()
        self._finalizer.detach()

    def _end(self) -> None:
        if self._address is not None:
            self._address = None
            del self._as_parameter_

    def __enter__(self) -> Tensor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------ what it is ------

    @property
    def shape(self) -> tuple[int, ...]:
        handle = self.handle  # of a closed one there is no shape
        if self._shape is None:
            rank = c_int32()
            lib.ga_tensor_rank(self, byref(rank))
            sizes = (c_int64 * rank.value)()
            lib.ga_tensor_shape(self, sizes, rank.value)
            self._shape = tuple(sizes)
        return self._shape

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, as everywhere in the library; numpy's are in bytes."""
        strides = (c_int64 * len(self.shape))()
        lib.ga_tensor_strides(self, strides, len(strides))
        return tuple(strides)

    @property
    def dtype(self) -> DType:
        value = c_int32()
        lib.ga_tensor_dtype(self, byref(value))
        return DType(value.value)

    @property
    def size(self) -> int:
        value = c_int64()
        lib.ga_tensor_element_count(self, byref(value))
        return value.value

    @property
    def requires_grad(self) -> bool:
        value = c_int32()
        lib.ga_tensor_requires_grad(self, byref(value))
        return value.value != 0

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        lib.ga_tensor_set_requires_grad(self, flag("requires_grad", value))

    def set_name(self, name: str) -> Tensor:
        """Names the tensor for error sentences."""
        require("name", name, str, "text")
        lib.ga_tensor_set_name(self, name.encode())
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
        lib.ga_tensor_read_only(self, byref(value))
        return value.value != 0

    @read_only.setter
    def read_only(self, value: bool) -> None:
        if value:
            lib.ga_tensor_set_read_only(self)
        elif self.read_only:
            raise GAInvalidArgumentError("read_only is False, but the tensor is read-only for good: copy it")

    # ------ in other libraries, on the same memory ------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The same memory as a numpy array, which keeps it alive, also when the tensor is closed. bfloat16 is uint16
        there, or with that dtype the bfloat16 of ml_dtypes; of other types it is a copy. No gradient flows through it."""
        bits = _TO_NUMPY[self.dtype]
        wanted = bits if dtype is None else np.dtype(dtype)
        address = c_void_p()
        lib.ga_tensor_data(self, byref(address))
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
        if self.dtype == DType.BFLOAT16 and _is_real(wanted):
            array = np.asarray(np.left_shift(array, 16, dtype=np.uint32)).view(np.float32)
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
        function(byref(out), self, int(copy))
        assert out.value is not None
        return out.value

    # ------ elements ------

    def numpy(self) -> np.ndarray:
        """A copy of the elements; np.asarray of a tensor shares its memory."""
        array: np.ndarray = np.empty(self.shape, _TO_NUMPY[self.dtype])
        lib.ga_tensor_copy_out(self, array.ctypes.data, array.nbytes)
        return array

    def item(self) -> float:
        """The single element."""
        value = c_double()
        lib.ga_tensor_item(self, byref(value))
        return value.value

    def copy_(self, array: Any) -> Tensor:
        """Copies the elements of an array of the same shape in."""
        given = _array_of(array)
        if self.dtype == DType.BFLOAT16:
            given = _as_bits(given)
        source = np.ascontiguousarray(given, _TO_NUMPY[self.dtype]).reshape(np.shape(given))
        if source.shape != self.shape:
            raise GAInvalidArgumentError(f"array has shape {source.shape} and the tensor {self.shape}")
        lib.ga_tensor_copy_in(self, source.ctypes.data, source.nbytes)
        return self

    def fill_(self, value: float) -> Tensor:
        lib.ga_tensor_fill(self, value)
        return self

    def normal_(self, mean: float = 0.0, std: float = 1.0, *, seed: int) -> Tensor:
        lib.ga_tensor_fill_normal(self, mean, std, seed)
        return self

    def uniform_(self, low: float = 0.0, high: float = 1.0, *, seed: int) -> Tensor:
        lib.ga_tensor_fill_uniform(self, low, high, seed)
        return self

    def detach(self) -> Tensor:
        """A tensor on the same memory that no gradient flows through."""
        return make(lib.ga_tensor_detach, self)

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


def handles_of(name: str, tensors: Iterable[Tensor]) -> Any:
    """An array of the handles of tensors, of a sequence that sentences call by its name."""
    listed = list(tensors)
    try:
        return (c_void_p * len(listed))(*[x.handle for x in listed])
    except (AttributeError, TypeError):
        for index, x in enumerate(listed):
            if not isinstance(x, Tensor):
                raise TENSOR.refusal(f"{name}[{index}]", x) from None
        raise


def _binary(function: Callable[..., int], a: Operand, b: Operand) -> Tensor:
    """What an operator returns, which for what is no operand is a word for Python to try, and then refuse, the other's."""
    if not (_is_operand(a) and _is_operand(b)):
        unknown: Any = NotImplemented
        return unknown  # type: ignore[no-any-return]
    return make(function, *(x if isinstance(x, Tensor) else _constant(x) for x in (a, b)))


def _is_operand(x: object) -> bool:
    """Whether it is a tensor, a real number, or an array of real numbers."""
    if isinstance(x, (Tensor, float, int, numbers.Real)):
        return True
    dtype = getattr(x, "dtype", None)
    return isinstance(dtype, np.dtype) and (dtype.kind in "biuf" or _is_bfloat16(dtype))


def _constant(x: Any) -> Tensor:
    """A number, or an array of numbers, as an operand."""
    try:
        return tensor(np.asarray(x).astype(np.float32) if hasattr(x, "dtype") else np.float32(x))
    except OverflowError:
        raise GAOverflowError(f"the operand {shown(x)} is too large for a float") from None


# ====== Making tensors ======


def tensor(data: Any, *, dtype: DType | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of the elements. Without dtype, float64 becomes float32. Integers are taken for the bits of
    bfloat16."""
    array = _array_of(data)
    if dtype is not None:
        dtype = dtype_of(dtype)
    if dtype == DType.BFLOAT16 or (dtype is None and _is_bfloat16(array.dtype)):
        array, dtype = _as_bits(array), DType.BFLOAT16
    elif dtype is not None:
        array = array.astype(_TO_NUMPY[dtype], copy=False)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    kind = numpy_dtype_of(array) if dtype is None else dtype
    contiguous = np.ascontiguousarray(array)  # at least one axis, so the shape is taken from the original
    shape = (c_int64 * array.ndim)(*array.shape)
    made = make(lib.ga_tensor_from_data, _ffi.DEVICE_CPU, kind, array.ndim, shape, contiguous.ctypes.data)
    if flag("requires_grad", requires_grad):
        made.requires_grad = True
    return made


def zeros(shape: Sequence[int], *, dtype: DType = float32, requires_grad: bool = False) -> Tensor:
    sizes = int64_array("shape", shape)
    made = make(lib.ga_tensor_create, _ffi.DEVICE_CPU, dtype, len(sizes), sizes)
    if flag("requires_grad", requires_grad):
        made.requires_grad = True
    return made


def from_numpy(array: Any, *, requires_grad: bool = False) -> Tensor:
    """A tensor on the array's own memory: what one writes, the other sees. The array is kept alive for as
    long as the tensor, or anything made from it, needs its memory. Of a read-only array the tensor is read-only.

    array: of numpy, of the bfloat16 of ml_dtypes too, or of what has numpy's array interface or Python's buffers. Of
    anything else, such as a list or an array that is spread over devices, numpy would make a copy: use tensor().
    """
    array = _shared(array)
    kind = numpy_dtype_of(array)
    array = np.asarray(array)
    if any(stride % array.itemsize for stride in array.strides):
        raise GAInvalidArgumentError(
            "array has strides that are no multiple of its element size: use tensor()"
        )
    if any(stride < 0 for stride in array.strides):
        raise GAInvalidArgumentError(
            f"array has the strides {array.strides}, and those below 0, as of array[::-1], are not supported: pass "
            "np.ascontiguousarray(array), or use tensor(), which both copy"
        )
    strides = (c_int64 * array.ndim)(*[stride // array.itemsize for stride in array.strides])
    owner = _python.lend(array)
    try:
        made = make(
            lib.ga_tensor_wrap,
            _ffi.DEVICE_CPU,
            kind,
            array.ndim,
            (c_int64 * array.ndim)(*array.shape),
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
    if flag("requires_grad", requires_grad):
        made.requires_grad = True
    return made


def _shared(x: Any) -> np.ndarray:
    """An array on the memory of an object. numpy makes one of nearly everything, but then on a copy."""
    if isinstance(x, np.ndarray):
        return x
    if not isinstance(x, np.generic):  # which is a copy of an element
        if hasattr(x, "__array_interface__") or hasattr(x, "__array_struct__"):
            return np.asarray(x)
        try:
            return np.asarray(memoryview(x))
        except (TypeError, ValueError, BufferError):
            pass
    raise GADTypeError(
        f"array is {shown(x)}, whose memory numpy cannot share: use tensor(), which copies, or from_dlpack()"
    )


def from_dlpack(x: Any, *, read_only: bool | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor on the memory of an array of another library, by DLPack: what one writes, the other sees.

    x: an object with __dlpack__, such as a tensor of PyTorch or an array of numpy or JAX, or a capsule of it. Its
    memory is kept alive for as long as the tensor, or anything made from it, needs it, and is never copied.
    read_only: None for what the producer says, and True where it says nothing, as those of DLPack 0.x do (JAX).
    """
    if read_only is not None:
        read_only = bool(flag("read_only", read_only))
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
    if flag("requires_grad", requires_grad):
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


class Scope(Uncopied):
    """Frees the tensors made in a with block at its end, except those given to keep().

    Python frees a tensor with its last reference anyway; a scope does so at a known place, whatever still
    refers to it, and leaves such tensors closed.
    """

    _COPIED = "what it keeps"

    def __init__(self) -> None:
        self._address: int | None = None
        self._made: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self._kept: list[Tensor] = []

    def keep(self, kept: Tensor) -> Tensor:
        """Lets a tensor outlive the scope, in the one around it if there is one."""
        TENSOR.checked("kept", kept)
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
        lib.ga_scope_close(self._address, handles_of("keep", kept), len(kept))
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
        lib.ga_set_recording(before.value)
