"""Calls with values that are wrong, for test_bad_input.py: each with its status and words of the sentence."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, c_double, c_int32, c_int64, cast

import numpy as np
from gradaccum import _ffi

from calls import (
    VALID,
    World,
    cosine,
    handles,
    leaf,
    made,
    ok,
    optimizer,
    out,
    patterned,
    sizes,
    state,
    tensor,
)
from support import (
    DTYPE,
    INDEX,
    INVALID_ARGUMENT,
    NON_FINITE,
    OUT_OF_MEMORY,
    OVERFLOW,
    SHAPE,
    STATE,
    UNSUPPORTED,
    raw,
)

F32, CPU = _ffi.FLOAT32, _ffi.DEVICE_CPU
NONE, SUM, MEAN = _ffi.NO_IGNORE_INDEX, _ffi.REDUCTION_SUM, _ffi.REDUCTION_MEAN
NAN, INF = float("nan"), float("inf")
I32_MIN, I32_MAX, I64_MIN, I64_MAX = -(2**31), 2**31 - 1, -(2**63), 2**63 - 1

# A call on a World, what it must end with (one of several where the header leaves it open), and words of its
# sentence.
Call = Callable[[World], tuple]
Case = tuple[Call, "int | tuple[int, ...]", tuple[str, ...]]
CASES: dict[str, Case] = {}


def case(name: str, expected: int | tuple[int, ...], *words: str) -> Callable[[Call], Call]:
    def add(call: Call) -> Call:
        assert name not in CASES, name
        CASES[name] = (call, expected, words)
        return call

    return add


def changed(function: str, at: int, value: object) -> Call:
    """The valid call of a function with one argument replaced; a callable makes it from the World."""

    def call(w: World) -> tuple:
        arguments = VALID[function](w)
        arguments[at] = value(w) if callable(value) else value
        return (function, *arguments)

    return call


def ints(*shape: int) -> int:
    return tensor(np.zeros(shape, np.int32))


def halves(*shape: int) -> int:
    return tensor(np.zeros(shape, np.float16))


def doubles(*values: float) -> object:
    """The address of an array, for a field; it keeps the array alive."""
    return cast((c_double * len(values))(*values), POINTER(c_double))


def floats(*shape: int) -> int:
    return tensor(np.ones(shape, np.float32))


# ------ shapes and sizes ------

for function in ("ga_tensor_create", "ga_tensor_from_data", "ga_tensor_wrap"):
    case(f"{function}: unknown device", UNSUPPORTED, "device")(changed(function, 1, 1))
    for dtype in (0, 6, -1, I32_MAX, I32_MIN):
        case(f"{function}: dtype {dtype}", INVALID_ARGUMENT, "dtype")(changed(function, 2, dtype))
    for rank in (-1, 9, I32_MAX, I32_MIN):
        case(f"{function}: rank {rank}", INVALID_ARGUMENT, "rank")(changed(function, 3, rank))
    for size in (-1, I64_MIN):
        case(f"{function}: size {size}", INVALID_ARGUMENT, "shape")(changed(function, 4, sizes(2, size)))
    for a, b in ((2**40, 2**40), (2**31, 2**31), (2**62, 1), (I64_MAX, I64_MAX), (2**61, 1)):
        case(f"{function}: shape {a} x {b}", OVERFLOW, "shape")(changed(function, 4, sizes(a, b)))
case("ga_tensor_create: more than there is", (OUT_OF_MEMORY, OVERFLOW))(
    changed("ga_tensor_create", 4, sizes(2**40, 2**8))
)
case("ga_tensor_wrap: negative stride", INVALID_ARGUMENT, "strides")(
    changed("ga_tensor_wrap", 5, sizes(3, -1))
)
case("ga_tensor_wrap: strides out of the address space", OVERFLOW, "strides")(
    changed("ga_tensor_wrap", 5, sizes(2**62, 1))
)
for function in ("ga_tensor_copy_in", "ga_tensor_copy_out"):
    for size in (0, 31, 33, 2**64 - 1):
        case(f"{function}: {size} bytes", (INVALID_ARGUMENT, SHAPE), "size_bytes")(changed(function, 2, size))
for function in ("ga_tensor_shape", "ga_tensor_strides"):
    for capacity in (-1, 0, 1, I32_MIN):
        case(f"{function}: capacity {capacity}", INVALID_ARGUMENT, "capacity")(changed(function, 2, capacity))
case("ga_tensor_item: of a matrix", SHAPE, "tensor")(changed("ga_tensor_item", 0, lambda w: w.x))
case("ga_tensor_item: of nothing", SHAPE, "tensor")(changed("ga_tensor_item", 0, lambda w: floats(0)))

# ------ tensors ------

case("ga_tensor_fill_normal: integers", DTYPE, "tensor")(
    changed("ga_tensor_fill_normal", 0, lambda w: ints(2))
)
case("ga_tensor_fill_uniform: halves", DTYPE, "tensor")(
    changed("ga_tensor_fill_uniform", 0, lambda w: halves(2))
)
for value in (NAN, INF, -1.0):
    case(f"ga_tensor_fill_normal: deviation {value}", INVALID_ARGUMENT, "standard_deviation")(
        changed("ga_tensor_fill_normal", 2, value)
    )
case("ga_tensor_fill_normal: mean", INVALID_ARGUMENT, "mean")(changed("ga_tensor_fill_normal", 1, NAN))
case("ga_tensor_fill_uniform: low", INVALID_ARGUMENT, "low")(changed("ga_tensor_fill_uniform", 1, NAN))
case("ga_tensor_fill_uniform: high", INVALID_ARGUMENT, "high")(changed("ga_tensor_fill_uniform", 2, INF))
for value in (2, -1):
    case(f"ga_tensor_set_requires_grad: {value}", INVALID_ARGUMENT, "requires_grad")(
        changed("ga_tensor_set_requires_grad", 1, value)
    )
    case(f"ga_set_recording: {value}", INVALID_ARGUMENT, "recording")(
        lambda w, value=value: ("ga_set_recording", value)
    )
case("ga_tensor_set_requires_grad: integers", DTYPE, "tensor")(
    changed("ga_tensor_set_requires_grad", 0, lambda w: ints(2))
)
case("ga_tensor_set_requires_grad: result of an operation", STATE, "tensor")(
    lambda w: ("ga_tensor_set_requires_grad", made(raw.ga_relu, w.weight), 0)
)
case("ga_scope_close: negative count", INVALID_ARGUMENT, "keep_count")(changed("ga_scope_close", 2, -1))

# ------ operations ------

for function in ("ga_add", "ga_subtract", "ga_multiply", "ga_divide"):
    case(f"{function}: shapes", SHAPE, "a", "b")(changed(function, 2, lambda w: floats(3)))
    case(f"{function}: integers", DTYPE, "a")(changed(function, 1, lambda w: ints(2, 4)))
    case(f"{function}: integers on the right", DTYPE, "b")(changed(function, 2, lambda w: ints(2, 4)))
for operand, at in (("a", 1), ("b", 2)):
    case(f"ga_matmul: {operand} is a vector", SHAPE, operand)(changed("ga_matmul", at, lambda w: floats(4)))
    case(f"ga_matmul: {operand} of integers", DTYPE, operand)(changed("ga_matmul", at, lambda w: ints(4, 4)))
case("ga_matmul: inner sizes", SHAPE, "a", "b")(changed("ga_matmul", 2, lambda w: floats(5, 3)))
case("ga_matmul: leading axes", SHAPE)(changed("ga_matmul", 2, lambda w: floats(3, 4, 3)))
case("ga_linear: inner sizes", SHAPE, "x", "weight")(changed("ga_linear", 1, lambda w: floats(2, 5)))
case("ga_linear: x is a scalar", SHAPE, "x")(changed("ga_linear", 1, lambda w: w.scalar))
case("ga_linear: weight of rank 3", SHAPE, "weight")(changed("ga_linear", 2, lambda w: w.sequence))
case("ga_linear: bias of another size", SHAPE, "bias")(changed("ga_linear", 3, lambda w: floats(4)))
case("ga_linear: bias is a matrix", SHAPE, "bias")(changed("ga_linear", 3, lambda w: floats(1, 3)))
for parameter, at in (("x", 1), ("weight", 2), ("bias", 3)):
    case(f"ga_linear: {parameter} of integers", DTYPE, parameter)(
        changed("ga_linear", at, lambda w, at=at: ints(*((2, 4), (3, 4), (3,))[at - 1]))
    )
case("ga_layer_norm: x is a scalar", SHAPE, "x")(changed("ga_layer_norm", 1, lambda w: w.scalar))
case("ga_layer_norm: weight", SHAPE, "weight")(changed("ga_layer_norm", 2, lambda w: floats(3)))
case("ga_layer_norm: bias", SHAPE, "bias")(changed("ga_layer_norm", 3, lambda w: floats(2, 4)))
for eps in (NAN, INF, -1e-5):
    case(f"ga_layer_norm: eps {eps}", INVALID_ARGUMENT, "eps")(changed("ga_layer_norm", 4, eps))
for value in (2, -1, I32_MIN):
    case(f"ga_gelu: approximation {value}", INVALID_ARGUMENT, "approximation")(changed("ga_gelu", 2, value))
case("ga_relu: integers", DTYPE, "x")(changed("ga_relu", 1, lambda w: ints(2)))
case("ga_gelu: integers", DTYPE, "x")(changed("ga_gelu", 1, lambda w: ints(2)))
case("ga_softmax: integers", DTYPE, "x")(changed("ga_softmax", 1, lambda w: ints(2, 2)))
for axis in (2, -3, I32_MAX, I32_MIN):
    case(f"ga_softmax: axis {axis}", INVALID_ARGUMENT, "axis")(changed("ga_softmax", 2, axis))
    case(f"ga_transpose: axis_a {axis}", INVALID_ARGUMENT, "axis_a")(changed("ga_transpose", 2, axis))
    case(f"ga_transpose: axis_b {axis}", INVALID_ARGUMENT, "axis_b")(changed("ga_transpose", 3, axis))
    case(f"ga_slice: axis {axis}", INVALID_ARGUMENT, "axis")(changed("ga_slice", 2, axis))
    for function in ("ga_sum", "ga_mean"):
        case(f"{function}: axis {axis}", INVALID_ARGUMENT, "axes")(changed(function, 2, (c_int32 * 1)(axis)))
for function in ("ga_sum", "ga_mean"):
    case(f"{function}: the same axis twice", INVALID_ARGUMENT, "axes")(
        lambda w, function=function: (function, out(), w.x, (c_int32 * 2)(1, -1), 2, 0)
    )
    case(f"{function}: negative count", INVALID_ARGUMENT, "axis_count")(changed(function, 3, -1))
    case(f"{function}: huge count", INVALID_ARGUMENT, "axis_count")(changed(function, 3, I32_MAX))
    case(f"{function}: integers", DTYPE, "x")(changed(function, 1, lambda w: ints(2, 2)))
case("ga_cross_entropy: logits is a scalar", SHAPE, "logits")(
    changed("ga_cross_entropy", 1, lambda w: w.scalar)
)
case("ga_cross_entropy: targets", SHAPE, "targets")(
    changed("ga_cross_entropy", 2, lambda w: tensor(np.array([0, 1, 2])))
)
case("ga_cross_entropy: targets of floats", DTYPE, "targets")(
    changed("ga_cross_entropy", 2, lambda w: floats(2))
)
case("ga_cross_entropy: logits of integers", DTYPE, "logits")(
    changed("ga_cross_entropy", 1, lambda w: ints(2, 4))
)
for reduction in (2, -1):
    case(f"ga_cross_entropy: reduction {reduction}", INVALID_ARGUMENT, "reduction")(
        changed("ga_cross_entropy", 4, reduction)
    )
    case(f"ga_mse: reduction {reduction}", INVALID_ARGUMENT, "reduction")(changed("ga_mse", 3, reduction))
for kind in (np.int32, np.int64):
    for index in (-1, 4, 2**31 - 1, -(2**31)) + ((2**40, I64_MIN + 1, I64_MAX) if kind is np.int64 else ()):
        indices = lambda w, i=index, k=kind: tensor(np.array([0, i], k))  # noqa: E731
        case(f"ga_cross_entropy: {kind.__name__} target {index}", INDEX, "targets", str(index))(
            changed("ga_cross_entropy", 2, indices)
        )
        case(f"ga_embedding: {kind.__name__} index {index}", INDEX, "indices", str(index))(
            changed("ga_embedding", 2, indices)
        )
case("ga_cross_entropy: a negative target that is not the ignored one", INDEX, "targets", "-2")(
    lambda w: ("ga_cross_entropy", out(), w.x, tensor(np.array([-1, -2])), -1, SUM)
)
case("ga_embedding: weight of rank 1", SHAPE, "weight")(changed("ga_embedding", 1, lambda w: floats(4)))
case("ga_embedding: weight of integers", DTYPE, "weight")(changed("ga_embedding", 1, lambda w: ints(3, 4)))
case("ga_embedding: indices of floats", DTYPE, "indices")(changed("ga_embedding", 2, lambda w: floats(2)))
case("ga_mse: shapes", SHAPE, "target")(changed("ga_mse", 2, lambda w: floats(4)))
case("ga_mse: integers", DTYPE, "target")(changed("ga_mse", 2, lambda w: ints(2, 4)))
for heads in (0, -1, 3, I32_MIN, I32_MAX):
    case(f"ga_causal_attention: heads {heads}", (INVALID_ARGUMENT, SHAPE), "heads")(
        changed("ga_causal_attention", 4, heads)
    )
case("ga_causal_attention: q of rank 2", SHAPE, "q")(changed("ga_causal_attention", 1, lambda w: w.x))
case("ga_causal_attention: k", SHAPE, "k")(changed("ga_causal_attention", 2, lambda w: floats(2, 3, 6)))
case("ga_causal_attention: v", SHAPE, "v")(changed("ga_causal_attention", 3, lambda w: floats(2, 2, 4)))
case("ga_causal_attention: v of integers", DTYPE, "v")(
    changed("ga_causal_attention", 3, lambda w: ints(2, 3, 4))
)
case("ga_reshape: other count", SHAPE, "shape")(changed("ga_reshape", 3, sizes(3, 3)))
case("ga_reshape: -1 that divides nothing", SHAPE, "shape")(changed("ga_reshape", 3, sizes(3, -1)))
case("ga_reshape: two -1", INVALID_ARGUMENT, "shape")(changed("ga_reshape", 3, sizes(-1, -1)))
case("ga_reshape: -2", INVALID_ARGUMENT, "shape")(changed("ga_reshape", 3, sizes(-2, -4)))
case("ga_reshape: -1 beside 0", SHAPE, "shape")(
    lambda w: ("ga_reshape", out(), floats(0, 3), 2, sizes(0, -1))
)
case("ga_reshape: overflow", (OVERFLOW, SHAPE), "shape")(changed("ga_reshape", 3, sizes(2**62, 4)))
for rank in (-1, 9, I32_MAX):
    case(f"ga_reshape: rank {rank}", INVALID_ARGUMENT, "rank")(changed("ga_reshape", 2, rank))
for start, stop, word in (
    (-1, 2, "start"),
    (3, 2, "st"),
    (0, 5, "stop"),
    (I64_MIN, I64_MAX, "st"),
    (5, 5, "st"),
    (I64_MAX, I64_MIN, "st"),
):
    case(f"ga_slice: {start} ... {stop}", (INVALID_ARGUMENT, INDEX), word)(
        lambda w, start=start, stop=stop: ("ga_slice", out(), w.x, 1, start, stop)
    )
for dtype in (0, 6, -1):
    case(f"ga_cast: dtype {dtype}", INVALID_ARGUMENT, "dtype")(changed("ga_cast", 2, dtype))
case("ga_cast: floats to integers", DTYPE)(changed("ga_cast", 2, _ffi.INT32))

# ------ runtime ------

for count in (0, -1, I32_MIN):
    case(f"ga_set_num_threads: {count}", INVALID_ARGUMENT, "count")(
        lambda w, count=count: ("ga_set_num_threads", count)
    )
for dtype in (0, 6, -1, I32_MAX, I32_MIN):
    case(f"ga_set_compute_dtype: {dtype}", INVALID_ARGUMENT, "dtype")(
        lambda w, dtype=dtype: ("ga_set_compute_dtype", dtype)
    )
for dtype in (_ffi.INT32, _ffi.INT64):
    case(f"ga_set_compute_dtype: {dtype}, which is no compute type", UNSUPPORTED, "dtype", "bfloat16")(
        lambda w, dtype=dtype: ("ga_set_compute_dtype", dtype)
    )
case("ga_set_allocator: in use", STATE)(
    lambda w: (
        "ga_set_allocator",
        _ffi.AllocateFn(lambda n, a, u: None),
        _ffi.ReleaseFn(lambda m, n, u: None),
        None,
    )
)
case("ga_set_allocator: release is missing", INVALID_ARGUMENT, "release")(
    lambda w: ("ga_set_allocator", _ffi.AllocateFn(lambda n, a, u: None), _ffi.ReleaseFn(), None)
)
case("ga_set_allocator: allocate is missing", INVALID_ARGUMENT, "allocate")(
    lambda w: ("ga_set_allocator", _ffi.AllocateFn(), _ffi.ReleaseFn(lambda m, n, u: None), None)
)

# ------ autograd ------

case("ga_gradients: loss is no scalar", SHAPE, "loss")(
    changed("ga_gradients", 1, lambda w: made(raw.ga_relu, w.weight))
)
case("ga_gradients: loss has no graph", INVALID_ARGUMENT, "loss")(
    changed("ga_gradients", 1, lambda w: w.scalar)
)
case("ga_gradients: an input is no leaf", INVALID_ARGUMENT, "inputs")(
    changed("ga_gradients", 2, lambda w: handles(w.weight, made(raw.ga_relu, w.bias)))
)
case("ga_gradients: an input needs no gradient", INVALID_ARGUMENT, "inputs")(
    changed("ga_gradients", 2, lambda w: handles(w.weight, w.x))
)
for count in (-1, I64_MIN):
    case(f"ga_gradients: count {count}", INVALID_ARGUMENT, "count")(changed("ga_gradients", 3, count))

# ------ optimizers ------


def used(w: World) -> int:
    """A loss whose graph is used up."""
    loss = w.loss()
    ok(raw.ga_accumulate(w.accumulator, loss, 2.0))
    return loss


OPTIMIZERS = {
    "ga_sgd_create": (_ffi.SGDOptions, ("learning_rate", "momentum", "weight_decay")),
    "ga_adam_create": (_ffi.AdamOptions, ("learning_rate", "beta1", "beta2", "eps", "weight_decay")),
    "ga_adamw_create": (_ffi.AdamWOptions, ("learning_rate", "beta1", "beta2", "eps", "weight_decay")),
    "ga_radam_create": (_ffi.RAdamOptions, ("learning_rate", "beta1", "beta2", "eps", "weight_decay")),
    "ga_nadam_create": (
        _ffi.NAdamOptions,
        ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "momentum_decay"),
    ),
    "ga_lion_create": (_ffi.LionOptions, ("learning_rate", "beta1", "beta2", "weight_decay")),
    "ga_lamb_create": (_ffi.LAMBOptions, ("learning_rate", "beta1", "beta2", "eps", "weight_decay")),
    "ga_lars_create": (_ffi.LARSOptions, ("learning_rate", "momentum", "weight_decay", "trust_coefficient")),
    "ga_adafactor_create": (
        _ffi.AdafactorOptions,
        ("learning_rate", "eps1", "eps2", "clipping_threshold", "weight_decay"),
    ),
    "ga_muon_create": (
        _ffi.MuonOptions,
        ("learning_rate", "weight_decay", "momentum", "eps", "adamw_learning_rate_ratio", "adamw_beta1", "adamw_beta2", "adamw_eps", "adamw_weight_decay"),
    ),
    "ga_adamw8bit_create": (
        _ffi.AdamW8bitOptions,
        ("learning_rate", "beta1", "beta2", "eps", "weight_decay"),
    ),
}
for function, (struct, fields) in OPTIMIZERS.items():
    for field in fields:
        denormal = (1e-40,) if field in ("eps", "adamw_eps") else ()
        for value in (NAN, INF, -0.1, *denormal, *((1.0,) if field.startswith("beta") else ())):
            case(f"{function}: {field} {value}", INVALID_ARGUMENT, field)(
                changed(function, 3, lambda w, s=struct, f=field, v=value: s(**{f: v}))
            )
    case(f"{function}: a tensor twice", INVALID_ARGUMENT, "parameters")(
        changed(function, 1, lambda w: handles(w.free_leaves[0], w.free_leaves[0]))
    )
    case(f"{function}: a parameter of another optimizer", STATE, "parameters")(
        changed(function, 1, lambda w: handles(w.free_leaves[0], w.weight))
    )
    case(f"{function}: result of an operation", (INVALID_ARGUMENT, STATE), "parameter")(
        changed(function, 1, lambda w: handles(w.free_leaves[0], made(raw.ga_relu, w.weight)))
    )
    case(f"{function}: integers", DTYPE, "parameter")(
        changed(function, 1, lambda w: handles(w.free_leaves[0], ints(2)))
    )
    case(f"{function}: not contiguous", (INVALID_ARGUMENT, STATE, SHAPE), "parameter")(
        changed(function, 1, lambda w: handles(w.free_leaves[0], made(raw.ga_transpose, w.x, 0, 1)))
    )
    for count in (0, -1, I64_MIN):
        case(f"{function}: count {count}", INVALID_ARGUMENT, "parameters")(changed(function, 2, count))
case("ga_sgd_create: nesterov without momentum", INVALID_ARGUMENT, "nesterov", "momentum")(
    changed("ga_sgd_create", 3, lambda w: _ffi.SGDOptions(nesterov=1))
)
case("ga_sgd_create: nesterov 2", INVALID_ARGUMENT, "nesterov")(
    changed("ga_sgd_create", 3, lambda w: _ffi.SGDOptions(nesterov=2, momentum=0.9))
)
for value in (NAN, -INF, 0.1):
    case(f"ga_adafactor_create: beta2_decay {value}", INVALID_ARGUMENT, "beta2_decay")(
        changed("ga_adafactor_create", 3, lambda w, v=value: _ffi.AdafactorOptions(beta2_decay=v))
    )
case("ga_adafactor_create: eps1 0", INVALID_ARGUMENT, "eps1")(
    changed("ga_adafactor_create", 3, lambda w: _ffi.AdafactorOptions(eps1=0.0))
)
case("ga_adafactor_create: clipping_threshold 0.9", INVALID_ARGUMENT, "clipping_threshold")(
    changed("ga_adafactor_create", 3, lambda w: _ffi.AdafactorOptions(clipping_threshold=0.9))
)
for field, value in (
    ("learning_rate", NAN),
    ("learning_rate", -0.1),
    ("elementwise", 2),
    ("slot_count", -1),
    ("slot_count", 65),
    ("slot_count", I64_MAX),
    ("weight_decay", -0.1),
    ("weight_decay", INF),
):
    case(f"ga_custom_create: {field} {value}", INVALID_ARGUMENT, field)(
        changed("ga_custom_create", 6, lambda w, f=field, v=value: _ffi.CustomOptions(**{f: v}))
    )
case("ga_adamw8bit_create: min_8bit_size -1", INVALID_ARGUMENT, "min_8bit_size")(
    changed("ga_adamw8bit_create", 3, lambda w: _ffi.AdamW8bitOptions(min_8bit_size=-1))
)
for field, value in (
    ("nesterov", 2),
    ("momentum", 1.1),
    ("ns_coefficient_a", NAN),
    ("ns_coefficient_b", INF),
    ("ns_coefficient_c", -INF),
    ("eps", 0.0),
    ("ns_steps", -1),
    ("ns_steps", 100),
    ("adjust_lr", 3),
    ("adamw_beta1", 1.0),
    ("adamw_beta2", 1.0),
    ("adamw_parameter_count", 1),
    ("adamw_parameter_count", -1),
):
    case(f"ga_muon_create: {field} {value} alone", INVALID_ARGUMENT, field)(
        changed("ga_muon_create", 3, lambda w, f=field, v=value: _ffi.MuonOptions(**{f: v}))
    )
for place in (-1, 2, I64_MIN, I64_MAX):
    case(f"ga_muon_create: adamw_parameters {place}", INDEX, "adamw_parameters", str(place))(
        changed(
            "ga_muon_create",
            3,
            lambda w, p=place: _ffi.MuonOptions(adamw_parameters=sizes(0, p), adamw_parameter_count=2),
        )
    )
for value in (NAN, INF, -0.1):
    case(f"ga_optimizer_set_learning_rate: {value}", INVALID_ARGUMENT, "learning_rate")(
        changed("ga_optimizer_set_learning_rate", 1, value)
    )


# ------ groups ------

for function, at in (("ga_optimizer_add_group", 3), ("ga_optimizer_set_group", 2)):
    for field, value in (
        ("learning_rate_scale", -0.1),
        ("learning_rate_scale", NAN),
        ("learning_rate_scale", INF),
        ("learning_rate_scale", 1e300),
        ("weight_decay", NAN),
        ("weight_decay", INF),
        ("weight_decay", 1e39),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", NAN),
        ("max_grad_norm", INF),
    ):
        case(f"{function}: {field} {value}", INVALID_ARGUMENT, field)(
            changed(function, at, lambda w, f=field, v=value: _ffi.GroupOptions(**{f: v}))
        )
for count in (0, -1, I64_MIN):
    case(f"ga_optimizer_add_group: count {count}", INVALID_ARGUMENT, "parameters" if count == 0 else "count")(
        changed("ga_optimizer_add_group", 2, count)
    )
case("ga_optimizer_add_group: of another optimizer", INVALID_ARGUMENT, "parameters[0]", "create")(
    lambda w: ("ga_optimizer_add_group", w.free_optimizer, handles(w.weight), 1, None, patterned(c_int64))
)
case("ga_optimizer_add_group: no parameter", INVALID_ARGUMENT, "parameters[0]")(
    changed("ga_optimizer_add_group", 1, lambda w: handles(w.x))
)
case("ga_optimizer_add_group: in a group", STATE, "parameters[0]", "group 0")(
    changed("ga_optimizer_add_group", 1, lambda w: handles(w.bias))
)
case("ga_optimizer_add_group: twice", INVALID_ARGUMENT, "parameters[0]", "parameters[1]")(
    lambda w: (
        "ga_optimizer_add_group",
        w.optimizer,
        handles(w.weight, w.weight),
        2,
        None,
        patterned(c_int64),
    )
)
for group in (-1, 1, I64_MIN, I64_MAX):
    for function in ("ga_optimizer_set_group", "ga_optimizer_group"):
        case(f"{function}: {group}", INDEX, "group")(changed(function, 1, group))
case("ga_optimizer_group: of an optimizer without", INDEX, "group", "add")(
    changed("ga_optimizer_group", 0, lambda w: w.free_optimizer)
)

# ------ schedules ------

for value in (2, -1, I32_MAX):
    case(f"ga_optimizer_clock: clock {value}", INVALID_ARGUMENT, "clock")(changed("ga_optimizer_clock", 1, value))


def schedule_case(kind: str, word: str, /, **fields: object) -> None:
    """A schedule that both functions refuse; without a kind, a cosine."""
    options = {"kind": getattr(_ffi, f"SCHEDULE_{kind}"), "duration": 0.0, "warmup": 0.0, "warmup_start_factor": 0.0}
    given = {**(options if kind != "COSINE" else {}), **fields}
    for function, at in (("ga_optimizer_set_schedule", 1), ("ga_schedule_factor", 0)):
        case(f"{function}: {kind} with {fields}", INVALID_ARGUMENT, word)(
            changed(function, at, lambda w: cosine(**given))
        )


for value in (9, -1, I32_MIN):
    schedule_case("COSINE", "kind", kind=value)
    schedule_case("COSINE", "clock", clock=value)
    schedule_case("ONE_CYCLE", "anneal", duration=9.0, anneal=value)
    schedule_case("PLATEAU", "plateau_signal", plateau_signal=value)
    schedule_case("PLATEAU", "plateau_mode", plateau_mode=value)
    schedule_case("PLATEAU", "threshold_mode", threshold_mode=value)
for value in (NAN, INF, -INF, -1.0):
    schedule_case("COSINE", "start", start=value)
    schedule_case("COSINE", "warmup", warmup=value)
    schedule_case("COSINE", "warmup_start_factor", warmup_start_factor=value)
    schedule_case("COSINE", "duration", duration=value)
    schedule_case("LINEAR", "end_factor", duration=9.0, end_factor=value)
    schedule_case("INVERSE_SQRT", "timescale", timescale=value)
    schedule_case("STEP", "period", period=value)
    schedule_case("STEP", "gamma", period=1.0, gamma=value)
    schedule_case("EXPONENTIAL", "gamma", period=1.0, gamma=value)
    schedule_case("ONE_CYCLE", "pct_start", duration=9.0, pct_start=value)
    schedule_case("ONE_CYCLE", "div_factor", duration=9.0, div_factor=value)
    schedule_case("ONE_CYCLE", "final_div_factor", duration=9.0, final_div_factor=value)
    schedule_case("PLATEAU", "gamma", gamma=value)
    schedule_case("PLATEAU", "threshold", threshold=value)
    schedule_case("PLATEAU", "min_factor", min_factor=value)
    case(f"ga_schedule_factor: clock {value}", INVALID_ARGUMENT, "clock")(changed("ga_schedule_factor", 1, value))
schedule_case("COSINE", "warmup of 10.0", duration=10.0)
schedule_case("COSINE", "warmup_start_factor", warmup_start_factor=1.5)
schedule_case("INVERSE_SQRT", "timescale")
schedule_case("EXPONENTIAL", "period")
schedule_case("PLATEAU", "gamma", gamma=1.0)
schedule_case("PLATEAU", "min_factor", min_factor=1.5)
schedule_case("PLATEAU", "patience", patience=-1)
schedule_case("PLATEAU", "cooldown", cooldown=I64_MIN)
schedule_case("TABLE", "at least one")
for times, factors in (((1.0, 1.0), (1.0, 1.0)), ((2.0, 1.0), (1.0, 1.0)), ((0.0, NAN), (1.0, 1.0))):
    schedule_case("TABLE", "times[1]", table_count=2, times=doubles(*times), factors=doubles(*factors))
for value in (NAN, INF, -1.0):
    schedule_case("TABLE", "factors[0]", table_count=1, times=doubles(0.0), factors=doubles(value))
    schedule_case("TABLE", "times[0]", table_count=1, times=doubles(value), factors=doubles(1.0))
schedule_case("TABLE", "times is NULL", table_count=1, factors=doubles(1.0))
schedule_case("TABLE", "factors is NULL", table_count=1, times=doubles(1.0))
for value in (-1, I64_MAX):
    schedule_case("TABLE", "table_count", table_count=value, times=doubles(0.0), factors=doubles(1.0))
schedule_case("TABLE", "interpolated", table_count=1, times=doubles(0.0), factors=doubles(1.0), interpolated=2)
# What a kind does not have would have no effect.
for field in ("duration", "end_factor", "period", "gamma", "timescale", "pct_start", "div_factor", "final_div_factor"):
    schedule_case("CONSTANT", field, **{field: 0.5})
for field in ("threshold", "min_factor"):
    schedule_case("CONSTANT", field, **{field: 0.5})
for field in ("anneal", "plateau_signal", "plateau_mode", "threshold_mode", "patience", "cooldown", "table_count"):
    schedule_case("CONSTANT", field, **{field: 1})
schedule_case("CONSTANT", "interpolated", interpolated=0)
schedule_case("CONSTANT", "times", times=doubles(0.0))
schedule_case("CONSTANT", "factors", factors=doubles(0.0))
case("ga_schedule_factor: beyond the largest number", OVERFLOW, "gamma")(
    lambda w: (
        "ga_schedule_factor",
        _ffi.ScheduleOptions(kind=_ffi.SCHEDULE_EXPONENTIAL, period=1.0, gamma=10.0),
        400.0,
        c_double(),
    )
)
for value in (NAN, INF, -INF):
    case(f"ga_optimizer_report_metric: {value}", NON_FINITE, "metric")(
        changed("ga_optimizer_report_metric", 1, value)
    )
case("ga_optimizer_report_metric: without a schedule", STATE, "plateau")(
    lambda w: ("ga_optimizer_report_metric", w.optimizer, 1.0)
)


@case("ga_optimizer_report_metric: to a plateau of the loss", STATE, "metric")
def _of_the_loss(w: World) -> tuple:
    ok(raw.ga_optimizer_set_schedule(w.optimizer, _ffi.ScheduleOptions(kind=_ffi.SCHEDULE_PLATEAU)))
    return "ga_optimizer_report_metric", w.optimizer, 1.0


def growing(optimizer: int) -> int:
    """Beyond what a float holds from the first update on."""
    factors = _ffi.ScheduleOptions(
        kind=_ffi.SCHEDULE_TABLE, table_count=1, times=doubles(0.0), factors=doubles(1e300)
    )
    ok(raw.ga_optimizer_set_schedule(optimizer, factors))
    return optimizer


case("ga_optimizer_next_learning_rate: too large", OVERFLOW, "learning rate", "1e+300")(
    lambda w: ("ga_optimizer_next_learning_rate", growing(w.free_optimizer), c_double())
)

# ------ scaling ------

for value in (NAN, INF, 0.0, -1.0):
    case(f"ga_optimizer_set_scaling: base_weight {value}", INVALID_ARGUMENT, "base_weight")(
        changed("ga_optimizer_set_scaling", 1, lambda w, v=value: _ffi.ScalingOptions(rule=1, base_weight=v))
    )
for field, value in (("rule", 3), ("rule", -1), ("beta2_half_life", 2)):
    case(f"ga_optimizer_set_scaling: {field} {value}", INVALID_ARGUMENT, field)(
        changed(
            "ga_optimizer_set_scaling",
            1,
            lambda w, f=field, v=value: _ffi.ScalingOptions(**{"base_weight": 1.0, f: v}),
        )
    )
case("ga_optimizer_set_scaling: of an optimizer without beta2", INVALID_ARGUMENT, "beta2_half_life", "sgd")(
    changed("ga_optimizer_set_scaling", 1, lambda w: _ffi.ScalingOptions(base_weight=1.0, beta2_half_life=1))
)

# ------ state of optimizers ------

for function in ("ga_optimizer_save_state", "ga_optimizer_load_state"):
    for size in (-1, 0, 8, 1 << 40 if function == "ga_optimizer_save_state" else 24, I64_MIN):
        case(f"{function}: size_bytes {size}", INVALID_ARGUMENT, "state")(changed(function, 2, size))


def loaded(given: Callable[[], int]) -> Call:
    """Into an optimizer of the rule SGD with the shape [2]."""

    def call(w: World) -> tuple:
        saved = state(given())
        return "ga_optimizer_load_state", w.free_optimizer, saved, len(saved)

    return call


case("ga_optimizer_load_state: of another rule", INVALID_ARGUMENT, "adamw", "sgd")(
    loaded(lambda: optimizer([leaf(np.ones(2))], "ga_adamw_create"))
)
case("ga_optimizer_load_state: of another shape", SHAPE, "parameters[0]", "[7]")(
    loaded(lambda: optimizer([leaf(np.ones(7))]))
)
case("ga_optimizer_load_state: no state", INVALID_ARGUMENT, "save_state")(
    lambda w: ("ga_optimizer_load_state", w.optimizer, b"x" * 200, 200)
)


# ------ averages of weights ------

for decay in (NAN, INF, -0.1, 1.0):
    case(f"ga_average_create: decay {decay}", INVALID_ARGUMENT, "decay")(
        changed("ga_average_create", 2, lambda w, d=decay: _ffi.AverageOptions(decay=d))
    )
for value in (NAN, INF, -1.0):
    case(f"ga_average_create: half_life {value}", INVALID_ARGUMENT, "half_life")(
        changed("ga_average_create", 2, lambda w, v=value: _ffi.AverageOptions(half_life=v))
    )
for value in (2, -1):
    case(f"ga_average_create: clock {value}", INVALID_ARGUMENT, "clock")(
        changed("ga_average_create", 2, lambda w, v=value: _ffi.AverageOptions(clock=v))
    )
    case(f"ga_average_create: warmup {value}", INVALID_ARGUMENT, "warmup")(
        changed("ga_average_create", 2, lambda w, v=value: _ffi.AverageOptions(warmup=v))
    )
case("ga_average_create: a decay by weight", INVALID_ARGUMENT, "half_life")(
    changed("ga_average_create", 2, lambda w: _ffi.AverageOptions(clock=_ffi.CLOCK_WEIGHT))
)
for index in (-1, 2, I64_MIN, I64_MAX):
    case(f"ga_average_weights: index {index}", INDEX, "index")(changed("ga_average_weights", 2, index))
for count in (-1, 0, 1, 3, I64_MIN, I64_MAX):
    case(f"ga_average_load: count {count}", INVALID_ARGUMENT, "count")(
        lambda w, n=count: ("ga_average_load", w.average, handles(w.weight, w.bias, w.bias), n, 0)
    )
for updates in (-1, 2**53 + 1, I64_MIN, I64_MAX):
    case(f"ga_average_load: updates {updates}", INVALID_ARGUMENT, "updates")(changed("ga_average_load", 3, updates))
case("ga_average_load: of another shape", SHAPE, "weights[1]", "[4]")(
    changed("ga_average_load", 1, lambda w: handles(w.weight, w.gain))
)
case("ga_average_load: of another type", DTYPE, "weights[1]", "int64")(
    changed("ga_average_load", 1, lambda w: handles(w.weight, w.targets))
)
case("ga_average_swap_out: not in", STATE, "swap_in")(lambda w: ("ga_average_swap_out", w.average))

# ------ splitting ------

for function in ("ga_split_by_count", "ga_split_by_size"):
    for samples in (0, -1, I64_MIN):
        case(f"{function}: samples {samples}", INVALID_ARGUMENT, "samples")(changed(function, 3, samples))
for samples in (0, -1, I64_MIN, I64_MAX):
    case(f"ga_split_by_tokens: samples {samples}", INVALID_ARGUMENT, "samples")(
        changed("ga_split_by_tokens", 4, samples)
    )
for value in (0, -1, 8, I64_MIN, I64_MAX):
    case(f"ga_split_by_count: micro_batches {value}", INVALID_ARGUMENT, "micro_batches")(
        changed("ga_split_by_count", 4, value)
    )
for value in (0, -1, I64_MIN):
    case(f"ga_split_by_size: size {value}", INVALID_ARGUMENT, "size")(changed("ga_split_by_size", 4, value))
for value in (0, -1, 4, I64_MIN):
    case(f"ga_split_by_tokens: token_budget {value}", INVALID_ARGUMENT, "token_budget")(
        changed("ga_split_by_tokens", 5, value)
    )
for value in (-1, 7, I64_MIN, I64_MAX):
    case(f"ga_split_by_tokens: length {value}", INVALID_ARGUMENT, "lengths[2]")(
        changed("ga_split_by_tokens", 3, sizes(3, 3, value, 5))
    )
case("ga_split_by_tokens: padded", INVALID_ARGUMENT, "padded")(changed("ga_split_by_tokens", 6, 2))
for function in ("ga_split_by_count", "ga_split_by_size", "ga_split_by_tokens"):
    for capacity in (3, 0, -1, I64_MIN):
        case(f"{function}: capacity {capacity}", INVALID_ARGUMENT, "capacity")(changed(function, 1, capacity))
case("ga_split_by_count: more micro-batches than memory", INVALID_ARGUMENT, "capacity")(
    lambda w: ("ga_split_by_count", sizes(0), 1, sizes(0), I64_MAX, I64_MAX)
)

# ------ accumulation ------

case("ga_accumulator_create: the optimizer has one", STATE, "optimizer")(
    changed("ga_accumulator_create", 1, lambda w: w.optimizer)
)
for field, value in (
    ("loss_reduction", 2),
    ("loss_reduction", -1),
    ("accumulation_steps", 0),
    ("accumulation_steps", -1),
    ("max_grad_norm", -1.0),
    ("max_grad_norm", NAN),
    ("max_grad_value", -1.0),
    ("max_grad_value", INF),
    ("max_grad_value", 1e-60),
    ("agc_clipping", -0.01),
    ("agc_clipping", NAN),
    ("agc_eps", 0.0),
    ("agc_eps", INF),
):
    case(f"ga_accumulator_create: {field} {value}", INVALID_ARGUMENT, field)(
        changed("ga_accumulator_create", 2, lambda w, f=field, v=value: _ffi.AccumulatorOptions(**{f: v}))
    )
for weight in (NAN, INF, -INF, -1.0):
    case(f"ga_accumulate: weight {weight}", INVALID_ARGUMENT, "weight")(changed("ga_accumulate", 2, weight))
    case(f"ga_accumulate_gradients: weight {weight}", INVALID_ARGUMENT, "weight")(
        changed("ga_accumulate_gradients", 5, weight)
    )
case("ga_accumulate: loss is no scalar", SHAPE, "loss")(
    changed("ga_accumulate", 1, lambda w: made(raw.ga_linear, w.x, w.weight, w.bias))
)
case("ga_accumulate: loss without a parameter", INVALID_ARGUMENT, "loss")(
    changed("ga_accumulate", 1, lambda w: w.scalar)
)
case("ga_accumulate: loss of a leaf without optimizer", INVALID_ARGUMENT, "loss")(
    changed("ga_accumulate", 1, lambda w: made(raw.ga_sum, w.free_leaves[0], None, 0, 0))
)
case("ga_accumulate: loss of an optimizer without accumulator", INVALID_ARGUMENT, "loss")(
    lambda w: ("ga_accumulate", w.accumulator, loss_of(leaf_of_optimizer()), 1.0)
)
case("ga_accumulate: loss of another accumulator's parameter", INVALID_ARGUMENT, "loss")(
    lambda w: ("ga_accumulate", w.accumulator, loss_of(leaf_of_optimizer(accumulated=True)), 1.0)
)
case("ga_accumulate: a parameter of its own and one of none", INVALID_ARGUMENT, "loss")(
    lambda w: (
        "ga_accumulate",
        w.accumulator,
        made(raw.ga_add, made(raw.ga_sum, w.weight, None, 0, 0), loss_of(w.free_leaves[0])),
        1.0,
    )
)
for value in (NAN, INF):
    case(f"ga_accumulate: loss {value}", NON_FINITE, "loss")(
        lambda w, v=value: (
            "ga_accumulate",
            w.accumulator,
            made(raw.ga_multiply, loss_of(w.weight), tensor(np.float32(v))),
            1.0,
        )
    )
case("ga_accumulate: twice", STATE, "loss")(changed("ga_accumulate", 1, used))
case("ga_gradients: of a graph that is used up", STATE, "loss")(changed("ga_gradients", 1, used))
case("ga_accumulate: mean where the option says sum", STATE, "mean")(
    lambda w: (
        "ga_accumulate",
        w.accumulator,
        made(raw.ga_cross_entropy, made(raw.ga_linear, w.x, w.weight, w.bias), w.targets, NONE, MEAN),
        2.0,
    )
)
case("ga_accumulate: mse mean where the option says sum", STATE, "mean")(
    lambda w: (
        "ga_accumulate",
        w.accumulator,
        made(raw.ga_mse, made(raw.ga_linear, w.x, w.weight, w.bias), floats(2, 3), MEAN),
        2.0,
    )
)


@case("ga_accumulate: a parameter was filled since the forward pass", STATE)
def _filled(w: World) -> tuple:
    loss = w.loss()
    ok(raw.ga_tensor_fill(w.weight, 0.5))
    return "ga_accumulate", w.accumulator, loss, 2.0


@case("ga_accumulate: a step was taken since the forward pass", STATE)
def _stepped(w: World) -> tuple:
    loss = w.loss()
    ok(raw.ga_step(w.filled_window(), None))
    return "ga_accumulate", w.accumulator, loss, 2.0


def loss_of(x: int) -> int:
    return made(raw.ga_sum, x, None, 0, 0)


def leaf_of_optimizer(accumulated: bool = False) -> int:
    x = leaf(np.ones(2))
    owner = optimizer([x])
    if accumulated:
        made(raw.ga_accumulator_create, owner, None)
    return x


for count in (0, 1, 3, -1, I64_MIN):
    case(f"ga_accumulate_gradients: count {count}", (INVALID_ARGUMENT, SHAPE), "count")(
        changed("ga_accumulate_gradients", 2, count)
    )
for dtype in (_ffi.INT32, _ffi.INT64):
    case(f"ga_accumulate_gradients: dtype {dtype}", DTYPE, "dtype")(
        changed("ga_accumulate_gradients", 3, dtype)
    )
for dtype in (0, 6, -1):
    case(f"ga_accumulate_gradients: dtype {dtype}", INVALID_ARGUMENT, "dtype")(
        changed("ga_accumulate_gradients", 3, dtype)
    )
for index in (2, -1, I64_MIN, I64_MAX):
    case(f"ga_accumulate_gradient: index {index}", INDEX, "index")(changed("ga_accumulate_gradient", 1, index))
for dtype in (_ffi.INT32, _ffi.INT64):
    case(f"ga_accumulate_gradient: dtype {dtype}", DTYPE, "dtype")(changed("ga_accumulate_gradient", 3, dtype))
case("ga_accumulate_gradient: dtype 9", INVALID_ARGUMENT, "dtype")(changed("ga_accumulate_gradient", 3, 9))
for scale in (NAN, INF, 1e39):
    case(f"ga_accumulate_gradient: scale {scale}", INVALID_ARGUMENT, "scale")(
        changed("ga_accumulate_gradient", 4, scale)
    )
case("ga_tensor_set_read_only: a parameter", STATE, "parameter")(
    changed("ga_tensor_set_read_only", 0, lambda w: w.weight)
)
for value in (-1, 2):
    case(f"ga_tensor_to_dlpack: copy {value}", INVALID_ARGUMENT, "copy")(changed("ga_tensor_to_dlpack", 2, value))
for value in (NAN, INF):
    case(f"ga_accumulate_gradients: loss {value}", NON_FINITE, "loss")(
        changed("ga_accumulate_gradients", 4, value)
    )
case("ga_accumulator_create: two ways to clip", INVALID_ARGUMENT, "max_grad_value", "choose one")(
    changed(
        "ga_accumulator_create", 2, lambda w: _ffi.AccumulatorOptions(max_grad_norm=1.0, max_grad_value=1.0)
    )
)
case("ga_gradient_norms: before the first step", STATE, "step")(
    lambda w: ("ga_gradient_norms", w.accumulator, (c_double * 2)(), 2)
)
for count in (-1, 0, 1, 3, I64_MAX):
    case(f"ga_gradient_norms: count {count}", INVALID_ARGUMENT, "count")(
        changed("ga_gradient_norms", 2, count)
    )
case("ga_stagnation: sums in float32", STATE, "sum_format", "float32")(
    changed("ga_stagnation", 0, lambda w: w.stepped())
)
for count in (-1, 0, 1, 3, I64_MAX):
    case(f"ga_stagnation: count {count}", INVALID_ARGUMENT, "count")(changed("ga_stagnation", 3, count))
for value in (-1, 4, I32_MAX):
    case(f"ga_accumulator_create: sum_format {value}", INVALID_ARGUMENT, "sum_format")(
        changed("ga_accumulator_create", 2, lambda w, v=value: _ffi.AccumulatorOptions(sum_format=v))
    )
for field, value in (("max_grad_value", 1.0), ("agc_clipping", 0.01)):
    case(f"ga_accumulator_create: {field} with sums in bfloat16", INVALID_ARGUMENT, field, "sum_format")(
        changed(
            "ga_accumulator_create",
            2,
            lambda w, f=field, v=value: _ffi.AccumulatorOptions(sum_format=_ffi.SUM_BFLOAT16, **{f: v}),
        )
    )
for value in (-1, 2):
    case(f"ga_accumulator_create: count_underflow {value}", INVALID_ARGUMENT, "count_underflow")(
        changed("ga_accumulator_create", 2, lambda w, v=value: _ffi.AccumulatorOptions(count_underflow=v))
    )
case("ga_step: empty window", STATE, "window")(lambda w: ("ga_step", w.accumulator, _ffi.Report()))
for index in (-1, 2, I64_MIN, I64_MAX):
    case(f"ga_accumulated_gradient: index {index}", INDEX, "index")(
        changed("ga_accumulated_gradient", 2, index)
    )

# ------ loss scaling ------

for _count in (-1, 2**27 + 1, I64_MIN):
    case(f"ga_loss_scaler_unscale: count {_count}", INVALID_ARGUMENT, "count", "gradients")(
        changed("ga_loss_scaler_unscale", 3, _count)
    )
for _count in (-1, 2**41, I64_MAX):
    case(f"ga_loss_scaler_unscale: element_counts[1] {_count}", INVALID_ARGUMENT, "element_counts[1]")(
        changed("ga_loss_scaler_unscale", 2, sizes(12, _count))
    )
for _dtype in (_ffi.FLOAT16, _ffi.INT64):
    case(f"ga_loss_scaler_unscale: dtype {_dtype}", DTYPE, "dtype")(changed("ga_loss_scaler_unscale", 4, _dtype))
for _scale in (0.0, -2.0, NAN, INF, 1e300):
    case(f"ga_loss_scaler_unscale: scale {_scale}", INVALID_ARGUMENT, "scale is")(
        changed("ga_loss_scaler_unscale", 5, _scale)
    )
    case(f"ga_accumulate_scaled_gradients: gradient_scale {_scale}", INVALID_ARGUMENT, "scale is")(
        changed("ga_accumulate_scaled_gradients", 4, _scale)
    )
case("ga_loss_scaler_unscale: one array twice", INVALID_ARGUMENT, "gradients[1] shares memory with gradients[0]")(
    changed("ga_loss_scaler_unscale", 1, lambda w: handles(w.gradients[0].ctypes.data, w.gradients[0].ctypes.data))
)
for _function in ("ga_loss_scaler_save", "ga_loss_scaler_load"):
    case(f"{_function}: after gradients were unscaled", STATE, "unscaled", "loss_scaler_update")(
        changed(_function, 0, World.unscaled)
    )
case("ga_loss_scaler_update: nothing unscaled", STATE, "nothing was unscaled")(
    lambda w: ("ga_loss_scaler_update", w.scaler)
)
for _state in ({"scale": NAN}, {"scale": 0.5}, {"growth_tracker": -1}, {"hysteresis_tracker": 2}):
    case(f"ga_loss_scaler_load: {_state}", INVALID_ARGUMENT, next(iter(_state)))(
        changed("ga_loss_scaler_load", 1, _ffi.LossScalerState(**_state))
    )
for _options in ({"init_scale": 3.0}, {"growth_interval": I64_MIN}, {"hysteresis": 0}, {"dynamic": 7}, {"max_scale": NAN}):
    case(f"ga_loss_scaler_create: {_options}", INVALID_ARGUMENT, next(iter(_options)))(
        changed("ga_loss_scaler_create", 1, _ffi.LossScalerOptions(**_options))
    )
case("ga_accumulator_set_loss_scaler: with micro-batches", STATE, "the window holds micro-batches")(
    changed("ga_accumulator_set_loss_scaler", 0, World.filled_window)
)
case("ga_unscale: an empty window", STATE, "empty")(changed("ga_unscale", 0, World.emptied))
