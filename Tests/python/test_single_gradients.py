"""Gradients of a micro-batch that are handed over one parameter after another."""

from __future__ import annotations

import gradaccum as ga
import numpy as np
import pytest
from gradaccum._ffi import lib

from tally import FLAT_MEMORY, NO_TRACE, TRUE_WEIGHTS
from windows import NAN, Window, gradients

modes = pytest.mark.parametrize("isolated", [False, True])


def add_singly(
    window: Window, number: int, weight: float | None, *, scale: float = 1.0, loss: float = 1.0
) -> None:
    """Micro-batch `number`, the last parameter first, as backward has it."""
    accumulator = window.accumulator
    with accumulator.micro_batch():
        for index, gradient in reversed(list(enumerate(gradients(number)))):
            accumulator.accumulate_gradient(index, gradient, scale=scale)
        accumulator.accumulate_gradients([None, None], loss, weight)


@modes
def test_gradients_one_by_one_are_those_of_one_call_to_the_bit(isolated):
    singly, at_once = (Window("own", isolated=isolated) for _ in range(2))
    for window, add in ((singly, add_singly), (at_once, Window.add)):
        for number in range(3):
            add(window, number, 2.0 + number)
    assert singly.sums() == at_once.sums()
    a, b = singly.step(), at_once.step()
    assert a == b and singly.weights() == at_once.weights()


@pytest.mark.law(TRUE_WEIGHTS)
@modes
def test_mean_is_scaled_by_its_weight_and_counted_once(isolated):
    singly, at_once = (Window("own", isolated=isolated, loss_reduction="mean") for _ in range(2))
    for number, weight in enumerate((3.0, 0.5, 7.0)):
        add_singly(singly, number, weight, scale=weight)
        at_once.add(number, weight)
    assert singly.sums() == at_once.sums()
    a, b = singly.step(), at_once.step()
    assert a == b and a.weight == 10.5 and singly.weights() == at_once.weights()


def test_gradients_one_by_one_go_into_moments():
    options = {"accumulate_into": "moments", "normalization": "sum", "accumulation_steps": 2}
    singly, at_once = (Window("own", **options) for _ in range(2))
    for number in range(4):
        add_singly(singly, number, 2.0)
        at_once.add(number)
        if number % 2:
            assert singly.step() == at_once.step()
    assert singly.weights() == at_once.weights()


def test_weight_of_a_sum_may_come_later():
    window, clean = Window("own"), Window("own")
    add_singly(window, 0, None)
    window.accumulator.set_weight(0, 4.0)
    clean.add(0, 4.0)
    assert window.step() == clean.step() and window.weights() == clean.weights()


@modes
def test_micro_batch_without_its_weight_is_not_committed(isolated):
    window = Window("own", isolated=isolated)
    micro_batch = window.accumulator.micro_batch()
    window.accumulator.accumulate_gradient(0, gradients(0)[0])
    with pytest.raises(ga.GAStateError, match="loss and the weight of micro-batch 0 are missing"):
        micro_batch.commit()
    window.accumulator.accumulate_gradients([None, None], 0.0, 1.0)
    micro_batch.commit()
    assert window.step().outcome == ga.Outcome.APPLIED


@pytest.mark.law(NO_TRACE)
def test_abort_takes_them_back_in_isolated_mode_and_is_refused_in_place():
    isolated, exact, clean = Window("own", isolated=True), Window("own"), Window("own", isolated=True)
    clean.add(0)
    isolated.add(0)
    sums = isolated.sums()
    micro_batch = isolated.accumulator.micro_batch()
    isolated.accumulator.accumulate_gradient(1, gradients(5)[1])
    micro_batch.abort()
    assert isolated.sums() == sums
    isolated.step(), clean.step()
    assert isolated.weights() == clean.weights()
    micro_batch = exact.accumulator.micro_batch()
    exact.accumulator.accumulate_gradient(1, gradients(5)[1])
    with pytest.raises(ga.GAStateError, match="added in place"):
        micro_batch.abort()
    exact.accumulator.zero()


def test_one_that_is_not_finite_drops_the_micro_batch_or_skips_the_window():
    bad = np.full(5, NAN, np.float32)
    for isolated, outcome in ((True, ga.Outcome.APPLIED), (False, ga.Outcome.SKIPPED_NON_FINITE)):
        window = Window("own", isolated=isolated)
        window.add(0)
        with window.accumulator.micro_batch():
            window.accumulator.accumulate_gradient(1, bad)
            window.accumulator.accumulate_gradients([None, None], 1.0, 1.0)
        report = window.step()
        assert report.outcome == outcome and report.non_finite_parameter == 1
        assert report.aborted_micro_batches == int(isolated)


def test_one_outside_of_a_micro_batch_is_refused():
    window = Window("own")
    with pytest.raises(ga.GAStateError, match="no micro-batch is open"):
        window.accumulator.accumulate_gradient(0, gradients(0)[0])
    with window.accumulator.micro_batch():
        with pytest.raises(ga.GAShapeError, match="shape"):
            window.accumulator.accumulate_gradient(0, gradients(0)[1])
        with pytest.raises(ga.GAIndexError, match="index is 2"):
            window.accumulator.accumulate_gradient(2, gradients(0)[1])
        window.accumulator.accumulate_gradients([None, None], 0.0, 1.0)


@pytest.mark.law(FLAT_MEMORY)
def test_memory_is_flat_once_the_sums_are_there():
    window = Window("own")
    add_singly(window, 0, 1.0)
    window.step()
    calls, live = ga.memory_usage().allocator_calls, ga.memory_usage().live_bytes
    for number in range(20):
        add_singly(window, number, 1.0)
        if number % 4 == 3:
            window.step()
    usage = ga.memory_usage()
    assert (usage.allocator_calls, usage.live_bytes) == (calls, live)


@modes
def test_sums_that_are_larger_than_the_caches_have_the_same_bits(isolated):
    """Their first gradient is stored past the caches."""
    size, half = (16 << 20) + 1000, 1 << 19
    rng = np.random.default_rng(0)
    first = rng.integers(0, 1 << 16, size, np.uint16)
    first[first & 0x7FFF >= 0x7000] = 0  # nothing that is not finite, or whose product is not
    second = np.full(size, 0.5, np.float32)
    weights = [ga.zeros((half,)), ga.zeros((size - half,))]
    accumulator = ga.Accumulator(ga.SGD(weights), isolated=isolated)
    with accumulator.micro_batch():
        for index, part in ((1, first[half:]), (0, first[:half])):
            lib.ga_accumulate_gradient(accumulator.handle, index, part.ctypes.data, ga.bfloat16, 3.0)
        accumulator.accumulate_gradients([None, None], 0.0, 1)
    accumulator.accumulate_gradients([second[:half], second[half:]], 0.0, 1)
    values = (first.astype(np.uint32) << 16).view(np.float32)
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    expected = np.where(tiny, 0, values) * np.float32(3) + second
    for index, part in ((0, expected[:half]), (1, expected[half:])):
        assert (accumulator.accumulated_gradient(index).numpy() == part).all()
