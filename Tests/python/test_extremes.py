"""Shapes without elements and enormous axes, allocators that misbehave, and lists that must not grow."""

from __future__ import annotations

import ctypes

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from calls import leaf, made, ok, optimizer, out, sizes, tensor
from support import OK, STATE, UNSUPPORTED, expect, in_child, in_new_process, raw

HUGE = 2**40


def empty(*shape: int) -> int:
    return made(raw.ga_tensor_create, 0, _ffi.FLOAT32, len(shape), sizes(*shape))


def leaf_of(*shape: int) -> int:
    handle = empty(*shape)
    assert raw.ga_tensor_set_requires_grad(handle, 1) == OK
    return handle


# Each makes a result without elements, or nothing of it, from axes that no loop may walk along.
WITHOUT_ELEMENTS = {
    "add": lambda: made(raw.ga_add, empty(HUGE, 0), empty(1, 0)),
    "matmul": lambda: made(raw.ga_matmul, empty(2**33, 0, 5), leaf_of(5, 3)),
    "linear of sequences": lambda: made(raw.ga_linear, empty(HUGE, 20, 0), leaf_of(0, 0), None),
    "linear of rows": lambda: made(raw.ga_linear, empty(HUGE, 0), leaf_of(0, 0), None),
    "mse": lambda: made(raw.ga_mse, empty(HUGE, 0), empty(HUGE, 0), _ffi.REDUCTION_SUM),
    "sum": lambda: made(raw.ga_sum, empty(HUGE, 5, 0), (ctypes.c_int32 * 1)(1), 1, 0),
    "layer_norm": lambda: made(raw.ga_layer_norm, empty(HUGE, 0), None, None, 1e-5),
    "softmax": lambda: made(raw.ga_softmax, empty(HUGE, 0), -1),
    "reshape": lambda: made(raw.ga_reshape, empty(HUGE, 0), 2, sizes(0, 7)),
}


@pytest.mark.parametrize("name", WITHOUT_ELEMENTS)
@in_child
def test_an_axis_beside_none_costs_nothing(name):
    raw.ga_tensor_free(WITHOUT_ELEMENTS[name]())


@in_child
def test_one_number_repeated_beyond_memory_is_filled_at_once():
    memory = (ctypes.c_float * 1)(1.0)
    address = ctypes.addressof(memory)
    x = made(raw.ga_tensor_wrap, 0, _ffi.FLOAT32, 1, sizes(2**58), sizes(0), address, _ffi.WrapReleaseFn(), None)
    assert raw.ga_tensor_fill(x, 3.0) == OK
    assert memory[0] == 3.0


def calls_from_the_allocator() -> list[int]:
    """The statuses of the calls that an allocator made, in a process without memory of another one."""
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    libc.free.argtypes = (ctypes.c_void_p,)
    asked = []

    def allocate(size, alignment, user):
        asked.append(raw.ga_memory_usage(_ffi.Memory()))
        return libc.aligned_alloc(alignment, -(-size // alignment) * alignment)

    def release(memory, size, user):
        asked.append(raw.ga_memory_usage(_ffi.Memory()))
        libc.free(memory)

    hooks = _ffi.AllocateFn(allocate), _ffi.ReleaseFn(release)
    assert raw.ga_memory_trim() == OK
    assert raw.ga_set_allocator(*hooks, None) == OK
    x = tensor(np.ones(1_000_000))
    raw.ga_tensor_free(x)
    assert raw.ga_set_allocator(_ffi.AllocateFn(), _ffi.ReleaseFn(), None) == OK
    return asked


def test_an_allocator_may_call_the_library():
    asked = in_new_process(calls_from_the_allocator)
    assert len(asked) >= 2 and set(asked) == {OK}


def steps_from_the_allocator() -> list[int]:
    """The statuses of the steps that an allocator asked for while accumulators were made for a graph."""
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    libc.free.argtypes = (ctypes.c_void_p,)
    asked = []
    window = None

    def allocate(size, alignment, user):
        if window:
            asked.append(raw.ga_step(window, None))
        # A call for each tensor: no memory in advance.
        return libc.aligned_alloc(alignment, size) if size <= 4_000_000 else None

    hooks = _ffi.AllocateFn(allocate), _ffi.ReleaseFn(lambda memory, size, user: libc.free(memory))
    assert raw.ga_memory_trim() == OK
    assert raw.ga_set_allocator(*hooks, None) == OK
    leaves = [leaf(np.ones(1_000_000)), leaf(np.ones(1_000_000))]
    accumulator = made(raw.ga_accumulator_create, optimizer(leaves), None)
    sums = [made(raw.ga_sum, x, None, 0, 0) for x in leaves]
    ok(raw.ga_accumulate(accumulator, made(raw.ga_add, *sums), 1.0))
    sums = [made(raw.ga_sum, made(raw.ga_reshape, x, 1, sizes(-1)), None, 0, 0) for x in leaves * 2]
    loss = made(raw.ga_add, made(raw.ga_add, sums[0], sums[1]), made(raw.ga_add, sums[2], sums[3]))
    window = accumulator
    ok(raw.ga_accumulate(accumulator, loss, 1.0))
    window = None
    ok(raw.ga_step(accumulator, None))
    return asked


def test_an_allocator_cannot_end_the_window_that_it_serves():
    asked = in_new_process(steps_from_the_allocator)
    assert len(asked) >= 2 and set(asked) == {STATE}


def memory_that_is_not_aligned() -> list[list[int]]:
    """What an allocator gave, and what it got back."""
    given: list[int] = []
    returned: list[int] = []
    block = ctypes.create_string_buffer(8 << 20)
    odd = (ctypes.addressof(block) + 63) // 64 * 64 + 4

    def allocate(size, alignment, user):
        given.append(odd)
        return odd

    hooks = _ffi.AllocateFn(allocate), _ffi.ReleaseFn(lambda memory, size, user: returned.append(memory))
    assert raw.ga_memory_trim() == OK
    assert raw.ga_set_allocator(*hooks, None) == OK
    expect(raw.ga_tensor_create(out(), 0, _ffi.FLOAT32, 1, sizes(5)), UNSUPPORTED, "multiple of 64")
    assert raw.ga_set_allocator(_ffi.AllocateFn(), _ffi.ReleaseFn(), None) == OK
    tensor(np.ones(3))
    return [given, returned]


def test_memory_that_is_not_aligned_is_given_back_and_refused():
    given, returned = in_new_process(memory_that_is_not_aligned)
    assert given and given == returned


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


@in_child
def test_a_long_scope_forgets_what_is_freed():
    shape, handle = sizes(1), out()
    scope = made(raw.ga_scope_open)

    def churn(count: int) -> None:
        for _ in range(count):
            raw.ga_tensor_create(handle, 0, _ffi.FLOAT32, 1, shape)
            raw.ga_tensor_free(handle)

    churn(20_000)
    before = resident_bytes()
    churn(200_000)
    assert resident_bytes() - before < 1 << 20, "a handle costs 8 bytes where it is remembered"
    assert raw.ga_scope_close(scope, None, 0) == OK


def test_places_that_a_window_did_not_use_are_given_back():
    weight = ga.zeros((256, 256), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([weight], lr=0.1))
    x = ga.tensor(np.ones((2, 256)))

    def window(uses: int) -> int:
        y = x
        for _ in range(uses):
            y = ga.linear(y, weight)
        accumulator.accumulate(ga.sum(y), weight=1)
        del y
        accumulator.step()
        return ga.memory_usage().live_bytes

    once = window(1)
    window(20)
    assert window(1) == once


def test_an_empty_micro_batch_adds_nothing():
    for shape, weight_shape in (((0, 20, 5), (3, 5)), ((0, 5), (3, 5))):
        weight = ga.zeros(weight_shape, requires_grad=True).fill_(1.0)
        accumulator = ga.Accumulator(ga.SGD([weight], lr=0.1))
        accumulator.accumulate(ga.sum(ga.linear(ga.zeros(shape), weight)), weight=0)
        assert not accumulator.accumulated_gradient(0).numpy().any()


def test_a_table_without_rows_may_have_two_uses():
    table = ga.zeros((0, 5), requires_grad=True)
    nothing = ga.tensor(np.zeros((2, 0), np.int64))
    loss = ga.sum(ga.embedding(table, nothing) + ga.embedding(table, nothing))
    assert ga.gradients(loss, [table])[0].shape == (0, 5)


@pytest.mark.parametrize("time", [2**40, 2**58])
def test_attention_over_no_sample_takes_no_time(time):
    q = ga.zeros((0, time, 1), requires_grad=True)
    assert ga.causal_attention(q, q, q, 1).shape == (0, time, 1)
    assert ga.gradients(ga.sum(ga.causal_attention(q, q, q, 1)), [q])[0].shape == (0, time, 1)
