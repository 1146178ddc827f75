"""Memory of others, wrapped without a copy, and memory from the allocator, which may refuse each piece."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from calls import elements, handles, leaf, made, ok, optimizer, out, sizes, snapshot, tensor
from models import (
    train,
)
from support import (
    OUT_OF_MEMORY,
    STATE,
    expect,
    in_new_process,
    raw,
    sentence,
)

# ====== Memory of others ======


def test_wrapped_memory_is_released_once_after_its_last_use():
    calls: list[tuple[int, int]] = []
    release = _ffi.WrapReleaseFn(lambda data, user: calls.append((data, user)))
    memory = (ctypes.c_float * 12)(*range(12))
    address = ctypes.addressof(memory)
    parent = made(raw.ga_tensor_wrap, 0, 1, 2, sizes(3, 4), None, address, release, 77)
    view = made(raw.ga_slice, parent, 0, 1, 3)
    detached = made(raw.ga_tensor_detach, view)
    weight = leaf(np.ones((2, 4)))
    graph = made(raw.ga_linear, parent, weight, None)
    raw.ga_tensor_free(parent)
    raw.ga_tensor_free(view)
    assert not calls
    assert elements(detached).tolist() == list(range(4, 12))
    raw.ga_tensor_free(detached)
    assert not calls, "backward still needs the memory"
    raw.ga_tensor_free(graph)
    assert calls == [(address, 77)]
    raw.ga_tensor_free(parent)
    assert calls == [(address, 77)]


def test_graph_that_is_used_up_releases_what_it_held():
    calls: list[int] = []
    release = _ffi.WrapReleaseFn(lambda data, user: calls.append(user))
    memory = (ctypes.c_float * 4)(1, 2, 3, 4)
    x = made(raw.ga_tensor_wrap, 0, 1, 2, sizes(1, 4), None, ctypes.addressof(memory), release, 5)
    weight = leaf(np.ones((2, 4)))
    window = made(raw.ga_accumulator_create, optimizer([weight]), None)
    loss = made(raw.ga_sum, made(raw.ga_linear, x, weight, None), None, 0, 0)
    raw.ga_tensor_free(x)
    assert not calls
    ok(raw.ga_accumulate(window, loss, 1.0))
    for handle in (loss,):
        raw.ga_tensor_free(handle)
    gc.collect()
    assert calls == [5], "the handles of the graph are left, and need no memory of the operands"


def test_wrapped_memory_is_released_by_a_scope():
    calls: list[int] = []
    release = _ffi.WrapReleaseFn(lambda data, user: calls.append(user))
    memory = (ctypes.c_float * 4)()
    scope = made(raw.ga_scope_open)
    made(raw.ga_tensor_wrap, 0, 1, 1, sizes(4), None, ctypes.addressof(memory), release, 9)
    assert not calls
    ok(raw.ga_scope_close(scope, None, 0))
    assert calls == [9]


def test_wrapped_parameter_is_updated_in_place():
    """And its optimizer keeps the memory."""
    calls: list[int] = []
    release = _ffi.WrapReleaseFn(lambda data, user: calls.append(user))
    memory = (ctypes.c_float * 4)(1, 1, 1, 1)
    x = made(raw.ga_tensor_wrap, 0, 1, 1, sizes(4), None, ctypes.addressof(memory), release, 3)
    owner = made(raw.ga_sgd_create, handles(x), 1, _ffi.SGDOptions(learning_rate=0.5))
    window = made(raw.ga_accumulator_create, owner, None)
    raw.ga_tensor_free(x)
    ones = np.ones(4, np.float32)
    ok(raw.ga_accumulate_gradients(window, handles(ones.ctypes.data), 1, 1, 0.0, 1.0))
    ok(raw.ga_step(window, None))
    assert list(memory) == [0.5] * 4 and not calls
    raw.ga_optimizer_free(owner)
    assert not calls
    raw.ga_accumulator_free(window)
    assert calls == [3]


def test_unaligned_memory_can_be_wrapped():
    """A float32 may stand at any multiple of 4, and in C at any address that a file was read to."""
    rng = np.random.default_rng(4)
    weight = leaf(rng.standard_normal((5, 33)))
    values = rng.standard_normal((3, 33)).astype(np.float32)
    expected = elements(made(raw.ga_linear, tensor(values), weight, None))
    for offset in (0, 4, 1, 2, 3, 60):
        memory = ctypes.create_string_buffer(values.nbytes + 128)
        ctypes.memmove(ctypes.addressof(memory) + offset, values.ctypes.data, values.nbytes)
        handle = out()
        status = raw.ga_tensor_wrap(
            handle, 0, 1, 2, sizes(3, 33), None, ctypes.addressof(memory) + offset, _ffi.WrapReleaseFn(), None
        )
        if offset % 4:
            assert status in (0, -1)
            if status:
                assert "data" in sentence()
                continue
        assert status == 0
        found = elements(made(raw.ga_linear, handle.value, weight, None))
        assert found.tobytes() == expected.tobytes()


# ====== Memory of the library ======


def test_tensors_of_random_sizes_keep_their_elements():
    rng = np.random.default_rng(4)
    before = ga.memory_usage().live_bytes
    alive: list[tuple[int, int, int]] = []
    for step in range(3000):
        count = int(rng.choice([rng.integers(1, 40), rng.integers(1, 3000), rng.integers(1, 200_000)]))
        if len(alive) < 60 or rng.random() < 0.4:
            alive.append((tensor(np.full(count, step, np.float32)), count, step))
        while len(alive) > 90 or (alive and rng.random() < 0.4):
            x, size, value = alive.pop(rng.integers(len(alive)))
            assert (elements(x) == value).all()
            raw.ga_tensor_free(x)
        if step % 500 == 0:
            ga.memory_trim()
        assert ga.memory_usage().live_bytes - before == sum((4 * size + 63) // 64 * 64 for _, size, _ in alive)
    for x, _, value in alive:
        assert (elements(x) == value).all()
        raw.ga_tensor_free(x)
    assert ga.memory_usage().live_bytes == before


# ====== The allocator ======


class Allocator:
    """malloc with a count, which refuses the n-th call, or it and all that follow.

    It never gives more than `most` bytes at once, and does not count such calls: a library that takes memory
    in large chunks must then ask for each block by itself, so that each can be refused.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.aligned_alloc.restype = ctypes.c_void_p
        self.libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self.libc.free.argtypes = [ctypes.c_void_p]
        self.live: dict[int, int] = {}
        self.calls = 0
        self.refused = 0
        self.fail_at: int | None = None
        self.for_good = False
        self.mistakes: list[str] = []
        self.lock = threading.Lock()
        self.allocate = _ffi.AllocateFn(self._allocate)
        self.release = _ffi.ReleaseFn(self._release)

    def _allocate(self, size: int, alignment: int, user: int | None) -> int | None:
        with self.lock:
            if size > self.most:
                return None
            self.calls += 1
            if user != 42:
                self.mistakes.append(f"user is {user}")
            if alignment & (alignment - 1) or not alignment:
                self.mistakes.append(f"alignment is {alignment}")
            if self.fail_at is not None and (
                self.calls == self.fail_at or self.for_good and self.calls > self.fail_at
            ):
                self.refused += 1
                return None
            address = self.libc.aligned_alloc(alignment, (size + alignment - 1) // alignment * alignment)
            ctypes.memset(address, 0xAA, size)  # what was not written must not be read
            self.live[address] = size
            return address

    def _release(self, memory: int, size: int, user: int | None) -> None:
        with self.lock:
            if self.live.pop(memory, None) != size or user != 42:
                self.mistakes.append(f"released {memory} of {size} bytes")
                return
            self.libc.free(memory)

    def install(self) -> None:
        ok(raw.ga_set_allocator(self.allocate, self.release, 42))

    def remove(self) -> None:
        ok(raw.ga_memory_trim())
        ok(raw.ga_set_allocator(_ffi.AllocateFn(), _ffi.ReleaseFn(), None))


class WindowLost(Exception):
    """A backward pass ran out of memory on its way, and what was accumulated before is lost with it: the window, or in
    isolated mode the micro-batch."""


class Retry:
    """Calls functions; one that is out of memory must have written nothing, and succeeds when tried again."""

    def __init__(self, allocator: Allocator, way_out: str = "zero") -> None:
        self.allocator = allocator
        self.refusals = 0
        self.way_out = way_out

    def __call__(self, function: Callable[..., int], *arguments: Any) -> None:
        before = snapshot(arguments)
        status = function(*arguments)
        if status == 0:
            return
        expect(status, OUT_OF_MEMORY)
        assert snapshot(arguments) == before, "something was written"
        self.refusals += 1
        self.allocator.fail_at = None
        again = function(*arguments)
        if again != 0 and function is raw.ga_accumulate:
            expect(again, STATE, self.way_out)
            raise WindowLost
        ok(again)

    def made(self, function: Callable[..., int], *arguments: Any) -> int:
        handle = out()
        self(function, handle, *arguments)
        return handle.value


def accumulate_two(call: Retry, window: int, parameters: Any, batches: list[np.ndarray]) -> None:
    """A tied model with attention: the graphs of two micro-batches."""
    table, weight, bias, gain = parameters
    for tokens in batches:
        scope = call.made(raw.ga_scope_open)
        try:
            indices = call.made(raw.ga_tensor_from_data, 0, 5, 2, sizes(*tokens.shape), tokens.ctypes.data)
            x = call.made(raw.ga_embedding, table, indices)
            h = call.made(raw.ga_layer_norm, x, gain, bias, 1e-5)
            h = call.made(raw.ga_linear, h, weight, bias)
            h = call.made(raw.ga_causal_attention, h, x, h, 3)
            h = call.made(raw.ga_gelu, h, 1)
            h = call.made(raw.ga_add, x, h)
            logits = call.made(raw.ga_linear, h, table, None)
            loss = call.made(raw.ga_cross_entropy, logits, indices, -1, 0)
            call(raw.ga_accumulate, window, loss, float(tokens.size))
        finally:
            call(raw.ga_scope_close, scope, None, 0)


def scenario(call: Retry, create: str) -> tuple[list[bytes], int]:
    """Two windows of a model, one of the caller's gradients, and plain gradients: all results, and the number
    of updates."""
    rng = np.random.default_rng(6)

    def parameter(*shape: int) -> int:
        array = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        handle = call.made(raw.ga_tensor_from_data, 0, 1, len(shape), sizes(*shape), array.ctypes.data)
        call(raw.ga_tensor_set_requires_grad, handle, 1)
        return handle

    table, weight, bias, gain = parameter(11, 12), parameter(12, 12), parameter(12), parameter(12)
    parameters = handles(table, weight, bias, gain)
    owner = call.made(getattr(raw, create), parameters, 4, None)
    window = call.made(raw.ga_accumulator_create, owner, _ffi.AccumulatorOptions(max_grad_norm=0.5))
    report = _ffi.Report()
    for _ in range(2):
        batches = [rng.integers(0, 11, (size, 7)) for size in (2, 1)]
        try:
            accumulate_two(call, window, parameters, batches)
        except WindowLost:
            ok(raw.ga_zero(window))
            accumulate_two(call, window, parameters, batches)
        copy = call.made(raw.ga_accumulated_gradient, window, 0)
        call(raw.ga_step, window, report)
        raw.ga_tensor_free(copy)
    ones = np.ones((12, 12), np.float32)
    pointers = handles(None, ones.ctypes.data, None, None)
    call(raw.ga_accumulate_gradients, window, pointers, 4, 1, 1.0, 2.0)
    call(raw.ga_step, window, report)

    scope = call.made(raw.ga_scope_open)
    found = (ctypes.c_void_p * 2)(0x5A, 0x5A)
    product = call.made(raw.ga_matmul, weight, weight)
    loss = call.made(raw.ga_mse, call.made(raw.ga_softmax, product, 0), weight, 0)
    call(raw.ga_gradients, found, loss, handles(weight, table), 2)
    result = [elements(x).tobytes() for x in (table, weight, bias, gain, *found)]
    call(raw.ga_scope_close, scope, None, 0)
    raw.ga_accumulator_free(window)
    raw.ga_optimizer_free(owner)
    for handle in parameters:
        raw.ga_tensor_free(handle)
    return result, report.update_count


def isolated_scenario(call: Retry, sum_format: int) -> list[bytes]:
    """Two windows of micro-batches that are begun and committed, with parameters at several places. The last one is larger
    than any activation, so that its sum finds no memory that is free again."""
    rng = np.random.default_rng(6)
    parameters = []
    for shape in ((11, 12), (12, 12), (12,), (12,), (4000,)):
        array = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        handle = call.made(raw.ga_tensor_from_data, 0, 1, len(shape), sizes(*shape), array.ctypes.data)
        call(raw.ga_tensor_set_requires_grad, handle, 1)
        parameters.append(handle)
    owner = call.made(raw.ga_adamw_create, handles(*parameters), 5, None)
    window = call.made(raw.ga_accumulator_create, owner, _ffi.AccumulatorOptions(isolated=1, sum_format=sum_format))
    ones = np.ones((12, 12), np.float32)

    def accumulate(batch: np.ndarray) -> None:
        accumulate_two(call, window, parameters[:4], [batch])
        scope = call.made(raw.ga_scope_open)
        sums = [call.made(raw.ga_sum, parameters[4], None, 0, 0) for _ in range(2)]
        try:
            call(raw.ga_accumulate, window, call.made(raw.ga_add, *sums), 1.0)
        finally:
            call(raw.ga_scope_close, scope, None, 0)

    for _ in range(2):
        for size in (2, 1):
            batch = rng.integers(0, 11, (size, 7))
            call(raw.ga_micro_batch_begin, window)
            try:
                accumulate(batch)
            except WindowLost:
                ok(raw.ga_micro_batch_abort(window))
                ok(raw.ga_micro_batch_begin(window))
                accumulate(batch)
            call(raw.ga_micro_batch_commit, window)
        pointers = handles(None, ones.ctypes.data, None, None, None)
        call(raw.ga_accumulate_gradients, window, pointers, 5, 1, 1.0, 2.0)
        call(raw.ga_step, window, None)
    result = [elements(x).tobytes() for x in parameters]
    raw.ga_accumulator_free(window)
    raw.ga_optimizer_free(owner)
    for handle in parameters:
        raw.ga_tensor_free(handle)
    return result


def isolated_out_of_memory(sum_format: int) -> list[int]:
    """Fails each allocation of that scenario in turn."""
    allocator = Allocator(SMALL)
    allocator.install()
    expected = isolated_scenario(Retry(allocator), sum_format)
    refusals = 0
    for n in range(1, 10_000):
        ok(raw.ga_memory_trim())
        allocator.calls, allocator.refused, allocator.fail_at = 0, 0, n
        call = Retry(allocator, way_out="abort")
        assert isolated_scenario(call, sum_format) == expected, f"allocation {n} changed the result"
        assert not allocator.mistakes, allocator.mistakes
        refusals += call.refusals
        if not allocator.refused:
            break
    allocator.fail_at = None
    allocator.remove()
    assert not allocator.live and not allocator.mistakes
    return [n, refusals]


LARGE, SMALL = 1 << 40, 1 << 16


def out_of_memory(most: int, for_good: bool, create: str) -> list[int]:
    """Fails each allocation of the scenario in turn, until none is left to fail."""
    ok(raw.ga_set_num_threads(2))
    allocator = Allocator(most)
    allocator.install()
    expected, updates = scenario(Retry(allocator), create)
    assert updates == 3
    refusals = 0
    for n in range(1, 10_000):
        ok(raw.ga_memory_trim())
        allocator.calls, allocator.refused = 0, 0
        allocator.fail_at, allocator.for_good = n, for_good
        call = Retry(allocator)
        found, updates = scenario(call, create)
        assert found == expected and updates == 3, f"allocation {n} changed the result"
        assert not allocator.mistakes, allocator.mistakes
        if most == SMALL or for_good:  # else a smaller chunk may do where a large one was refused
            assert call.refusals == (1 if allocator.refused else 0), "a refusal was hidden, or made up"
        refusals += call.refusals
        if not allocator.refused:
            break
    memory = _ffi.Memory()
    ok(raw.ga_memory_usage(memory))
    assert memory.live_bytes == 0, "something is leaked"
    allocator.fail_at = None
    allocator.remove()
    assert not allocator.live and not allocator.mistakes
    return [n, refusals]


@pytest.mark.parametrize("sum_format", [_ffi.SUM_FLOAT32, _ffi.SUM_BFLOAT16_KAHAN])
def test_every_allocation_of_isolated_micro_batches_may_fail(sum_format):
    """A commit that is refused can be made again, and a micro-batch that broke is aborted alone."""
    allocations, refusals = in_new_process(isolated_out_of_memory, sum_format)
    assert allocations > 20 and refusals == allocations - 1


# The last two work in memory of their own.
@pytest.mark.parametrize("create", ["ga_adamw_create", "ga_adafactor_create", "ga_muon_create"])
@pytest.mark.parametrize("for_good", [False, True])
def test_every_allocation_may_fail(for_good, create):
    """The call that needs it returns OUT_OF_MEMORY and can be made again, and the result is the same bits."""
    allocations, refusals = in_new_process(out_of_memory, SMALL, for_good, create)
    assert allocations > 20 and refusals == allocations - 1


@pytest.mark.parametrize("for_good", [False, True])
def test_every_allocation_of_chunks_may_fail(for_good):
    allocations, refusals = in_new_process(out_of_memory, LARGE, for_good, "ga_adamw_create")
    assert allocations > 1 and (refusals == allocations - 1 or not for_good)


def tied_table(call: Retry) -> tuple[bytes, int]:
    """The gradient of a table whose rows take several pieces of memory, and how often its window was lost."""
    rng = np.random.default_rng(8)
    table = (0.1 * rng.standard_normal((600, 1024))).astype(np.float32)
    tokens = rng.permutation(600).reshape(2, 300)
    shape, release = sizes(600, 1024), _ffi.WrapReleaseFn()
    weight = call.made(raw.ga_tensor_wrap, 0, 1, 2, shape, None, table.ctypes.data, release, None)
    call(raw.ga_tensor_set_requires_grad, weight, 1)
    owner = call.made(raw.ga_sgd_create, handles(weight), 1, None)
    window = call.made(raw.ga_accumulator_create, owner, None)
    lost = 0

    def accumulate(row: np.ndarray) -> None:
        scope = call.made(raw.ga_scope_open)
        try:
            indices = call.made(raw.ga_tensor_from_data, 0, 5, 2, sizes(1, 300), row.ctypes.data)
            x = call.made(raw.ga_embedding, weight, indices)
            loss = call.made(raw.ga_linear_cross_entropy, x, weight, indices, -1, 0)
            call(raw.ga_accumulate, window, loss, 300.0)
        finally:
            call(raw.ga_scope_close, scope, None, 0)

    def accumulate_all() -> None:
        for row in tokens:
            accumulate(row)

    try:
        accumulate_all()
    except WindowLost:
        lost = 1
        expect(raw.ga_step(window, None), STATE, "zero")
        ok(raw.ga_zero(window))
        accumulate_all()
    copy = call.made(raw.ga_accumulated_gradient, window, 0)
    result = elements(copy).tobytes()
    raw.ga_tensor_free(copy)
    raw.ga_accumulator_free(window)
    raw.ga_optimizer_free(owner)
    raw.ga_tensor_free(weight)
    return result, lost


def memory_for_rows_fails() -> list[int]:
    allocator = Allocator(600 * 1024 * 4)
    allocator.install()
    expected, _ = tied_table(Retry(allocator))
    lost = 0
    for n in range(1, 100):
        ok(raw.ga_memory_trim())
        allocator.calls, allocator.refused, allocator.fail_at, allocator.for_good = 0, 0, n, True
        found, once = tied_table(Retry(allocator))
        assert found == expected, f"allocation {n} changed the result"
        assert not allocator.mistakes, allocator.mistakes
        lost += once
        if not allocator.refused:
            break
    allocator.fail_at = None
    allocator.remove()
    assert not allocator.live and not allocator.mistakes
    return [n, lost]


def test_memory_for_rows_of_a_tied_table_may_fail():
    allocations, lost = in_new_process(memory_for_rows_fails)
    assert 3 < allocations < 99 and lost > 0


def allocator_rules() -> bool:
    allocator = Allocator(LARGE)
    allocator.install()
    x = tensor(np.ones(100_000))
    assert allocator.calls > 0 and sum(allocator.live.values()) >= 400_000
    expect(raw.ga_set_allocator(_ffi.AllocateFn(), _ffi.ReleaseFn(), None), STATE)
    memory = _ffi.Memory()
    ok(raw.ga_memory_usage(memory))
    assert memory.live_bytes >= 400_000 and memory.allocator_calls == allocator.calls
    assert memory.peak_bytes >= memory.live_bytes
    assert memory.live_bytes + memory.arena_bytes >= sum(allocator.live.values()) >= memory.live_bytes
    raw.ga_tensor_free(x)
    allocator.remove()
    assert not allocator.live and not allocator.mistakes
    assert elements(tensor(np.ones(10))).sum() == 10
    return True


def test_allocator_is_used_for_all_and_gets_all_back():
    assert in_new_process(allocator_rules)


def activations_given_back() -> tuple[int, int]:
    # Of the caller, so that of the arena only sums of gradients and moments stay.
    weights = [ga.from_numpy(np.full((1024, 1024), 0.01, np.float32), requires_grad=True) for _ in range(4)]
    accumulator = ga.Accumulator(ga.AdamW(weights))
    with ga.Scope():
        x = ga.zeros((4096, 1024))
        for weight in weights:
            x = ga.gelu(ga.linear(x, weight))
        accumulator.accumulate(ga.sum(x), weight=1.0)
    in_update = ga.memory_usage().arena_bytes
    ga.memory_trim()
    return in_update, ga.memory_usage().arena_bytes


def test_what_outlives_an_update_is_not_among_what_ends_with_it():
    moments_and_sums = 3 * 4 * 1024 * 1024 * 4
    in_update, afterwards = in_new_process(activations_given_back)
    assert in_update > 3 * moments_and_sums
    assert afterwards < 2 * moments_and_sums


def limited_address_space() -> list[str]:
    import resource

    train()
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    found = []
    for shape in ((1 << 29,), (1 << 33,), (1 << 40,)):
        try:
            ga.zeros(shape)
        except ga.GAError as error:
            found.append(type(error).__name__)
    train()
    return found


def test_system_that_is_out_of_memory_is_a_status():
    assert in_new_process(limited_address_space) == ["GAOutOfMemoryError"] * 3


# ====== Large pages ======


def test_large_memory_asks_for_huge_pages():
    """As the flags in the kernel's list of mappings say."""
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no transparent huge pages")
    x = ga.zeros((24 << 20,))
    middle, found = np.asarray(x).ctypes.data + (48 << 20), ""
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
        elif line.startswith("VmFlags:") and start <= middle < end:
            found = line
    assert " hg" in found, found
