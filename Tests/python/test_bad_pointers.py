"""No pointer that the library can judge hurts the process: NULL in every position, handles that were freed,
handles of another kind, and numbers that are no handles. Each is refused with a sentence that names the
argument, nothing is written, and everything works afterwards.

The cases are made from the header's prototypes and the table of valid calls, so a new function is in here as
soon as it is in the header.
"""

from __future__ import annotations

import ctypes
import re
import threading
from typing import Any

import numpy as np
import prototypes
import pytest
from gradaccum import _ffi

from calls import (
    FREEING,
    NULLABLE,
    VALID,
    World,
    elements,
    handles,
    leaf,
    made,
    ok,
    optimizer,
    out,
    snapshot,
    tensor,
)
from support import INVALID_ARGUMENT, OK, expect, in_child, raw, sentence

HEADER = prototypes.parse()
HANDLE = re.compile(r"(?:const )?ga_(tensor|scope|optimizer|average|accumulator|loss_scaler) \*")
HANDLE_ARRAY = re.compile(r"(?:const )?ga_tensor \* ?const \*")

# Called without a pointer, or with pointers that have rules of their own (tested by name elsewhere).
WITHOUT_POINTERS = {
    name for name, f in HEADER.functions.items() if not any("*" in p.type for p in f.parameters)
}
SPECIAL = {"ga_set_allocator", "ga_python_release", "ga_python_capsule_destroy", "ga_python_array_addresses"}


def test_every_function_has_a_valid_call():
    assert set(VALID) == set(HEADER.functions) - WITHOUT_POINTERS - SPECIAL
    for name, arguments in VALID.items():
        assert len(arguments(World())) == len(HEADER.functions[name].parameters), name


@pytest.mark.parametrize("name", VALID)
@in_child
def test_valid_call_succeeds(name):
    w = World()
    arguments = VALID[name](w)
    assert getattr(raw, name)(*arguments) == (None if name in FREEING else OK), raw.ga_last_error()
    w.check()


def positions(matches) -> list[tuple[str, str]]:
    return [(name, p.name) for name in VALID for p in HEADER.functions[name].parameters if matches(name, p)]


def position(name: str, parameter: str) -> int:
    return [p.name for p in HEADER.functions[name].parameters].index(parameter)


def expect_refusal(w: World, name: str, arguments: list, parameter: str, what: str) -> None:
    """The call is refused, names the parameter, and writes nothing."""
    before = snapshot(arguments)
    status = getattr(raw, name)(*arguments)
    assert status == INVALID_ARGUMENT, f"{what} gave {status}: {raw.ga_last_error()}"
    assert re.search(rf"\b{parameter}\b", sentence()), f"{what}: no {parameter!r} in {sentence()!r}"
    assert snapshot(arguments) == before, f"{what}: something was written"


# ====== NULL ======

NULLS = positions(lambda name, p: "*" in p.type and name not in FREEING and (name, p.name) not in NULLABLE)


@pytest.mark.parametrize(("name", "parameter"), NULLS)
@in_child
def test_null_is_refused(name, parameter):
    w = World()
    arguments = VALID[name](w)
    at = position(name, parameter)
    spoiled = [*arguments[:at], None, *arguments[at + 1 :]]
    expect_refusal(w, name, spoiled, parameter, "NULL")
    ok(getattr(raw, name)(*arguments))
    w.check()


@pytest.mark.parametrize(("name", "parameter"), sorted(NULLABLE))
@in_child
def test_null_is_taken_where_the_header_says_so(name, parameter):
    w = World()
    arguments = VALID[name](w)
    at = position(name, parameter)
    given = arguments[at]
    null = type(given)() if isinstance(given, ctypes._CFuncPtr) else None
    ok(getattr(raw, name)(*arguments[:at], null, *arguments[at + 1 :]))
    w.check()


@pytest.mark.parametrize("name", FREEING)
@in_child
def test_freeing_null_does_nothing(name):
    getattr(raw, name)(None)
    World().check()


@in_child
def test_null_is_taken_for_arrays_without_entries():
    w = World()
    ok(raw.ga_tensor_create(out(), 0, _ffi.FLOAT32, 0, None))
    ok(raw.ga_reshape(out(), w.scalar, 0, None))
    ok(raw.ga_sum(out(), w.x, None, 0, 0))
    ok(raw.ga_scope_close(made(raw.ga_scope_open), None, 0))
    ok(raw.ga_tensor_shape(w.scalar, None, 0))
    w.check()


# ====== Handles ======

HANDLES = positions(lambda name, p: HANDLE.fullmatch(p.type) is not None)
ARRAYS = positions(lambda name, p: HANDLE_ARRAY.fullmatch(p.type) is not None)


def test_every_handle_parameter_is_recognised_as_one():
    """A type that the patterns above miss would take its parameter out of the tests below."""
    for name in VALID:
        for p in HEADER.functions[name].parameters:
            if (
                "ga_tensor" in p.type
                or "ga_scope" in p.type
                or "ga_opt" in p.type
                or "ga_average" in p.type
                and "options" not in p.type
            ):
                known = (name, p.name) in HANDLES or (name, p.name) in ARRAYS
                assert known or p.name == "out", f"{name}: {p.type} {p.name}"


def kind_of(name: str, parameter: str) -> str:
    p = HEADER.functions[name].parameters[position(name, parameter)]
    match = HANDLE.fullmatch(p.type)
    return match[1] if match else "tensor"


def freed(w: World, kind: str) -> int:
    """A handle of a kind that was freed, with others made since, which may stand where it stood."""
    if kind == "tensor":
        handle = tensor(np.ones(3))
        raw.ga_tensor_free(handle)
    elif kind == "scope":
        handle = made(raw.ga_scope_open)
        ok(raw.ga_scope_close(handle, None, 0))
    elif kind == "optimizer":
        handle = optimizer([leaf(np.ones(2))])
        raw.ga_optimizer_free(handle)
    elif kind == "average":
        handle = made(raw.ga_average_create, optimizer([leaf(np.ones(2))]), None)
        raw.ga_average_free(handle)
    else:
        handle = made(raw.ga_accumulator_create, optimizer([leaf(np.ones(2))]), None)
        raw.ga_accumulator_free(handle)
    for _ in range(20):
        made(raw.ga_accumulator_create, optimizer([leaf(np.ones(2))]), None)
    return handle


def of_another_kind(w: World, kind: str) -> list[int]:
    kinds = {"tensor": w.weight, "optimizer": w.optimizer, "average": w.average, "accumulator": w.accumulator}
    return [handle for other, handle in kinds.items() if other != kind]


_ZEROS = ctypes.create_string_buffer(4096)
_NOISE = ctypes.create_string_buffer(bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8)), 4096)


def garbage(w: World) -> list[int]:
    """Numbers that are no handles: small, huge, not canonical, and addresses of memory that is something
    else, some of it the library's own."""
    data = ctypes.c_void_p()
    ok(raw.ga_tensor_data(w.x, data))
    code = ctypes.cast(raw.ga_version, ctypes.c_void_p).value
    near = [w.weight + offset for offset in (-64, -16, -8, -1, 1, 8, 16, 64)]
    valid = {
        w.x,
        w.y,
        w.sequence,
        w.scalar,
        w.targets,
        *w.parameters,
        *w.free_leaves,
        w.optimizer,
        w.accumulator,
        w.average,
        w.free_optimizer,
        w.gain,
        w.shift,
    }
    numbers = [
        1,
        8,
        4096,
        0x5A5A5A5A,
        0xDEADBEEFDEADBEEF,
        2**63,
        2**64 - 1,
        2**64 - 4096,
        id(w),
        ctypes.addressof(_ZEROS),
        ctypes.addressof(_NOISE),
        ctypes.addressof(_NOISE) + 1024,
        data.value,
        code,
        *near,
    ]
    return [number for number in numbers if number not in valid]


def bad_handles(w: World, kind: str) -> list[tuple[str, int]]:
    return [
        ("a freed handle", freed(w, kind)),
        *(("a handle of another kind", handle) for handle in of_another_kind(w, kind)),
        *((f"{number:#x}", number) for number in garbage(w)),
    ]


REFUSED = [(name, parameter) for name, parameter in HANDLES if name not in FREEING]


@pytest.mark.parametrize(("name", "parameter"), REFUSED)
@in_child
def test_bad_handle_is_refused(name, parameter):
    w = World()
    arguments = VALID[name](w)
    at = position(name, parameter)
    for what, bad in bad_handles(w, kind_of(name, parameter)):
        if bad in arguments:
            continue
        expect_refusal(w, name, [*arguments[:at], bad, *arguments[at + 1 :]], parameter, what)
    ok(getattr(raw, name)(*arguments))
    w.check()


@pytest.mark.parametrize(("name", "parameter"), ARRAYS)
@pytest.mark.parametrize("entry", [0, -1])
@in_child
def test_bad_handle_in_an_array_is_refused(name, parameter, entry):
    w = World()
    arguments = VALID[name](w)
    at = position(name, parameter)
    for what, bad in [("NULL", None), *bad_handles(w, "tensor")]:
        entries = list(arguments[at])
        if bad in entries:
            continue
        entries[entry] = bad
        expect_refusal(w, name, [*arguments[:at], handles(*entries), *arguments[at + 1 :]], parameter, what)
    ok(getattr(raw, name)(*arguments))
    w.check()


@pytest.mark.parametrize("name", FREEING)
@in_child
def test_freeing_a_bad_handle_does_nothing(name):
    w = World()
    kind = kind_of(name, HEADER.functions[name].parameters[0].name)
    for _, bad in bad_handles(w, kind):
        getattr(raw, name)(bad)
    w.check()


@in_child
def test_freeing_twice_does_not_free_what_came_after():
    first = tensor(np.ones(3))
    raw.ga_tensor_free(first)
    later = [tensor(np.full(3, i, np.float32)) for i in range(50)]
    for _ in range(3):
        raw.ga_tensor_free(first)
    assert [elements(x)[0] for x in later] == list(range(50))


@in_child
def test_freed_tensor_is_refused_by_each_name_of_an_operation():
    """The sentence tells which of two tensors is the bad one."""
    w = World()
    dead = freed(w, "tensor")
    expect(raw.ga_add(out(), dead, w.y), INVALID_ARGUMENT, "a")
    expect(raw.ga_layer_norm(out(), w.x, w.gain, dead, 1e-5), INVALID_ARGUMENT, "bias")
    expect(raw.ga_causal_attention(out(), w.sequence, dead, w.sequence, 2), INVALID_ARGUMENT, "k")
    w.check()


# ====== Order and ownership ======


@in_child
def test_handles_may_be_freed_in_any_order():
    """A view outlives its parent, a graph the handles it was made of, an accumulator everything."""
    rng = np.random.default_rng(1)
    data = rng.standard_normal((4, 6)).astype(np.float32)
    x = tensor(data)
    weight = leaf(rng.standard_normal((3, 6)))
    weight_view = made(raw.ga_tensor_detach, weight)
    initial = elements(weight)
    view = made(raw.ga_slice, x, 1, 1, 5)
    raw.ga_tensor_free(x)
    assert elements(view).tolist() == data[:, 1:5].ravel().tolist()
    x = tensor(data)
    product = made(raw.ga_linear, x, weight, None)
    loss = made(raw.ga_sum, product, None, 0, 0)
    owner = optimizer([weight])
    window = made(raw.ga_accumulator_create, owner, None)
    for handle in (x, product, weight):
        raw.ga_tensor_free(handle)
    raw.ga_optimizer_free(owner)
    ok(raw.ga_accumulate(window, loss, 4.0))
    raw.ga_tensor_free(loss)
    gradient = made(raw.ga_accumulated_gradient, window, 0)
    assert np.allclose(elements(gradient), np.tile(data.sum(0), 3), atol=1e-5)
    ok(raw.ga_step(window, None))
    raw.ga_accumulator_free(window)
    assert np.allclose(elements(weight_view), initial - 1e-3 * elements(gradient) / 4, atol=1e-6)


@in_child
def test_scopes_close_in_reverse_order_only():
    w = World()
    outer, inner = made(raw.ga_scope_open), made(raw.ga_scope_open)
    x = tensor(np.ones(2))
    expect(raw.ga_scope_close(outer, None, 0), -4)
    assert elements(x).tolist() == [1, 1]
    ok(raw.ga_scope_close(inner, None, 0))
    expect(raw.ga_tensor_fill(x, 1.0), INVALID_ARGUMENT, "tensor")
    ok(raw.ga_scope_close(outer, None, 0))
    expect(raw.ga_scope_close(outer, None, 0), INVALID_ARGUMENT, "scope")
    w.check()


@in_child
def test_scope_of_another_thread_is_not_closed():
    w = World()
    scope = made(raw.ga_scope_open)
    x = tensor(np.ones(2))
    found: list[Any] = []

    def close() -> None:
        found.append(raw.ga_scope_close(scope, None, 0))
        found.append(raw.ga_last_error())

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert found[0] < 0 and found[1]
    assert elements(x).tolist() == [1, 1]
    ok(raw.ga_scope_close(scope, handles(x), 1))
    assert elements(x).tolist() == [1, 1]
    w.check()


@in_child
def test_scope_frees_and_keeps_across_levels():
    outer, inner = made(raw.ga_scope_open), made(raw.ga_scope_open)
    dropped, kept = tensor(np.ones(2)), tensor(np.ones(3))
    ok(raw.ga_scope_close(inner, handles(kept), 1))
    expect(raw.ga_tensor_fill(dropped, 0.0), INVALID_ARGUMENT, "tensor")
    assert elements(kept).tolist() == [1, 1, 1]
    ok(raw.ga_scope_close(outer, None, 0))
    expect(raw.ga_tensor_fill(kept, 0.0), INVALID_ARGUMENT, "tensor")


@in_child
def test_tensor_freed_in_its_scope_is_not_freed_again_by_it():
    scope = made(raw.ga_scope_open)
    raw.ga_tensor_free(tensor(np.ones(2)))
    ok(raw.ga_scope_close(scope, None, 0))
    World().check()


@in_child
def test_scopes_free_what_a_list_of_lists_says():
    """Opening, making, freeing and closing at random."""
    rng = np.random.default_rng(3)
    values: dict[int, int] = {}
    scopes: list[int] = []
    members: list[list[int]] = [[]]  # of no scope, then of each that is open
    gone: list[int] = []
    for step in range(4000):
        action = rng.integers(12)
        alive = [x for level in members for x in level]
        for x in alive[-3:]:
            assert elements(x).tolist() == [values[x]]
        if gone:
            expect(raw.ga_tensor_fill(gone[rng.integers(len(gone))], 0.0), INVALID_ARGUMENT, "tensor")
        if action == 0 and len(scopes) < 6:
            scopes.append(made(raw.ga_scope_open))
            members.append([])
        elif action == 1 and scopes:
            own = members.pop()
            kept = [x for x in own if rng.random() < 0.4]
            ok(raw.ga_scope_close(scopes.pop(), handles(*kept, *members[0][:1]), len(kept + members[0][:1])))
            gone += [x for x in own if x not in kept]
            members[-1] += kept
        elif action < 6 and alive:
            x = alive[rng.integers(len(alive))]
            raw.ga_tensor_free(x)
            next(level for level in members if x in level).remove(x)
            gone.append(x)
        else:
            x = tensor(np.full(1, step, np.float32))
            values[x] = step
            members[-1].append(x)
    assert len(gone) > 500 and any(members)


@in_child
def test_error_sentences_belong_to_their_thread():
    expect(raw.ga_set_num_threads(-5), INVALID_ARGUMENT, "-5")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(raw.ga_last_error()))
    thread.start()
    thread.join()
    assert found == [b""] and "-5" in sentence()


@in_child
def test_many_handles_live_and_die():
    rng = np.random.default_rng(2)
    alive: list[int] = []
    for round in range(3000):
        alive.append(tensor(np.full(1, round % 97, np.float32)))
        if len(alive) > 200:
            raw.ga_tensor_free(alive.pop(rng.integers(len(alive))))
    values = {elements(x)[0] for x in alive}
    assert values <= set(range(97)) and len(set(alive)) == len(alive)
