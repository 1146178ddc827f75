"""Threads, instruction set, compute type, memory and version of the loaded library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int32
from dataclasses import dataclass
from typing import Union

from . import _ffi
from ._arguments import constant_of
from ._ffi import lib
from .tensor import DType

_COMPUTE_DTYPES = {"float32": _ffi.FLOAT32, "bfloat16": _ffi.BFLOAT16, "float16": _ffi.FLOAT16}


@dataclass(frozen=True)
class MemoryUsage:
    live_bytes: int  # in tensors, accumulators and optimizer state now
    peak_bytes: int  # the highest live_bytes since the start or memory_reset_peak()
    arena_bytes: int  # obtained from the allocator and kept for reuse
    allocator_calls: int  # since the start: constant in steady state


def version() -> str:
    return str(lib.ga_version().decode())


def set_num_threads(count: int) -> None:
    """The number of threads of every later operation. It changes no bit of any result."""
    lib.ga_set_num_threads(count)


def get_num_threads() -> int:
    value = c_int32()
    lib.ga_num_threads(byref(value))
    return value.value


def instruction_set() -> str:
    """ "baseline", "avx2", "avx512" or "avx512_bf16"."""
    value = c_char_p()
    lib.ga_instruction_set(byref(value))
    assert value.value is not None
    return value.value.decode()


def set_compute_dtype(dtype: Union[DType, str]) -> None:
    """What linear layers and attention of this thread multiply in: "float32", the default, "bfloat16" or "float16".

    Their results, and those of layer_norm, are of that type; parameters, gradients and losses stay float32. float16 has a
    narrow range, so that its gradients need a LossScaler. What is set holds for the operations that follow, so that parts
    of a model can each have their own; their gradients are computed as they were.
    """
    lib.ga_set_compute_dtype(
        constant_of("dtype", dtype, _COMPUTE_DTYPES) if isinstance(dtype, str) else dtype
    )


def get_compute_dtype() -> DType:
    value = c_int32()
    lib.ga_compute_dtype(byref(value))
    return DType(value.value)


@contextmanager
def compute_dtype(dtype: Union[DType, str]) -> Iterator[None]:
    """set_compute_dtype for a with block, which brings the former one back."""
    before = get_compute_dtype()
    set_compute_dtype(dtype)
    try:
        yield
    finally:
        set_compute_dtype(before)


def memory_usage() -> MemoryUsage:
    memory = _ffi.Memory()
    lib.ga_memory_usage(byref(memory))
    return MemoryUsage(memory.live_bytes, memory.peak_bytes, memory.arena_bytes, memory.allocator_calls)


def memory_reset_peak() -> None:
    lib.ga_memory_reset_peak()


def memory_trim() -> None:
    """Gives memory that is kept for reuse, and not in use, back."""
    lib.ga_memory_trim()
