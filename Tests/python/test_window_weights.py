"""The weights of micro-batches, what is divided by, and what becomes of a window when the data ends."""

from __future__ import annotations

import gc
import warnings

import gradaccum as ga
import numpy as np
import pytest

from support import raw, sentence
from windows import NAN, Window, afterwards, both_sources, facts, gradients

# ====== Weights given later ======


@both_sources
@pytest.mark.parametrize("isolated", [False, True])
def test_weight_given_later_is_the_weight_given_at_once(source, isolated):
    at_once, later = (Window(source, isolated=isolated) for _ in range(2))
    for number, weight in enumerate((3.0, 0.0, 5.0)):
        at_once.add(number, weight)
        later.add(number, None)
    for number, weight in ((2, 5.0), (0, 3.0), (1, 0.0)):
        later.accumulator.set_weight(number, weight)
    assert facts(later.step()) == facts(at_once.step())
    assert later.weights() == at_once.weights()


def test_step_without_a_weight_names_the_micro_batch_and_changes_nothing():
    window = Window()
    window.add(0, 2.0)
    window.add(1, None)
    before = window.sums(), window.weights(), window.accumulator.window()
    for call in (window.step, window.accumulator.end_data):
        with pytest.raises(ga.GAStateError, match="weight of micro-batch 1 is missing.*micro_batch_set_weight"):
            call()
    after = window.sums(), window.weights(), window.accumulator.window()
    assert after[:2] == before[:2] and facts(after[2]) == facts(before[2])
    window.accumulator.set_weight(1, 2.0)
    assert window.step().weight == 4.0


def test_weight_is_given_once_and_to_a_micro_batch_that_is_there():
    window = Window(isolated=True)
    window.add(0, None)
    window.add(1, 1.0)
    for number in (2, -1, 2**62):
        with pytest.raises(ga.GAIndexError, match="micro_batch"):
            window.accumulator.set_weight(number, 1.0)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ga.GAInvalidArgumentError, match="weight"):
            window.accumulator.set_weight(0, weight)
    with pytest.raises(ga.GAOverflowError, match="weight"):
        window.accumulator.set_weight(0, 1e31)
    window.accumulator.set_weight(0, 1.0)
    window.accumulator.micro_batch().abort()
    for number in (0, 1, 2):
        with pytest.raises(ga.GAStateError, match=f"micro_batch {number}"):
            window.accumulator.set_weight(number, 1.0)
    assert window.step().weight == 2.0


@both_sources
def test_weight_of_a_mean_is_given_before_the_commit_in_isolated_mode(source):
    at_once = Window(source, isolated=True, loss_reduction="mean")
    later = Window(source, isolated=True, loss_reduction="mean")
    for number, weight in enumerate((3.0, 0.25)):
        at_once.add(number, weight, loss=1.5)
        with later.accumulator.micro_batch() as micro_batch:
            later.add(number, None, loss=1.5)
            micro_batch.set_weight(weight)
    assert later.accumulator.window().loss == 1.5
    a, b = later.step(), at_once.step()
    # The weight is multiplied at the end of the chain rather than at its start: one rounding apart.
    assert (a.loss, a.weight, a.micro_batches) == (b.loss, b.weight, b.micro_batches)
    for x, y, z in zip(later.parameters, at_once.parameters, Window().parameters):
        assert np.allclose(x.numpy(), y.numpy(), rtol=1e-6, atol=1e-6) and not np.array_equal(x.numpy(), z.numpy())


@both_sources
def test_weight_of_a_mean_cannot_come_after_its_gradient(source):
    exact = Window(source, loss_reduction="mean")
    with pytest.raises(ga.GAStateError, match="weight is missing.*isolated"):
        exact.add(0, None)
    isolated = Window(source, isolated=True, loss_reduction="mean")
    with pytest.raises(ga.GAStateError, match="weight is missing.*begin a micro-batch"):
        isolated.add(0, None)
    micro_batch = isolated.accumulator.micro_batch()
    isolated.add(0, None)
    with pytest.raises(ga.GAStateError, match="weight of micro-batch 0 is missing"):
        micro_batch.commit()
    micro_batch.set_weight(2.0)
    micro_batch.commit()
    assert isolated.step().weight == 2.0


@both_sources
def test_mean_cannot_come_after_the_weight_of_its_micro_batch(source):
    """It would be multiplied by both weights."""
    window, expected = (Window(source, isolated=True, loss_reduction="mean") for _ in range(2))
    with window.accumulator.micro_batch() as micro_batch:
        window.add(0, None)
        micro_batch.set_weight(3.0)
        for weight in (5.0, None):
            with pytest.raises(ga.GAStateError, match="micro-batch 0 was given its weight, 3.0.*begin another"):
                window.add(1, weight)
    with expected.accumulator.micro_batch() as micro_batch:
        expected.add(0, None)
        micro_batch.set_weight(3.0)
    for both in (window, expected):
        both.add(1, 5.0)
    assert facts(window.step()) == facts(expected.step())
    assert window.weights() == expected.weights()


@pytest.mark.parametrize("sum_format", ["float32", "bfloat16_kahan"])
def test_micro_batch_that_its_late_weight_takes_beyond_float32_is_dropped_alone(sum_format):
    """As with the weight at once; and one that stays within counts, however large its norm."""
    x = ga.zeros((2,), requires_grad=True)
    options = {"isolated": True, "loss_reduction": "mean", "sum_format": sum_format}
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), **options)
    accumulator.accumulate_gradients([np.ones(2, np.float32)], 0.0, 1.0)
    for gradient, weight in ((1e30, 1e10), (3e38, 1.0)):
        with accumulator.micro_batch() as micro_batch:
            accumulator.accumulate_gradients([np.full(2, gradient, np.float32)], 0.0, None)
            micro_batch.set_weight(weight)
    window = accumulator.window()
    assert (window.micro_batches, window.aborted_micro_batches, window.weight) == (2, 1, 2.0)
    assert (window.non_finite_parameter, window.non_finite_micro_batch) == (0, 1)
    assert np.isfinite(accumulator.accumulated_gradient(0).numpy()).all()
    accumulator.zero()


def test_losses_of_one_micro_batch_get_their_weight_in_one_way():
    window = Window()
    with window.accumulator.micro_batch() as micro_batch:
        window.add(0, None)
        with pytest.raises(ga.GAStateError, match="gets its weight later"):
            window.add(1, 1.0)
        window.add(1, None)
    micro_batch.set_weight(4.0)
    with window.accumulator.micro_batch():
        window.add(2, 1.0)
        with pytest.raises(ga.GAStateError, match="has its weight"):
            window.add(3, None)
        window.add(3, 2.0)
    report = window.step()
    assert (report.weight, report.micro_batches) == (7.0, 2)


# ====== Normalisation ======


@both_sources
def test_plain_sum_is_not_divided(source):
    window = Window(source, ga.SGD, normalization="sum")
    before = [x.numpy() for x in window.parameters]
    window.add(0, 3.0)
    window.add(1, 5.0)
    report = window.step()
    assert (report.weight, report.loss) == (8.0, 0.25)
    total = [a.astype(np.float64) + b for a, b in zip(gradients(0), gradients(1))]
    assert report.gradient_norm == pytest.approx(np.sqrt(sum((x * x).sum() for x in total)), rel=1e-6)
    for x, start, gradient in zip(window.parameters, before, total):
        assert np.allclose(x.numpy(), start - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_plain_sum_is_clipped_by_its_own_norm():
    window = Window("own", ga.SGD, normalization="sum", max_grad_norm=0.5)
    window.add(0, 1000.0)
    report = window.step()
    assert report.clip_factor == pytest.approx(0.5 / report.gradient_norm, rel=1e-5)


@pytest.mark.parametrize("normalization", ["weight", "sum"])
@pytest.mark.parametrize("isolated", [False, True])
def test_window_without_weight_is_reported_and_leaves_no_trace(normalization, isolated):
    clean, tried = (Window(normalization=normalization, isolated=isolated) for _ in range(2))
    for window in (clean, tried):
        window.good()
    tried.add(7, 0.0)
    report = tried.step()
    assert report.outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT and report.skipped
    assert (report.micro_batches, report.weight, report.loss, report.consecutive_skips) == (1, 0.0, 0.0, 0)
    assert afterwards(tried) == afterwards(clean)


# ====== The end of the data ======


@both_sources
def test_pain_04_short_last_window_is_divided_by_what_went_in(source):
    short, whole = Window(source, accumulation_steps=4), Window(source, accumulation_steps=4)
    for number, weight in enumerate((3.0, 1.0)):
        short.add(number, weight)
        whole.add(number, weight)
    report = short.accumulator.end_data("step")
    assert facts(report) == facts(whole.step())
    assert (report.weight, report.micro_batches, report.outcome) == (4.0, 2, ga.Outcome.APPLIED)
    assert short.weights() == whole.weights()


@both_sources
def test_carried_window_goes_on_in_the_next_epoch(source):
    carried, plain = Window(source, accumulation_steps=2), Window(source, accumulation_steps=2)
    carried.accumulator.begin_data()
    carried.add(0)
    plain.add(0)
    report = carried.accumulator.end_data("carry")
    assert report.outcome == ga.Outcome.PENDING and not report.skipped
    assert (report.micro_batches, report.update_count) == (1, 0)
    carried.accumulator.begin_data()
    carried.add(1)
    plain.add(1)
    assert carried.accumulator.step_due
    assert facts(carried.step()) == facts(plain.step())
    assert carried.weights() == plain.weights()


@both_sources
@pytest.mark.parametrize("isolated", [False, True])
def test_dropped_window_leaves_no_trace(source, isolated):
    clean, dropped = (Window(source, isolated=isolated) for _ in range(2))
    for window in (clean, dropped):
        window.good()
    dropped.add(7)
    dropped.add(8, None)
    report = dropped.accumulator.end_data("drop")
    assert report.outcome == ga.Outcome.DROPPED and report.micro_batches == 2
    dropped.accumulator.begin_data()
    assert afterwards(dropped) == afterwards(clean)


def test_pain_06_gradients_cannot_leak_into_the_next_epoch_unnoticed():
    window = Window(accumulation_steps=4)
    window.accumulator.begin_data()
    for number in range(3):
        window.add(number)
    before = window.sums()
    with pytest.raises(ga.GAStateError, match=r"3 micro-batches.*data_end \(step, carry or drop\)"):
        window.accumulator.begin_data()
    assert window.sums() == before
    # An epoch that is shorter than a window gets its update all the same.
    assert window.accumulator.end_data().update_count == 1
    window.accumulator.begin_data()


def test_what_was_carried_over_once_is_not_carried_over_for_ever():
    window = Window(accumulation_steps=9)
    window.add(0)
    window.accumulator.end_data("carry")
    window.add(1)
    with pytest.raises(ga.GAStateError, match="2 micro-batches"):
        window.accumulator.begin_data()


@pytest.mark.parametrize("tail", ["step", "carry", "drop"])
def test_end_of_data_with_nothing_in_the_window_is_no_error(tail):
    window = Window()
    for _ in range(2):
        assert window.accumulator.end_data(tail).outcome == ga.Outcome.EMPTY
    report = window.good()
    assert report.update_count == 1
    assert window.accumulator.end_data(tail).outcome == ga.Outcome.EMPTY


def test_end_of_data_takes_one_of_its_words():
    with pytest.raises(ga.GAInvalidArgumentError, match="tail"):
        Window().accumulator.end_data("flush")  # type: ignore[arg-type]


def test_more_than_accumulation_steps_are_divided_by_their_weight():
    more, exactly = Window(accumulation_steps=2), Window(accumulation_steps=3)
    for number in range(3):
        more.add(number)
        exactly.add(number)
    assert more.step().gradient_norm == exactly.step().gradient_norm
    assert more.weights() == exactly.weights()


# ====== Gradients that are lost with their accumulator ======


def test_freeing_an_unfinished_window_is_noticed_from_c():
    for count in (0, 2):
        window = Window("own")
        for number in range(count):
            window.add(number)
        raw.ga_set_num_threads(0)  # any error, to be replaced
        before = sentence()
        address = window.accumulator.handle
        raw.ga_accumulator_free(address)
        assert sentence() == before if count == 0 else "2 micro-batches" in sentence()
        raw.ga_accumulator_free(address)


@pytest.mark.parametrize("how", ["close", "with", "collected"])
def test_freeing_an_unfinished_window_is_a_resource_warning(how):
    window = Window("own")
    window.add(0)
    with pytest.warns(ResourceWarning, match="1 micro-batches"):
        if how == "close":
            window.accumulator.close()
        elif how == "with":
            with window.accumulator:
                pass
        else:
            del window
            gc.collect()


def test_freeing_a_settled_window_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settle in ("step", "zero", "end_data"):
            window = Window("own")
            window.add(0)
            getattr(window.accumulator, settle)()
            window.accumulator.close()


# ====== Changing the number of micro-batches ======


def test_pain_09_accumulation_steps_change_at_the_next_window():
    window = Window(accumulation_steps=3)
    assert window.accumulator.accumulation_steps == 3
    window.accumulator.accumulation_steps = 2
    assert window.accumulator.accumulation_steps == 2  # nothing has begun
    window.add(0)
    window.accumulator.accumulation_steps = 1
    assert window.accumulator.accumulation_steps == 2 and not window.accumulator.step_due
    window.add(1)
    assert window.accumulator.step_due
    assert window.step().accumulation_steps == 2
    window.add(2)
    assert window.accumulator.step_due
    assert window.step().accumulation_steps == 1
    for steps in (0, -1, -(2**63)):
        with pytest.raises(ga.GAInvalidArgumentError, match="accumulation_steps"):
            window.accumulator.accumulation_steps = steps


def test_change_waits_for_a_carried_window_and_not_for_a_dropped_one():
    window = Window(accumulation_steps=3)
    window.add(0)
    window.accumulator.accumulation_steps = 5
    window.accumulator.end_data("carry")
    window.accumulator.begin_data()
    assert window.accumulator.accumulation_steps == 3
    window.accumulator.end_data("drop")
    assert window.accumulator.accumulation_steps == 5




# ====== The number of micro-batches as training goes on ======


def train(window: Window, count: int) -> list[int]:
    """The micro-batches of each of the next `count` windows, of weight 2 each."""
    found = []
    for _ in range(count):
        while not window.accumulator.step_due:
            window.add(len(found))
        report = window.step()
        assert report.accumulation_steps == report.micro_batches
        found.append(report.micro_batches)
    return found


def test_ramp_by_updates_jumps_at_its_times():
    window = Window("own")
    window.accumulator.set_ramp([0, 2, 5], [1, 3, 2])
    assert train(window, 7) == [1, 1, 3, 3, 3, 2, 2]


def test_ramp_by_weight_counts_what_was_applied():
    window = Window("own")
    window.accumulator.set_ramp([0, 4, 10], [1, 3, 2], clock="weight")
    assert train(window, 4) == [1, 1, 3, 2]  # at weights 0, 2, 4 and 10


def test_linear_ramp_rounds_down_and_holds_at_its_ends():
    window = Window("own")
    window.accumulator.set_ramp([2, 6], [2, 5], interpolated=True)
    assert train(window, 9) == [2, 2, 2, 2, 3, 4, 5, 5, 5]
    falling = Window("own")
    falling.accumulator.set_ramp([0, 4], [5, 1], interpolated=True)
    assert train(falling, 6) == [5, 4, 3, 2, 1, 1]


def test_ramp_takes_effect_at_the_next_window_and_ends_where_the_number_is_set():
    window = Window("own", accumulation_steps=2)
    window.add(0)
    window.accumulator.set_ramp([0], [4])
    assert window.accumulator.accumulation_steps == 2
    window.add(1)
    assert window.step().micro_batches == 2
    assert window.accumulator.accumulation_steps == 4
    window.accumulator.accumulation_steps = 1
    assert train(window, 2) == [1, 1]


def test_ramp_does_not_move_by_what_is_not_applied():
    """Neither windows that are skipped or dropped nor micro-batches that are aborted move the clock."""
    clean, tried = (Window("own", isolated=True) for _ in range(2))
    for window in (clean, tried):
        window.accumulator.set_ramp([0, 4, 8], [1, 2, 3], clock="weight")
    expected = train(clean, 5)
    found = []
    for _ in range(5):
        tried.add(0, weight=0.0)
        tried.step()
        tried.add(0, spoil=NAN)
        tried.step()
        tried.add(0)
        tried.accumulator.end_data("drop")
        tried.accumulator.micro_batch().abort()
        tried.accumulator.zero()
        found += train(tried, 1)
    assert found == expected == [1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("times", "steps", "word"),
    [
        ([], [], "times"),
        ([0, 0], [1, 2], r"times\[1\]"),
        ([3, 2], [1, 2], r"times\[1\]"),
        ([-1], [1], r"times\[0\]"),
        ([float("nan")], [1], r"times\[0\]"),
        ([0, float("inf")], [1, 2], r"times\[1\]"),
        ([0, 1], [1, 0], r"accumulation_steps\[1\]"),
        ([0], [2**63 - 1], r"accumulation_steps\[0\]"),
        ([0], [-(2**63)], r"accumulation_steps\[0\]"),
        ([0, 1], [1], "times"),
    ],
)
def test_ramp_that_is_none_is_refused_and_the_number_stays(times, steps, word):
    window = Window("own", accumulation_steps=7)
    with pytest.raises(ga.GAInvalidArgumentError, match=word):
        window.accumulator.set_ramp(times, steps)
    with pytest.raises(ga.GAInvalidArgumentError, match="clock"):
        window.accumulator.set_ramp([0], [1], clock="calls")
    assert window.accumulator.accumulation_steps == 7
