"""Schedules have the values of PyTorch's and of their formulas, and follow a clock that only applied updates move."""

from __future__ import annotations

import math
from pathlib import Path

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import schedules
from hypothesis import given
from hypothesis import strategies as st

from tally import NO_TRACE, ONE_CLOCK, examples

FIXTURES = np.load(Path(__file__).parents[1] / "parity" / "schedules.npz")
UPDATES = 60
WARM = {"warmup": 10, "warmup_start_factor": 0.25}

# By the name of the fixture; plateaus are in a table of their own.
CURVES = {
    "linear": schedules.Linear(40, 0.2),
    "cosine": schedules.Cosine(59, 0.1),
    "step": schedules.Step(7, 0.3),
    "exponential": schedules.Exponential(0.93),
    "one_cycle": schedules.OneCycle(60, pct_start=(0.4 * 61 - 1) / 60),
    "one_cycle_linear": schedules.OneCycle(
        60, pct_start=(0.3 * 61 - 1) / 60, div_factor=10, final_div_factor=100, anneal="linear"
    ),
    "warm_constant": schedules.Constant(**WARM),
    "warm_cosine": schedules.Cosine(60, **WARM),
    "warm_exponential": schedules.Exponential(0.9, **WARM),
}
PLATEAUS = {
    "plateau": {"patience": 2, "gamma": 0.5},
    "plateau_cooldown": {"patience": 1, "gamma": 0.5, "cooldown": 4, "min_factor": 0.05},
    "plateau_absolute": {"patience": 2, "gamma": 0.3, "threshold": 0.02, "threshold_mode": "absolute"},
    "plateau_max": {"mode": "max", "patience": 1, "gamma": 0.7, "threshold": 0.01},
}
TABLE = schedules.Table([2.0, 4.0, 10.0], [1.0, 3.0, 0.0])


def test_every_fixture_is_compared():
    assert {name for name in FIXTURES if ":" not in name} == {*CURVES, *PLATEAUS}


@pytest.mark.parametrize("name", CURVES)
def test_factors_are_those_of_pytorch(name):
    # PyTorch multiplies its way from update to update, and rounds at each.
    found = [CURVES[name].factor(t) for t in range(UPDATES)]
    np.testing.assert_allclose(found, FIXTURES[name], rtol=1e-13, atol=1e-15)


class Training:
    """A single weight, with windows of chosen loss and weight, and the rates that they were applied at."""

    def __init__(self, schedule: schedules.Schedule | None = None, lr: float = 1.0) -> None:
        self.weight = ga.zeros((1,), requires_grad=True)
        self.optimizer = ga.SGD([self.weight], lr=lr)
        self.optimizer.schedule = schedule
        self.accumulator = ga.Accumulator(self.optimizer)

    def window(self, weight: float = 1.0, loss: float = 0.0, gradient: float = 1.0) -> ga.Report:
        """loss and gradient: means."""
        sums = [np.array([gradient * weight], np.float32)]
        self.accumulator.accumulate_gradients(sums, loss * weight, weight)
        return self.accumulator.step()


@pytest.mark.parametrize("name", PLATEAUS)
@pytest.mark.parametrize("signal", ["loss", "metric"])
def test_plateaus_fall_when_pytorch_s_do(name, signal):
    training = Training(schedules.Plateau(signal=signal, **PLATEAUS[name]))
    metrics = FIXTURES[f"{name}:metrics"]
    found = []
    for metric in metrics:
        found.append(training.optimizer.next_lr)
        # A weight that is no power of two rounds the mean loss: it is not part of what is compared.
        report = training.window(weight=2.0, loss=metric if signal == "loss" else 7.0)
        assert report.learning_rate == found[-1]
        if signal == "metric":
            training.optimizer.report_metric(metric)
    np.testing.assert_allclose(found, FIXTURES[name], rtol=1e-13)


def test_a_plateau_sees_nothing_of_its_warmup():
    training = Training(schedules.Plateau(patience=0, gamma=0.5, warmup=4))
    rates = [training.window(loss=loss).learning_rate for loss in (1, 2, 3, 4, 5, 6, 6, 6)]
    # The window of loss 5 is the first that counts, and 6 the first that is no better.
    assert rates == [0, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.25]


@pytest.mark.parametrize(
    ("schedule", "end"),
    [(schedules.Linear(70, 0.3, **WARM), 0.3), (schedules.Cosine(70, 0.7, **WARM), 0.7)],
)
def test_curves_are_exact_at_their_ends(schedule, end):
    assert schedule.factor(0) == 0.25 and schedule.factor(10) == 1
    assert schedule.factor(70) == schedule.factor(1e9) == end


def test_one_cycle_is_exact_at_its_ends():
    cycle = schedules.OneCycle(100, warmup=20, warmup_start_factor=0.5)
    assert cycle.factor(0) == 0.5 / 25 and cycle.factor(20) == 1 / 25
    assert cycle.factor(20 + 0.3 * 80) == 1
    assert cycle.factor(100) == cycle.factor(1000) == 1 / 25 / 1e4
    assert schedules.OneCycle(10, pct_start=1.0).factor(10) == 1 / 25 / 1e4
    assert schedules.OneCycle(10, pct_start=0.0).factor(0) == 1


@given(st.floats(0, 200), st.floats(0, 50), st.floats(0, 1), st.floats(1, 100), st.floats(0.1, 0.9))
def test_factors_are_those_of_the_formulas(t, warmup, start, length, gamma):
    """Each curve from the end of the warm-up, which goes straight to what it begins with."""
    elapsed = max(t - warmup, 0)
    end = warmup + length
    share = min(elapsed / length, 1)
    half_wave = (1 + math.cos(math.pi * share)) / 2
    warm = start + (1 - start) * t / warmup if t < warmup else 1
    options = {"warmup": warmup, "warmup_start_factor": start}
    expected = {
        schedules.Constant(**options): 1,
        schedules.Linear(end, 0.1, **options): 1 - 0.9 * share,
        schedules.Cosine(end, 0.1, **options): 0.1 + 0.9 * half_wave,
        schedules.InverseSqrt(length, **options): math.sqrt(length / (length + elapsed)),
        schedules.Exponential(gamma, length, **options): gamma ** (elapsed / length),
        schedules.Step(length, gamma, **options): gamma ** math.floor(elapsed / length),
    }
    for schedule, value in expected.items():
        # The end of the warm-up and of the curve are rounded before the elapsed time is taken between them.
        assert schedule.factor(t) == pytest.approx(warm * value, rel=1e-11, abs=1e-12), schedule


def test_inverse_square_root_takes_the_warmup_for_its_timescale():
    """So the factor is sqrt(warmup / t) after it, as in "Attention Is All You Need"."""
    schedule = schedules.InverseSqrt(warmup=400)
    assert [schedule.factor(t) for t in (0, 100, 400)] == [0, 0.25, 1]
    assert schedule.factor(1600) == 0.5 and schedule.factor(40_000) == 0.1


def test_tables_go_straight_or_jump_and_hold_at_their_ends():
    assert [TABLE.factor(t) for t in (0, 2, 3, 4, 7, 10, 99)] == [1, 1, 2, 3, 1.5, 0, 0]
    jumps = schedules.Table([2.0, 4.0, 10.0], [1.0, 3.0, 0.0], interpolated=False)
    assert [jumps.factor(t) for t in (0, 2, 3.9, 4, 9.9, 10, 99)] == [1, 1, 1, 3, 3, 0, 0]
    warm = schedules.Table([0.0, 8.0], [2.0, 4.0], warmup=4, warmup_start_factor=0.5)
    assert [warm.factor(t) for t in (0, 2, 4, 8)] == [1.5, 2.25, 3, 4]


def test_start_moves_a_schedule():
    schedule = schedules.Linear(10, start=100)
    assert [schedule.factor(t) for t in (0, 100, 105, 110)] == [1, 1, 0.5, 0]


# ====== On an optimizer ======


def test_updates_have_the_learning_rate_times_the_factor():
    training = Training(schedules.Cosine(8, 0.1, warmup=2, warmup_start_factor=0.5), lr=0.25)
    position = 0.0
    for update in range(12):
        expected = 0.25 * training.optimizer.schedule.factor(update)
        assert training.optimizer.next_lr == expected
        report = training.window()
        assert report.learning_rate == expected and training.optimizer.lr == 0.25
        position = np.float32(position - np.float32(expected))
        assert training.weight.item() == position


@pytest.mark.law(ONE_CLOCK)
def test_the_clock_of_weight_counts_what_went_in():
    training = Training(schedules.Linear(100, clock="weight"))
    rates = []
    for weight in (10, 30, 0.5, 9.5, 60):
        rates.append(training.window(weight=weight).learning_rate)
    assert rates == [1, 0.9, 0.6, 1 - 0.405, 0.5]
    assert training.optimizer.clock("weight") == 110 and training.optimizer.clock() == 5
    assert training.optimizer.next_lr == 0


@pytest.mark.law(ONE_CLOCK)
@pytest.mark.parametrize("clock", ["updates", "weight"])
def test_the_number_of_micro_batches_has_no_part_in_it(clock):
    def rates(pieces: int) -> list[float]:
        training = Training(schedules.Cosine(80, warmup=16, clock=clock))
        out = []
        for _ in range(10):
            for _ in range(pieces):
                training.accumulator.accumulate_gradients([np.ones(1, np.float32)], 0.0, 8 / pieces)
            out.append(training.accumulator.step().learning_rate)
        return out

    assert rates(1) == rates(2) == rates(8)


@pytest.mark.law(NO_TRACE, ONE_CLOCK)
@examples(30)
@given(
    st.lists(st.sampled_from(["apply", "skip", "zero", "empty"]), max_size=30),
    st.sampled_from(["updates", "weight"]),
)
def test_windows_that_are_not_applied_leave_no_trace_in_the_schedule(events, clock):
    """Law 4: the run without them has the same rates and weights, to the last bit."""
    schedule = schedules.Cosine(40, warmup=6, warmup_start_factor=0.1, clock=clock)
    plateau = schedules.Plateau(patience=1, gamma=0.5, warmup=3)
    for followed in (schedule, plateau):
        disturbed, plain = Training(followed, lr=0.3), Training(followed, lr=0.3)
        for number, event in enumerate(events):
            loss, weight = float(number % 3), 1.0 + number % 4
            before = disturbed.optimizer.next_lr
            if event == "apply":
                assert disturbed.window(weight, loss) == plain.window(weight, loss)
                continue
            if event == "skip":
                assert disturbed.window(weight, loss, math.nan).skipped
            elif event == "zero":
                disturbed.accumulator.accumulate_gradients([np.ones(1, np.float32)], loss, weight)
                disturbed.accumulator.zero()
            else:
                assert disturbed.window(0.0).outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT
            assert disturbed.optimizer.next_lr == before
        assert disturbed.optimizer.next_lr == plain.optimizer.next_lr
        assert disturbed.weight.numpy().tobytes() == plain.weight.numpy().tobytes()
        for name in ("updates", "weight"):
            assert disturbed.optimizer.clock(name) == plain.optimizer.clock(name)


def test_setting_the_learning_rate_sets_what_the_schedule_multiplies():
    training = Training(schedules.Linear(4), lr=1.0)
    training.window()
    training.optimizer.lr *= 2
    assert (training.optimizer.lr, training.optimizer.next_lr) == (2, 1.5)
    assert training.window().learning_rate == 1.5
    training.optimizer.schedule = None
    assert training.optimizer.schedule is None and training.window().learning_rate == 2


def test_a_new_schedule_reads_the_clock_where_it_is_and_can_start_there():
    training = Training(schedules.Linear(4))
    for _ in range(2):
        training.window()
    training.optimizer.schedule = schedules.Linear(8)
    assert training.optimizer.next_lr == 0.75
    training.optimizer.schedule = schedules.Linear(8, start=training.optimizer.clock())
    assert training.optimizer.next_lr == 1


def test_a_refused_schedule_leaves_the_former_one():
    training = Training(schedules.Linear(4))
    training.window()
    with pytest.raises(ga.GAInvalidArgumentError, match="duration"):
        training.optimizer.schedule = schedules.Cosine(5, warmup=5)
    assert training.optimizer.schedule == schedules.Linear(4) and training.optimizer.next_lr == 0.75


def test_a_rate_that_is_too_large_refuses_the_step_and_keeps_the_window():
    training = Training(schedules.Table([0.0], [1e30]), lr=1.0)
    training.optimizer.lr = 1e20
    with pytest.raises(ga.GAOverflowError, match="1e.20 times the schedule's 1e.30"):
        training.window(weight=3)
    training.optimizer.lr = 1e-30
    report = training.accumulator.step()
    assert report.outcome == ga.Outcome.APPLIED and report.weight == 3 and training.weight.item() == -1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.Constant(clock="samples"), "clock is 'samples'"),
        (lambda: schedules.OneCycle(9, anneal="cos"), "anneal is 'cos'"),
        (lambda: schedules.Plateau(mode="lower"), "mode is 'lower'"),
        (lambda: schedules.Plateau(signal="norm"), "signal is 'norm'"),
        (lambda: schedules.Table([1.0], [1.0, 2.0]), "times has 1"),
    ],
)
def test_words_that_are_none_are_named(make, words):
    with pytest.raises(ga.GAInvalidArgumentError) as caught:
        make().factor(0)
    assert words in str(caught.value)
