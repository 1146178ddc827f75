"""Windows under a loss scale: the laws, policies on overflow, and the order of calls."""

from __future__ import annotations

import contextlib
import gc
import itertools
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from ml_dtypes import bfloat16

from models import (
    Model,
    gpt_arrays,
    gpt_data,
    gpt_loss,
    gpt_weight,
    part,
)
from tally import FACTOR, FLAT_MEMORY, NO_TRACE, SCALING, case
from windows import INF, NAN, SIZES, Window, afterwards, both_sources, facts, gradients

OVERFLOW, APPLIED = ga.Outcome.SKIPPED_OVERFLOW, ga.Outcome.APPLIED


def static(scale: float) -> ga.LossScaler:
    return ga.LossScaler(scale, dynamic=False)


# ====== Law 3: scaling is transparent ======

CLIPPING = {"none": {}, "norm": {"max_grad_norm": 0.5}, "value": {"max_grad_value": 1e-3}, "units": {"agc_clipping": 0.02}}


def gpt(seed: int = 0, **window: Any) -> tuple[Model, Any]:
    model = Model(gpt_arrays(61, 36, 13, 2, seed), gpt_loss(3), weight=gpt_weight, **window)
    return model, gpt_data(7, 13, 61, seed + 1)


@pytest.mark.law(SCALING)
@pytest.mark.parametrize("seed", range(FACTOR))
@pytest.mark.parametrize("dtype", [ga.float32, ga.bfloat16])
def test_power_of_two_changes_no_bit(dtype, seed):
    """Of gradients, reports and weights, from 2^0 to 2^24, under every kind of clipping in turn."""
    expected = {}
    with ga.compute_dtype(dtype):
        for name, clipping in CLIPPING.items():
            model, data = gpt(seed, **clipping)
            expected[name] = model.fingerprint(data, [[7], [3, 4]])
        assert len(set(expected.values())) == len(CLIPPING)
        for exponent, (name, clipping) in zip(range(25), itertools.cycle(CLIPPING.items())):
            model, data = gpt(seed, loss_scaler=static(2.0**exponent), **clipping)
            assert model.fingerprint(data, [[3, 4], [1] * 7]) == expected[name], f"2^{exponent}, {name}"
            case()


@pytest.mark.law(SCALING)
@pytest.mark.parametrize("options", [{"loss_reduction": "mean"}, {"normalization": "sum"}, {"isolated": True}], ids=str)
@both_sources
def test_power_of_two_changes_no_bit_of_other_windows(source, options):
    def run(**more: Any) -> Any:
        window = Window(source, **options, **more)
        found = []
        for number in range(3):
            window.add(number)
            window.add(number + 1, weight=3.0)
            found += [window.sums(), facts(window.accumulator.window()), facts(window.step()), window.weights()]
        return [{k: v for k, v in x.items() if k != "loss_scale"} if isinstance(x, dict) else x for x in found]

    expected = run()
    for exponent in (1, 11, 24):
        assert run(loss_scaler=static(2.0**exponent)) == expected


def test_scale_that_is_no_power_of_two_is_close_and_asked_for():
    with pytest.raises(ga.GAInvalidArgumentError, match="init_scale is 1000.*such as 512.*allow_any_scale"):
        ga.LossScaler(1000.0)
    model, data = gpt(loss_scaler=ga.LossScaler(1000.0, allow_any_scale=True))
    plain, _ = gpt()
    report, expected = model.window(data, [7]), plain.window(data, [7])
    assert report.loss == expected.loss and report.loss_scale == 1000.0
    assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert report.gradient_norm != expected.gradient_norm


# ====== Law 4: a skip leaves no trace ======


@pytest.mark.law(NO_TRACE)
@both_sources
@pytest.mark.parametrize("isolated", [False, True])
def test_infinities_and_nans_at_random_places_leave_no_trace(source, isolated):
    """The windows that are left have the bits of a run without a scaler that never saw the others."""
    spoils = [INF, -INF, NAN] if source == "own" else [INF, -INF]  # a NaN of autograd is in the loss already
    for seed in range(6):
        rng = np.random.default_rng(seed)
        plain = Window(source, isolated=isolated)
        tried = Window(source, isolated=isolated, loss_scaler=ga.LossScaler(2.0**14, growth_interval=3))
        applied = 0
        scales = set()
        for number in range(0, 60, 3):
            bad = rng.random(3) < 0.25
            for i in range(3):
                tried.add(number + i, spoil=rng.choice(spoils) if bad[i] else None)
            report = tried.step()
            scales.add(report.loss_scale)
            is_applied = not bad.all() if isolated else not bad.any()
            assert report.outcome == (APPLIED if is_applied else OVERFLOW)
            if bad.any():
                assert (report.non_finite_parameter, report.non_finite_micro_batch) == (1, bad.argmax())
            if not is_applied:
                continue
            applied += 1
            for i in range(3):
                if not bad[i]:
                    plain.add(number + i)
            expected = plain.step()
            assert (report.update_count, report.gradient_norm) == (applied, expected.gradient_norm)
            assert tried.weights() == plain.weights()
        assert len(scales) > 2 and 0 < applied <= 20
        tried.accumulator.set_loss_scaler(None)
        after, expected_after = afterwards(tried), afterwards(plain)
        assert after == expected_after


# ====== What overflowed ======

LARGE, SMALL = 70_001, 5


def given_at_once(accumulator: ga.Accumulator, gradients: list[np.ndarray]) -> None:
    accumulator.accumulate_gradients(gradients, 1.0, 1.0)


def given_singly(accumulator: ga.Accumulator, gradients: list[np.ndarray]) -> None:
    with accumulator.micro_batch():
        for index, gradient in reversed(list(enumerate(gradients))):
            accumulator.accumulate_gradient(index, gradient)
        accumulator.accumulate_gradients([None] * len(gradients), 1.0, 1.0)


def in_half(dtype: Any) -> Any:
    return lambda accumulator, gradients: given_at_once(accumulator, [x.astype(dtype) for x in gradients])


def by_backward(accumulator: ga.Accumulator, gradients: list[np.ndarray]) -> None:
    with ga.Scope():
        total = ga.tensor(np.float32(0))
        for parameter, gradient in zip(accumulator.optimizer.parameters, gradients):
            # As a product that overflows on the way down.
            factors = [np.where(np.isinf(gradient), np.float32(1e30), x) for x in (gradient, np.ones_like(gradient))]
            away = parameter - parameter.detach()
            total = total + ga.sum(away * ga.tensor(factors[0]) * ga.tensor(factors[1]))
        accumulator.accumulate(ga.sum(ga.reshape(total, (1,))), 1.0)


@pytest.mark.parametrize("sum_format", ["float32", "bfloat16_kahan"])
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(
    "add",
    [given_at_once, given_singly, in_half(bfloat16), in_half(np.float16), by_backward],
    ids=["at_once", "singly", "bfloat16", "float16", "backward"],
)
@pytest.mark.parametrize(
    "large, small", [(0, 2), (2, 0), (1, 1), (1, None), (None, 1), (0, None), (2, None), (None, 2)]
)
def test_the_first_overflow_is_named_whatever_its_size(add, large, small, isolated, sum_format):
    """Parameter and micro-batch belong together. The numbers: of the micro-batches in which each parameter overflows."""
    parameters = [ga.tensor(np.ones(size, np.float32), requires_grad=True) for size in (LARGE, SMALL)]
    accumulator = ga.Accumulator(
        ga.SGD(parameters), loss_scaler=ga.LossScaler(4.0), isolated=isolated, sum_format=sum_format
    )
    for number in range(4):
        gradients = [np.ones(size, np.float32) for size in (LARGE, SMALL)]
        for gradient, bad in zip(gradients, (large, small)):
            if number == bad:
                gradient[-1] = INF
        add(accumulator, gradients)
    report = accumulator.step()
    first = min((number, index) for index, number in enumerate((large, small)) if number is not None)
    assert (report.non_finite_micro_batch, report.non_finite_parameter) == first
    assert report.outcome == (APPLIED if isolated else OVERFLOW)


def test_a_loss_that_is_not_finite_is_not_what_overflowed():
    parameter = ga.tensor(np.ones(3, np.float32), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([parameter]), loss_scaler=ga.LossScaler(4.0), isolated=True)
    accumulator.accumulate_gradients([np.ones(3, np.float32)], NAN, 1.0)
    accumulator.accumulate_gradients([np.full(3, INF, np.float32)], 1.0, 1.0)
    report = accumulator.step()
    assert (report.outcome, report.non_finite_parameter, report.non_finite_micro_batch) == (OVERFLOW, 0, 1)


def accumulator_of(*sizes: int, **options: Any) -> ga.Accumulator:
    parameters = [ga.tensor(np.ones(size, np.float32), requires_grad=True) for size in sizes]
    return ga.Accumulator(ga.SGD(parameters), **{"loss_scaler": ga.LossScaler(4.0), **options})


def ones_and(*values: float) -> list[np.ndarray]:
    return [np.full(3, value, np.float32) for value in values]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_overflow_in_the_rows_of_an_embedding_is_named(tied, checkpointed):
    table = ga.tensor(np.ones((50, 4), np.float32), requires_grad=True)
    scale = ga.tensor(np.ones(4, np.float32), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([scale, table]), loss_scaler=ga.LossScaler(4.0))

    def loss(factor: float) -> ga.Tensor:
        rows = ga.embedding(table, ga.tensor(np.array([3, 7], np.int64)))
        # Of two factors, so that the loss is 0 and the gradient overflows.
        beyond = (rows - rows.detach()) * ga.tensor(np.float32(factor)) * ga.tensor(np.float32(factor))
        small = ga.sum((scale - scale.detach()))
        return ga.sum(beyond) + small + (ga.sum(table * 0.5) if tied else ga.tensor(np.float32(0)))

    for number in range(3):
        with ga.Scope():
            factor = 1e30 if number == 1 else 1.0
            accumulator.accumulate(ga.checkpoint(lambda: loss(factor)) if checkpointed else loss(factor), 1.0)
    report = accumulator.step()
    assert (report.outcome, report.non_finite_parameter, report.non_finite_micro_batch) == (OVERFLOW, 1, 1)


def test_a_sum_that_overflows_by_adding_up_has_no_micro_batch_at_first():
    accumulator = accumulator_of(3, 3)
    for _ in range(2):
        accumulator.accumulate_gradients(ones_and(8e37, 1.0), 1.0, 1.0)
    parameters = accumulator.optimizer.parameters
    accumulator.accumulate(ga.sum(parameters[0] + parameters[1]), 1.0)
    report = accumulator.step()
    assert (report.outcome, report.non_finite_parameter, report.non_finite_micro_batch) == (OVERFLOW, 0, None)


def test_a_second_skip_names_the_micro_batch_of_any_sum():
    accumulator = accumulator_of(3, 3, loss_scaler=None)
    found = []
    for _ in range(2):
        for value in (1.0, 3e38, 3e38):
            accumulator.accumulate_gradients(ones_and(1.0, value), 1.0, 1.0)
        report = accumulator.step()
        found.append((report.non_finite_parameter, report.non_finite_micro_batch))
    assert found == [(1, None), (1, 2)]


def test_what_is_frozen_later_is_not_what_overflowed():
    accumulator = accumulator_of(3, 3)
    for values in ((INF, 1.0), (1.0, 1.0)):
        accumulator.accumulate_gradients(ones_and(*values), 1.0, 1.0)
    assert accumulator.window().non_finite_parameter == 0
    accumulator.optimizer.parameters[0].requires_grad = False
    report = accumulator.step()
    assert (report.outcome, report.non_finite_parameter) == (APPLIED, None)


def test_a_retry_that_is_given_up_reports_the_window_that_overflowed():
    accumulator = accumulator_of(3, 3, isolated=True)

    def retry(report: ga.Report) -> bool:
        accumulator.accumulate_gradients(ones_and(1.0, 1.0), 1.0, 1.0)
        accumulator.accumulate_gradients(ones_and(1.0, 1.0), 1.0, 1.0)
        accumulator.accumulate_gradients(ones_and(1.0, INF), 1.0, 1.0)
        return False

    accumulator.set_retry_handler(retry)
    accumulator.accumulate_gradients(ones_and(INF, 1.0), 1.0, 1.0)
    accumulator.accumulate_gradients(ones_and(1.0, 1.0), 1.0, 1.0)
    report = accumulator.step()
    assert (report.outcome, report.non_finite_parameter, report.non_finite_micro_batch) == (OVERFLOW, 0, 0)


def test_a_frozen_parameter_is_not_what_overflowed():
    parameters = [ga.tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(2)]
    accumulator = ga.Accumulator(ga.SGD(parameters), loss_scaler=ga.LossScaler(4.0))
    parameters[0].requires_grad = False
    bad = np.full(3, INF, np.float32)
    accumulator.accumulate_gradients([bad, np.ones(3, np.float32)], 1.0, 1.0)
    accumulator.accumulate_gradients([None, bad], 1.0, 1.0)
    report = accumulator.step()
    assert (report.outcome, report.non_finite_parameter, report.non_finite_micro_batch) == (OVERFLOW, 1, 1)


# ====== Law 5: flat memory ======


@pytest.mark.law(FLAT_MEMORY)
@pytest.mark.parametrize("overflows", [False, True])
def test_steady_state_calls_no_allocator(overflows):
    gc.collect()  # what other tests have left
    scaler = ga.LossScaler(2.0**10, growth_interval=2)
    model, data = gpt(loss_scaler=scaler, max_grad_norm=0.5)
    own = [np.ones(1000, np.float32), np.ones(7, np.float32)]

    def window() -> None:
        for micro_batch in (part(data, 0, 3), part(data, 3, 7)):
            model.accumulate(micro_batch)
        if overflows:
            bad = [None] * (len(model.parameters) - 1) + [np.full(36, INF, np.float32)]
            model.accumulator.accumulate_gradients(bad, 0.0, 1)
        model.accumulator.unscale()
        assert model.accumulator.step().outcome == (OVERFLOW if overflows else APPLIED)
        scaler.unscale(own, 1.0)
        scaler.update()

    for _ in range(3):
        window()
    before = ga.memory_usage()
    for _ in range(10):
        window()
    after = ga.memory_usage()
    assert after.allocator_calls == before.allocator_calls
    assert (after.live_bytes, after.arena_bytes) == (before.live_bytes, before.arena_bytes)


# ====== Policies ======


@pytest.mark.law(SCALING, NO_TRACE)
@both_sources
@pytest.mark.parametrize("isolated", [False, True])
def test_retried_window_has_the_bits_of_one_that_never_overflowed(source, isolated):
    """Nothing of the tries before is left: sums, statistics, counters, and micro-batches of isolated mode."""
    asked: list[tuple[float, int | None]] = []

    def retry(report: ga.Report) -> bool:
        asked.append((report.loss_scale, report.non_finite_micro_batch))
        with pytest.raises(ga.GAStateError, match="is being computed again"):
            window.accumulator.step()
        with pytest.raises(ga.GAStateError, match="is being computed again"):
            window.accumulator.end_data("drop")
        window.add(0)
        window.add(1, spoil=huge)
        return True

    huge = 1.5 * 2.0**110  # overflows above 2^17
    scaler = ga.LossScaler(2.0**20, hysteresis=3)
    window = Window(source, isolated=isolated, loss_scaler=scaler, retry_handler=retry)
    window.add(0)
    window.add(1, spoil=huge)
    report = window.step()
    plain = Window(source, isolated=isolated)
    plain.add(0)
    plain.add(1, spoil=huge)
    expected = plain.step()
    assert asked == [(2.0**20, 1), (2.0**19, 1), (2.0**18, 1)]
    assert (report.outcome, report.retries, report.loss_scale) == (APPLIED, 3, 2.0**17)
    assert (report.gradient_norm, report.micro_batches, report.aborted_micro_batches) == (expected.gradient_norm, 2, 0)
    assert scaler.state_dict() == {"scale": 2.0**17, "growth_tracker": 1, "hysteresis_tracker": 3}
    assert window.weights() == plain.weights()
    window.accumulator.set_loss_scaler(None)
    assert afterwards(window) == afterwards(plain)


@pytest.mark.parametrize("way", ["declines", "raises", "accumulates nothing", "leaves a micro-batch open"])
def test_retry_that_does_not_come_off_drops_the_window(way):
    def retry(report: ga.Report) -> bool:
        if way == "raises":
            raise KeyError("no data")
        if way == "leaves a micro-batch open":
            window.accumulator.micro_batch()
        return way != "declines"

    scaler = ga.LossScaler(8.0)
    window, plain = Window("own", loss_scaler=scaler, retry_handler=retry), Window("own")
    window.add(0, spoil=INF)
    if way == "declines":
        report = window.step()
        assert (report.outcome, report.non_finite_parameter, report.loss_scale) == (OVERFLOW, 1, 8.0)
    elif way == "raises":
        with pytest.raises(KeyError, match="no data"):
            window.step()
    else:
        words = "accumulated nothing" if way == "accumulates nothing" else "micro-batch 0 is open"
        with pytest.raises(ga.GAStateError, match=words):
            window.step()
    assert scaler.scale == 4.0
    assert window.accumulator.window().micro_batches == 0
    window.accumulator.set_retry_handler(None)
    window.accumulator.set_loss_scaler(None)
    reports, weights = afterwards(window)
    assert weights == afterwards(plain)[1]


def lower_to_the_floor(window: Window, scaler: ga.LossScaler, spoil: float) -> None:
    """Two windows from a scale of 4 on."""
    for scale in (4.0, 2.0):
        window.add(0, spoil=spoil)
        assert (window.step().loss_scale, scaler.scale) == (scale, scale / 2)


@pytest.mark.parametrize("handler", [None, lambda report: False], ids=["none", "declines"])
def test_scale_that_was_never_tried_is_tried_before_the_limit_counts(handler):
    """A retry that is declined has lowered the scale, to one that no window has had."""
    scaler = ga.LossScaler(4.0)
    window = Window("own", loss_scaler=scaler, max_consecutive_skips=1, retry_handler=handler)
    lower_to_the_floor(window, scaler, INF)
    window.add(0, spoil=INF)
    with pytest.raises(ga.GANonFiniteError, match="3 windows in a row.*loss scale of 1.0.*cannot go lower"):
        window.step()


def test_dropped_micro_batches_count_for_the_limit_at_the_floor_alone():
    scaler = ga.LossScaler(2.0)
    window = Window("own", loss_scaler=scaler, isolated=True, max_consecutive_skips=1)
    for number in range(4):
        window.add(number, spoil=INF)
    window.add(4)
    assert (window.step().aborted_micro_batches, scaler.scale) == (4, 1.0)
    window.add(0, spoil=INF)
    with pytest.raises(ga.GANonFiniteError, match="2 micro-batches in a row.*loss scale of 1.0"):
        window.add(1, spoil=INF)
    window.add(2)
    assert window.step().outcome == APPLIED
    window.accumulator.set_loss_scaler(ga.LossScaler(2.0))
    for number in range(2):
        with pytest.raises(ga.GANonFiniteError) if number else contextlib.nullcontext():
            window.add(number, loss=NAN)  # which no scale makes finite


def test_window_at_the_floor_is_not_retried_and_counts_as_a_skip():
    asked: list[float] = []
    scaler = ga.LossScaler(4.0)
    window = Window("own", loss_scaler=scaler, max_consecutive_skips=2)
    lower_to_the_floor(window, scaler, NAN)
    window.add(0, spoil=NAN)
    with pytest.raises(ga.GANonFiniteError, match="3 windows in a row.*loss scale of 1.0.*cannot go lower.*min_scale"):
        window.step()
    window.good()
    window.accumulator.set_retry_handler(lambda report: asked.append(report.loss_scale) or True)
    window.add(0, spoil=NAN)
    assert (window.step().outcome, asked, scaler.scale) == (OVERFLOW, [], 1.0)


def test_overflows_that_lower_the_scale_do_not_count_for_the_limit():
    scaler = ga.LossScaler(2.0**20)
    window = Window("own", loss_scaler=scaler, max_consecutive_skips=1)
    for skip in range(1, 20):
        window.add(0, spoil=INF)
        assert (window.step().consecutive_skips, scaler.scale) == (skip, 2.0 ** (20 - skip))
    assert window.good().consecutive_skips == 0


def test_raise_and_skip_handler_see_the_overflow():
    seen: list[ga.Outcome] = []

    def decide(report: ga.Report) -> ga.Decision:
        seen.append(report.outcome)
        return ga.Decision.RAISE

    for options in ({"on_non_finite": "raise"}, {"skip_handler": decide}):
        scaler = ga.LossScaler(16.0)
        window = Window("own", loss_scaler=scaler, **options)
        window.add(0)
        window.add(1, spoil=INF)
        words = r'at a loss scale of 16.0.*parameters\[1\], "shift" in micro-batch 1.*a lower loss scale is still to be tried'
        with pytest.raises(ga.GANonFiniteError, match=words):
            window.step()
        assert scaler.scale == 8.0
    assert seen == [OVERFLOW]


def test_loss_that_is_not_finite_is_no_overflow():
    scaler = ga.LossScaler(16.0)
    window = Window("own", loss_scaler=scaler)
    with pytest.raises(ga.GANonFiniteError):
        window.add(0, loss=NAN)
    window.good()
    isolated = Window("own", isolated=True, loss_scaler=scaler)
    isolated.add(0, loss=INF)
    isolated.add(1)
    report = isolated.step()
    assert (report.outcome, report.aborted_micro_batches, report.non_finite_micro_batch) == (APPLIED, 1, 0)
    assert scaler.scale == 16.0


def test_mean_beyond_float32_is_no_overflow():
    scaler = ga.LossScaler(2.0)
    window = Window("own", loss_scaler=scaler)
    window.accumulator.accumulate_gradients([np.full(size, 1e9, np.float32) for size in SIZES], 0.0, 1e-30)
    assert window.step().outcome == ga.Outcome.SKIPPED_NON_FINITE
    assert (scaler.scale, scaler.state_dict()["growth_tracker"]) == (2.0, 0)


def test_change_takes_effect_at_the_next_window():
    scaler = ga.LossScaler(2.0**10)
    window, plain = Window("own", loss_scaler=scaler), Window("own")
    for one in (window, plain):
        one.add(0)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**5})
    for one in (window, plain):
        one.add(1)
    assert window.accumulator.window().loss_scale == 2.0**10
    assert window.step().gradient_norm == plain.step().gradient_norm
    window.add(2)
    assert window.step().loss_scale == 2.0**5


# ====== The norm before the step ======


@both_sources
def test_norm_before_the_step_is_that_of_the_step_and_changes_no_bit(source):
    plain = Window(source, max_grad_norm=0.1)
    early = Window(source, max_grad_norm=0.1, loss_scaler=static(2.0**10))
    for number in range(0, 6, 2):
        for window in (plain, early):
            window.add(number)
            window.add(number + 1)
        norm = early.accumulator.unscale()
        sums = early.sums()
        assert sums == plain.sums()
        assert early.accumulator.window().gradient_norm == norm
        for call in (lambda: early.add(9), lambda: early.accumulator.micro_batch()):
            with pytest.raises(ga.GAStateError, match="the window was unscaled, and nothing more can be added"):
                call()
        with pytest.raises(ga.GAStateError, match="was unscaled before.*window_report"):
            early.accumulator.unscale()
        with pytest.raises(ga.GAStateError, match="was unscaled"):
            early.accumulator.end_data("carry")
        assert early.sums() == sums
        report, expected = early.step(), plain.step()
        assert norm == report.gradient_norm == expected.gradient_norm
        assert report.clip_factor == expected.clip_factor
        assert early.weights() == plain.weights()
    early.accumulator.set_loss_scaler(None)
    assert afterwards(early) == afterwards(plain)


def test_norm_before_the_step_of_a_tied_table():
    """Sums of several places become one when they are read, and are not added up twice."""
    arrays = gpt_arrays(61, 36, 13, 1)
    found = []
    for early in (False, True):
        model = Model(arrays, gpt_loss(3), weight=gpt_weight)
        for _ in range(2):
            model.accumulate(gpt_data(7, 13, 61))
            if early:
                norm = model.accumulator.unscale()
                assert model.accumulator.window().gradient_norm == norm
            found.append((model.gradients(), model.accumulator.step().gradient_norm, model.weights()))
    assert found[:2] == found[2:]


def test_norm_before_the_step_needs_a_whole_window():
    window = Window("own")
    with pytest.raises(ga.GAStateError, match="unscale: the window is empty"):
        window.accumulator.unscale()
    window.add(0, weight=None)
    with pytest.raises(ga.GAStateError, match="weight of micro-batch 0 is missing"):
        window.accumulator.unscale()
    window.accumulator.set_weight(0, 0.0)
    assert window.accumulator.unscale() == 0.0
    assert window.step().outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT
    with window.accumulator.micro_batch():
        window.add(1)
        with pytest.raises(ga.GAStateError, match="micro-batch 0 is open"):
            window.accumulator.unscale()
    window.add(2, spoil=INF)
    assert not np.isfinite(window.accumulator.unscale())
    window.accumulator.zero()
    window.good()


def test_parameter_that_is_frozen_between_norm_and_step_is_left_alone():
    window = Window("own", loss_scaler=static(4.0))
    window.add(0)
    window.accumulator.unscale()
    window.parameters[1].requires_grad = False
    before = window.weights()
    report = window.step()
    first = gradients(0)[0].astype(np.float64) / 2
    assert report.gradient_norm == pytest.approx(np.sqrt((first**2).sum()), rel=1e-6)
    assert window.weights()[0] != before[0] and window.weights()[1] == before[1]


# ====== Scalers and their accumulators ======


def test_scaler_is_set_between_windows():
    scaler = ga.LossScaler(8.0)
    window = Window("own")
    window.add(0)
    with pytest.raises(ga.GAStateError, match="the window holds micro-batches.*step, or drop them"):
        window.accumulator.set_loss_scaler(scaler)
    assert window.step().loss_scale == 1.0
    window.accumulator.set_loss_scaler(scaler)
    scaler.close()
    assert window.good().loss_scale == 8.0
    window.accumulator.set_loss_scaler(None)
    assert window.good().loss_scale == 1.0


def test_state_goes_on_in_another_scaler():
    options: dict[str, Any] = {"growth_interval": 3, "hysteresis": 2}
    rng = np.random.default_rng(0)
    scaler = ga.LossScaler(64.0, **options)
    window = Window("own", loss_scaler=scaler)
    for _ in range(40):
        window.add(0, spoil=INF if rng.random() < 0.4 else None)
        window.step()
        other = ga.LossScaler(64.0, **options)
        other.load_state_dict(scaler.state_dict())
        assert other.state_dict() == scaler.state_dict()
        window.accumulator.set_loss_scaler(other)
        scaler = other
    for change in ({"scale": 3.0}, {"scale": 0.25}, {"growth_tracker": 3}, {"hysteresis_tracker": 0}):
        before = scaler.state_dict()
        with pytest.raises(ga.GAInvalidArgumentError, match=f"{next(iter(change))} is {next(iter(change.values()))}"):
            scaler.load_state_dict({**before, **change})
        assert scaler.state_dict() == before
    with pytest.raises(ga.GAInvalidArgumentError, match="are needed"):
        scaler.load_state_dict({"scale": 2.0})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_scale": 0.0}, "init_scale is 0"),
        ({"init_scale": NAN}, "init_scale is nan"),
        ({"init_scale": 2.0**25}, "init_scale is .*1.0 ... "),
        ({"growth_factor": 1.0}, "growth_factor is 1.*dynamic"),
        ({"growth_factor": 3.0}, "growth_factor is 3.*such as 2"),
        ({"backoff_factor": 1.0}, "backoff_factor 1.*dynamic"),
        ({"backoff_factor": 0.0}, "backoff_factor is 0"),
        ({"backoff_factor": 0.3}, "backoff_factor is 0.3.*such as 0.25"),
        ({"growth_interval": 0}, "growth_interval is 0"),
        ({"hysteresis": 0}, "hysteresis is 0"),
        ({"min_scale": INF}, "min_scale is inf"),
        ({"min_scale": 2.0**17}, "init_scale is"),
        ({"max_scale": 0.5}, "max_scale is 0.5"),
        ({"max_scale": 2.0**65}, "max_scale is"),
        ({"consecutive_hysteresis": 2}, "consecutive_hysteresis is 2"),
        ({"dynamic": 2}, "dynamic is 2"),
    ],
    ids=str,
)
def test_option_outside_of_its_range_is_named(options, words):
    with pytest.raises(ga.GAInvalidArgumentError, match=words):
        ga.LossScaler(**options)


def test_scaler_of_another_kind_is_refused():
    window = Window("own")
    with pytest.raises(ga.GAInvalidArgumentError, match="scaler is no live ga_loss_scaler"):
        ga.accumulator.lib.ga_accumulator_set_loss_scaler(window.accumulator.handle, window.optimizer.handle)


def test_declined_retry_reports_its_own_window():
    parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
    window = ga.Accumulator(
        ga.SGD([parameter]), loss_scaler=ga.LossScaler(4.0), retry_handler=lambda report: False, sum_format="bfloat16"
    )
    window.accumulate_gradients([np.full(4, np.inf, np.float32)], 0.0, 1.0)
    assert window.step().outcome == OVERFLOW
    assert not np.isfinite(window.gradient_norms()).any()
    assert list(window.stagnation()[0]) == [4]


def test_declined_retry_of_nothing_but_dropped_micro_batches_has_norms_of_0():
    parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
    window = ga.Accumulator(
        ga.SGD([parameter]), isolated=True, loss_scaler=ga.LossScaler(4.0), retry_handler=lambda report: False
    )
    window.accumulate_gradients([np.full(4, np.inf, np.float32)], 0.0, 1.0)
    assert window.step().outcome == OVERFLOW
    assert window.gradient_norms() == [0.0]


def test_weight_that_a_small_scale_takes_beyond_float32_is_refused():
    """One over both would be infinite, and so the update."""
    x = ga.zeros((2,), requires_grad=True)
    scaler = ga.LossScaler(2.0**-64, min_scale=2.0**-64)
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), loss_scaler=scaler)
    gradient = np.array([1, 0], np.float32)
    for weight in (1e-30, 1e-19):
        with pytest.raises(ga.GAOverflowError, match="weight is .*at a loss scale of 5.42"):
            accumulator.accumulate_gradients([gradient * np.float32(weight)], 0.0, weight)
    accumulator.accumulate_gradients([gradient * np.float32(2e-18)], 0.0, 2e-18)
    assert accumulator.step().outcome == ga.Outcome.APPLIED
    assert np.allclose(x.numpy(), [-1, 0], rtol=1e-6)
