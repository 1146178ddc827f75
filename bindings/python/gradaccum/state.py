"""The state of optimizers as dicts, and as the bytes that the header describes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import GAInvalidArgumentError

_MAGIC, _VERSION = b"ga_optim", 1
# What of a parameter is no array of its rule.
_CLOCK = ("shape", "step", "moment_time", "in_moments")


class _Reader:
    """Of bytes that the library has just written."""

    def __init__(self, data: bytearray) -> None:
        self._data = data
        self._offset = len(_MAGIC)

    def integer(self) -> int:
        value: int = self._word("<q")
        return value

    def double(self) -> float:
        value: float = self._word("<d")
        return value

    def _word(self, kind: str) -> Any:
        (value,) = struct.unpack_from(kind, self._data, self._skip(8))
        return value

    def _skip(self, byte_count: int) -> int:
        """Where that many bytes start; it goes on at the word after them."""
        start = self._offset
        self._offset += byte_count + -byte_count % 8
        return start

    def text(self) -> str:
        length = self.integer()
        start = self._skip(length)
        return self._data[start : start + length].decode()

    def shape(self) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(self.integer()))

    def array(self) -> np.ndarray:
        dtype, shape = np.dtype(self.text()).newbyteorder("<"), self.shape()
        count = int(np.prod(shape, dtype=np.int64))
        start = self._skip(count * dtype.itemsize)
        return np.frombuffer(self._data, dtype, count, start).reshape(shape) if count else np.empty(shape, dtype)


def to_dict(data: bytearray) -> dict[str, Any]:
    """A state as Optimizer.state_dict() has it; its arrays lie in the data."""
    reader = _Reader(data)
    reader.integer(), reader.integer()  # version and size
    found: dict[str, Any] = {"rule": reader.text(), "updates": reader.integer(), "weight": reader.double()}
    factor, has_best, best = reader.double(), reader.integer(), reader.double()
    found["plateau"] = {
        "factor": factor,
        "best": best if has_best else None,
        "bad_count": reader.integer(),
        "cooldown_count": reader.integer(),
    }
    found["state"] = {}
    for index in range(reader.integer()):
        own: dict[str, Any] = {
            "shape": reader.shape(),
            "step": reader.integer(),
            "moment_time": reader.double(),
            "in_moments": bool(reader.integer()),
        }
        for _ in range(reader.integer()):
            name = reader.text()
            own[name] = reader.array()
        found["state"][index] = own
    return found


class _Writer:
    def __init__(self) -> None:
        self.parts: list[Any] = []

    def integer(self, value: int) -> None:
        self.parts.append(struct.pack("<q", value))

    def double(self, value: float) -> None:
        self.parts.append(struct.pack("<d", value))

    def text(self, value: str) -> None:
        encoded = value.encode()
        self.integer(len(encoded))
        self._bytes(encoded, len(encoded))

    def shape(self, value: tuple[int, ...]) -> None:
        self.integer(len(value))
        for length in value:
            self.integer(length)

    def array(self, value: Any) -> None:
        array = np.asarray(value)
        self.text(array.dtype.name)
        self.shape(array.shape)
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        self._bytes(flat.data, flat.size)

    def _bytes(self, data: Any, byte_count: int) -> None:
        self.parts += [data, bytes(-byte_count % 8)]


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """What the library is to read. It checks what these say; here is only refused what they cannot say."""
    try:
        return _packed(state)
    except KeyError as error:
        raise GAInvalidArgumentError(
            f"load_state_dict: state_dict lacks {error}: pass what state_dict() returned"
        ) from None
    except (struct.error, AttributeError, TypeError, ValueError) as error:
        raise GAInvalidArgumentError(
            f"load_state_dict: state_dict holds something of another kind ({error}): pass what state_dict() returned"
        ) from None


def _packed(state: Mapping[str, Any]) -> bytes:
    writer = _Writer()
    writer.text(state["rule"])
    writer.integer(state["updates"])
    writer.double(state["weight"])
    plateau = state["plateau"]
    writer.double(plateau["factor"])
    writer.integer(plateau["best"] is not None)
    writer.double(plateau["best"] if plateau["best"] is not None else 0.0)
    writer.integer(plateau["bad_count"])
    writer.integer(plateau["cooldown_count"])
    parameters = state["state"]
    writer.integer(len(parameters))
    for index in range(len(parameters)):
        own = parameters[index]
        writer.shape(own["shape"])
        writer.integer(own["step"])
        writer.double(own["moment_time"])
        writer.integer(own["in_moments"])
        names = [name for name in own if name not in _CLOCK]
        writer.integer(len(names))
        for name in names:
            writer.text(name)
            writer.array(own[name])
    size = len(_MAGIC) + 16 + sum(len(part) for part in writer.parts)
    return b"".join([_MAGIC, struct.pack("<qq", _VERSION, size), *writer.parts])
