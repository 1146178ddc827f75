"""Calls in a wrong order: each is GA_ERROR_STATE with a sentence that names what to call instead, changes nothing, and
that call then works."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from gradaccum import _ffi

from calls import World, elements, handles, made, ok
from support import INDEX, STATE, expect, in_child, raw

LATER = _ffi.WEIGHT_LATER


class Misuse(World):
    """A world whose accumulator is in isolated mode or adds up means, if asked to."""

    def again(self, **options: int) -> Misuse:
        raw.ga_accumulator_free(self.accumulator)
        self.accumulator = made(
            raw.ga_accumulator_create, self.optimizer, _ffi.AccumulatorOptions(**options)
        )
        self.options = options
        return self

    def add(self, weight: float = 2.0) -> int:
        return raw.ga_accumulate_gradients(self.accumulator, self.gradient_pointers(), 2, _ffi.FLOAT32, 1.0, weight)

    def call(self, name: str, *arguments: float) -> int:
        return getattr(raw, name)(self.accumulator, *arguments)

    def step(self) -> int:
        return raw.ga_step(self.accumulator, None)

    def end(self, tail: int) -> int:
        return raw.ga_data_end(self.accumulator, tail, None)

    def state(self) -> list[bytes]:
        """All that a refused call could have changed."""
        report = _ffi.Report()
        ok(raw.ga_window_report(self.accumulator, report))
        sums = [elements(made(raw.ga_accumulated_gradient, self.accumulator, i)).tobytes() for i in range(2)]
        report.tensor_bytes = 0
        return [bytes(report), *sums, *(elements(x).tobytes() for x in self.parameters)]


def isolated(w: Misuse) -> None:
    w.again(isolated=1)


def means(w: Misuse) -> None:
    w.again(loss_reduction=_ffi.REDUCTION_MEAN)


def isolated_means(w: Misuse) -> None:
    w.again(isolated=1, loss_reduction=_ffi.REDUCTION_MEAN)


def add(w: Misuse) -> None:
    ok(w.add())


def add_later(w: Misuse) -> None:
    ok(w.add(LATER))


def begin(w: Misuse) -> None:
    ok(w.call("ga_micro_batch_begin"))


def commit(w: Misuse) -> None:
    ok(w.call("ga_micro_batch_commit"))


def abort(w: Misuse) -> None:
    ok(w.call("ga_micro_batch_abort"))


def step(w: Misuse) -> None:
    ok(w.step())


def zero(w: Misuse) -> None:
    ok(w.call("ga_zero"))


def carry(w: Misuse) -> None:
    ok(w.end(_ffi.TAIL_CARRY))


def data_begin(w: Misuse) -> None:
    ok(w.call("ga_data_begin"))


def drop(w: Misuse) -> None:
    ok(w.end(_ffi.TAIL_DROP))


def weigh(number: int) -> Callable[[Misuse], None]:
    return lambda w: ok(w.call("ga_micro_batch_set_weight", number, 3.0))


def break_off(w: Misuse) -> None:
    """A backward pass that fails after it has added to the bias: the block of a checkpoint refuses to run again."""
    runs = []

    @_ffi.BlockFn
    def once(out, inputs, count, user):
        runs.append(1)
        return raw.ga_multiply(out, inputs[0], inputs[0]) if len(runs) == 1 else STATE

    hidden = made(raw.ga_linear, w.x, w.weight, w.bias)
    squared = made(raw.ga_checkpoint, handles(hidden), 1, once, None, _ffi.UserReleaseFn())
    total = made(raw.ga_sum, made(raw.ga_multiply, squared, w.bias), None, 0, 0)
    assert raw.ga_accumulate(w.accumulator, total, 2.0) == STATE


Call = Callable[[Misuse], int]
Steps = list[Callable[[Misuse], None]]

# What is done first, the call that is out of order, words of its sentence, and what makes the call work.
TABLE: dict[str, tuple[Steps, Call, tuple[str, ...], Steps]] = {
    "step of an empty window": ([], Misuse.step, ("empty", "accumulate"), [add]),
    "step after a step": ([add, step], Misuse.step, ("empty", "accumulate"), [add]),
    "step after zero": ([add, zero], Misuse.step, ("empty", "accumulate"), [add]),
    "step in a micro-batch": ([begin, add], Misuse.step, ("micro-batch 0 is open", "commit"), [commit]),
    "step in a micro-batch after others": (
        [add, begin],
        Misuse.step,
        ("micro-batch 1 is open", "abort"),
        [abort],
    ),
    "step in an isolated micro-batch": (
        [isolated, add, begin, add],
        Misuse.step,
        ("micro-batch 1 is open", "commit or abort"),
        [abort],
    ),
    "step without a weight": ([add, add_later], Misuse.step, ("micro-batch 1", "set_weight"), [weigh(1)]),
    "end of data without a weight": (
        [add_later],
        lambda w: w.end(_ffi.TAIL_STEP),
        ("micro-batch 0", "set_weight"),
        [weigh(0)],
    ),
    "end of data in a micro-batch": (
        [begin, add],
        lambda w: w.end(_ffi.TAIL_STEP),
        ("micro-batch 0 is open", "commit"),
        [commit],
    ),
    "carry in a micro-batch": (
        [begin, add],
        lambda w: w.end(_ffi.TAIL_CARRY),
        ("micro-batch 0 is open", "commit"),
        [commit],
    ),
    "data begins with a window in progress": (
        [add, add],
        lambda w: w.call("ga_data_begin"),
        ("2 micro-batches", "data_end", "carry"),
        [carry],
    ),
    "data begins with what was left and dropped later": (
        [data_begin, add],
        lambda w: w.call("ga_data_begin"),
        ("1 micro-batches", "data_end", "drop"),
        [drop],
    ),
    "data begins in a micro-batch": (
        [begin],
        lambda w: w.call("ga_data_begin"),
        ("micro-batch 0 is open", "abort"),
        [abort],
    ),
    "begin twice": (
        [begin, add],
        lambda w: w.call("ga_micro_batch_begin"),
        ("micro-batch 0 is open", "commit"),
        [commit],
    ),
    "commit of none": (
        [add],
        lambda w: w.call("ga_micro_batch_commit"),
        ("no micro-batch is open", "micro_batch_begin"),
        [begin, add],
    ),
    "commit twice": (
        [begin, add, commit],
        lambda w: w.call("ga_micro_batch_commit"),
        ("no micro-batch is open", "micro_batch_begin"),
        [begin, add],
    ),
    "commit of nothing": (
        [begin],
        lambda w: w.call("ga_micro_batch_commit"),
        ("nothing was accumulated", "abort"),
        [add],
    ),
    "abort of none": (
        [isolated, add],
        lambda w: w.call("ga_micro_batch_abort"),
        ("no micro-batch is open", "micro_batch_begin"),
        [begin, add],
    ),
    "abort after the commit": (
        [isolated, begin, add, commit],
        lambda w: w.call("ga_micro_batch_abort"),
        ("no micro-batch is open", "micro_batch_begin"),
        [begin],
    ),
    "abort of what was added in place": (
        [begin, add],
        lambda w: w.call("ga_micro_batch_abort"),
        ("in place", "isolated", "zero"),
        [zero, begin],
    ),
    "weight that is there": (
        [add],
        lambda w: w.call("ga_micro_batch_set_weight", 0, 1.0),
        ("micro_batch 0", "without a weight"),
        [zero, add_later],
    ),
    "weight twice": (
        [add_later, weigh(0)],
        lambda w: w.call("ga_micro_batch_set_weight", 0, 1.0),
        ("micro_batch 0", "without a weight"),
        [zero, add_later],
    ),
    "weight of an aborted one": (
        [isolated, begin, add_later, abort, add],
        lambda w: w.call("ga_micro_batch_set_weight", 0, 1.0),
        ("micro_batch 0", "aborted"),
        [zero, add_later],
    ),
    "weight before the loss": (
        [begin],
        lambda w: w.call("ga_micro_batch_set_weight", 0, 1.0),
        ("micro_batch 0", "no loss yet"),
        [add_later],
    ),
    "weight of a mean to come": ([means], lambda w: w.add(LATER), ("weight is missing", "isolated"), [isolated]),
    "weight of an isolated mean to come": (
        [isolated_means],
        lambda w: w.add(LATER),
        ("weight is missing", "begin a micro-batch"),
        [begin],
    ),
    "commit of a mean without weight": (
        [isolated_means, begin, add_later],
        lambda w: w.call("ga_micro_batch_commit"),
        ("micro-batch 0 is missing", "set_weight"),
        [weigh(0)],
    ),
    "one loss with a weight and one without": (
        [begin, add],
        lambda w: w.add(LATER),
        ("weight is to come", "one way"),
        [commit],
    ),
    "step of a window that broke": ([break_off], Misuse.step, ("half-way", "zero"), [zero, add]),
    "accumulate into a window that broke": ([break_off], Misuse.add, ("half-way", "zero"), [zero]),
    "begin in a window that broke": (
        [break_off],
        lambda w: w.call("ga_micro_batch_begin"),
        ("half-way", "zero"),
        [zero],
    ),
    "carry of a window that broke": (
        [break_off],
        lambda w: w.end(_ffi.TAIL_CARRY),
        ("half-way", "zero"),
        [drop],
    ),
    "data begins with a window that broke": (
        [break_off],
        lambda w: w.call("ga_data_begin"),
        ("half-way", "zero"),
        [drop],
    ),
    "commit of a micro-batch that broke": (
        [isolated, begin, break_off],
        lambda w: w.call("ga_micro_batch_commit"),
        ("nothing was accumulated", "abort"),
        [abort, begin, add],
    ),
    "commit of a micro-batch that broke later": (
        [isolated, begin, add, break_off],
        lambda w: w.call("ga_micro_batch_commit"),
        ("half-way", "abort"),
        [abort, begin, add],
    ),
    "more into a micro-batch that broke": (
        [isolated, begin, add, break_off],
        Misuse.add,
        ("half-way", "abort"),
        [abort],
    ),
    "norms before the first step": (
        [add],
        lambda w: w.call("ga_gradient_norms", (ctypes.c_double * 2)(), 2),
        ("no window has ended", "step"),
        [step],
    ),
    "second accumulator": (
        [],
        lambda w: raw.ga_accumulator_create(ctypes.c_void_p(), w.optimizer, None),
        ("has an accumulator", "free"),
        [lambda w: raw.ga_accumulator_free(w.accumulator)],
    ),
}


@pytest.mark.parametrize("name", TABLE)
@in_child
def test_wrong_order_is_refused_with_the_fix(name):
    before, call, words, fix = TABLE[name]
    w = Misuse()
    for part in before:
        part(w)
    state = w.state() if break_off not in before else []
    expect(call(w), STATE, *words)
    if state:
        assert w.state() == state, "something was changed"
    for part in fix:
        part(w)
    assert call(w) == 0, raw.ga_last_error()


@in_child
def test_micro_batch_that_failed_half_way_is_not_in_an_isolated_window():
    w = Misuse().again(isolated=1)
    ok(w.add())
    state = w.state()
    break_off(w)
    assert w.state()[1:] == state[1:]
    ok(w.add())
    for i, gradient in enumerate(w.gradients):
        found = elements(made(raw.ga_accumulated_gradient, w.accumulator, i))
        assert (found == 2 * gradient.ravel()).all(), "something of it was added"
    report = _ffi.Report()
    ok(raw.ga_step(w.accumulator, report))
    assert (report.micro_batches, report.aborted_micro_batches, report.weight) == (2, 0, 4.0)


@in_child
def test_unknown_tail_and_micro_batch_are_refused():
    w = Misuse()
    add(w)
    for tail in (-1, 3, 2**31 - 1):
        expect(w.end(tail), -1, "tail")
    for number in (-1, 1, 2**63 - 1, -(2**63)):
        expect(w.call("ga_micro_batch_set_weight", number, 1.0), INDEX, "micro_batch")
    step(w)


@in_child
def test_handler_that_is_freed_with_its_accumulator():
    """The accumulator lives until the call that asks is over."""
    w = Misuse()

    @_ffi.SkipFn
    def free(report, user):
        assert report.contents.struct_size == ctypes.sizeof(_ffi.Report) and user == 77
        raw.ga_accumulator_free(w.accumulator)
        return _ffi.DECISION_SKIP

    ok(raw.ga_accumulator_set_skip_handler(w.accumulator, free, 77))
    w.gradients[0][0, 0] = np.nan
    ok(w.add())
    report = _ffi.Report()
    ok(raw.ga_step(w.accumulator, report))
    assert report.outcome == _ffi.STEP_SKIPPED_NON_FINITE
    expect(w.step(), -1, "accumulator")
