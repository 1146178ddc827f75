"""The C library through ctypes: where it is found, and the one table of its prototypes.

Handles are plain addresses (c_void_p). Functions that return a status raise an exception of errors.py on a
negative one, with the sentence of ga_last_error().
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
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
from typing import Any

from .errors import BY_STATUS, GAError, GALibraryError

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
ROUND_EMPTY, ROUND_FINITE, ROUND_OVERFLOW = 0, 1, 2
TAIL_STEP, TAIL_CARRY, TAIL_DROP = 0, 1, 2

# ====== Structs: field for field those of the header ======


class _Sized(Structure):
    """A struct that starts with struct_size; made with the header's defaults, as by its _INIT macro."""

    _defaults_: tuple[tuple[str, float], ...] = ()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{**dict(self._defaults_), "struct_size": ctypes.sizeof(type(self)), **fields})


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
        ("found", c_int32),
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

_handle = c_void_p  # a ga_tensor *, ga_optimizer * or other object of the library
_handles = POINTER(c_void_p)  # an array of them, or the address that one is written to
_int32s = POINTER(c_int32)
_int64s = POINTER(c_int64)
_status = c_int32


class _Status:
    """Marks the restype of functions that return a status and are checked."""


Prototype = tuple[Any, tuple[Any, ...]]

PROTOTYPES: dict[str, Prototype] = {
    "ga_version": (c_char_p, ()),
    "ga_abi_version": (c_int32, ()),
    "ga_status_name": (c_char_p, (_status,)),
    "ga_last_error": (c_char_p, ()),
    # Runtime
    "ga_set_num_threads": (_Status, (c_int32,)),
    "ga_num_threads": (_Status, (_int32s,)),
    "ga_instruction_set": (_Status, (POINTER(c_char_p),)),
    "ga_set_compute_dtype": (_Status, (c_int32,)),
    "ga_compute_dtype": (_Status, (_int32s,)),
    "ga_set_allocator": (_Status, (AllocateFn, ReleaseFn, c_void_p)),
    "ga_memory_usage": (_Status, (POINTER(Memory),)),
    "ga_memory_reset_peak": (_Status, ()),
    "ga_memory_trim": (_Status, ()),
    # Tensors
    "ga_tensor_create": (_Status, (_handles, c_int32, c_int32, c_int32, _int64s)),
    "ga_tensor_from_data": (_Status, (_handles, c_int32, c_int32, c_int32, _int64s, c_void_p)),
    "ga_tensor_wrap": (
        _Status,
        (_handles, c_int32, c_int32, c_int32, _int64s, _int64s, c_void_p, WrapReleaseFn, c_void_p),
    ),
    "ga_tensor_free": (None, (_handle,)),
    "ga_tensor_copy_in": (_Status, (_handle, c_void_p, c_size_t)),
    "ga_tensor_copy_out": (_Status, (_handle, c_void_p, c_size_t)),
    "ga_tensor_data": (_Status, (_handle, POINTER(c_void_p))),
    "ga_tensor_item": (_Status, (_handle, POINTER(c_double))),
    "ga_tensor_dtype": (_Status, (_handle, _int32s)),
    "ga_tensor_rank": (_Status, (_handle, _int32s)),
    "ga_tensor_element_count": (_Status, (_handle, _int64s)),
    "ga_tensor_shape": (_Status, (_handle, _int64s, c_int32)),
    "ga_tensor_strides": (_Status, (_handle, _int64s, c_int32)),
    "ga_tensor_fill": (_Status, (_handle, c_double)),
    "ga_tensor_fill_normal": (_Status, (_handle, c_double, c_double, c_uint64)),
    "ga_tensor_fill_uniform": (_Status, (_handle, c_double, c_double, c_uint64)),
    "ga_tensor_set_requires_grad": (_Status, (_handle, c_int32)),
    "ga_tensor_requires_grad": (_Status, (_handle, _int32s)),
    "ga_tensor_set_read_only": (_Status, (_handle,)),
    "ga_tensor_read_only": (_Status, (_handle, _int32s)),
    "ga_tensor_set_name": (_Status, (_handle, c_char_p)),
    "ga_tensor_detach": (_Status, (_handles, _handle)),
    "ga_tensor_from_dlpack": (_Status, (_handles, c_void_p)),
    "ga_tensor_from_dlpack_unversioned": (_Status, (_handles, c_void_p)),
    "ga_tensor_to_dlpack": (_Status, (_handles, _handle, c_int32)),
    "ga_tensor_to_dlpack_unversioned": (_Status, (_handles, _handle, c_int32)),
    "ga_python_release": (None, (c_void_p, c_void_p)),
    "ga_python_capsule_destroy": (None, (c_void_p,)),
    "ga_python_array_addresses": (
        c_int64,
        (_handles, c_void_p, c_int64, _int64s, c_void_p, c_void_p, c_int64),
    ),
    "ga_scope_open": (_Status, (_handles,)),
    "ga_scope_close": (_Status, (_handle, _handles, c_int64)),
    # Operations
    "ga_add": (_Status, (_handles, _handle, _handle)),
    "ga_subtract": (_Status, (_handles, _handle, _handle)),
    "ga_multiply": (_Status, (_handles, _handle, _handle)),
    "ga_divide": (_Status, (_handles, _handle, _handle)),
    "ga_matmul": (_Status, (_handles, _handle, _handle)),
    "ga_linear": (_Status, (_handles, _handle, _handle, _handle)),
    "ga_layer_norm": (_Status, (_handles, _handle, _handle, _handle, c_double)),
    "ga_gelu": (_Status, (_handles, _handle, c_int32)),
    "ga_relu": (_Status, (_handles, _handle)),
    "ga_softmax": (_Status, (_handles, _handle, c_int32)),
    "ga_cross_entropy": (_Status, (_handles, _handle, _handle, c_int64, c_int32)),
    "ga_linear_cross_entropy": (_Status, (_handles, _handle, _handle, _handle, c_int64, c_int32)),
    "ga_mse": (_Status, (_handles, _handle, _handle, c_int32)),
    "ga_embedding": (_Status, (_handles, _handle, _handle)),
    "ga_causal_attention": (_Status, (_handles, _handle, _handle, _handle, c_int32)),
    "ga_reshape": (_Status, (_handles, _handle, c_int32, _int64s)),
    "ga_transpose": (_Status, (_handles, _handle, c_int32, c_int32)),
    "ga_slice": (_Status, (_handles, _handle, c_int32, c_int64, c_int64)),
    "ga_sum": (_Status, (_handles, _handle, _int32s, c_int32, c_int32)),
    "ga_mean": (_Status, (_handles, _handle, _int32s, c_int32, c_int32)),
    "ga_cast": (_Status, (_handles, _handle, c_int32)),
    # Autograd
    "ga_set_recording": (_Status, (c_int32,)),
    "ga_recording": (_Status, (_int32s,)),
    "ga_gradients": (_Status, (_handles, _handle, _handles, c_int64)),
    "ga_checkpoint": (_Status, (_handles, _handles, c_int64, BlockFn, c_void_p, UserReleaseFn)),
    # Optimizers
    "ga_sgd_create": (_Status, (_handles, _handles, c_int64, POINTER(SGDOptions))),
    "ga_adam_create": (_Status, (_handles, _handles, c_int64, POINTER(AdamOptions))),
    "ga_adamw_create": (_Status, (_handles, _handles, c_int64, POINTER(AdamWOptions))),
    "ga_radam_create": (_Status, (_handles, _handles, c_int64, POINTER(RAdamOptions))),
    "ga_nadam_create": (_Status, (_handles, _handles, c_int64, POINTER(NAdamOptions))),
    "ga_lion_create": (_Status, (_handles, _handles, c_int64, POINTER(LionOptions))),
    "ga_lamb_create": (_Status, (_handles, _handles, c_int64, POINTER(LAMBOptions))),
    "ga_lars_create": (_Status, (_handles, _handles, c_int64, POINTER(LARSOptions))),
    "ga_adafactor_create": (_Status, (_handles, _handles, c_int64, POINTER(AdafactorOptions))),
    "ga_muon_create": (_Status, (_handles, _handles, c_int64, POINTER(MuonOptions))),
    "ga_adamw8bit_create": (_Status, (_handles, _handles, c_int64, POINTER(AdamW8bitOptions))),
    "ga_custom_create": (
        _Status,
        (_handles, _handles, c_int64, UpdateFn, c_void_p, UserReleaseFn, POINTER(CustomOptions)),
    ),
    "ga_optimizer_free": (None, (_handle,)),
    "ga_optimizer_set_learning_rate": (_Status, (_handle, c_double)),
    "ga_optimizer_learning_rate": (_Status, (_handle, POINTER(c_double))),
    "ga_optimizer_add_group": (_Status, (_handle, _handles, c_int64, POINTER(GroupOptions), _int64s)),
    "ga_optimizer_set_group": (_Status, (_handle, c_int64, POINTER(GroupOptions))),
    "ga_optimizer_group": (_Status, (_handle, c_int64, POINTER(GroupOptions))),
    "ga_optimizer_group_count": (_Status, (_handle, _int64s)),
    # Schedules
    "ga_optimizer_clock": (_Status, (_handle, c_int32, POINTER(c_double))),
    "ga_optimizer_set_schedule": (_Status, (_handle, POINTER(ScheduleOptions))),
    "ga_optimizer_report_metric": (_Status, (_handle, c_double)),
    "ga_optimizer_next_learning_rate": (_Status, (_handle, POINTER(c_double))),
    "ga_schedule_factor": (_Status, (POINTER(ScheduleOptions), c_double, POINTER(c_double))),
    "ga_optimizer_set_scaling": (_Status, (_handle, POINTER(ScalingOptions))),
    # State of optimizers
    "ga_optimizer_state_bytes": (_Status, (_handle, _int64s)),
    "ga_optimizer_save_state": (_Status, (_handle, c_void_p, c_int64)),
    "ga_optimizer_load_state": (_Status, (_handle, c_void_p, c_int64)),
    # Averages of weights
    "ga_average_create": (_Status, (_handles, _handle, POINTER(AverageOptions))),
    "ga_average_free": (None, (_handle,)),
    "ga_average_weights": (_Status, (_handles, _handle, c_int64)),
    "ga_average_swap_in": (_Status, (_handle,)),
    "ga_average_swap_out": (_Status, (_handle,)),
    "ga_average_reset": (_Status, (_handle,)),
    "ga_average_updates": (_Status, (_handle, _int64s)),
    "ga_average_load": (_Status, (_handle, _handles, c_int64, c_int64)),
    # Splitting a batch
    "ga_split_by_count": (_Status, (_int64s, c_int64, _int64s, c_int64, c_int64)),
    "ga_split_by_size": (_Status, (_int64s, c_int64, _int64s, c_int64, c_int64)),
    "ga_split_by_tokens": (_Status, (_int64s, c_int64, _int64s, _int64s, c_int64, c_int64, c_int32)),
    # Loss scaling
    "ga_loss_scaler_create": (_Status, (_handles, POINTER(LossScalerOptions))),
    "ga_loss_scaler_free": (None, (_handle,)),
    "ga_loss_scaler_scale": (_Status, (_handle, POINTER(c_double))),
    "ga_loss_scaler_unscale": (
        _Status,
        (_handle, _handles, _int64s, c_int64, c_int32, c_double, c_int64, POINTER(c_double)),
    ),
    "ga_loss_scaler_update": (_Status, (_handle,)),
    "ga_loss_scaler_save": (_Status, (_handle, POINTER(LossScalerState))),
    "ga_loss_scaler_load": (_Status, (_handle, POINTER(LossScalerState))),
    # Accumulation
    "ga_accumulator_create": (_Status, (_handles, _handle, POINTER(AccumulatorOptions))),
    "ga_accumulator_free": (None, (_handle,)),
    "ga_accumulator_set_accumulation_steps": (_Status, (_handle, c_int64)),
    "ga_accumulator_accumulation_steps": (_Status, (_handle, _int64s)),
    "ga_accumulator_set_ramp": (_Status, (_handle, c_int32, c_int32, POINTER(c_double), _int64s, c_int64)),
    "ga_accumulate": (_Status, (_handle, _handle, c_double)),
    "ga_accumulate_gradients": (_Status, (_handle, _handles, c_int64, c_int32, c_double, c_double)),
    "ga_accumulate_gradient": (_Status, (_handle, c_int64, c_void_p, c_int32, c_double)),
    "ga_accumulate_scaled_gradients": (
        _Status,
        (_handle, _handles, c_int64, c_int32, c_double, c_double, c_double),
    ),
    "ga_micro_batch_begin": (_Status, (_handle,)),
    "ga_micro_batch_commit": (_Status, (_handle,)),
    "ga_micro_batch_abort": (_Status, (_handle,)),
    "ga_micro_batch_set_weight": (_Status, (_handle, c_int64, c_double)),
    "ga_step_due": (_Status, (_handle, _int32s)),
    "ga_step": (_Status, (_handle, POINTER(Report))),
    "ga_window_report": (_Status, (_handle, POINTER(Report))),
    "ga_accumulator_set_skip_handler": (_Status, (_handle, SkipFn, c_void_p)),
    "ga_accumulator_set_loss_scaler": (_Status, (_handle, _handle)),
    "ga_accumulator_set_retry_handler": (_Status, (_handle, RetryFn, c_void_p)),
    "ga_unscale": (_Status, (_handle, POINTER(c_double))),
    "ga_data_begin": (_Status, (_handle,)),
    "ga_data_end": (_Status, (_handle, c_int32, POINTER(Report))),
    "ga_gradient_norms": (_Status, (_handle, POINTER(c_double), c_int64)),
    "ga_stagnation": (_Status, (_handle, POINTER(c_int64), POINTER(c_int64), c_int64)),
    "ga_zero": (_Status, (_handle,)),
    "ga_accumulated_gradient": (_Status, (_handles, _handle, c_int64)),
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


def declare(library: ctypes.CDLL, check: Any) -> ctypes.CDLL:
    """Gives every function of the table its types, and `check` to those that return a status."""
    for name, (restype, argtypes) in PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes = argtypes
        function.restype = _status if restype is _Status else restype
        if restype is _Status and check is not None:
            function.errcheck = check
    return library


def load_library() -> ctypes.CDLL:
    """Loads the first candidate that there is and checks its ABI."""
    tried: list[str] = []
    for path in candidates():
        try:
            library = ctypes.CDLL(path)
            version = library.ga_abi_version()
            if version == ABI_VERSION:
                return declare(library, _raise_on_error)
            reason = f"its ABI version is {version} and this package needs {ABI_VERSION}"
        except (OSError, AttributeError) as error:
            reason = str(error)
        tried.append(f"  {reason}" if reason.startswith(path) else f"  {path}: {reason}")
    raise GALibraryError(
        f"no usable {SONAME} was found; build it with `make`, or set GRADACCUM_LIBRARY to its path. Tried:\n"
        + "\n".join(tried)
    )


def _raise_on_error(status: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if status != 0:
        raise error_of(status)
    return status


def error_of(status: int) -> GAError:
    """The exception of a status, with this thread's last sentence."""
    error = BY_STATUS.get(status, GAError)(lib.ga_last_error().decode("utf-8", "replace"))
    error.status = status
    return error


lib = load_library()
