"""Values that are wrong: each has its status and a sentence that names the argument, writes nothing, and
leaves everything working. (Wrong pointers are in test_bad_pointers.py.)"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int32, c_int64

import numpy as np
import pytest
from gradaccum import _ffi

from bad_values import CASES, CPU, F32, MEAN, NAN, NONE, SUM, floats, loss_of
from calls import (
    VALID,
    World,
    elements,
    leaf,
    made,
    ok,
    optimizer,
    out,
    patterned,
    sizes,
    snapshot,
    tensor,
)
from support import (
    INVALID_ARGUMENT,
    SHAPE,
    STATE,
    UNSUPPORTED,
    expect,
    in_child,
    raw,
)


@pytest.mark.parametrize("name", CASES)
@in_child
def test_wrong_value_is_refused(name):
    call, expected, words = CASES[name]
    w = World()
    function, *arguments = call(w)
    before = snapshot(arguments)
    weights = [elements(x).tobytes() for x in (*w.parameters, w.x, w.y)]
    status = getattr(raw, function)(*arguments)
    allowed = expected if isinstance(expected, tuple) else (expected,)
    expect(status, status if status in allowed else allowed[0], *words)
    assert snapshot(arguments) == before, "something was written"
    assert [elements(x).tobytes() for x in (*w.parameters, w.x, w.y)] == weights
    if name.startswith("ga_scope_close"):
        ok(raw.ga_scope_close(arguments[0], None, 0))
    w.check()


# ====== Structs ======

STRUCTS = [
    ("ga_memory_usage", 0, _ffi.Memory),
    ("ga_sgd_create", 3, _ffi.SGDOptions),
    ("ga_adam_create", 3, _ffi.AdamOptions),
    ("ga_adamw_create", 3, _ffi.AdamWOptions),
    ("ga_radam_create", 3, _ffi.RAdamOptions),
    ("ga_nadam_create", 3, _ffi.NAdamOptions),
    ("ga_lion_create", 3, _ffi.LionOptions),
    ("ga_lamb_create", 3, _ffi.LAMBOptions),
    ("ga_lars_create", 3, _ffi.LARSOptions),
    ("ga_adafactor_create", 3, _ffi.AdafactorOptions),
    ("ga_muon_create", 3, _ffi.MuonOptions),
    ("ga_adamw8bit_create", 3, _ffi.AdamW8bitOptions),
    ("ga_custom_create", 6, _ffi.CustomOptions),
    ("ga_optimizer_add_group", 3, _ffi.GroupOptions),
    ("ga_optimizer_set_group", 2, _ffi.GroupOptions),
    ("ga_optimizer_group", 2, _ffi.GroupOptions),
    ("ga_optimizer_set_schedule", 1, _ffi.ScheduleOptions),
    ("ga_schedule_factor", 0, _ffi.ScheduleOptions),
    ("ga_optimizer_set_scaling", 1, _ffi.ScalingOptions),
    ("ga_average_create", 2, _ffi.AverageOptions),
    ("ga_accumulator_create", 2, _ffi.AccumulatorOptions),
    ("ga_step", 1, _ffi.Report),
    ("ga_window_report", 1, _ffi.Report),
    ("ga_data_end", 2, _ffi.Report),
]
# Of the structs that have grown, the size that they had at first.
FIRST_SIZES = {_ffi.AccumulatorOptions: 24, _ffi.Report: 64}
# One function writes options instead of reading them.
OPTIONS = [x for x in STRUCTS if x[2].__name__.endswith("Options") and x[0] != "ga_optimizer_group"]


def grown(struct: type, tail: bytes) -> object:
    """The struct of a newer header: the same fields and a tail that this library does not know."""

    class Newer(struct):  # type: ignore[misc, valid-type]
        _fields_ = [("tail", ctypes.c_char * len(tail))]

    newer = Newer()
    newer.tail = tail
    assert newer.struct_size == ctypes.sizeof(struct) + len(tail)
    return newer


def pointer_to(struct: ctypes.Structure, kind: type) -> object:
    return ctypes.cast(ctypes.pointer(struct), ctypes.POINTER(kind))


@pytest.mark.parametrize(("function", "at", "struct"), STRUCTS)
@in_child
def test_struct_without_its_size_is_refused(function, at, struct):
    w = World()
    arguments = VALID[function](w)
    for size in (0, 1, 4, 7, ctypes.sizeof(struct) - 1, FIRST_SIZES.get(struct, ctypes.sizeof(struct)) - 8):
        arguments[at].struct_size = size
        before = snapshot(arguments)
        expect(getattr(raw, function)(*arguments), INVALID_ARGUMENT, "struct_size")
        assert snapshot(arguments) == before
    arguments[at].struct_size = ctypes.sizeof(struct)
    ok(getattr(raw, function)(*arguments))
    w.check()


@pytest.mark.parametrize(("function", "at", "struct"), OPTIONS)
@in_child
def test_options_of_a_newer_header_are_taken_only_with_a_tail_of_zeros(function, at, struct):
    w = World()
    arguments = VALID[function](w)
    for tail in (b"\1" + bytes(7), bytes(7) + b"\1", bytes(63) + b"\1"):
        newer = grown(struct, tail)
        ctypes.memmove(ctypes.addressof(newer) + ctypes.sizeof(struct), tail, len(tail))
        spoiled = [*arguments[:at], pointer_to(newer, struct), *arguments[at + 1 :]]
        expect(getattr(raw, function)(*spoiled), UNSUPPORTED, "struct_size")
    ok(
        getattr(raw, function)(
            *arguments[:at], pointer_to(grown(struct, bytes(16)), struct), *arguments[at + 1 :]
        )
    )
    w.check()


@in_child
def test_options_of_an_older_header_keep_the_defaults_of_what_they_lack():
    w = World()
    options = _ffi.AccumulatorOptions(accumulation_steps=3, agc_clipping=-1.0, agc_eps=-1.0)
    options.struct_size = FIRST_SIZES[_ffi.AccumulatorOptions]
    made(raw.ga_accumulator_create, w.free_optimizer, options)
    options.struct_size += 8
    expect(raw.ga_accumulator_create(out(), w.free_optimizer, options), STATE)
    options.struct_size += 8
    other = optimizer([leaf(np.ones(2))])
    expect(raw.ga_accumulator_create(out(), other, options), INVALID_ARGUMENT, "agc_clipping")


@in_child
def test_report_and_memory_of_a_newer_header_are_filled_in():
    for function, at, struct in STRUCTS:
        if (function, at, struct) in OPTIONS:
            continue
        arguments = VALID[function](World())
        newer = grown(struct, bytes(16))
        arguments[at] = pointer_to(newer, struct)
        ok(getattr(raw, function)(*arguments))
        assert newer.struct_size == ctypes.sizeof(newer)
        if struct is _ffi.Report:
            assert newer.weight == 2.0 and newer.update_count == (function != "ga_window_report")
            assert newer.accumulator_bytes > 0


@in_child
def test_report_of_an_older_header_is_filled_in_up_to_its_end():
    for function, at in (("ga_step", 1), ("ga_window_report", 1), ("ga_data_end", 2)):
        arguments = VALID[function](World())
        older = _ffi.Report(aborted_micro_batches=-77, step_seconds=-77.0)
        older.struct_size = FIRST_SIZES[_ffi.Report]
        arguments[at] = older
        ok(getattr(raw, function)(*arguments))
        assert (older.micro_batches, older.weight, older.struct_size) == (1, 2.0, FIRST_SIZES[_ffi.Report])
        assert (older.aborted_micro_batches, older.step_seconds) == (-77, -77.0)


# ====== What a refused call leaves behind ======


@in_child
def test_refused_accumulation_leaves_the_window_as_it_was():
    """Bit for bit, also when the error is found in the middle of the graph."""
    w = World()
    w.filled_window()
    before = [elements(made(raw.ga_accumulated_gradient, w.accumulator, i)).tobytes() for i in range(2)]
    mixed = made(raw.ga_add, w.loss(), loss_of(w.free_leaves[0]))
    expect(raw.ga_accumulate(w.accumulator, mixed, 2.0), INVALID_ARGUMENT, "loss")
    expect(raw.ga_accumulate(w.accumulator, w.loss(), NAN), INVALID_ARGUMENT, "weight")
    after = [elements(made(raw.ga_accumulated_gradient, w.accumulator, i)).tobytes() for i in range(2)]
    assert after == before
    report = _ffi.Report()
    ok(raw.ga_step(w.accumulator, report))
    assert (report.micro_batches, report.weight) == (1, 2.0)


@in_child
def test_refused_loss_can_be_accumulated_afterwards():
    w = World()
    loss = w.loss()
    for bad in (NAN, -1.0):
        expect(raw.ga_accumulate(w.accumulator, loss, bad), INVALID_ARGUMENT, "weight")
    other = made(raw.ga_accumulator_create, w.free_optimizer, None)
    expect(raw.ga_accumulate(other, loss, 2.0), INVALID_ARGUMENT, "loss")
    ok(raw.ga_accumulate(w.accumulator, loss, 2.0))


@in_child
def test_mean_of_a_mean_is_still_a_mean():
    """The property follows a loss through operations that do not change what it is."""
    w = World()
    logits = made(raw.ga_linear, w.x, w.weight, w.bias)
    mean = made(raw.ga_cross_entropy, logits, w.targets, NONE, MEAN)
    expect(raw.ga_accumulate(w.accumulator, mean, 2.0), STATE, "mean")
    options = _ffi.AccumulatorOptions(loss_reduction=MEAN)
    x = leaf(np.ones(2))
    window = made(raw.ga_accumulator_create, optimizer([x]), options)
    ok(raw.ga_accumulate(window, made(raw.ga_mean, x, None, 0, 0), 2.0))


@in_child
def test_name_of_a_tensor_is_in_the_sentence():
    """And is data there, whatever bytes it has."""
    w = World()

    def changed_since_the_forward_pass() -> bytes:
        loss = w.loss()
        ok(raw.ga_tensor_fill(w.weight, 0.5))
        assert raw.ga_accumulate(w.accumulator, loss, 2.0) == STATE
        return raw.ga_last_error()

    ok(raw.ga_tensor_set_name(w.weight, b"lm_head"))
    assert b"lm_head" in changed_since_the_forward_pass()
    for name in (b"n" * 5000, b"\xff\xfe\x80", b"%s%n%s", b"", b"line\nbreak", "\u00e9".encode() * 40):
        ok(raw.ga_tensor_set_name(w.weight, name))
        said = changed_since_the_forward_pass()
        assert b"\n" not in said and len(said) < 512
        said.decode("utf-8")
    w.check()


@in_child
def test_failed_wrap_does_not_release():
    released = []
    release = _ffi.WrapReleaseFn(lambda data, user: released.append(user))
    buffer = (ctypes.c_float * 6)()
    for bad in (sizes(3, -1), sizes(2**62, 2**62)):
        status = raw.ga_tensor_wrap(
            out(), CPU, F32, 2, sizes(2, 3), bad, ctypes.addressof(buffer), release, 7
        )
        assert status != 0 and released == []


@in_child
def test_empty_tensors_go_through_every_operation():
    """No samples is a batch too: it may be refused, or give what it gives, and never ends the process."""
    w = World()
    x, rows = floats(0, 4), floats(0, 3, 4)
    none = tensor(np.zeros(0, np.int64))
    for function, *arguments in [
        ("ga_add", x, x),
        ("ga_linear", x, w.weight, w.bias),
        ("ga_linear", floats(2, 0), floats(3, 0), w.bias),
        ("ga_matmul", floats(2, 0), floats(0, 3)),
        ("ga_matmul", rows, floats(4, 2)),
        ("ga_relu", x),
        ("ga_layer_norm", x, w.gain, w.shift, 1e-5),
        ("ga_layer_norm", floats(4, 0), None, None, 1e-5),
        ("ga_gelu", x, 0),
        ("ga_softmax", x, -1),
        ("ga_softmax", x, 0),
        ("ga_softmax", floats(3, 0), 1),
        ("ga_cross_entropy", x, none, NONE, SUM),
        ("ga_cross_entropy", x, none, NONE, MEAN),
        ("ga_mse", x, x, SUM),
        ("ga_mse", x, x, MEAN),
        ("ga_embedding", w.weight, none),
        ("ga_causal_attention", rows, rows, rows, 2),
        ("ga_causal_attention", *(floats(2, 0, 4),) * 3, 2),
        ("ga_causal_attention", *(floats(2, 3, 0),) * 3, 1),
        ("ga_reshape", x, 3, sizes(2, 0, 2)),
        ("ga_transpose", x, 0, 1),
        ("ga_slice", x, 0, 0, 0),
        ("ga_slice", w.x, 1, 2, 2),
        ("ga_sum", x, None, 0, 0),
        ("ga_mean", x, None, 0, 0),
        ("ga_sum", x, (c_int32 * 1)(0), 1, 0),
        ("ga_mean", x, (c_int32 * 1)(0), 1, 0),
        ("ga_cast", x, _ffi.FLOAT16),
    ]:
        result = out()
        status = getattr(raw, function)(result, *arguments)
        assert status in (0, SHAPE, INVALID_ARGUMENT), function
        if status == 0:
            elements_or_bits = c_int64()
            ok(raw.ga_tensor_element_count(result, elements_or_bits))
    loss = made(raw.ga_cross_entropy, made(raw.ga_linear, x, w.weight, w.bias), none, NONE, SUM)
    ok(raw.ga_accumulate(w.accumulator, loss, 0.0))
    report = _ffi.Report()
    ok(raw.ga_step(w.accumulator, report))
    assert report.outcome == _ffi.STEP_SKIPPED_ZERO_WEIGHT
    w.check()


@in_child
def test_deep_graphs_do_not_exhaust_the_stack():
    """Backward and the freeing of a chain of 10 000 operations, on a thread with a small stack."""
    import threading

    def run() -> None:
        x = leaf(np.ones(1))
        window = made(raw.ga_accumulator_create, optimizer([x]), None)
        for consumed in (True, False):
            scope = made(raw.ga_scope_open)
            y = x
            for _ in range(10_000):
                z = made(raw.ga_relu, y)
                if y != x:
                    raw.ga_tensor_free(y)
                y = z
            loss = loss_of(y)
            if consumed:
                ok(raw.ga_accumulate(window, loss, 1.0))
            ok(raw.ga_scope_close(scope, None, 0))
        done.append(True)

    done: list[bool] = []
    threading.stack_size(128 * 1024)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done


@in_child
def test_item_reads_each_dtype():
    for array, expected in (
        (np.float32(1.5), 1.5),
        (np.float16(-2), -2),
        (np.int32(-7), -7),
        (np.int64(2**40), 2**40),
    ):
        value = patterned(c_double)
        ok(raw.ga_tensor_item(tensor(array), value))
        assert value.value == expected
