"""Threads, instruction set, memory and version of the loaded library."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_int32
from dataclasses import dataclass

from . import _ffi
from ._ffi import lib


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


def memory_usage() -> MemoryUsage:
    memory = _ffi.Memory()
    lib.ga_memory_usage(byref(memory))
    return MemoryUsage(memory.live_bytes, memory.peak_bytes, memory.arena_bytes, memory.allocator_calls)


def memory_reset_peak() -> None:
    lib.ga_memory_reset_peak()


def memory_trim() -> None:
    """Gives memory that is kept for reuse, and not in use, back."""
    lib.ga_memory_trim()
