"""The report of a window: what it held, what became of it, and what it cost."""

from __future__ import annotations

import dataclasses
import time

import gradaccum as ga
import numpy as np
import pytest

from models import Model, gpt_arrays, gpt_data, gpt_loss, gpt_weight, micro_batches
from windows import Window, both_sources, facts


@both_sources
def test_pain_14_loss_is_the_mean_over_the_window_by_weight(source):
    window = Window(source, accumulation_steps=3)
    for number, (loss, weight) in enumerate(((3.0, 1.0), (8.0, 4.0), (-1.0, 3.0))):
        window.add(number, weight, loss=loss)
    report = window.step()
    assert (report.loss, report.weight, report.micro_batches) == (10 / 8, 8.0, 3)
    assert (report.accumulation_steps, report.aborted_micro_batches, report.loss_scale) == (3, 0, 1.0)
    assert (report.outcome, report.update_count, report.consecutive_skips) == (ga.Outcome.APPLIED, 1, 0)
    assert report.non_finite_parameter is None and report.non_finite_micro_batch is None


def test_window_in_progress_is_what_the_step_reports():
    window = Window(max_grad_norm=0.01)
    fresh = window.accumulator.window()
    assert fresh.outcome == ga.Outcome.PENDING and (fresh.micro_batches, fresh.weight, fresh.loss) == (0, 0.0, 0.0)
    window.add(0)
    window.add(1)
    pending = window.accumulator.window()
    report = window.step()
    of_the_step = ("outcome", "gradient_norm", "clip_factor", "update_count")
    assert {k: v for k, v in facts(pending).items() if k not in of_the_step} == {
        k: v for k, v in facts(report).items() if k not in of_the_step
    }
    assert report.clip_factor < 1 and not pending.skipped
    assert facts(window.accumulator.window()) == {**facts(fresh), "update_count": 1}


def test_bytes_are_those_of_the_accumulators_and_of_all_tensors():
    before = ga.memory_usage().live_bytes
    parameters = [ga.zeros((300, 40), requires_grad=True), ga.zeros((64,), requires_grad=True)]
    accumulator = ga.Accumulator(ga.AdamW(parameters))
    assert accumulator.window().accumulator_bytes == 0
    accumulator.accumulate_gradients([np.ones((300, 40), np.float32), None], 0.0, 1)
    assert accumulator.window().accumulator_bytes == 300 * 40 * 4
    accumulator.accumulate_gradients([np.ones((300, 40), np.float32), np.ones(64, np.float32)], 0.0, 1)
    report = accumulator.step()
    assert report.accumulator_bytes == 4 * (300 * 40 + 64)
    assert report.tensor_bytes - before >= 4 * report.accumulator_bytes  # parameters, sums, two moments
    assert report.tensor_bytes == ga.memory_usage().live_bytes


def test_pain_25_bytes_do_not_depend_on_the_number_of_micro_batches():
    model = Model(gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight)
    data = gpt_data(8, 13, 61)
    sizes = {model.window(data, split).accumulator_bytes for split in ([8], [4, 4], [1] * 8)}
    assert len(sizes) == 1


def test_seconds_are_those_of_the_work_and_no_moment_counts_twice():
    """Only what must hold on a machine of any speed: the parts are in the whole, and pauses are in none."""
    model = Model(gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight)
    data = gpt_data(8, 13, 61)
    pause = 0.05
    start = time.perf_counter()
    losses = []
    for micro_batch in micro_batches(data, [4, 4]):  # both forward passes before the first backward
        losses.append((model.loss(model.parameters, micro_batch), gpt_weight(micro_batch)))
    time.sleep(pause)  # is in both of them
    for loss, weight in losses:
        model.accumulator.accumulate(loss, weight)
    middle = time.perf_counter()
    time.sleep(pause)
    before_step = time.perf_counter()
    report = model.accumulator.step()
    end = time.perf_counter()
    assert 0 < report.forward_backward_seconds <= middle - start
    assert 0 < report.step_seconds <= end - before_step
    with model.accumulator.micro_batch():
        time.sleep(pause)
        model.accumulate(data)
    time.sleep(pause)
    begun = model.accumulator.window().forward_backward_seconds
    assert begun >= pause
    assert model.accumulator.step().forward_backward_seconds == begun


def test_forward_pass_is_in_the_seconds():
    x = ga.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([x]))
    pause = 0.05
    y = x * 2.0
    time.sleep(pause)
    accumulator.accumulate(ga.sum(y * y), 1)
    assert accumulator.window().forward_backward_seconds >= pause
    accumulator.accumulate_gradients([np.ones((4, 4), np.float32)], 0.0, 1)
    assert accumulator.step().forward_backward_seconds >= pause


@pytest.mark.parametrize("spoil", [None, float("inf")])
def test_reports_of_equal_windows_are_equal(spoil):
    reports = []
    for _ in range(2):
        window = Window("own")
        window.add(0)
        window.add(1, spoil=spoil)
        reports.append(window.step())
    assert reports[0] == reports[1] and facts(reports[0]) == facts(reports[1])
    costs = ("accumulator_bytes", "tensor_bytes", "forward_backward_seconds", "step_seconds")
    assert set(reports[0].__dataclass_fields__) - set(facts(reports[0])) == set(costs)
    assert reports[0] != dataclasses.replace(reports[1], weight=5.0)
