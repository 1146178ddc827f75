"""The C library through ctypes: where it is found, and the one table of its prototypes.

Handles are plain addresses (c_void_p), or objects of this package. Functions that return a status raise an exception of
errors.py on a negative one, with the sentence of ga_last_error(), or what a function of the caller has raised meanwhile;
and an exception of errors.py on arguments that are not of their types.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from threading import get_ident
from typing import Any

from ._arguments import KINDS, TENSOR, explain
from .errors import BY_STATUS, GAError, GAInternalError, GALibraryError

ABI_VERSION = 1
SONAME = "libgradaccum.so.1"

# ====== Constants, as in the header ======

FLOAT32, BFLOAT16, FLOAT16, INT32, INT64 = 1, 2, 3, 4, 5
DEVICE_CPU = 0
MAX_RANK = 8
GELU_ERF, GELU_TANH = 0, 1
REDUCTION_SUM, REDUCTION_MEAN = 0, 1
NO_IGNORE_INDEX = -(2**63)
MUON_ORIGINAL, MUON_MATCH_RMS_ADAMW, MUON_SPECTRAL_UNCLAMPED = 0, 1, 2
CLOCK_UPDATES, CLOCK_WEIGHT = 0, 1
SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_INVERSE_SQRT = 0, 1, 2, 3
SCHEDULE_STEP, SCHEDULE_EXPONENTIAL, SCHEDULE_ONE_CYCLE, SCHEDULE_PLATEAU, SCHEDULE_TABLE = 4, 5, 6, 7, 8
ANNEAL_COSINE, ANNEAL_LINEAR = 0, 1
PLATEAU_WINDOW_LOSS, PLATEAU_METRIC = 0, 1
PLATEAU_MIN, PLATEAU_MAX = 0, 1
THRESHOLD_RELATIVE, THRESHOLD_ABSOLUTE = 0, 1
SCALING_NONE, SCALING_LINEAR, SCALING_SQRT = 0, 1, 2
NORMALIZATION_WEIGHT, NORMALIZATION_SUM = 0, 1
ACCUMULATE_INTO_GRADIENTS, ACCUMULATE_INTO_MOMENTS = 0, 1
SUM_FLOAT32, SUM_BFLOAT16_STOCHASTIC, SUM_BFLOAT16_KAHAN, SUM_BFLOAT16 = 0, 1, 2, 3
ON_NON_FINITE_SKIP, ON_NON_FINITE_RAISE = 0, 1
WEIGHT_LATER = -1e300
STEP_APPLIED, STEP_SKIPPED_NON_FINITE, STEP_SKIPPED_ZERO_WEIGHT, STEP_SKIPPED_OUTLIER = 0, 1, 2, 3
STEP_PENDING, STEP_DROPPED, STEP_EMPTY, MICRO_BATCH_NON_FINITE = 4, 5, 6, 7
DECISION_SKIP, DECISION_RAISE, DECISION_APPLY = 0, 1, 2
STEP_SKIPPED_OVERFLOW = 8
TAIL_STEP, TAIL_CARRY, TAIL_DROP = 0, 1, 2

# ====== Structs: field for field those of the header ======


class _Sized(Structure):
    """A struct that starts with struct_size; made with the header's defaults, as by its _INIT macro."""

    _defaults_: tuple[tuple[str, float], ...] = ()

    def __init__(self, **fields: Any) -> None:
        if fields:
            self._check(fields)
        super().__init__(**{**dict(self._defaults_), "struct_size": ctypes.sizeof(type(self)), **fields})

    def _check(self, fields: dict[str, Any]) -> None:
        """ctypes does not look at the size of integers, and calls no field by its name."""
        for field in self._fields_:
            if field[0] in fields and field[1] in KINDS:
                KINDS[field[1]].checked(field[0], fields[field[0]])


class Memory(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("live_bytes", c_int64),
        ("peak_bytes", c_int64),
        ("arena_bytes", c_int64),
        ("allocator_calls", c_int64),
    ]


class SGDOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("nesterov", c_int32),
        ("learning_rate", c_double),
        ("momentum", c_double),
        ("weight_decay", c_double),
    ]
    _defaults_ = (("learning_rate", 1e-3),)


class AdamOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
    ]
    _defaults_ = (("learning_rate", 1e-3), ("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8))


class AdamWOptions(_Sized):
    _fields_ = AdamOptions._fields_
    _defaults_ = (*AdamOptions._defaults_, ("weight_decay", 1e-2))


class RAdamOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("decoupled_weight_decay", c_int32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
    ]
    _defaults_ = (
        ("learning_rate", 1e-3),
        ("beta1", 0.9),
        ("beta2", 0.999),
        ("eps", 1e-8),
    )


class NAdamOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("decoupled_weight_decay", c_int32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
        ("momentum_decay", c_double),
    ]
    _defaults_ = (
        ("learning_rate", 2e-3),
        ("beta1", 0.9),
        ("beta2", 0.999),
        ("eps", 1e-8),
        ("momentum_decay", 4e-3),
    )


class LionOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("weight_decay", c_double),
    ]
    _defaults_ = (
        ("learning_rate", 1e-4),
        ("beta1", 0.9),
        ("beta2", 0.99),
    )


class LAMBOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
    ]
    _defaults_ = (
        ("learning_rate", 1e-3),
        ("beta1", 0.9),
        ("beta2", 0.999),
        ("eps", 1e-6),
        ("weight_decay", 1e-2),
    )


class LARSOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("momentum", c_double),
        ("weight_decay", c_double),
        ("trust_coefficient", c_double),
    ]
    _defaults_ = (
        ("learning_rate", 1.0),
        ("momentum", 0.9),
        ("weight_decay", 5e-4),
        ("trust_coefficient", 1e-3),
    )


class AdafactorOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("beta2_decay", c_double),
        ("eps1", c_double),
        ("eps2", c_double),
        ("clipping_threshold", c_double),
        ("weight_decay", c_double),
    ]
    _defaults_ = (
        ("learning_rate", 1e-2),
        ("beta2_decay", -0.8),
        ("eps1", 1.1920928955078125e-07),
        ("eps2", 1e-3),
        ("clipping_threshold", 1.0),
    )


class MuonOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("nesterov", c_int32),
        ("learning_rate", c_double),
        ("weight_decay", c_double),
        ("momentum", c_double),
        ("ns_coefficient_a", c_double),
        ("ns_coefficient_b", c_double),
        ("ns_coefficient_c", c_double),
        ("eps", c_double),
        ("ns_steps", c_int32),
        ("adjust_lr", c_int32),
        ("adamw_learning_rate_ratio", c_double),
        ("adamw_beta1", c_double),
        ("adamw_beta2", c_double),
        ("adamw_eps", c_double),
        ("adamw_weight_decay", c_double),
        ("adamw_parameters", POINTER(c_int64)),
        ("adamw_parameter_count", c_int64),
    ]
    _defaults_ = (
        ("nesterov", 1),
        ("learning_rate", 1e-3),
        ("weight_decay", 0.1),
        ("momentum", 0.95),
        ("ns_coefficient_a", 3.4445),
        ("ns_coefficient_b", -4.775),
        ("ns_coefficient_c", 2.0315),
        ("eps", 1e-7),
        ("ns_steps", 5),
        ("adjust_lr", MUON_ORIGINAL),
        ("adamw_learning_rate_ratio", 1.0),
        ("adamw_beta1", 0.9),
        ("adamw_beta2", 0.999),
        ("adamw_eps", 1e-8),
        ("adamw_weight_decay", 1e-2),
    )


class AdamW8bitOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
        ("min_8bit_size", c_int64),
    ]
    _defaults_ = (
        ("learning_rate", 1e-3),
        ("beta1", 0.9),
        ("beta2", 0.999),
        ("eps", 1e-8),
        ("weight_decay", 1e-2),
        ("min_8bit_size", 4096),
    )


class Update(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("update", c_int64),
        ("parameter", c_int64),
        ("start", c_int64),
        ("learning_rate", c_double),
        ("gradient_scale", c_double),
        ("weight_decay", c_double),
    ]


class CustomOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("elementwise", c_int32),
        ("learning_rate", c_double),
        ("slot_count", c_int64),
        ("weight_decay", c_double),
    ]
    _defaults_ = (("learning_rate", 1e-3),)


class GroupOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate_scale", c_double),
        ("weight_decay", c_double),
        ("max_grad_norm", c_double),
    ]
    _defaults_ = (("learning_rate_scale", 1.0), ("weight_decay", -1.0))
class ScheduleOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("kind", c_int32),
        ("clock", c_int32),
        ("reserved", c_int32),
        ("start", c_double),
        ("warmup", c_double),
        ("warmup_start_factor", c_double),
        ("duration", c_double),
        ("end_factor", c_double),
        ("period", c_double),
        ("gamma", c_double),
        ("timescale", c_double),
        ("pct_start", c_double),
        ("div_factor", c_double),
        ("final_div_factor", c_double),
        ("anneal", c_int32),
        ("plateau_signal", c_int32),
        ("plateau_mode", c_int32),
        ("threshold_mode", c_int32),
        ("threshold", c_double),
        ("min_factor", c_double),
        ("patience", c_int64),
        ("cooldown", c_int64),
        ("times", POINTER(c_double)),
        ("factors", POINTER(c_double)),
        ("table_count", c_int64),
        ("interpolated", c_int32),
        ("reserved2", c_int32),
    ]
    _defaults_ = (
        ("gamma", 0.1),
        ("pct_start", 0.3),
        ("div_factor", 25.0),
        ("final_div_factor", 1e4),
        ("threshold", 1e-4),
        ("patience", 10),
        ("interpolated", 1),
    )


class ScalingOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("rule", c_int32),
        ("base_weight", c_double),
        ("beta2_half_life", c_int32),
        ("reserved", c_int32),
    ]


class AverageOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("clock", c_int32),
        ("decay", c_double),
        ("half_life", c_double),
        ("warmup", c_int32),
        ("reserved", c_int32),
    ]
    _defaults_ = (("decay", 0.999),)


class LossScalerOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dynamic", c_int32),
        ("init_scale", c_double),
        ("growth_factor", c_double),
        ("backoff_factor", c_double),
        ("growth_interval", c_int64),
        ("hysteresis", c_int64),
        ("min_scale", c_double),
        ("max_scale", c_double),
        ("consecutive_hysteresis", c_int32),
        ("allow_any_scale", c_int32),
    ]
    _defaults_ = (
        ("dynamic", 1),
        ("init_scale", 65536.0),
        ("growth_factor", 2.0),
        ("backoff_factor", 0.5),
        ("growth_interval", 2000),
        ("hysteresis", 1),
        ("min_scale", 1.0),
        ("max_scale", 2.0**24),
    )


class LossScalerState(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("scale", c_double),
        ("growth_tracker", c_int64),
        ("hysteresis_tracker", c_int64),
    ]
    _defaults_ = (("scale", 1.0), ("hysteresis_tracker", 1))


class AccumulatorOptions(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("loss_reduction", c_int32),
        ("accumulation_steps", c_int64),
        ("max_grad_norm", c_double),
        ("max_grad_value", c_double),
        ("agc_clipping", c_double),
        ("agc_eps", c_double),
        ("isolated", c_int32),
        ("normalization", c_int32),
        ("on_non_finite", c_int32),
        ("accumulate_into", c_int32),
        ("max_consecutive_skips", c_int64),
        ("max_loss_z_score", c_double),
        ("max_norm_z_score", c_double),
        ("outlier_warmup", c_int64),
        ("sum_format", c_int32),
        ("count_underflow", c_int32),
    ]
    _defaults_ = (("accumulation_steps", 1), ("agc_eps", 1e-3), ("outlier_warmup", 32))


class Report(_Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("outcome", c_int32),
        ("loss", c_double),
        ("weight", c_double),
        ("micro_batches", c_int64),
        ("gradient_norm", c_double),
        ("clip_factor", c_double),
        ("learning_rate", c_double),
        ("update_count", c_int64),
        ("aborted_micro_batches", c_int64),
        ("accumulation_steps", c_int64),
        ("loss_scale", c_double),
        ("loss_z_score", c_double),
        ("gradient_norm_z_score", c_double),
        ("consecutive_skips", c_int64),
        ("non_finite_parameter", c_int64),
        ("non_finite_micro_batch", c_int64),
        ("accumulator_bytes", c_int64),
        ("tensor_bytes", c_int64),
        ("forward_backward_seconds", c_double),
        ("step_seconds", c_double),
        ("retries", c_int64),
        ("underflow", c_double),
    ]


# ====== Prototypes, in the header's order ======

AllocateFn = CFUNCTYPE(c_void_p, c_size_t, c_size_t, c_void_p)
ReleaseFn = CFUNCTYPE(None, c_void_p, c_size_t, c_void_p)
WrapReleaseFn = CFUNCTYPE(None, c_void_p, c_void_p)
BlockFn = CFUNCTYPE(c_int32, POINTER(c_void_p), POINTER(c_void_p), c_int64, c_void_p)
UserReleaseFn = CFUNCTYPE(None, c_void_p)
UpdateFn = CFUNCTYPE(
    c_int32,
    POINTER(c_float),
    POINTER(c_float),
    POINTER(POINTER(c_float)),
    c_int64,
    POINTER(Update),
    c_void_p,
)
SkipFn = CFUNCTYPE(c_int32, POINTER(Report), c_void_p)
RetryFn = CFUNCTYPE(c_int32, POINTER(Report), c_void_p)

_handle = c_void_p  # a ga_optimizer * or other object of the library
_tensor = TENSOR  # a ga_tensor *
_handles = POINTER(c_void_p)  # an array of them, or the address that one is written to
_int32s = POINTER(c_int32)
_int64s = POINTER(c_int64)
_status = c_int32


class _Status:
    """Marks the restype of functions that return a status and are checked."""


# What is returned, the types of parameters, and their names.
Prototype = tuple[Any, tuple[Any, ...], str]

PROTOTYPES: dict[str, Prototype] = {
    "ga_version": (c_char_p, (), ""),
    "ga_abi_version": (c_int32, (), ""),
    "ga_status_name": (c_char_p, (_status,), "status"),
    "ga_last_error": (c_char_p, (), ""),
    # Runtime
    "ga_set_num_threads": (_Status, (c_int32,), "count"),
    "ga_num_threads": (_Status, (_int32s,), "out"),
    "ga_instruction_set": (_Status, (POINTER(c_char_p),), "out"),
    "ga_set_compute_dtype": (_Status, (c_int32,), "dtype"),
    "ga_compute_dtype": (_Status, (_int32s,), "out"),
    "ga_set_allocator": (_Status, (AllocateFn, ReleaseFn, c_void_p), "allocate release user"),
    "ga_memory_usage": (_Status, (POINTER(Memory),), "out"),
    "ga_memory_reset_peak": (_Status, (), ""),
    "ga_memory_trim": (_Status, (), ""),
    # Tensors
    "ga_tensor_create": (_Status, (_handles, c_int32, c_int32, c_int32, _int64s), "out device dtype rank shape"),
    "ga_tensor_from_data": (
        _Status,
        (_handles, c_int32, c_int32, c_int32, _int64s, c_void_p),
        "out device dtype rank shape data",
    ),
    "ga_tensor_wrap": (
        _Status,
        (_handles, c_int32, c_int32, c_int32, _int64s, _int64s, c_void_p, WrapReleaseFn, c_void_p),
        "out device dtype rank shape strides data release user",
    ),
    "ga_tensor_free": (None, (_tensor,), "tensor"),
    "ga_tensor_copy_in": (_Status, (_tensor, c_void_p, c_size_t), "tensor source size_bytes"),
    "ga_tensor_copy_out": (_Status, (_tensor, c_void_p, c_size_t), "tensor destination size_bytes"),
    "ga_tensor_data": (_Status, (_tensor, POINTER(c_void_p)), "tensor out"),
    "ga_tensor_item": (_Status, (_tensor, POINTER(c_double)), "tensor out"),
    "ga_tensor_dtype": (_Status, (_tensor, _int32s), "tensor out"),
    "ga_tensor_rank": (_Status, (_tensor, _int32s), "tensor out"),
    "ga_tensor_element_count": (_Status, (_tensor, _int64s), "tensor out"),
    "ga_tensor_shape": (_Status, (_tensor, _int64s, c_int32), "tensor out capacity"),
    "ga_tensor_strides": (_Status, (_tensor, _int64s, c_int32), "tensor out capacity"),
    "ga_tensor_fill": (_Status, (_tensor, c_double), "tensor value"),
    "ga_tensor_fill_normal": (_Status, (_tensor, c_double, c_double, c_uint64), "tensor mean standard_deviation seed"),
    "ga_tensor_fill_uniform": (_Status, (_tensor, c_double, c_double, c_uint64), "tensor low high seed"),
    "ga_tensor_set_requires_grad": (_Status, (_tensor, c_int32), "tensor requires_grad"),
    "ga_tensor_requires_grad": (_Status, (_tensor, _int32s), "tensor out"),
    "ga_tensor_set_read_only": (_Status, (_tensor,), "tensor"),
    "ga_tensor_read_only": (_Status, (_tensor, _int32s), "tensor out"),
    "ga_tensor_set_name": (_Status, (_tensor, c_char_p), "tensor name"),
    "ga_tensor_detach": (_Status, (_handles, _tensor), "out tensor"),
    "ga_tensor_from_dlpack": (_Status, (_handles, c_void_p), "out managed"),
    "ga_tensor_from_dlpack_unversioned": (_Status, (_handles, c_void_p), "out managed"),
    "ga_tensor_to_dlpack": (_Status, (_handles, _tensor, c_int32), "out tensor copy"),
    "ga_tensor_to_dlpack_unversioned": (_Status, (_handles, _tensor, c_int32), "out tensor copy"),
    "ga_python_release": (None, (c_void_p, c_void_p), "data object"),
    "ga_python_capsule_destroy": (None, (c_void_p,), "capsule"),
    "ga_python_array_addresses": (
        c_int64,
        (_handles, c_void_p, c_int64, _int64s, c_void_p, c_void_p, c_int64),
        "addresses arrays count shapes dtype type head_bytes",
    ),
    "ga_scope_open": (_Status, (_handles,), "out"),
    "ga_scope_close": (_Status, (_handle, _handles, c_int64), "scope keep keep_count"),
    # Operations
    "ga_add": (_Status, (_handles, _tensor, _tensor), "out a b"),
    "ga_subtract": (_Status, (_handles, _tensor, _tensor), "out a b"),
    "ga_multiply": (_Status, (_handles, _tensor, _tensor), "out a b"),
    "ga_divide": (_Status, (_handles, _tensor, _tensor), "out a b"),
    "ga_matmul": (_Status, (_handles, _tensor, _tensor), "out a b"),
    "ga_linear": (_Status, (_handles, _tensor, _tensor, _tensor), "out x weight bias"),
    "ga_layer_norm": (_Status, (_handles, _tensor, _tensor, _tensor, c_double), "out x weight bias eps"),
    "ga_gelu": (_Status, (_handles, _tensor, c_int32), "out x approximation"),
    "ga_relu": (_Status, (_handles, _tensor), "out x"),
    "ga_softmax": (_Status, (_handles, _tensor, c_int32), "out x axis"),
    "ga_cross_entropy": (
        _Status,
        (_handles, _tensor, _tensor, c_int64, c_int32),
        "out logits targets ignore_index reduction",
    ),
    "ga_linear_cross_entropy": (
        _Status,
        (_handles, _tensor, _tensor, _tensor, c_int64, c_int32),
        "out hidden weight targets ignore_index reduction",
    ),
    "ga_mse": (_Status, (_handles, _tensor, _tensor, c_int32), "out prediction target reduction"),
    "ga_embedding": (_Status, (_handles, _tensor, _tensor), "out weight indices"),
    "ga_causal_attention": (_Status, (_handles, _tensor, _tensor, _tensor, c_int32), "out q k v heads"),
    "ga_reshape": (_Status, (_handles, _tensor, c_int32, _int64s), "out x rank shape"),
    "ga_transpose": (_Status, (_handles, _tensor, c_int32, c_int32), "out x axis_a axis_b"),
    "ga_slice": (_Status, (_handles, _tensor, c_int32, c_int64, c_int64), "out x axis start stop"),
    "ga_sum": (_Status, (_handles, _tensor, _int32s, c_int32, c_int32), "out x axes axis_count keep_axes"),
    "ga_mean": (_Status, (_handles, _tensor, _int32s, c_int32, c_int32), "out x axes axis_count keep_axes"),
    "ga_cast": (_Status, (_handles, _tensor, c_int32), "out x dtype"),
    # Autograd
    "ga_set_recording": (_Status, (c_int32,), "recording"),
    "ga_recording": (_Status, (_int32s,), "out"),
    "ga_gradients": (_Status, (_handles, _tensor, _handles, c_int64), "out loss inputs count"),
    "ga_checkpoint": (
        _Status,
        (_handles, _handles, c_int64, BlockFn, c_void_p, UserReleaseFn),
        "out inputs count block user release",
    ),
    # Optimizers
    "ga_sgd_create": (_Status, (_handles, _handles, c_int64, POINTER(SGDOptions)), "out parameters count options"),
    "ga_adam_create": (_Status, (_handles, _handles, c_int64, POINTER(AdamOptions)), "out parameters count options"),
    "ga_adamw_create": (_Status, (_handles, _handles, c_int64, POINTER(AdamWOptions)), "out parameters count options"),
    "ga_radam_create": (_Status, (_handles, _handles, c_int64, POINTER(RAdamOptions)), "out parameters count options"),
    "ga_nadam_create": (_Status, (_handles, _handles, c_int64, POINTER(NAdamOptions)), "out parameters count options"),
    "ga_lion_create": (_Status, (_handles, _handles, c_int64, POINTER(LionOptions)), "out parameters count options"),
    "ga_lamb_create": (_Status, (_handles, _handles, c_int64, POINTER(LAMBOptions)), "out parameters count options"),
    "ga_lars_create": (_Status, (_handles, _handles, c_int64, POINTER(LARSOptions)), "out parameters count options"),
    "ga_adafactor_create": (
        _Status,
        (_handles, _handles, c_int64, POINTER(AdafactorOptions)),
        "out parameters count options",
    ),
    "ga_muon_create": (_Status, (_handles, _handles, c_int64, POINTER(MuonOptions)), "out parameters count options"),
    "ga_adamw8bit_create": (
        _Status,
        (_handles, _handles, c_int64, POINTER(AdamW8bitOptions)),
        "out parameters count options",
    ),
    "ga_custom_create": (
        _Status,
        (_handles, _handles, c_int64, UpdateFn, c_void_p, UserReleaseFn, POINTER(CustomOptions)),
        "out parameters count update user release options",
    ),
    "ga_optimizer_free": (None, (_handle,), "optimizer"),
    "ga_optimizer_set_learning_rate": (_Status, (_handle, c_double), "optimizer learning_rate"),
    "ga_optimizer_learning_rate": (_Status, (_handle, POINTER(c_double)), "optimizer out"),
    "ga_optimizer_add_group": (
        _Status,
        (_handle, _handles, c_int64, POINTER(GroupOptions), _int64s),
        "optimizer parameters count options out",
    ),
    "ga_optimizer_set_group": (_Status, (_handle, c_int64, POINTER(GroupOptions)), "optimizer group options"),
    "ga_optimizer_group": (_Status, (_handle, c_int64, POINTER(GroupOptions)), "optimizer group out"),
    "ga_optimizer_group_count": (_Status, (_handle, _int64s), "optimizer out"),
    # Schedules
    "ga_optimizer_clock": (_Status, (_handle, c_int32, POINTER(c_double)), "optimizer clock out"),
    "ga_optimizer_set_schedule": (_Status, (_handle, POINTER(ScheduleOptions)), "optimizer options"),
    "ga_optimizer_report_metric": (_Status, (_handle, c_double), "optimizer metric"),
    "ga_optimizer_next_learning_rate": (_Status, (_handle, POINTER(c_double)), "optimizer out"),
    "ga_schedule_factor": (_Status, (POINTER(ScheduleOptions), c_double, POINTER(c_double)), "options clock out"),
    "ga_optimizer_set_scaling": (_Status, (_handle, POINTER(ScalingOptions)), "optimizer options"),
    # State of optimizers
    "ga_optimizer_state_bytes": (_Status, (_handle, _int64s), "optimizer out"),
    "ga_optimizer_save_state": (_Status, (_handle, c_void_p, c_int64), "optimizer out size_bytes"),
    "ga_optimizer_load_state": (_Status, (_handle, c_void_p, c_int64), "optimizer state size_bytes"),
    # Averages of weights
    "ga_average_create": (_Status, (_handles, _handle, POINTER(AverageOptions)), "out optimizer options"),
    "ga_average_free": (None, (_handle,), "average"),
    "ga_average_weights": (_Status, (_handles, _handle, c_int64), "out average index"),
    "ga_average_swap_in": (_Status, (_handle,), "average"),
    "ga_average_swap_out": (_Status, (_handle,), "average"),
    "ga_average_reset": (_Status, (_handle,), "average"),
    "ga_average_updates": (_Status, (_handle, _int64s), "average out"),
    "ga_average_load": (_Status, (_handle, _handles, c_int64, c_int64), "average weights count updates"),
    # Splitting a batch
    "ga_split_by_count": (
        _Status,
        (_int64s, c_int64, _int64s, c_int64, c_int64),
        "boundaries capacity out_count samples micro_batches",
    ),
    "ga_split_by_size": (
        _Status,
        (_int64s, c_int64, _int64s, c_int64, c_int64),
        "boundaries capacity out_count samples size",
    ),
    "ga_split_by_tokens": (
        _Status,
        (_int64s, c_int64, _int64s, _int64s, c_int64, c_int64, c_int32),
        "boundaries capacity out_count lengths samples token_budget padded",
    ),
    # Loss scaling
    "ga_loss_scaler_create": (_Status, (_handles, POINTER(LossScalerOptions)), "out options"),
    "ga_loss_scaler_free": (None, (_handle,), "scaler"),
    "ga_loss_scaler_scale": (_Status, (_handle, POINTER(c_double)), "scaler out"),
    "ga_loss_scaler_unscale": (
        _Status,
        (_handle, _handles, _int64s, c_int64, c_int32, c_double, c_int64, POINTER(c_double)),
        "scaler gradients element_counts count dtype scale optimizer norm",
    ),
    "ga_loss_scaler_update": (_Status, (_handle,), "scaler"),
    "ga_loss_scaler_save": (_Status, (_handle, POINTER(LossScalerState)), "scaler out"),
    "ga_loss_scaler_load": (_Status, (_handle, POINTER(LossScalerState)), "scaler state"),
    # Accumulation
    "ga_accumulator_create": (_Status, (_handles, _handle, POINTER(AccumulatorOptions)), "out optimizer options"),
    "ga_accumulator_free": (None, (_handle,), "accumulator"),
    "ga_accumulator_set_accumulation_steps": (_Status, (_handle, c_int64), "accumulator accumulation_steps"),
    "ga_accumulator_accumulation_steps": (_Status, (_handle, _int64s), "accumulator out"),
    "ga_accumulator_set_ramp": (
        _Status,
        (_handle, c_int32, c_int32, POINTER(c_double), _int64s, c_int64),
        "accumulator clock interpolated times accumulation_steps count",
    ),
    "ga_accumulate": (_Status, (_handle, _tensor, c_double), "accumulator loss weight"),
    "ga_accumulate_gradients": (
        _Status,
        (_handle, _handles, c_int64, c_int32, c_double, c_double),
        "accumulator gradients count dtype loss weight",
    ),
    "ga_accumulate_gradient": (
        _Status,
        (_handle, c_int64, c_void_p, c_int32, c_double),
        "accumulator index gradient dtype scale",
    ),
    "ga_accumulate_scaled_gradients": (
        _Status,
        (_handle, _handles, c_int64, c_int32, c_double, c_double, c_double),
        "accumulator gradients count dtype gradient_scale loss weight",
    ),
    "ga_micro_batch_begin": (_Status, (_handle,), "accumulator"),
    "ga_micro_batch_commit": (_Status, (_handle,), "accumulator"),
    "ga_micro_batch_abort": (_Status, (_handle,), "accumulator"),
    "ga_micro_batch_set_weight": (_Status, (_handle, c_int64, c_double), "accumulator micro_batch weight"),
    "ga_step_due": (_Status, (_handle, _int32s), "accumulator out"),
    "ga_step": (_Status, (_handle, POINTER(Report)), "accumulator report"),
    "ga_window_report": (_Status, (_handle, POINTER(Report)), "accumulator report"),
    "ga_accumulator_set_skip_handler": (_Status, (_handle, SkipFn, c_void_p), "accumulator decide user"),
    "ga_accumulator_set_loss_scaler": (_Status, (_handle, _handle), "accumulator scaler"),
    "ga_accumulator_set_retry_handler": (_Status, (_handle, RetryFn, c_void_p), "accumulator retry user"),
    "ga_unscale": (_Status, (_handle, POINTER(c_double)), "accumulator norm"),
    "ga_data_begin": (_Status, (_handle,), "accumulator"),
    "ga_data_end": (_Status, (_handle, c_int32, POINTER(Report)), "accumulator tail report"),
    "ga_gradient_norms": (_Status, (_handle, POINTER(c_double), c_int64), "accumulator out count"),
    "ga_stagnation": (
        _Status,
        (_handle, POINTER(c_int64), POINTER(c_int64), c_int64),
        "accumulator additions unchanged count",
    ),
    "ga_zero": (_Status, (_handle,), "accumulator"),
    "ga_accumulated_gradient": (_Status, (_handles, _handle, c_int64), "out accumulator index"),
}

# ====== The library ======


def _is_loaded() -> bool:
    """Whether this process has the library already, as a program does that embeds Python."""
    try:
        ctypes.CDLL(SONAME, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def candidates() -> list[str]:
    """The places a library is looked for, in order. An explicit path is the only one: a build that was asked
    for and does not load must not be replaced by another in silence. A library that the process has already is
    the only one, too: handles of one library are none of another."""
    explicit = os.environ.get("GRADACCUM_LIBRARY")
    if explicit:
        return [explicit]
    if _is_loaded():
        return [SONAME]
    package = Path(__file__).resolve().parent
    found = [str(package / "_lib" / SONAME), str(package.parents[2] / "build" / "lib" / SONAME)]
    installed = ctypes.util.find_library("gradaccum")
    return [*found, installed or SONAME]


def ctype(kind: Any) -> Any:
    """The type of ctypes that a type of the table stands for."""
    return c_void_p if kind is TENSOR else kind


def declare(library: ctypes.CDLL, is_checked: bool) -> ctypes.CDLL:
    """Gives every function of the table its types, and if it is to be checked, exceptions to those that return a
    status."""
    for name, (restype, argtypes, names) in PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = _status if restype is _Status else restype
        function.argtypes = [ctype(kind) for kind in argtypes]
        if restype is _Status and is_checked:
            function.argtypes = [KINDS.get(kind, kind) for kind in argtypes]
            setattr(library, name, _checked(function, names, name in CALLING_BACK))
    return library


def load_library() -> ctypes.CDLL:
    """Loads the first candidate that there is and checks its ABI."""
    tried: list[str] = []
    for path in candidates():
        try:
            library = ctypes.CDLL(path)
            version = library.ga_abi_version()
            if version == ABI_VERSION:
                return declare(library, True)
            reason = f"its ABI version is {version} and this package needs {ABI_VERSION}"
        except (OSError, AttributeError) as error:
            reason = str(error)
        tried.append(f"  {reason}" if reason.startswith(path) else f"  {path}: {reason}")
    raise GALibraryError(
        f"no usable {SONAME} was found; build it with `make`, or set GRADACCUM_LIBRARY to its path. Tried:\n"
        + "\n".join(tried)
    )


def _checked(function: Any, names: str, may_call_back: bool) -> Callable[..., int]:
    """The function, with exceptions for what is wrong."""
    name = function.__name__

    def call(*arguments: Any) -> int:
        if may_call_back and _kept:
            _kept.pop(get_ident(), None)  # of a call of others, such as a program in C around this interpreter
        # No exception in a variable, as its traceback has this frame: that would be a cycle around what the caller holds.
        try:
            status: int = function(*arguments)
        except ctypes.ArgumentError as error:
            raise explain(function.argtypes, names, arguments, GAInternalError(f"{name}: {error}")) from None
        if status == 0:
            return status
        if may_call_back:
            _raise_kept()
        raise explain(function.argtypes, names, arguments, error_of(status))

    return call


def error_of(status: int) -> GAError:
    """The exception of a status, with this thread's last sentence."""
    error = BY_STATUS.get(status, GAError)(lib.ga_last_error().decode("utf-8", "replace"))
    error.status = status
    return error


# ====== Functions of the caller ======

CALLING_BACK = {
    "ga_gradients",
    "ga_checkpoint",
    "ga_accumulate",
    "ga_accumulate_gradients",
    "ga_accumulate_scaled_gradients",
    "ga_micro_batch_commit",
    "ga_step",
    "ga_data_end",
}
"""The functions that may run a block of a checkpoint or a handler, on the thread that calls them."""

_FAILED = 1  # no status of the library


_kept: dict[int, BaseException] = {}  # by thread


def keep(error: BaseException) -> int:
    """What a function of the caller has raised comes out of the call that runs it, once the library has returned. Returns
    a status for the library."""
    _kept[get_ident()] = error
    return status_for(error)


def status_for(error: BaseException) -> int:
    """What a function of the caller that has raised this returns to the library."""
    return error.status if isinstance(error, GAError) and error.status < 0 else _FAILED


def _raise_kept() -> None:
    kept = _kept.pop(get_ident(), None)
    if kept is not None:
        try:
            raise kept
        finally:
            del kept  # whose traceback has this frame


lib = load_library()
