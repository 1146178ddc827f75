"""Gradient checkpointing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ctypes import byref, c_void_p
from typing import Any

from . import _ffi
from ._ffi import lib
from .errors import GAError
from .tensor import Tensor

# What C functions call back must stay alive until the library releases it.
_blocks: dict[int, _Block] = {}
_numbers = itertools.count(1)
# What a block returns: GA_OK, or a number that is no status of the library.
_OK, _FAILED = 0, 1


class _Block:
    """A Python function as a block of the library."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self.result: Tensor | None = None
        self.error: BaseException | None = None
        self.callback = _ffi.BlockFn(self._run)

    def _run(self, out: Any, inputs: Any, count: int, user: Any) -> int:
        try:
            # The handle must outlive this call, and the library takes no reference to it.
            self.result = self._function(*(Tensor(inputs[index]) for index in range(count)))
            out[0] = self.result.handle
            return _OK
        except GAError as error:
            self.error = error
            return error.status
        except BaseException as error:  # goes on where the library has returned
            self.error = error
            return _FAILED


def _forget(user: Any) -> None:
    _blocks.pop(user, None)


_release = _ffi.UserReleaseFn(_forget)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), without keeping its activations: backward runs it again, with the same bits.

    Besides its inputs it may use parameters and tensors without a gradient.
    """
    number = next(_numbers)
    block = _blocks[number] = _Block(function)
    handles = (c_void_p * len(inputs))(*(x.handle for x in inputs))
    out = c_void_p()
    try:
        lib.ga_checkpoint(byref(out), handles, len(inputs), block.callback, number, _release)
    except GAError:
        _blocks.pop(number, None)
        if block.error is not None:
            raise block.error from None
        raise
    finally:
        block.result = None
    assert out.value is not None
    return Tensor(out.value)
