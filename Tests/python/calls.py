"""One valid call of every function of the header, for the tests to spoil.

VALID maps a function's name to what makes its arguments from a World: fresh objects, whose raw handles the
tests may free, exchange and damage. Output arguments are ctypes objects filled with a pattern, so that a
test can see whether a call wrote to them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_char, c_char_p, c_double, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from gradaccum import _ffi

from dlpack import Produced
from support import raw

F32, I64, CPU = _ffi.FLOAT32, _ffi.INT64, _ffi.DEVICE_CPU
PATTERN = 0x5A


def patterned(kind: Any) -> Any:
    """A ctypes object whose bytes are all PATTERN."""
    return kind.from_buffer_copy(bytes([PATTERN]) * ctypes.sizeof(kind))


def out() -> c_void_p:
    return patterned(c_void_p)


def sizes(*values: int) -> Any:
    return (c_int64 * len(values))(*values)


def handles(*values: int | None) -> Any:
    return (c_void_p * len(values))(*values)


def ok(status: int) -> None:
    assert status == 0, raw.ga_last_error().decode()


def made(function: Callable[..., int], *arguments: Any) -> int:
    """The handle that a function makes."""
    handle = c_void_p()
    ok(function(ctypes.byref(handle), *arguments))
    assert handle.value
    return handle.value


def tensor(array: Any, dtype: int | None = None) -> int:
    array = np.asarray(array)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    kinds = {"float32": 1, "uint16": 2, "float16": 3, "int32": 4, "int64": 5}
    kind = dtype or kinds[array.dtype.name]
    contiguous = np.ascontiguousarray(array)
    return made(raw.ga_tensor_from_data, CPU, kind, array.ndim, sizes(*array.shape), contiguous.ctypes.data)


def elements(handle: int) -> np.ndarray:
    """The float32 elements of a tensor, in one axis."""
    count = c_int64()
    ok(raw.ga_tensor_element_count(handle, count))
    array = np.empty(count.value, np.float32)
    ok(raw.ga_tensor_copy_out(handle, array.ctypes.data, array.nbytes))
    return array


def leaf(array: Any) -> int:
    handle = tensor(array)
    ok(raw.ga_tensor_set_requires_grad(handle, 1))
    return handle


def optimizer(parameters: Sequence[int], create: str = "ga_sgd_create") -> int:
    return made(getattr(raw, create), handles(*parameters), len(parameters), None)


class World:
    """A small model with an optimizer and an accumulator, and tensors for every operation."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = tensor(rng.standard_normal((2, 4)))
        self.y = tensor(rng.standard_normal((2, 4)))
        self.sequence = tensor(rng.standard_normal((2, 3, 4)))
        self.scalar = tensor(np.float32(1.5))
        self.targets = tensor(np.array([0, 2]))
        self.weight = leaf(rng.standard_normal((3, 4)))
        self.bias = leaf(rng.standard_normal(3))
        self.parameters = (self.weight, self.bias)
        self.optimizer = optimizer(self.parameters)
        ok(raw.ga_optimizer_add_group(self.optimizer, handles(self.bias), 1, None, c_int64()))
        self.accumulator = made(raw.ga_accumulator_create, self.optimizer, None)
        self.scaler = made(raw.ga_loss_scaler_create, None)
        self.free_leaves = (leaf(np.ones((2, 2))), leaf(np.ones(2)))  # of no optimizer
        self.free_optimizer = optimizer([leaf(np.ones(2))])  # of no accumulator
        self.free_optimizer_of_two = optimizer([leaf(np.ones((3, 4))), leaf(np.ones(3))])
        self.average = made(raw.ga_average_create, self.optimizer, None)
        self.gain, self.shift = tensor(np.ones(4)), tensor(np.zeros(4))
        self.buffer = (ctypes.c_float * 8)(*range(8))
        self.gradients = [np.ones((3, 4), np.float32), np.ones(3, np.float32)]
        self.produced = Produced(np.ones((2, 3), np.float32))
        self.produced_unversioned = Produced(np.ones((2, 3), np.float32), versioned=False)

    def loss(self) -> int:
        logits = made(raw.ga_linear, self.x, self.weight, self.bias)
        return made(raw.ga_cross_entropy, logits, self.targets, _ffi.NO_IGNORE_INDEX, _ffi.REDUCTION_SUM)

    def gradient_pointers(self) -> Any:
        return handles(*(x.ctypes.data for x in self.gradients))

    def filled_window(self) -> int:
        ok(raw.ga_accumulate(self.accumulator, self.loss(), 2.0))
        return self.accumulator

    def unscaled(self) -> int:
        arguments = VALID["ga_loss_scaler_unscale"](self)
        ok(raw.ga_loss_scaler_unscale(*arguments))
        return self.scaler

    def stepped(self) -> int:
        ok(raw.ga_step(self.filled_window(), None))
        return self.accumulator

    def stepped_in_bf16(self) -> int:
        options = _ffi.AccumulatorOptions(sum_format=_ffi.SUM_BFLOAT16)
        own = made(raw.ga_accumulator_create, self.free_optimizer_of_two, options)
        ok(raw.ga_accumulate_gradients(own, self.gradient_pointers(), 2, F32, 0.0, 1.0))
        ok(raw.ga_step(own, None))
        return own

    def emptied(self) -> int:
        ok(raw.ga_zero(self.accumulator))
        return self.accumulator

    def open_micro_batch(self, filled: bool) -> int:
        ok(raw.ga_micro_batch_begin(self.emptied()))
        if filled:
            ok(raw.ga_accumulate(self.accumulator, self.loss(), 2.0))
        return self.accumulator

    def without_weight(self) -> int:
        ok(raw.ga_accumulate(self.emptied(), self.loss(), _ffi.WEIGHT_LATER))
        return self.accumulator

    def check(self) -> None:
        """Everything of this world still works: a whole window, on any state that it was left in."""
        ok(raw.ga_zero(self.accumulator))
        ok(raw.ga_accumulate(self.accumulator, self.loss(), 2.0))
        report = _ffi.Report()
        ok(raw.ga_step(self.accumulator, report))
        assert report.outcome == _ffi.STEP_APPLIED and np.isfinite(report.loss)
        ok(raw.ga_optimizer_set_learning_rate(self.free_optimizer, 0.5))
        for handle in (self.x, self.y, self.sequence, *self.free_leaves):
            assert np.isfinite(elements(handle)).all()


def _scope_and_tensor() -> tuple[int, int]:
    scope = made(raw.ga_scope_open)
    return scope, tensor(np.ones(2))


def _close(w: World) -> list[Any]:
    scope, inner = _scope_and_tensor()
    return [scope, handles(inner), 1]


@_ffi.BlockFn
def squared(out: Any, inputs: Any, count: int, user: Any) -> int:
    return raw.ga_multiply(out, inputs[0], inputs[0])


@_ffi.UpdateFn
def descend(parameter: Any, gradient: Any, slots: Any, count: int, update: Any, user: Any) -> int:
    for i in range(count):
        parameter[i] -= update[0].learning_rate * update[0].gradient_scale * gradient[i]
    return 0


@_ffi.SkipFn
def skipping(report: Any, user: Any) -> int:
    return _ffi.DECISION_SKIP


def cosine(**changed: Any) -> _ffi.ScheduleOptions:
    return _ffi.ScheduleOptions(
        **{"kind": _ffi.SCHEDULE_COSINE, "duration": 100.0, "warmup": 10.0, "warmup_start_factor": 0.5, **changed}
    )


def state(optimizer: int) -> bytes:
    size = c_int64()
    ok(raw.ga_optimizer_state_bytes(optimizer, size))
    saved = ctypes.create_string_buffer(size.value)
    ok(raw.ga_optimizer_save_state(optimizer, saved, size.value))
    return saved.raw


def with_plateau(optimizer: int) -> int:
    plateau = _ffi.ScheduleOptions(kind=_ffi.SCHEDULE_PLATEAU, plateau_signal=_ffi.PLATEAU_METRIC)
    ok(raw.ga_optimizer_set_schedule(optimizer, plateau))
    return optimizer


def averaged(w: World) -> list[int]:
    return [made(raw.ga_average_weights, w.average, index) for index in range(len(w.parameters))]


def swapped_in(average: int) -> int:
    ok(raw.ga_average_swap_in(average))
    return average


@_ffi.RetryFn
def declining(report: Any, user: Any) -> int:
    return 0


Arguments = Callable[[World], list]

VALID: dict[str, Arguments] = {
    "ga_num_threads": lambda w: [patterned(c_int32)],
    "ga_instruction_set": lambda w: [patterned(c_char_p)],
    "ga_compute_dtype": lambda w: [patterned(c_int32)],
    "ga_memory_usage": lambda w: [_ffi.Memory()],
    "ga_tensor_create": lambda w: [out(), CPU, F32, 2, sizes(2, 3)],
    "ga_tensor_from_data": lambda w: [out(), CPU, F32, 2, sizes(2, 3), ctypes.addressof(w.buffer)],
    "ga_tensor_wrap": lambda w: [
        out(),
        CPU,
        F32,
        2,
        sizes(2, 3),
        sizes(3, 1),
        ctypes.addressof(w.buffer),
        _ffi.WrapReleaseFn(),
        None,
    ],
    "ga_tensor_free": lambda w: [tensor(np.ones(2))],
    "ga_tensor_copy_in": lambda w: [w.x, ctypes.addressof(w.buffer), 32],
    "ga_tensor_copy_out": lambda w: [w.x, ctypes.addressof(w.buffer), 32],
    "ga_tensor_data": lambda w: [w.x, out()],
    "ga_tensor_item": lambda w: [w.scalar, patterned(c_double)],
    "ga_tensor_dtype": lambda w: [w.x, patterned(c_int32)],
    "ga_tensor_rank": lambda w: [w.x, patterned(c_int32)],
    "ga_tensor_element_count": lambda w: [w.x, patterned(c_int64)],
    "ga_tensor_shape": lambda w: [w.x, patterned(c_int64 * 2), 2],
    "ga_tensor_strides": lambda w: [w.x, patterned(c_int64 * 2), 2],
    "ga_tensor_fill": lambda w: [w.y, 0.5],
    "ga_tensor_fill_normal": lambda w: [w.y, 0.0, 1.0, 7],
    "ga_tensor_fill_uniform": lambda w: [w.y, 0.0, 1.0, 7],
    "ga_tensor_set_requires_grad": lambda w: [w.y, 1],
    "ga_tensor_requires_grad": lambda w: [w.y, patterned(c_int32)],
    "ga_tensor_set_read_only": lambda w: [tensor(np.ones(2))],
    "ga_tensor_read_only": lambda w: [w.y, patterned(c_int32)],
    "ga_tensor_set_name": lambda w: [w.y, b"y"],
    "ga_tensor_detach": lambda w: [out(), w.weight],
    "ga_tensor_from_dlpack": lambda w: [out(), w.produced.address],
    "ga_tensor_from_dlpack_unversioned": lambda w: [out(), w.produced_unversioned.address],
    "ga_tensor_to_dlpack": lambda w: [out(), w.x, 0],
    "ga_tensor_to_dlpack_unversioned": lambda w: [out(), w.x, 1],
    "ga_scope_open": lambda w: [out()],
    "ga_scope_close": _close,
    "ga_add": lambda w: [out(), w.x, w.y],
    "ga_subtract": lambda w: [out(), w.x, w.y],
    "ga_multiply": lambda w: [out(), w.x, w.y],
    "ga_divide": lambda w: [out(), w.x, w.y],
    "ga_matmul": lambda w: [out(), w.sequence, made(raw.ga_transpose, w.weight, 0, 1)],
    "ga_linear": lambda w: [out(), w.x, w.weight, w.bias],
    "ga_layer_norm": lambda w: [out(), w.x, w.gain, w.shift, 1e-5],
    "ga_gelu": lambda w: [out(), w.x, _ffi.GELU_TANH],
    "ga_relu": lambda w: [out(), w.x],
    "ga_softmax": lambda w: [out(), w.x, -1],
    "ga_cross_entropy": lambda w: [out(), w.x, w.targets, _ffi.NO_IGNORE_INDEX, _ffi.REDUCTION_SUM],
    "ga_linear_cross_entropy": lambda w: [
        out(),
        w.x,
        w.weight,
        w.targets,
        _ffi.NO_IGNORE_INDEX,
        _ffi.REDUCTION_SUM,
    ],
    "ga_mse": lambda w: [out(), w.x, w.y, _ffi.REDUCTION_MEAN],
    "ga_embedding": lambda w: [out(), w.weight, w.targets],
    "ga_causal_attention": lambda w: [out(), w.sequence, w.sequence, w.sequence, 2],
    "ga_reshape": lambda w: [out(), w.x, 2, sizes(4, -1)],
    "ga_transpose": lambda w: [out(), w.x, 0, -1],
    "ga_slice": lambda w: [out(), w.x, 1, 1, 3],
    "ga_sum": lambda w: [out(), w.x, (c_int32 * 1)(1), 1, 0],
    "ga_mean": lambda w: [out(), w.x, (c_int32 * 1)(-1), 1, 1],
    "ga_cast": lambda w: [out(), w.x, _ffi.BFLOAT16],
    "ga_recording": lambda w: [patterned(c_int32)],
    "ga_gradients": lambda w: [patterned(c_void_p * 2), w.loss(), handles(*w.parameters), 2],
    "ga_checkpoint": lambda w: [out(), handles(w.x), 1, squared, None, _ffi.UserReleaseFn()],
    "ga_sgd_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.SGDOptions()],
    "ga_adam_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.AdamOptions()],
    "ga_adamw_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.AdamWOptions()],
    "ga_radam_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.RAdamOptions()],
    "ga_nadam_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.NAdamOptions()],
    "ga_lion_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.LionOptions()],
    "ga_lamb_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.LAMBOptions()],
    "ga_lars_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.LARSOptions()],
    "ga_adafactor_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.AdafactorOptions()],
    "ga_muon_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.MuonOptions()],
    "ga_adamw8bit_create": lambda w: [out(), handles(*w.free_leaves), 2, _ffi.AdamW8bitOptions()],
    "ga_custom_create": lambda w: [
        out(),
        handles(*w.free_leaves),
        2,
        descend,
        None,
        _ffi.UserReleaseFn(),
        _ffi.CustomOptions(),
    ],
    "ga_optimizer_free": lambda w: [optimizer([leaf(np.ones(2))])],
    "ga_optimizer_set_learning_rate": lambda w: [w.optimizer, 0.1],
    "ga_optimizer_learning_rate": lambda w: [w.optimizer, patterned(c_double)],
    "ga_optimizer_add_group": lambda w: [
        w.optimizer,
        handles(w.weight),
        1,
        _ffi.GroupOptions(),
        patterned(c_int64),
    ],
    "ga_optimizer_set_group": lambda w: [w.optimizer, 0, _ffi.GroupOptions(learning_rate_scale=0.5)],
    "ga_optimizer_group": lambda w: [w.optimizer, 0, _ffi.GroupOptions()],
    "ga_optimizer_group_count": lambda w: [w.optimizer, patterned(c_int64)],
    "ga_optimizer_clock": lambda w: [w.optimizer, _ffi.CLOCK_WEIGHT, patterned(c_double)],
    "ga_optimizer_set_schedule": lambda w: [w.optimizer, cosine()],
    "ga_optimizer_report_metric": lambda w: [with_plateau(w.optimizer), 0.5],
    "ga_optimizer_next_learning_rate": lambda w: [w.optimizer, patterned(c_double)],
    "ga_schedule_factor": lambda w: [cosine(), 50.0, patterned(c_double)],
    "ga_optimizer_set_scaling": lambda w: [w.optimizer, _ffi.ScalingOptions(rule=1, base_weight=2.0)],
    "ga_optimizer_state_bytes": lambda w: [w.optimizer, patterned(c_int64)],
    "ga_optimizer_save_state": lambda w: [
        w.optimizer,
        patterned(c_char * len(state(w.optimizer))),
        len(state(w.optimizer)),
    ],
    "ga_optimizer_load_state": lambda w: [w.optimizer, state(w.optimizer), len(state(w.optimizer))],
    "ga_average_create": lambda w: [out(), w.optimizer, _ffi.AverageOptions()],
    "ga_average_free": lambda w: [w.average],
    "ga_average_weights": lambda w: [out(), w.average, 0],
    "ga_average_swap_in": lambda w: [made(raw.ga_average_create, w.free_optimizer, None)],
    "ga_average_swap_out": lambda w: [swapped_in(made(raw.ga_average_create, w.free_optimizer, None))],
    "ga_average_reset": lambda w: [w.average],
    "ga_average_updates": lambda w: [w.average, patterned(c_int64)],
    "ga_average_load": lambda w: [w.average, handles(*averaged(w)), len(averaged(w)), 3],
    "ga_split_by_count": lambda w: [patterned(c_int64 * 4), 4, patterned(c_int64), 7, 3],
    "ga_split_by_size": lambda w: [patterned(c_int64 * 4), 4, patterned(c_int64), 7, 3],
    "ga_split_by_tokens": lambda w: [patterned(c_int64 * 4), 4, patterned(c_int64), sizes(3, 4, 1, 5), 4, 6, 0],
    "ga_loss_scaler_create": lambda w: [out(), _ffi.LossScalerOptions()],
    "ga_loss_scaler_free": lambda w: [made(raw.ga_loss_scaler_create, None)],
    "ga_loss_scaler_scale": lambda w: [w.scaler, patterned(c_double)],
    "ga_loss_scaler_unscale": lambda w: [
        w.scaler,
        w.gradient_pointers(),
        sizes(12, 3),
        2,
        F32,
        8.0,
        0,
        patterned(c_double),
    ],
    "ga_loss_scaler_update": lambda w: [w.unscaled()],
    "ga_loss_scaler_save": lambda w: [w.scaler, _ffi.LossScalerState()],
    "ga_loss_scaler_load": lambda w: [w.scaler, _ffi.LossScalerState(scale=8.0)],
    "ga_accumulator_create": lambda w: [out(), w.free_optimizer, _ffi.AccumulatorOptions()],
    "ga_accumulator_free": lambda w: [made(raw.ga_accumulator_create, optimizer([leaf(np.ones(2))]), None)],
    "ga_accumulator_set_accumulation_steps": lambda w: [w.accumulator, 3],
    "ga_accumulator_accumulation_steps": lambda w: [w.accumulator, patterned(c_int64)],
    "ga_accumulator_set_ramp": lambda w: [
        w.accumulator,
        _ffi.CLOCK_WEIGHT,
        1,
        (c_double * 2)(0.0, 8.0),
        sizes(1, 4),
        2,
    ],
    "ga_accumulate": lambda w: [w.accumulator, w.loss(), 2.0],
    "ga_accumulate_gradients": lambda w: [w.accumulator, w.gradient_pointers(), 2, F32, 1.0, 2.0],
    "ga_accumulate_gradient": lambda w: [
        w.open_micro_batch(filled=False),
        0,
        w.gradients[0].ctypes.data,
        F32,
        1.0,
    ],
    "ga_accumulate_scaled_gradients": lambda w: [w.accumulator, w.gradient_pointers(), 2, F32, 8.0, 1.0, 2.0],
    "ga_micro_batch_begin": lambda w: [w.emptied()],
    "ga_micro_batch_commit": lambda w: [w.open_micro_batch(filled=True)],
    "ga_micro_batch_abort": lambda w: [w.open_micro_batch(filled=False)],
    "ga_micro_batch_set_weight": lambda w: [w.without_weight(), 0, 2.0],
    "ga_step_due": lambda w: [w.accumulator, patterned(c_int32)],
    "ga_step": lambda w: [w.filled_window(), _ffi.Report()],
    "ga_window_report": lambda w: [w.filled_window(), _ffi.Report()],
    "ga_accumulator_set_skip_handler": lambda w: [w.accumulator, skipping, None],
    "ga_accumulator_set_loss_scaler": lambda w: [w.emptied(), w.scaler],
    "ga_accumulator_set_retry_handler": lambda w: [w.accumulator, declining, None],
    "ga_unscale": lambda w: [w.filled_window(), patterned(c_double)],
    "ga_data_begin": lambda w: [w.emptied()],
    "ga_data_end": lambda w: [w.filled_window(), _ffi.TAIL_STEP, _ffi.Report()],
    "ga_gradient_norms": lambda w: [w.stepped(), patterned(c_double * 2), 2],
    "ga_stagnation": lambda w: [w.stepped_in_bf16(), patterned(c_int64 * 2), patterned(c_int64 * 2), 2],
    "ga_zero": lambda w: [w.accumulator],
    "ga_accumulated_gradient": lambda w: [out(), w.filled_window(), 0],
}

# Pointers that may be NULL, by what the header says of them.
NULLABLE = {
    ("ga_tensor_wrap", "strides"),
    ("ga_tensor_wrap", "release"),
    ("ga_tensor_wrap", "user"),
    ("ga_linear", "bias"),
    ("ga_layer_norm", "weight"),
    ("ga_layer_norm", "bias"),
    ("ga_checkpoint", "user"),
    ("ga_checkpoint", "release"),
    ("ga_sgd_create", "options"),
    ("ga_adam_create", "options"),
    ("ga_adamw_create", "options"),
    ("ga_radam_create", "options"),
    ("ga_nadam_create", "options"),
    ("ga_lion_create", "options"),
    ("ga_lamb_create", "options"),
    ("ga_lars_create", "options"),
    ("ga_adafactor_create", "options"),
    ("ga_muon_create", "options"),
    ("ga_adamw8bit_create", "options"),
    ("ga_custom_create", "user"),
    ("ga_custom_create", "release"),
    ("ga_custom_create", "options"),
    ("ga_optimizer_add_group", "options"),
    ("ga_optimizer_set_group", "options"),
    ("ga_optimizer_set_schedule", "options"),
    ("ga_optimizer_set_scaling", "options"),
    ("ga_average_create", "options"),
    ("ga_split_by_count", "boundaries"),
    ("ga_split_by_size", "boundaries"),
    ("ga_split_by_tokens", "boundaries"),
    ("ga_accumulator_create", "options"),
    ("ga_loss_scaler_create", "options"),
    ("ga_accumulator_set_loss_scaler", "scaler"),
    ("ga_accumulator_set_retry_handler", "retry"),
    ("ga_accumulator_set_retry_handler", "user"),
    ("ga_step", "report"),
    ("ga_data_end", "report"),
    ("ga_accumulator_set_skip_handler", "decide"),
    ("ga_accumulator_set_skip_handler", "user"),
}
FREEING = ("ga_tensor_free", "ga_optimizer_free", "ga_average_free", "ga_accumulator_free", "ga_loss_scaler_free")


def snapshot(arguments: Sequence[Any]) -> list[bytes]:
    """The bytes behind the pointers among the arguments."""
    return [
        bytes(x) for x in arguments if isinstance(x, (ctypes._SimpleCData, ctypes.Array, ctypes.Structure))
    ]
