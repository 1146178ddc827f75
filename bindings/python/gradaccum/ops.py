"""The operations, under the header's names without the prefix. Shapes and errors are described there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import c_void_p
from typing import Any, Union

from . import _ffi
from ._arguments import constant_of, flag, int32_array, int64_array
from ._ffi import lib
from .errors import GAInvalidArgumentError
from .tensor import DType, Tensor, handles_of, make

Axes = Union[None, int, Sequence[int]]

_REDUCTIONS = {"sum": _ffi.REDUCTION_SUM, "mean": _ffi.REDUCTION_MEAN}
_GELUS = {"none": _ffi.GELU_ERF, "tanh": _ffi.GELU_TANH}


def reduction_constant(argument: str, value: str) -> int:
    return constant_of(argument, value, _REDUCTIONS)


def add(a: Tensor, b: Tensor) -> Tensor:
    return make(lib.ga_add, a, b)


def subtract(a: Tensor, b: Tensor) -> Tensor:
    return make(lib.ga_subtract, a, b)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    return make(lib.ga_multiply, a, b)


def divide(a: Tensor, b: Tensor) -> Tensor:
    return make(lib.ga_divide, a, b)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """[..., m, k] times [..., k, n]: [..., m, n]."""
    return make(lib.ga_matmul, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out]: [..., out]."""
    return make(lib.ga_linear, x, weight, bias)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Over the last axis."""
    return make(lib.ga_layer_norm, x, weight, bias, eps)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """approximate: "none" for the error function, or "tanh"."""
    return make(lib.ga_gelu, x, constant_of("approximate", approximate, _GELUS))


def relu(x: Tensor) -> Tensor:
    return make(lib.ga_relu, x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return make(lib.ga_softmax, x, axis)


def cross_entropy(
    logits: Tensor, targets: Tensor, *, ignore_index: int | None = None, reduction: str = "sum"
) -> Tensor:
    """logits [..., classes], targets [...] of int32 or int64. The default is a sum, which is what an
    Accumulator divides by the window's weight."""
    ignored = _ffi.NO_IGNORE_INDEX if ignore_index is None else ignore_index
    return make(
        lib.ga_cross_entropy,
        logits,
        targets,
        ignored,
        reduction_constant("reduction", reduction),
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int | None = None,
    reduction: str = "sum",
) -> Tensor:
    """cross_entropy of linear(hidden, weight), to the bit, in less memory."""
    ignored = _ffi.NO_IGNORE_INDEX if ignore_index is None else ignore_index
    return make(
        lib.ga_linear_cross_entropy,
        hidden,
        weight,
        targets,
        ignored,
        reduction_constant("reduction", reduction),
    )


def mse(prediction: Tensor, target: Tensor, *, reduction: str = "sum") -> Tensor:
    return make(lib.ga_mse, prediction, target, reduction_constant("reduction", reduction))


def embedding(weight: Tensor, indices: Tensor) -> Tensor:
    """Rows of weight [rows, c] picked by indices [...]: [..., c]."""
    return make(lib.ga_embedding, weight, indices)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """q, k and v [batch, time, channels]."""
    return make(lib.ga_causal_attention, q, k, v, heads)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    sizes = int64_array("shape", shape)
    return make(lib.ga_reshape, x, len(sizes), sizes)


def transpose(x: Tensor, axis_a: int, axis_b: int) -> Tensor:
    return make(lib.ga_transpose, x, axis_a, axis_b)


def slice(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """A view of the elements start ... stop - 1 along an axis."""
    return make(lib.ga_slice, x, axis, start, stop)


def _reduce(function: Any, x: Tensor, axis: Axes, keepdims: bool) -> Tensor:
    if axis is None:
        axes: Any = range(len(x.shape) if isinstance(x, Tensor) else 0)  # where it is none, the call says so
    else:
        axes = (axis,) if isinstance(axis, int) or not isinstance(axis, Iterable) else axis
    listed = int32_array("axis", axes)
    if axis is not None and not listed:
        raise GAInvalidArgumentError("axis is empty: name an axis, or None for all of them")
    return make(function, x, listed, len(listed), flag("keepdims", keepdims))


def sum(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    return _reduce(lib.ga_sum, x, axis, keepdims)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    return _reduce(lib.ga_mean, x, axis, keepdims)


def cast(x: Tensor, dtype: DType) -> Tensor:
    return make(lib.ga_cast, x, dtype)


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a scalar loss with respect to each of the leaves. The graph is used up."""
    handles = handles_of("inputs", inputs)
    out = (c_void_p * len(handles))()
    lib.ga_gradients(out, loss, handles, len(handles))
    return [Tensor(address) for address in out if address is not None]
