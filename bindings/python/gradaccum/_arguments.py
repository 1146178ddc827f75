"""Types of arguments for ctypes, which by itself takes the low bits of an integer that is too large, and says of others
that their type is wrong."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from ctypes import c_double, c_int32, c_int64, c_uint64, c_void_p
from numbers import Integral
from typing import Any

import numpy as np

from .errors import GADTypeError, GAError, GAInvalidArgumentError, GAOverflowError


def shown(value: object) -> str:
    """A value on one line of a sentence, and its type."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of another library, or of an integer with too many digits
        text = "what it is"
    return f"{text if len(text) <= 60 else text[:56] + ' ...'} of type {type(value).__name__}"


class Kind:
    """A type of arguments. from_param is what ctypes calls for each."""

    def __init__(self, from_param: Callable[[Any], Any], needed: str) -> None:
        self.from_param = from_param
        self._needed = needed

    def checked(self, name: str, value: Any) -> Any:
        """The value, if it is of this type; else an exception that calls it by its name."""
        try:
            self.from_param(value)
        except GAError:
            raise
        except Exception:
            raise self.refusal(name, value, is_too_large=isinstance(value, Integral)) from None
        return value

    def refusal(self, name: str, value: object, is_too_large: bool = False) -> GAError:
        error = GAOverflowError if is_too_large else GADTypeError
        return error(f"{name} is {shown(value)}: it must be {self._needed}")


class _Tensors(Kind):
    """Tensors, whose handle ctypes finds as _as_parameter_. It takes integers and text for addresses, too."""

    def __init__(self) -> None:
        needed = "a Tensor, as of tensor() for an array, or gradaccum.torch.parameters() for a model"
        super().__init__(c_void_p.from_param, needed)

    def checked(self, name: str, value: Any) -> Any:
        if value is None or isinstance(value, (int, str, bytes)):
            raise self.refusal(name, value)
        getattr(value, "handle", None)  # has a sentence if it was closed
        return super().checked(name, value)


def _integers(ctype: Any) -> Kind:
    bits = 8 * ctypes.sizeof(ctype)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ctype(-1).value < 0 else (0, 2**bits - 1)
    convert = ctype.from_param

    def from_param(value: Any) -> Any:
        if low <= value <= high:
            return convert(value)
        raise OverflowError

    return Kind(from_param, f"a whole number in {low} ... {high}")


INT32, INT64 = _integers(c_int32), _integers(c_int64)
REAL, TENSOR = Kind(c_double.from_param, "a number that fits a float"), _Tensors()
KINDS: dict[Any, Kind] = {
    c_int32: INT32,
    c_int64: INT64,
    c_uint64: _integers(c_uint64),
    c_double: REAL,
    c_void_p: Kind(c_void_p.from_param, "an object of this package"),
}
"""What stands for the types of ctypes in calls."""


def explain(kinds: Sequence[Any], names: str, arguments: Sequence[Any], found: GAError) -> GAError:
    """The exception of the first argument that is not of its type, or the one that was found if there is none."""
    for kind, name, value in zip(kinds, names.split(), arguments):
        if isinstance(kind, Kind) and not (kind is TENSOR and value is None):  # of NULL, the library knows if it may be
            try:
                kind.checked(name, value)
            except GAError as error:
                return error
    return found


# ====== What ctypes does not see ======


def flag(name: str, value: object) -> int:
    """An integer of the library for what is on or off: True, False, 1 or 0."""
    if isinstance(value, (int, np.bool_)):
        return int(value)
    raise GADTypeError(f"{name} is {shown(value)}: it must be True or False")


def constant_of(name: str, value: str, constants: Mapping[str, int]) -> int:
    """The constant of the C library for a word."""
    if not isinstance(value, str) or value not in constants:
        words = " or ".join(repr(word) for word in constants)
        raise GAInvalidArgumentError(f"{name} is {value!r}: it must be {words}")
    return constants[value]


def require(name: str, value: object, kind: Any, needed: str) -> None:
    """Errors: GADTypeError if it is not of a type of Python, for which sentences have words."""
    if not isinstance(value, kind):
        raise GADTypeError(f"{name} is {shown(value)}: it must be {needed}")


# ====== Arrays ======


def int32_array(name: str, values: Iterable[int]) -> Any:
    return _array(c_int32, INT32, "whole numbers", name, values)


def int64_array(name: str, values: Iterable[int]) -> Any:
    """An array of integers, of a sequence that sentences call by its name."""
    return _array(c_int64, INT64, "whole numbers", name, values)


def double_array(name: str, values: Iterable[float]) -> Any:
    return _array(c_double, REAL, "numbers", name, values)


def _array(ctype: Any, kind: Kind, what: str, name: str, values: Any) -> Any:
    try:
        listed = list(values)
    except TypeError:
        raise GADTypeError(f"{name} is {shown(values)}: it must be a sequence of {what}") from None
    try:
        array(ctype._type_, listed)  # which refuses what ctypes would not
        return (ctype * len(listed))(*listed)
    except (TypeError, ValueError, OverflowError) as cause:
        for index, value in enumerate(listed):
            kind.checked(f"{name}[{index}]", value)
        raise GADTypeError(f"{name} is {shown(values)}, and holds what is refused: {cause}") from None
