"""Micro-batches as transactions: begun, committed and aborted, in place and in isolated mode."""

from __future__ import annotations

import gradaccum as ga
import numpy as np
import pytest

from models import Model, gpt_arrays, gpt_data, gpt_loss, gpt_weight, micro_batches, part
from windows import INF, NAN, Window, afterwards, both_sources, facts, gradients

modes = pytest.mark.parametrize("isolated", [False, True])

# ====== Several losses of one micro-batch ======


@both_sources
@modes
def test_losses_of_one_micro_batch_count_as_one(source, isolated):
    together, apart = (Window(source, isolated=isolated, accumulation_steps=2) for _ in range(2))
    for start in (0, 2):
        with together.accumulator.micro_batch() as micro_batch:
            assert micro_batch.number == start // 2
            together.add(start, 1.0)
            together.add(start + 1, 2.0)
        apart.add(start, 1.0)
        apart.add(start + 1, 2.0)
    assert together.accumulator.step_due
    a, b = together.step(), apart.step()
    assert (a.micro_batches, b.micro_batches) == (2, 4)
    assert (a.weight, a.loss) == (b.weight, b.loss) == (6.0, 4 / 6)
    if not isolated:
        assert (a.gradient_norm, together.weights()) == (b.gradient_norm, apart.weights())


def test_micro_batch_that_is_open_is_not_in_the_window():
    window = Window(isolated=True)
    window.add(0)
    before, sums = facts(window.accumulator.window()), window.sums()
    micro_batch = window.accumulator.micro_batch()
    window.add(1)
    assert facts(window.accumulator.window()) == before and window.sums() == sums
    micro_batch.commit()
    assert window.accumulator.window().micro_batches == 2 and window.sums() != sums


# ====== Abort ======


@both_sources
def test_pain_17_aborted_micro_batch_leaves_no_trace_in_isolated_mode(source):
    clean, aborted = (Window(source, isolated=True, accumulation_steps=3) for _ in range(2))
    for window in (clean, aborted):
        window.good()
        window.add(0)
    sums = aborted.sums()
    with aborted.accumulator.micro_batch() as micro_batch:
        aborted.add(1, 5.0)
        aborted.add(2, 7.0)
        micro_batch.abort()
    assert aborted.sums() == sums
    for window in (clean, aborted):
        window.add(3)
        assert not window.accumulator.step_due
        window.add(4)
        assert window.accumulator.step_due
    a, b = aborted.step(), clean.step()
    assert (a.aborted_micro_batches, b.aborted_micro_batches) == (1, 0)
    assert facts(a) == {**facts(b), "aborted_micro_batches": 1}
    assert afterwards(aborted) == afterwards(clean)


@both_sources
@modes
def test_zero_drops_the_open_micro_batch_too(source, isolated):
    clean, tried = (Window(source, isolated=isolated) for _ in range(2))
    micro_batch = tried.accumulator.micro_batch()
    tried.add(9)
    tried.accumulator.zero()
    with pytest.raises(ga.GAStateError, match="no micro-batch is open"):
        micro_batch.commit()
    for window in (clean, tried):
        with window.accumulator.micro_batch():
            window.add(0)
    assert tried.sums() == clean.sums()
    assert tried.step() == clean.step()
    assert afterwards(tried) == afterwards(clean)


def test_exception_aborts_the_micro_batch_in_isolated_mode():
    window = Window(isolated=True)
    window.add(0)
    sums = window.sums()
    with pytest.raises(KeyError):
        with window.accumulator.micro_batch():
            window.add(1)
            raise KeyError
    assert window.sums() == sums
    report = window.step()
    assert (report.micro_batches, report.aborted_micro_batches, report.weight) == (1, 1, 2.0)


@modes
def test_micro_batch_is_aborted_before_anything_was_added(isolated):
    clean, aborted = (Window(isolated=isolated) for _ in range(2))
    with pytest.raises(KeyError):
        with aborted.accumulator.micro_batch():
            raise KeyError
    aborted.accumulator.micro_batch().abort()
    assert aborted.accumulator.window().aborted_micro_batches == 2
    for window in (clean, aborted):
        window.add(0)
    assert facts(aborted.step()) == {**facts(clean.step()), "aborted_micro_batches": 2}
    assert afterwards(aborted) == afterwards(clean)


def test_what_was_added_in_place_cannot_be_aborted():
    """The window cannot be stepped then, so nothing of the half micro-batch gets into an update in silence."""
    clean, window = Window(), Window()
    for x in (clean, window):
        x.good()
    with pytest.raises(KeyError) as caught:
        with window.accumulator.micro_batch() as micro_batch:
            window.add(0)
            with pytest.raises(ga.GAStateError, match="isolated mode"):
                micro_batch.abort()
            raise KeyError
    if hasattr(caught.value, "__notes__"):
        assert "isolated mode" in caught.value.__notes__[0]
    with pytest.raises(ga.GAStateError, match="micro-batch 0 is open"):
        window.step()
    window.accumulator.zero()
    assert afterwards(window) == afterwards(clean)


def test_aborted_ones_alone_make_a_window_that_changes_nothing():
    clean, aborted = (Window(isolated=True) for _ in range(2))
    for window in (clean, aborted):
        window.good()
    for number in range(3):
        with aborted.accumulator.micro_batch() as micro_batch:
            aborted.add(number)
            micro_batch.abort()
    report = aborted.step()
    assert report.outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT
    assert (report.micro_batches, report.aborted_micro_batches, report.consecutive_skips) == (0, 3, 0)
    assert afterwards(aborted) == afterwards(clean)


# ====== What is not finite ======


# A NaN in a gradient of autograd comes with a NaN in the loss.
@pytest.mark.parametrize(("source", "bad"), [("autograd", INF), ("autograd", -INF), ("own", INF), ("own", NAN)])
def test_pain_18_bad_micro_batch_is_dropped_and_the_others_count(source, bad):
    """With the denominators, loss and statistics of the survivors, bit for bit."""
    clean, tried = (Window(source, isolated=True, accumulation_steps=2) for _ in range(2))
    for window in (clean, tried):
        window.good()
    tried.add(0, 3.0, loss=5.0)
    tried.add(9, 100.0, spoil=bad, loss=7.0)
    assert tried.accumulator.window().aborted_micro_batches == 1 and not tried.accumulator.step_due
    tried.add(1, 1.0, loss=2.0)
    clean.add(0, 3.0, loss=5.0)
    clean.add(1, 1.0, loss=2.0)
    a, b = tried.step(), clean.step()
    assert (a.non_finite_parameter, a.non_finite_micro_batch) == (1, 1)
    expected = {"aborted_micro_batches": 1, "non_finite_parameter": 1, "non_finite_micro_batch": 1}
    assert facts(a) == {**facts(b), **expected}
    assert a.outcome == ga.Outcome.APPLIED and (a.loss, a.weight) == (1.75, 4.0)
    assert afterwards(tried) == afterwards(clean)


@both_sources
@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_loss_is_dropped_in_isolated_mode(source, bad):
    clean, tried = (Window(source, isolated=True) for _ in range(2))
    for window in (clean, tried):
        window.good()
        window.add(0)
    tried.add(1, loss=bad)
    with tried.accumulator.micro_batch():
        tried.add(2)
        tried.add(3, loss=bad)
    for window in (clean, tried):
        window.add(4)
    a = tried.step()
    assert (a.aborted_micro_batches, a.non_finite_parameter, a.non_finite_micro_batch) == (2, None, 1)
    expected = {"aborted_micro_batches": 2, "non_finite_micro_batch": 1}
    assert facts(a) == {**facts(clean.step()), **expected}
    assert afterwards(tried) == afterwards(clean)


@both_sources
@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_loss_is_refused_before_it_touches_an_accumulator_in_exact_mode(source, bad):
    clean, tried = (Window(source) for _ in range(2))
    for window in (clean, tried):
        window.add(0)
    sums = tried.sums()
    with pytest.raises(ga.GANonFiniteError, match="loss is (NaN|inf)"):
        tried.add(1, loss=bad)
    with pytest.raises(ga.GANonFiniteError):
        with tried.accumulator.micro_batch():
            tried.add(1, loss=bad)
    assert tried.sums() == sums
    assert facts(tried.step()) == {**facts(clean.step()), "aborted_micro_batches": 1}
    assert afterwards(tried) == afterwards(clean)


@both_sources
def test_what_surfaces_later_skips_the_window_in_exact_mode(source):
    clean, tried = (Window(source) for _ in range(2))
    for window in (clean, tried):
        window.good()
    tried.add(0)
    tried.add(1, spoil=INF)
    tried.add(2)
    report = tried.step()
    assert report.outcome == ga.Outcome.SKIPPED_NON_FINITE and report.skipped
    assert (report.non_finite_parameter, report.non_finite_micro_batch) == (1, None)
    assert (report.micro_batches, report.aborted_micro_batches, report.consecutive_skips) == (3, 0, 1)
    assert afterwards(tried) == afterwards(clean)


def test_sum_of_finite_micro_batches_that_overflows_skips_the_window():
    window = Window("own", isolated=True)
    dropped = gradients(2)
    dropped[0][0] = NAN
    window.accumulator.accumulate_gradients(dropped, 0.0, 1.0)
    assert window.accumulator.window().non_finite_parameter == 0
    window.add(0, spoil=3e38)
    window.add(1, spoil=3e38)
    report = window.step()
    assert report.outcome == ga.Outcome.SKIPPED_NON_FINITE
    assert (report.non_finite_parameter, report.non_finite_micro_batch) == (1, None)
    assert report.aborted_micro_batches == 1


# ====== The laws in isolated mode ======


def gpt(**options) -> Model:
    arrays = gpt_arrays(61, 36, 13, 2)
    return Model(arrays, gpt_loss(3), weight=gpt_weight, max_grad_norm=0.5, isolated=True, **options)


def test_law_1_holds_for_equal_splits_and_any_number_of_threads():
    """A tied embedding among the parameters, which has places by rows."""
    data, before = gpt_data(7, 13, 61), ga.get_num_threads()
    try:
        found = {}
        for split in ([3, 4], [1, 1, 5], [7]):
            for threads in (1, 2, 3):
                ga.set_num_threads(threads)
                found.setdefault(tuple(split), set()).add(gpt().fingerprint(data, [split, split]))
    finally:
        ga.set_num_threads(before)
    assert [len(x) for x in found.values()] == [1, 1, 1]


def test_isolated_mode_is_exact_mode_up_to_the_rounding_of_its_sums():
    data = gpt_data(7, 13, 61)
    isolated = gpt()
    exact = Model(gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight)
    for model in (isolated, exact):
        for micro_batch in micro_batches(data, [2, 4, 1]):
            model.accumulate(micro_batch)
    for i in range(len(exact.parameters)):
        a, b = (model.accumulator.accumulated_gradient(i).numpy() for model in (isolated, exact))
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    # The first micro-batch alone is the same to the bit.
    isolated, exact = gpt(), Model(gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight)
    for model in (isolated, exact):
        model.accumulate(data)
    assert isolated.gradients() == exact.gradients()


def test_bad_micro_batch_of_a_model_is_as_if_it_had_never_been():
    data = gpt_data(7, 13, 61)
    clean, tried = gpt(), gpt()
    for model in (clean, tried):
        model.window(data, [3, 4])
    for micro_batch in micro_batches(data, [2, 3, 2]):
        for model in (clean, tried):
            model.accumulate(micro_batch)
        with pytest.raises(KeyError), tried.accumulator.micro_batch():
            tried.accumulate(part(data, 0, 3))
            raise KeyError
    assert tried.gradients() == clean.gradients()
    assert facts(tried.accumulator.step()) == {**facts(clean.accumulator.step()), "aborted_micro_batches": 3}
    assert tried.weights() == clean.weights()


def test_isolated_mode_needs_one_more_gradient_and_no_allocation_in_steady_state():
    data = gpt_data(7, 13, 61)
    sizes = {}
    for isolated in (False, True):
        model = Model(gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight, isolated=isolated)
        for _ in range(3):
            report = model.window(data, [3, 4])
        sizes[isolated] = report.accumulator_bytes
    gradient = sum(x.size * 4 for x in model.parameters.values())
    assert gradient <= sizes[True] - sizes[False] <= 1.1 * gradient
    model = gpt()

    def windows(count: int) -> None:
        for _ in range(count):
            for i, micro_batch in enumerate(micro_batches(data, [3, 2, 2])):
                with model.accumulator.micro_batch() as open_one:
                    model.accumulate(micro_batch)
                    if i == 1:
                        open_one.abort()
            model.accumulator.step()

    windows(3)
    ga.memory_reset_peak()
    before = ga.memory_usage()
    windows(1)
    peak = ga.memory_usage().peak_bytes
    windows(9)
    after = ga.memory_usage()
    assert after.allocator_calls == before.allocator_calls and after.arena_bytes == before.arena_bytes
    assert after.live_bytes == before.live_bytes and after.peak_bytes == peak
