"""Gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_void_p
from typing import Any

from . import _ffi
from ._arguments import require, shown
from ._callbacks import Callbacks
from ._ffi import lib
from .errors import GADTypeError
from .tensor import Tensor, handles_of

_OK = 0


class _Block:
    """A Python function as a block of the library."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.result: Tensor | None = None


_blocks: Callbacks[_Block] = Callbacks()


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


_callback = _ffi.BlockFn(_run)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), without keeping its activations: backward runs it again, with the same bits.

    Besides its inputs it may use parameters and tensors without a gradient. What it raises when it runs again comes out of
    the call that runs backward.
    """
    require("function", function, Callable, "a function")
    handles = handles_of("inputs", inputs)
    block = _Block(function)
    number = _blocks.add(block)
    out = c_void_p()
    try:
        lib.ga_checkpoint(byref(out), handles, len(handles), _callback, number, _blocks.release)
    except BaseException:
        _blocks.remove(number)
        raise
    finally:
        block.result = None
    assert out.value is not None
    return Tensor(out.value)
