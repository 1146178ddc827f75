"""Rounds of a loss scaler that several accumulators share, windows that are dropped, and states."""

from __future__ import annotations

import math
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from windows import INF, NAN, Window


def shared(count: int = 2, scale: float = 8.0, **options: Any) -> tuple[ga.LossScaler, list[Window]]:
    scaler = ga.LossScaler(scale, **options)
    return scaler, [Window("own", loss_scaler=scaler) for _ in range(count)]


def overflow(window: Window) -> ga.Report:
    window.add(0, spoil=INF)
    return window.step()


# ====== Windows that are dropped ======


def drop(window: Window, way: str) -> None:
    if way == "zero":
        window.accumulator.zero()
    else:
        window.accumulator.end_data("drop")


ways = pytest.mark.parametrize("way", ["zero", "end_data"])


@ways
def test_dropped_window_tells_nothing_where_nobody_has_looked(way):
    scaler, [window] = shared(1, growth_interval=1)
    before = scaler.state_dict()
    for spoil in (INF, None):
        window.add(0, spoil=spoil)
        drop(window, way)
    window.accumulator.zero()
    assert scaler.state_dict() == before


@ways
def test_dropped_window_tells_what_its_norm_has_shown(way):
    """As in torch.amp.GradScaler, whose unscale_() counts without a step."""
    scaler, [window] = shared(1, growth_interval=2)
    for scale in (8.0, 4.0, 2.0):
        window.add(0, spoil=INF)
        assert not math.isfinite(window.accumulator.unscale()) and window.accumulator.window().loss_scale == scale
        drop(window, way)
        assert scaler.scale == scale / 2
    for tracker in (1, 0):
        window.add(0)
        window.accumulator.unscale()
        drop(window, way)
        assert scaler.state_dict() == {"scale": 1.0 + (tracker == 0), "growth_tracker": tracker, "hysteresis_tracker": 1}
    window.add(0, weight=0.0)
    assert window.accumulator.unscale() == 0
    drop(window, way)
    assert scaler.state_dict()["growth_tracker"] == 0, "a window without weight shows neither"


@ways
def test_dropped_window_ends_its_part_of_a_shared_round(way):
    scaler, [first, second] = shared()
    first.add(0, spoil=INF)
    first.accumulator.unscale()
    drop(first, way)
    assert scaler.scale == 8.0, "the other one may still end its window"
    second.good()
    assert scaler.scale == 4.0


@pytest.mark.parametrize("way", ["zero", "end_data", "data"])
def test_dropped_window_tells_of_a_micro_batch_that_was_dropped_for_an_overflow(way):
    scaler = ga.LossScaler(8.0)
    window = Window("own", isolated=True, on_non_finite="raise", loss_scaler=scaler)
    for scale in (8.0, 4.0):
        with pytest.raises(ga.GANonFiniteError):
            window.add(0, spoil=INF)
        if way == "data":
            window.accumulator.begin_data()
        else:
            drop(window, way)
        assert scaler.scale == scale / 2
    with pytest.raises(ga.GANonFiniteError):
        window.add(0, loss=NAN)  # which is no overflow
    window.accumulator.zero()
    assert scaler.scale == 2.0


def test_window_that_its_retry_drops_ends_once():
    scaler = ga.LossScaler(8.0)

    def retry(report: ga.Report) -> bool:
        window.add(0, spoil=INF)  # isolated mode drops it
        window.accumulator.zero()
        window.add(0)
        return True

    window = Window("own", isolated=True, loss_scaler=scaler, retry_handler=retry)
    report = overflow(window)
    assert (report.outcome, report.loss_scale) == (ga.Outcome.APPLIED, 4.0)
    assert scaler.state_dict() == {"scale": 4.0, "growth_tracker": 1, "hysteresis_tracker": 1}


# ====== Calls that fail ======


def fail(window: Window, way: str) -> None:
    if way == "loss":
        with pytest.raises(ga.GAError, match="loss is NaN"):
            window.add(0, loss=NAN)
    elif way == "stranger":
        stranger = ga.sum(ga.tensor(np.ones(2, np.float32), requires_grad=True))
        with pytest.raises(ga.GAInvalidArgumentError, match="belongs to no optimizer"):
            window.accumulator.accumulate(stranger, 1.0)
    else:
        with pytest.raises(ga.GAInvalidArgumentError, match="beyond float32"):
            window.accumulator.accumulate_gradients([None, None], 0.0, 1e25, scale=2.0**-64)


failures = pytest.mark.parametrize("way", ["loss", "stranger", "scale"])


@failures
def test_failed_call_begins_no_window(way):
    scaler = ga.LossScaler(2.0**10)
    window = Window("own", loss_scaler=scaler, loss_reduction="mean")
    fail(window, way)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**5})
    window.add(0)
    assert window.step().loss_scale == 2.0**5


@failures
def test_failed_call_ends_no_round(way):
    scaler = ga.LossScaler(8.0, growth_interval=1)
    first, second = (Window("own", loss_scaler=scaler, loss_reduction="mean") for _ in range(2))
    overflow(first)
    fail(first, way)
    assert scaler.scale == 8.0
    second.add(0)
    assert second.step().loss_scale == 8.0
    assert scaler.scale == 4.0


def test_failed_call_into_moments_ends_no_round():
    scaler = ga.LossScaler(8.0)
    windows = []
    for _ in range(2):
        parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
        windows.append(
            ga.Accumulator(
                ga.AdamW([parameter], lr=0.5),
                loss_scaler=scaler,
                accumulate_into="moments",
                normalization="sum",
                loss_reduction="mean",
            )
        )
    windows[0].accumulate_gradients([np.full(4, INF, np.float32)], 0.0, 1.0)
    windows[0].step()
    with pytest.raises(ga.GAInvalidArgumentError, match="beyond float32"):
        windows[0].accumulate_gradients([np.zeros(4, np.float32)], 0.0, 1e25, scale=2.0**-64)
    assert scaler.scale == 8.0 and windows[0].window().loss_scale == 4.0
    windows[0].accumulate_gradients([np.ones(4, np.float32)], 0.0, 1.0)
    assert scaler.scale == 4.0


def test_next_scale_of_a_window_is_reported_before_it_begins():
    scaler, [first, second] = shared()
    overflow(first)
    assert [window.accumulator.window().loss_scale for window in (first, second)] == [4.0, 8.0]
    assert scaler.scale == 8.0
    first.add(0)
    assert [window.accumulator.window().loss_scale for window in (first, second)] == [4.0, 4.0]
    assert scaler.scale == 4.0


# ====== Accumulators that come and go ======


def test_accumulator_that_is_freed_leaves_the_round():
    scaler, [first, second] = shared()
    overflow(first)
    assert scaler.scale == 8.0, "the other one may still end its window"
    second.accumulator.close()
    del second
    assert scaler.scale == 4.0
    overflow(first)
    assert scaler.scale == 2.0


def test_last_accumulator_that_goes_ends_the_round():
    scaler, [first, second] = shared()
    overflow(first)
    first.accumulator.set_loss_scaler(None)
    assert scaler.scale == 8.0
    second.accumulator.set_loss_scaler(None)
    assert scaler.state_dict()["scale"] == 4.0


def test_accumulator_that_comes_from_another_scaler_has_ended_nothing():
    """Its windows of before were in a round of the same number."""
    _, [first, _] = shared()
    overflow(first)
    scaler, [second] = shared(1)
    first.accumulator.set_loss_scaler(scaler)
    overflow(second)
    first.add(0)
    assert scaler.scale == 8.0, "the round goes on"
    assert first.step().loss_scale == 8.0
    assert scaler.scale == 4.0


# ====== States ======


def test_state_in_the_middle_of_a_round_is_refused():
    """It would have to say who has ended a window, and whose gradients were unscaled."""
    scaler, [first, second] = shared(scale=16.0)
    saved = scaler.state_dict()
    overflow(first)
    words = "1 of 2 accumulators have ended a window: first step the others, or end it with loss_scaler_update"
    for call in (scaler.state_dict, lambda: scaler.load_state_dict(saved), first.accumulator.state_dict):
        with pytest.raises(ga.GAStateError, match=words):
            call()
    scaler.update()
    assert scaler.state_dict() == {**saved, "scale": 8.0}
    array = np.full(3, 8.0, np.float32)
    scaler.unscale([array], 8.0)
    for call in (scaler.state_dict, lambda: scaler.load_state_dict(saved)):
        with pytest.raises(ga.GAStateError, match="unscaled since the last update: first call loss_scaler_update"):
            call()
    with pytest.raises(ga.GAStateError, match="optimizer 0 have been unscaled"):
        scaler.unscale([array], 8.0)
    assert (array == 1).all()
    scaler.update()
    scaler.load_state_dict(saved)
    second.add(0)
    assert second.step().loss_scale == 16.0


def test_scales_are_rounded_where_they_come_in():
    options: dict[str, Any] = {"allow_any_scale": True, "growth_factor": 1.5, "growth_interval": 1}
    for scaler in (ga.LossScaler(1000.1, **options), ga.LossScaler(1000.1, dynamic=False, **options)):
        rounded = float(np.float32(1000.1))
        assert scaler.scale == rounded
        scaler.load_state_dict({**scaler.state_dict(), "scale": 1000.1})
        assert scaler.scale == rounded
        parameter = ga.zeros((4,), requires_grad=True)
        window = ga.Accumulator(ga.SGD([parameter], lr=1.0), loss_scaler=scaler, normalization="sum")
        window.accumulate_gradients([np.ones(4, np.float32)], 0.0, 1.0)
        assert window.unscale() == pytest.approx(2.0, rel=1e-9)
    with pytest.raises(ga.GAInvalidArgumentError, match="scale is 8.0000001, and no power of two"):
        ga.LossScaler(8.0).load_state_dict({"scale": 8.0000001, "growth_tracker": 0, "hysteresis_tracker": 1})
