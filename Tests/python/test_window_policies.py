"""What is done about windows that are not finite or stand out: skip, raise, ask, and the limit on skips in a row."""

from __future__ import annotations

from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from windows import INF, NAN, Window, afterwards, both_sources, facts

modes = pytest.mark.parametrize("isolated", [False, True])

# ====== Raise ======


@both_sources
def test_window_that_is_not_finite_raises_and_leaves_no_trace(source):
    clean, tried = (Window(source, on_non_finite="raise") for _ in range(2))
    for window in (clean, tried):
        window.good()
    tried.add(0)
    tried.add(1, spoil=INF)
    with pytest.raises(ga.GANonFiniteError, match=r'not finite.*parameters\[1\], "shift".*was dropped.*isolated mode'):
        tried.step()
    assert tried.accumulator.window().micro_batches == 0
    reports, weights = afterwards(tried)
    expected, same_weights = afterwards(clean)
    assert weights == same_weights and reports == expected


@both_sources
def test_only_micro_batch_of_a_window_is_named(source):
    window = Window(source, on_non_finite="raise")
    window.add(0, spoil=-INF)
    with pytest.raises(ga.GANonFiniteError, match=r'parameters\[1\], "shift" in micro-batch 0'):
        window.step()


@both_sources
def test_micro_batch_that_is_not_finite_raises_in_isolated_mode_and_the_window_goes_on(source):
    clean, tried = (Window(source, isolated=True, on_non_finite="raise") for _ in range(2))
    for window in (clean, tried):
        window.add(0)
    with pytest.raises(ga.GANonFiniteError, match=r'micro-batch is not finite.*"shift" in micro-batch 1.*was dropped'):
        tried.add(1, spoil=INF)
    with pytest.raises(ga.GANonFiniteError, match="first in the loss in micro-batch 2"):
        tried.add(2, loss=NAN)
    with pytest.raises(ga.GANonFiniteError, match="micro-batch 3"):
        with tried.accumulator.micro_batch() as micro_batch:
            tried.add(3, spoil=INF)
            micro_batch.commit()
    for window in (clean, tried):
        window.add(4)
    report = tried.step()
    assert (report.micro_batches, report.aborted_micro_batches, report.non_finite_micro_batch) == (2, 3, 1)
    assert report.gradient_norm == clean.step().gradient_norm
    assert afterwards(tried) == afterwards(clean)


def test_parameter_without_a_name_goes_by_its_shape():
    x = ga.zeros((3, 4), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([x]), on_non_finite="raise")
    accumulator.accumulate_gradients([np.full((3, 4), NAN, np.float32)], 0.0, 1)
    with pytest.raises(ga.GANonFiniteError, match=r"the tensor of shape \[3, 4\]"):
        accumulator.step()


def test_mean_beyond_float32_is_named_as_such():
    window = Window("own", on_non_finite="raise")
    for values, words in (((0.0, 1e9), r"parameters\[1\]"), ((3e8, 3e8), "mean gradient .* is beyond float32")):
        arrays = [np.zeros(size, np.float32) for size in (7, 5)]
        arrays[0][0], arrays[1][0] = values
        window.accumulator.accumulate_gradients(arrays, 0.0, 1e-30)
        with pytest.raises(ga.GANonFiniteError, match=words):
            window.step()
    assert window.good().non_finite_parameter is None


# ====== The limit on skips in a row ======


@both_sources
def test_limit_on_skips_names_the_parameter_and_the_micro_batch(source):
    """Sums are looked at after each micro-batch from the second skip in a row on."""
    clean, tried = (Window(source, max_consecutive_skips=2) for _ in range(2))
    for window in (clean, tried):
        window.good()
    for skip in (1, 2, 3):
        for number in range(4):
            tried.add(number, spoil=INF if number >= 2 else None)
        if skip < 3:
            report = tried.step()
            assert (report.outcome, report.consecutive_skips) == (ga.Outcome.SKIPPED_NON_FINITE, skip)
            assert report.non_finite_parameter == 1
            assert report.non_finite_micro_batch == (None if skip == 1 else 2)
        else:
            words = r'3 windows in a row.*max_consecutive_skips is 2.*parameters\[1\], "shift" in micro-batch 2'
            with pytest.raises(ga.GANonFiniteError, match=words):
                tried.step()
    assert tried.accumulator.window().consecutive_skips == 3
    assert afterwards(tried) == afterwards(clean)
    assert tried.accumulator.window().consecutive_skips == 0


def test_applied_window_ends_the_row_and_one_without_weight_does_not_count():
    window = Window("own", max_consecutive_skips=1)
    for _ in range(3):
        window.add(0, spoil=NAN)
        assert window.step().consecutive_skips == 1
        window.add(0, weight=0.0)
        assert window.step().consecutive_skips == 1
        assert window.good().consecutive_skips == 0
    window.add(0, spoil=NAN)
    window.step()
    window.add(0, spoil=NAN)
    with pytest.raises(ga.GANonFiniteError, match="2 windows in a row"):
        window.step()


def test_limit_counts_micro_batches_in_a_row_in_isolated_mode():
    window = Window("own", isolated=True, max_consecutive_skips=2)
    for number in range(2):
        window.add(number, spoil=NAN)
    window.add(2)
    for number in range(3, 5):
        window.add(number, spoil=NAN)
    with pytest.raises(ga.GANonFiniteError, match='3 micro-batches in a row.*"shift" in micro-batch 5'):
        window.add(5, spoil=NAN)
    report = window.step()
    assert (report.outcome, report.micro_batches, report.aborted_micro_batches) == (ga.Outcome.APPLIED, 1, 5)
    assert (report.consecutive_skips, report.non_finite_micro_batch) == (0, 0)


def test_window_whose_micro_batches_were_all_dropped_is_a_skip():
    clean, tried = (Window("own", isolated=True) for _ in range(2))
    for window in (clean, tried):
        window.good()
    for number in range(2):
        tried.add(number, spoil=NAN)
    report = tried.step()
    assert (report.outcome, report.consecutive_skips) == (ga.Outcome.SKIPPED_NON_FINITE, 1)
    assert (report.micro_batches, report.aborted_micro_batches, report.non_finite_parameter) == (0, 2, 1)
    assert afterwards(tried) == afterwards(clean)


@modes
def test_skips_need_no_allocation_in_steady_state(isolated):
    """Nor does looking for the micro-batch that a NaN came in, in the windows after a skip."""
    window = Window(isolated=isolated, max_loss_z_score=50.0)

    def windows(count: int) -> None:
        for _ in range(count):
            for number in range(4):
                window.add(number, None, spoil=INF if number == 2 else None)
            for number in (0, 1, 3):
                window.accumulator.set_weight(number, 2.0)
            if not isolated:
                window.accumulator.set_weight(2, 2.0)
            window.step()

    windows(3)
    before = ga.memory_usage()
    windows(20)
    after = ga.memory_usage()
    assert (after.allocator_calls, after.live_bytes) == (before.allocator_calls, before.live_bytes)
    assert window.accumulator.window().consecutive_skips == (0 if isolated else 23)


# ====== The handler ======


class Handler:
    """Remembers what it was asked about, and answers the same each time."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[ga.Report] = []

    def __call__(self, report: ga.Report) -> Any:
        self.asked.append(report)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@both_sources
@modes
def test_handler_is_asked_with_the_report(source, isolated):
    handler = Handler(ga.Decision.SKIP)
    window = Window(source, isolated=isolated, on_non_finite="raise", skip_handler=handler)
    window.add(0, 3.0, loss=6.0)
    assert not handler.asked
    window.add(1, spoil=INF)
    report = window.step()
    (asked,) = handler.asked
    if isolated:
        assert asked.outcome == ga.Outcome.MICRO_BATCH_NON_FINITE and report.outcome == ga.Outcome.APPLIED
        assert (asked.micro_batches, asked.aborted_micro_batches, asked.loss) == (1, 1, 2.0)
        assert (asked.non_finite_parameter, asked.non_finite_micro_batch) == (1, 1)
    else:
        assert asked.outcome == report.outcome == ga.Outcome.SKIPPED_NON_FINITE
        assert facts(asked) == facts(report)
    assert asked.consecutive_skips == 1


@modes
def test_handler_may_raise(isolated):
    for answer, error in ((ga.Decision.RAISE, ga.GANonFiniteError), (KeyError("mine"), KeyError)):
        clean, window = (Window("own", isolated=isolated) for _ in range(2))
        window.accumulator.set_skip_handler(Handler(answer))
        for _ in range(2):
            with pytest.raises(error, match="shift|mine"):
                window.add(1, spoil=NAN)
                window.step()
            window.accumulator.zero()
        window.accumulator.set_skip_handler(None)
        window.add(1, spoil=NAN)
        assert window.step().outcome == ga.Outcome.SKIPPED_NON_FINITE
        assert afterwards(window) == afterwards(clean)


@pytest.mark.parametrize(("answer", "words"), [(ga.Decision.APPLY, "apply is for outliers"), (7, "skip handler")])
def test_answer_that_makes_no_sense_is_an_error_and_the_window_is_dropped(answer, words):
    clean, window = (Window("own") for _ in range(2))
    window.accumulator.set_skip_handler(Handler(answer))
    window.add(1, spoil=NAN)
    with pytest.raises(ga.GAInvalidArgumentError, match=words):
        window.step()
    assert afterwards(window) == afterwards(clean)


@modes
def test_handler_cannot_change_the_accumulator(isolated):
    window = Window("own", isolated=isolated)
    errors: list[str] = []

    def meddle(report: ga.Report) -> ga.Decision:
        a = window.accumulator
        assert a.window().update_count == 0
        for call in (a.step, a.zero, a.micro_batch, a.begin_data, a.end_data, lambda: window.add(3)):
            with pytest.raises(ga.GAStateError, match="in the middle of another call") as caught:
                call()
            errors.append(str(caught.value))
        return ga.Decision.SKIP

    window.accumulator.set_skip_handler(meddle)
    window.add(0)
    window.add(1, spoil=NAN)
    report = window.step()
    assert len(errors) == 6 and report.skipped == (not isolated)


def test_handler_does_not_keep_its_accumulator_alive():
    import gc
    import weakref

    window = Window("own", skip_handler=Handler(ga.Decision.SKIP))
    gone = weakref.ref(window.accumulator)
    del window
    gc.collect()
    assert gone() is None


# ====== Outliers ======


def outliers(handler: Any = None, **options: Any) -> Window:
    """Eight applied windows with losses about 2, of one parameter set, and a limit."""
    window = Window("own", outlier_warmup=8, skip_handler=handler, **options)
    rng = np.random.default_rng(0)
    for _ in range(8):
        window.add(0, 1.0, loss=2 + 0.1 * rng.standard_normal())
        assert window.step().loss_z_score == 0
    return window


def test_loss_that_stands_out_is_skipped_without_a_trace():
    losses = [2 + 0.1 * x for x in np.random.default_rng(0).standard_normal(8)]
    mean, deviation = np.mean(losses), np.std(losses)
    clean, tried = (outliers(max_loss_z_score=4.0) for _ in range(2))
    for count in (1, 2, 3):
        tried.add(0, 1.0, loss=mean + 5 * deviation)
        report = tried.step()
        assert (report.outcome, report.consecutive_skips) == (ga.Outcome.SKIPPED_OUTLIER, count) and report.skipped
        assert report.loss_z_score == pytest.approx(5, rel=1e-9) and report.gradient_norm_z_score == 0
        assert report.non_finite_parameter is None
    for loss, score in ((mean + 3 * deviation, 3), (mean - 40 * deviation, None)):
        for window in (clean, tried):
            window.add(0, 1.0, loss=loss)
        a, b = tried.step(), clean.step()
        assert facts(a) == facts(b) and a.outcome == ga.Outcome.APPLIED
        assert score is None or a.loss_z_score == pytest.approx(score, rel=1e-9)
    assert tried.weights() == clean.weights()


def test_norm_that_stands_out_is_skipped():
    window = Window("own", outlier_warmup=4, max_norm_z_score=6.0)
    rng = np.random.default_rng(1)
    norms = []
    for scale in 1 + 0.05 * rng.standard_normal(6):
        window.accumulator.accumulate_gradients(
            [np.full(7, scale, np.float32), np.zeros(5, np.float32)], 1.0, 1.0
        )
        norms.append(window.step().gradient_norm)
    mean, variance = np.mean(norms[:4]), np.var(norms[:4])
    for value in norms[4:]:
        distance = value - mean
        mean, variance = mean + distance / 4, 0.75 * (variance + distance * distance / 4)
    window.accumulator.accumulate_gradients([np.full(7, 30, np.float32), None], 1.0, 1.0)
    report = window.step()
    assert report.outcome == ga.Outcome.SKIPPED_OUTLIER and report.loss_z_score == 0
    assert report.gradient_norm_z_score == pytest.approx((report.gradient_norm - mean) / np.sqrt(variance), rel=1e-9)
    assert report.clip_factor == 1


def test_outlier_is_applied_where_the_handler_says_so():
    handler = Handler(ga.Decision.APPLY)
    clean, window = outliers(), outliers(handler, max_loss_z_score=4.0)
    for x in (clean, window):
        x.add(0, 1.0, loss=100.0)
    report = window.step()
    assert report.outcome == ga.Outcome.APPLIED and report.consecutive_skips == 0
    assert handler.asked[0].outcome == ga.Outcome.SKIPPED_OUTLIER and handler.asked[0].loss_z_score > 4
    assert facts(report) == {**facts(clean.step()), "loss_z_score": report.loss_z_score}
    assert window.weights() == clean.weights()
    # It is in the statistics now, being applied.
    window.add(0, 1.0, loss=100.0)
    assert window.step().loss_z_score < 4


def test_outliers_are_an_error_where_the_handler_or_the_limit_says_so():
    window = outliers(Handler(ga.Decision.RAISE), max_loss_z_score=4.0)
    window.add(0, 1.0, loss=100.0)
    with pytest.raises(ga.GAOutlierError, match="loss of the window, 100.0, is .* standard deviations"):
        window.step()
    # on_non_finite is about other windows.
    window = outliers(max_loss_z_score=4.0, max_consecutive_skips=1, on_non_finite="raise")
    window.add(0, 1.0, loss=100.0)
    assert window.step().outcome == ga.Outcome.SKIPPED_OUTLIER
    window.add(0, 1.0, loss=100.0)
    with pytest.raises(ga.GAOutlierError, match="2 windows in a row.*standard deviations"):
        window.step()


def test_values_that_are_all_the_same_are_no_outliers_of_each_other():
    window = Window("own", outlier_warmup=2, max_loss_z_score=3.0, max_norm_z_score=3.0)
    for _ in range(10):
        window.add(0, 1.0, loss=0.1)
        assert window.step().outcome == ga.Outcome.APPLIED
    window.add(0, 1.0, loss=0.2)
    assert window.step().outcome == ga.Outcome.SKIPPED_OUTLIER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normalization", "mean"),
        ("on_non_finite", "ignore"),
        ("max_consecutive_skips", -1),
        ("max_loss_z_score", -1.0),
        ("max_loss_z_score", NAN),
        ("max_norm_z_score", INF),
        ("outlier_warmup", 1),
        ("outlier_warmup", -(2**63)),
    ],
)
def test_option_outside_of_its_range_is_refused(field, value):
    with pytest.raises(ga.GAInvalidArgumentError, match=field):
        Window(**{field: value})
