"""Gradients of the caller under a loss scale: those that carry one, and those that are unscaled in the caller's memory."""

from __future__ import annotations

import itertools
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from windows import INF, NAN, Window, gradients

OVERFLOW, APPLIED = ga.Outcome.SKIPPED_OVERFLOW, ga.Outcome.APPLIED


def static(scale: float) -> ga.LossScaler:
    return ga.LossScaler(scale, dynamic=False)


# ====== Gradients that carry a scale ======


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16], ids=["float32", "float16", "bfloat16"])
def test_sums_are_the_same_whatever_scale_gradients_carry(dtype):
    """Of all kinds in one window, with and without a scaler: what goes in is what is said of it, to the last bit."""

    def converted(x: np.ndarray) -> np.ndarray:
        return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else x.astype(dtype)

    coarse = [[(np.round(x * 8) / 8).astype(np.float32) for x in gradients(n)] for n in range(4)]

    def run(scaler: ga.LossScaler | None, carried: list[float]) -> Any:
        window = Window("own", loss_scaler=scaler)
        for arrays, scale in zip(coarse, carried):
            scaled = [converted(x * np.float32(scale)) for x in arrays]
            window.accumulator.accumulate_gradients(scaled, 1.0, 2.0, scale=scale)
        return window.sums(), window.step().gradient_norm, window.weights()

    expected = run(None, [1.0] * 4)
    for scaler, carried in itertools.product(
        (None, static(1.0), static(2.0**16)), ([1.0] * 4, [2.0**7] * 4, [0.5, 1.0, 2.0**8, 4.0])
    ):
        assert run(scaler, carried) == expected


def test_overflow_of_half_precision_gradients_is_found():
    scaler = ga.LossScaler(2.0**10)
    window = Window("own", loss_scaler=scaler)
    with np.errstate(over="ignore"):
        arrays = [(x * np.float32(1e6)).astype(np.float16) for x in gradients(0)]
    window.accumulator.accumulate_gradients(arrays, 1.0, 1.0, scale=2.0**10)
    assert (window.step().outcome, scaler.scale) == (OVERFLOW, 2.0**9)


# Loss scale, scale of the gradients, weight of a mean: what is between them is beyond float32.
TOO_FAR_APART = [
    (2.0**-64, 2.0**64, None),
    (2.0**64, 2.0**-64, None),
    (1.0, 2.0**-64, 1e25),
    (1.0, 2.0**64, 1e-25),
    (2.0**-64, 1.0, 1e-25),
]


@pytest.mark.parametrize("into", ["gradients", "moments"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("loss_scale", "gradient_scale", "weight"), TOO_FAR_APART)
def test_scales_that_are_too_far_apart_are_refused_and_lose_nothing(loss_scale, gradient_scale, weight, dtype, into):
    """Zeros are no NaNs then, and small gradients do not vanish."""
    parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
    window = ga.Accumulator(
        ga.AdamW([parameter], lr=0.5, weight_decay=0.0),
        loss_scaler=static(loss_scale),
        loss_reduction="sum" if weight is None else "mean",
        accumulate_into=into,
        normalization="sum",
    )
    with pytest.raises(ga.GAInvalidArgumentError, match="the loss scale is .* beyond float32"):
        window.accumulate_gradients([np.zeros(4, dtype)], 0.0, weight or 1.0, scale=gradient_scale)
    report = window.window()
    assert (report.micro_batches, report.aborted_micro_batches) == (0, 0)
    window.accumulate_gradients([np.full(4, loss_scale, np.float32)], 0.0, 1.0, scale=loss_scale)
    assert window.step().outcome == APPLIED
    assert parameter.numpy().tolist() == [0.5] * 4


def test_scale_and_weight_of_a_loss_that_are_too_far_apart_are_refused():
    parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
    window = ga.Accumulator(ga.SGD([parameter], lr=1.0), loss_reduction="mean", loss_scaler=static(2.0**-64))
    loss = ga.mean(parameter)
    with pytest.raises(ga.GAInvalidArgumentError, match="accumulate: the loss scale is .* weight of the mean 1e-25.*float32"):
        window.accumulate(loss, 1e-25)
    window.accumulate(loss, 1.0)
    assert window.step().gradient_norm == 0.5


def test_weight_that_comes_later_and_a_scale_too_far_from_it_are_refused_by_moments():
    parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
    window = ga.Accumulator(
        ga.AdamW([parameter], lr=0.5, weight_decay=0.0),
        loss_reduction="mean",
        accumulate_into="moments",
        normalization="sum",
        loss_scaler=static(2.0**-64),
    )
    micro_batch = window.micro_batch()
    window.accumulate_gradients([np.zeros(4, np.float32)], 0.0, None)
    window.set_weight(0, 1e30)
    with pytest.raises(ga.GAInvalidArgumentError, match="weight of micro-batch 0 is 1e.30 and the loss scale .*float32"):
        micro_batch.commit()
    micro_batch.abort()
    window.accumulate_gradients([np.ones(4, np.float32)], 0.0, 1.0)
    assert window.step().outcome == APPLIED
    assert parameter.numpy().tolist() == [0.5] * 4


@pytest.mark.parametrize("isolated", [False, True])
def test_gradients_of_single_parameters_are_scaled_as_those_of_one_call(isolated):
    plain, scaled = Window("own", isolated=isolated), Window("own", isolated=isolated, loss_scaler=static(2.0**16))
    for window in (plain, scaled):
        with window.accumulator.micro_batch():
            for index, gradient in enumerate(gradients(0)):
                window.accumulator.accumulate_gradient(index, gradient)
            window.accumulator.accumulate_gradients([None, None], 1.0, 2.0)
        window.add(1)
    assert plain.sums() == scaled.sums()
    assert plain.step().gradient_norm == scaled.step().gradient_norm
    assert plain.weights() == scaled.weights()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_moments_keep_the_scale_that_their_window_began_with(dtype):
    found = []
    for scaler in (None, ga.LossScaler(2.0**10)):
        parameter = ga.tensor(np.ones(4, np.float32), requires_grad=True)
        window = ga.Accumulator(
            ga.AdamW([parameter], lr=0.1), accumulate_into="moments", normalization="sum", loss_scaler=scaler
        )
        for number in range(3):
            window.accumulate_gradients([np.arange(4, dtype=dtype) / 4 + number], 0.0, 1.0)
            if scaler is not None:
                scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0 ** (5 + number)})
        assert window.step().loss_scale == (1.0 if scaler is None else 2.0**10)
        found.append(parameter.numpy().tobytes())
    assert found[0] == found[1]


# ====== Gradients that are unscaled in the caller's memory ======


@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "bfloat16"])
def test_unscale_divides_in_place_and_gives_the_norm(dtype):
    rng = np.random.default_rng(0)
    exact = [(rng.integers(-64, 64, size) / 64).astype(np.float32) for size in ((3, 5), (100_003,), (1,))]
    arrays = [np.asarray(x * np.float32(2.0**12)) for x in exact]
    if dtype == np.uint16:
        arrays = [np.asarray((x.view(np.uint32) >> 16).astype(np.uint16)) for x in arrays]
    scaler = ga.LossScaler()
    norm = scaler.unscale([*arrays, None], 2.0**12, optimizer=-3)
    assert norm == pytest.approx(np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in exact)), rel=1e-12)
    for array, wanted in zip(arrays, exact):
        found = (array.astype(np.uint32) << 16).view(np.float32) if dtype == np.uint16 else array
        assert (found == wanted).all()


def test_unscale_refuses_what_it_cannot_do():
    scaler = ga.LossScaler()
    with pytest.raises(ga.GADTypeError, match="float16.*accumulate_scaled_gradients"):
        scaler.unscale([np.ones(3, np.float16)], 8.0)
    with pytest.raises(ga.GADTypeError, match="arrays.1. is"):
        scaler.unscale([np.ones(3, np.float32), np.ones(3, np.float16)], 8.0)
    with pytest.raises(ga.GAInvalidArgumentError, match="not contiguous"):
        scaler.unscale([np.ones((3, 4), np.float32).T], 8.0)
    for scale in (0.0, -1.0, INF, NAN, 2.0**65):
        with pytest.raises(ga.GAInvalidArgumentError, match="scale is"):
            scaler.unscale([np.ones(3, np.float32)], scale)
        with pytest.raises(ga.GAInvalidArgumentError, match="scale is"):
            Window("own").accumulator.accumulate_gradients(gradients(0), 1.0, 1.0, scale=scale)
    scaler.unscale([np.ones(3, np.float32)], 8.0)


def test_unscale_divides_nothing_where_arrays_share_memory():
    scaler, memory = ga.LossScaler(8.0), np.full(100, 8.0, np.float32)
    first, second = memory[:60], memory[60:]
    for arrays, words in (
        ([first, first], r"gradients\[1\] shares memory with gradients\[0\]"),
        ([memory[50:], None, memory[:0], first], r"gradients\[3\] shares memory with gradients\[0\]"),
        ([memory, second], r"gradients\[1\] shares memory with gradients\[0\]"),
    ):
        with pytest.raises(ga.GAInvalidArgumentError, match=words):
            scaler.unscale(arrays, 8.0)
        assert (memory == 8).all()
    assert scaler.unscale([second, memory[:0], first, memory[60:60]], 8.0) == 10.0
    assert (memory == 1).all()
