"""Gradient checkpointing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ctypes import byref, c_void_p
from typing import Any

from . import _ffi
from ._arguments import require, shown
from ._ffi import lib
from .errors import GADTypeError
from .tensor import Tensor, handles_of

_numbers = itertools.count(1)
_OK = 0


class _Block:
    """A Python function as a block of the library."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.result: Tensor | None = None


# By their numbers, which the library passes as `user`. A callback of its own would refer to its block and be referred to
# by it, and such a cycle keeps what the function has captured until a garbage collection.
_blocks: dict[int, _Block] = {}


def _run(out: Any, inputs: Any, count: int, user: Any) -> int:
    try:
        block = _blocks[user]
        result = block.function(*(Tensor(inputs[index]) for index in range(count)))
        if not isinstance(result, Tensor):
            raise GADTypeError(f"the block returned {shown(result)}: it must return a Tensor")
        # The handle must outlive this call, and the library takes no reference to it.
        block.result = result
        out[0] = result.handle
        return _OK
    except BaseException as error:
        return _ffi.keep(error)


def _forget(user: Any) -> None:
    _blocks.pop(user, None)


_callback = _ffi.BlockFn(_run)
_release = _ffi.UserReleaseFn(_forget)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), without keeping its activations: backward runs it again, with the same bits.

    Besides its inputs it may use parameters and tensors without a gradient. What it raises when it runs again comes out of
    the call that runs backward.
    """
    require("function", function, Callable, "a function")
    handles = handles_of("inputs", inputs)
    number = next(_numbers)
    block = _blocks[number] = _Block(function)
    out = c_void_p()
    try:
        lib.ga_checkpoint(byref(out), handles, len(handles), _callback, number, _release)
    except BaseException:
        _blocks.pop(number, None)
        raise
    finally:
        block.result = None
    assert out.value is not None
    return Tensor(out.value)
