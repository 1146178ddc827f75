"""Sums of gradients in bfloat16, and the counts of what half formats lose: against numpy, and the laws."""

from __future__ import annotations

import math
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from models import Model, gpt_arrays, gpt_data, gpt_loss, gpt_weight, part, random_split
from support import ROOT
from tally import FACTOR, FLAT_MEMORY, NO_TRACE, SCALING, SPLIT_INVARIANCE, case

FORMATS = ["bfloat16_stochastic", "bfloat16_kahan", "bfloat16"]

formats = pytest.mark.parametrize("sum_format", FORMATS)


def bf16(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even, as float32."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def random_bits(elements: np.ndarray, ordinal: int, key: int) -> np.ndarray:
    """Philox2x32-10 (Salmon et al., SC 2011)."""
    left, right = elements.astype(np.uint64), np.full(elements.shape, ordinal, np.uint64)
    for _ in range(10):
        product = left * np.uint64(0xD256D193)
        left = (product >> np.uint64(32)) ^ np.uint64(key) ^ right
        right = product & np.uint64(0xFFFFFFFF)
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return left.astype(np.uint32)


def accumulator(*shapes: tuple[int, ...], **options: Any) -> ga.Accumulator:
    parameters = [ga.zeros(shape, requires_grad=True) for shape in shapes]
    return ga.Accumulator(ga.SGD(parameters, lr=0.5), **options)


# ====== Against numpy ======


def test_sums_to_the_nearest_and_with_compensation_are_those_of_numpy():
    rng = np.random.default_rng(1)
    terms = (rng.standard_normal((200, 37)) * 10.0 ** rng.integers(-4, 1, (200, 37))).astype(np.float32)
    for sum_format in ("bfloat16", "bfloat16_kahan"):
        window = accumulator((37,), sum_format=sum_format)
        total, excess, unchanged = np.zeros(37, np.float32), np.zeros(37, np.float32), 0
        for term in terms:
            window.accumulate_gradients([term], 0.0, 1)
            if sum_format == "bfloat16":
                new, new_excess = bf16(total + term), excess
            else:
                wanted = term - excess
                new = bf16(total + wanted)
                new_excess = bf16((new - total) - wanted)
            unchanged += int(((new == total) & (new_excess == excess) & (term != 0)).sum())
            total, excess = new, new_excess
        found = window.accumulated_gradient(0).numpy()
        np.testing.assert_array_equal(found, total - excess, err_msg=sum_format)
        window.step()
        additions, stagnant = window.stagnation()
        assert (additions.tolist(), stagnant.tolist()) == ([terms.size], [unchanged])
        exact = terms.astype(np.float64).sum(0)
        error = np.abs(found - exact).max() / np.abs(exact).max()
        assert error < 1e-4 if sum_format == "bfloat16_kahan" else error > 1e-3


def test_rounding_at_random_goes_to_a_neighbour_by_the_bits_of_philox():
    """The key is found by trying: it must explain every element of every sum."""
    rng = np.random.default_rng(2)
    terms = rng.standard_normal((6, 500)).astype(np.float32)
    window = accumulator((500,), sum_format="bfloat16_stochastic")
    sums = [np.zeros(500, np.float32)]
    for term in terms:
        window.accumulate_gradients([term], 0.0, 1)
        sums.append(window.accumulated_gradient(0).numpy())
    cut = [(before + term).view(np.uint32) for before, term in zip(sums, terms)]
    went_up = [after.view(np.uint32) - (bits & np.uint32(0xFFFF0000)) for after, bits in zip(sums[1:], cut)]
    assert all(set(np.unique(up)) <= {0, 0x10000} for up in went_up)
    share = np.mean([(up > 0).mean() for up in went_up])
    assert abs(share - np.mean([(bits & 0xFFFF).mean() / 65536 for bits in cut])) < 0.03
    # Update 0, parameter 0 and place 0: the first word of Philox4x32-10 of a zero counter and key.
    key = 0x6627E8D5
    for ordinal, (up, bits) in enumerate(zip(went_up, cut)):
        random = random_bits(np.arange(500), ordinal, key) & np.uint32(0xFFFF)
        np.testing.assert_array_equal(up > 0, (bits & np.uint32(0xFFFF)) + random > 0xFFFF)


def test_a_sum_that_dies_is_seen_and_others_live():
    """4096 additions of a 1/1024 to a 1: the sum should be 5."""
    found, share = {}, {}
    for sum_format in FORMATS:
        window = accumulator((2000,), sum_format=sum_format)
        window.accumulate_gradients([np.ones(2000, np.float32)], 0.0, 1)
        for _ in range(4096):
            window.accumulate_gradients([np.full(2000, 1 / 1024, np.float32)], 0.0, 1)
        found[sum_format] = window.accumulated_gradient(0).numpy().mean()
        window.step()
        additions, unchanged = window.stagnation()
        share[sum_format] = unchanged[0] / additions[0]
    assert found["bfloat16"] == 1 and share["bfloat16"] == 4096 / 4097
    assert abs(found["bfloat16_kahan"] - 5) < 1e-3 and share["bfloat16_kahan"] < 0.01
    assert abs(found["bfloat16_stochastic"] - 5) < 5e-3 and share["bfloat16_stochastic"] > 0.5


def test_sums_of_a_long_window_on_text():
    """1024 samples of Genesis: what benchmarks/convergence.py measures on the whole Bible."""
    codes = np.frombuffer((ROOT / "Tests" / "parity" / "genesis.txt").read_bytes(), np.uint8) % 64
    starts = np.random.default_rng(8).integers(0, len(codes) - 9, 1024)
    windows = codes[starts[:, None] + np.arange(9)].astype(np.int64)
    data = {"tokens": windows[:, :-1].copy(), "targets": windows[:, 1:].copy()}

    def sums(sum_format: str) -> np.ndarray:
        model = Model(gpt_arrays(64, 32, 8, 1), gpt_loss(2), weight=gpt_weight, sum_format=sum_format)
        for start in range(0, 1024, 256):
            model.accumulate(part(data, start, start + 256))
        return np.concatenate([np.frombuffer(x, np.float32) for x in model.gradients()]).astype(np.float64)

    exact = sums("float32")
    errors = {name: np.linalg.norm(sums(name) - exact) / np.linalg.norm(exact) for name in FORMATS}
    assert errors["bfloat16_kahan"] < 1e-3
    assert errors["bfloat16_stochastic"] < 0.06 < 0.12 < errors["bfloat16"], errors


# ====== The laws ======


def gpt(sum_format: str, **options: Any) -> tuple[Model, Any]:
    model = Model(
        gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight, max_grad_norm=0.5, sum_format=sum_format, **options
    )
    return model, gpt_data(9, 13, 61)


@pytest.mark.law(SPLIT_INVARIANCE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@formats
def test_any_split_and_any_number_of_threads_give_the_same_bits(sum_format, dtype):
    rng = np.random.default_rng(3)
    before = ga.get_num_threads()
    found = set()
    with ga.compute_dtype(dtype):
        splits = [[9], [1] * 9, [4, 5], *(random_split(rng, 9) for _ in range(4 * FACTOR - 3))]
        for turn, split in enumerate(splits):
            ga.set_num_threads(1 + turn % 4)
            try:
                model, data = gpt(sum_format)
                found.add(model.fingerprint(data, [split, [2, 7]]))
            finally:
                ga.set_num_threads(before)
            case()
        model, data = gpt("float32")
        assert len(found) == 1 and model.fingerprint(data, [[9], [9]]) not in found


@pytest.mark.law(SCALING)
@formats
def test_power_of_two_changes_no_bit(sum_format):
    model, data = gpt(sum_format)
    expected = model.fingerprint(data, [[9], [4, 5]])
    for exponent in (0, 1, 7, 16, 24):
        model, data = gpt(sum_format, loss_scaler=ga.LossScaler(2.0**exponent, dynamic=False))
        assert model.fingerprint(data, [[9], [4, 5]]) == expected, exponent
        case()


@pytest.mark.law(NO_TRACE)
@formats
def test_a_window_that_is_dropped_leaves_no_trace(sum_format):
    plain, data = gpt(sum_format)
    dropping, _ = gpt(sum_format)
    for split in ([9], [3, 6], [1] * 9):
        dropping.accumulate(part(data, 2, 7))
        dropping.accumulator.zero()
        assert plain.window(data, split) == dropping.window(data, split)
        assert plain.weights() == dropping.weights()
        case()


@pytest.mark.law(FLAT_MEMORY)
@formats
def test_memory_is_flat_and_half(sum_format):
    def memory(sum_format: str) -> tuple[list[int], int]:
        model, data = gpt(sum_format)
        one = part(data, 0, 1)
        peaks = []
        for count in (2, 1, 40, 3):
            ga.memory_reset_peak()
            for _ in range(count):
                model.accumulate(one)
            report = model.accumulator.step()
            peaks.append(ga.memory_usage().peak_bytes)
            if count == 2:
                before = ga.memory_usage()
        after = ga.memory_usage()
        assert after.allocator_calls == before.allocator_calls and after.live_bytes == before.live_bytes
        return peaks[1:], report.accumulator_bytes

    peaks, sums = memory(sum_format)
    assert len(set(peaks)) == 1
    _, wide = memory("float32")
    case()
    # What an embedding keeps by rows is in float32.
    assert sums < (1.01 if sum_format == "bfloat16_kahan" else 0.7) * wide


@formats
def test_isolated_micro_batches_are_single_additions(sum_format):
    rng = np.random.default_rng(4)
    terms = rng.standard_normal((5, 40)).astype(np.float32)
    isolated, plain = (accumulator((40,), sum_format=sum_format, isolated=value) for value in (True, False))
    for term in terms:
        isolated.accumulate_gradients([np.full(40, np.nan, np.float32)], 0.0, 1)
        isolated.accumulate_gradients([term], 0.0, 1)
        plain.accumulate_gradients([term], 0.0, 1)
    np.testing.assert_array_equal(
        isolated.accumulated_gradient(0).numpy(), plain.accumulated_gradient(0).numpy()
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gradients_of_the_caller_may_be_half_scaled_and_single(dtype):
    """One addition each, whichever call brings it."""
    rng = np.random.default_rng(5)
    terms = (rng.standard_normal((3, 50)) * 64).astype(dtype)
    sums = []
    for call in ("all", "single", "scaled"):
        window = accumulator((50,), sum_format="bfloat16_stochastic")
        for term in terms:
            if call == "all":
                window.accumulate_gradients([(term.astype(np.float32) / 64)], 0.0, 1)
            elif call == "scaled":
                window.accumulate_gradients([term], 0.0, 1, scale=64.0)
            else:
                with window.micro_batch():
                    window.accumulate_gradient(0, term, scale=1 / 64)
                    window.accumulate_gradients([None], 0.0, 1)
        sums.append(window.accumulated_gradient(0).numpy().tobytes())
    assert len(set(sums)) == 1


def test_bad_formats_are_named():
    for wrong in ("float16", "", "bf16", 7):
        with pytest.raises(ga.GAInvalidArgumentError, match="sum_format"):
            accumulator((3,), sum_format=wrong)


# ====== Underflow ======


def underflow(scale: float, dtype: str, *, checkpointing: bool = False) -> tuple[float, float]:
    """What a window reports, and what numpy says of the gradients that its linear layers round."""
    rng = np.random.default_rng(6)
    x, weight = rng.standard_normal((4, 5, 7)).astype(np.float32), rng.standard_normal((9, 7)).astype(np.float32)
    upstream = (rng.standard_normal((4, 5, 9)) * 10.0 ** rng.integers(-11, -3, (4, 5, 9))).astype(np.float32)
    upstream[rng.random(upstream.shape) < 0.2] = 0
    parameter = ga.tensor(weight, requires_grad=True)
    window = ga.Accumulator(
        ga.SGD([parameter]), count_underflow=True, loss_scaler=ga.LossScaler(scale, dynamic=False)
    )
    flushed = numbers = 0
    with ga.compute_dtype(dtype):
        for start, stop in ((0, 1), (1, 4)):
            given = ga.tensor(x[start:stop])
            y = (
                ga.checkpoint(lambda h: ga.linear(h, parameter), given)
                if checkpointing
                else ga.linear(given, parameter)
            )
            loss = ga.sum(y * ga.tensor(upstream[start:stop]))
            window.accumulate(loss, weight=1)
            scaled = upstream[start:stop] * np.float32(scale)
            half = scaled.astype(np.float16) if dtype == "float16" else bf16(scaled)
            numbers += int((scaled != 0).sum())
            flushed += int(((scaled != 0) & (half == 0)).sum())
            assert window.window().underflow == flushed / numbers
    report = window.step()
    assert window.window().underflow == 0
    return report.underflow, flushed / numbers


@pytest.mark.parametrize("checkpointing", [False, True])
def test_underflow_is_that_of_numpy(checkpointing):
    shares = []
    for scale in (1.0, 2.0**6, 2.0**12):
        found, expected = underflow(scale, "float16", checkpointing=checkpointing)
        assert found == expected
        shares.append(found)
    assert shares[0] > shares[1] > shares[2] and shares[0] > 0.3
    assert underflow(1.0, "bfloat16", checkpointing=checkpointing) == (0.0, 0.0)


def test_underflow_of_logits_and_attention_is_counted_and_only_on_request():
    rng = np.random.default_rng(7)
    q = rng.standard_normal((2, 6, 8)).astype(np.float32)
    upstream = (rng.standard_normal((2, 6, 8)) * 1e-7).astype(np.float32)
    for asked in (True, False):
        gain, table = (ga.tensor(x, requires_grad=True) for x in (np.ones(8, np.float32), np.zeros((11, 8), np.float32)))
        window = ga.Accumulator(ga.SGD([gain, table]), count_underflow=asked)
        with ga.compute_dtype("float16"):
            x = ga.tensor(q) * gain
            window.accumulate(ga.sum(ga.causal_attention(x, x, x, 2) * ga.tensor(upstream)), weight=1)
        flushed = ((upstream != 0) & (upstream.astype(np.float16) == 0)).mean()
        assert window.window().underflow == (flushed if asked else 0) and flushed > 0.1
        window.zero()
        with ga.compute_dtype("float16"):
            # Equal logits: each class but the target's has a gradient of 1/11 times the scale of the loss.
            loss = ga.linear_cross_entropy(ga.tensor(q), table, ga.tensor(np.zeros((2, 6), np.int32)))
            window.accumulate(loss * ga.tensor(np.float32(2e-7)), weight=1)
        assert window.window().underflow == (10 / 11 if asked else 0)
        window.zero()


@pytest.mark.law(NO_TRACE)
@pytest.mark.parametrize("is_dropped", [False, True])
def test_micro_batches_that_do_not_count_leave_no_underflow(is_dropped):
    parameter = ga.tensor(np.ones((3, 4), np.float32), requires_grad=True)
    window = ga.Accumulator(ga.SGD([parameter]), count_underflow=True, isolated=True)

    def loss(factor: float) -> ga.Tensor:
        return ga.sum(ga.linear(ga.tensor(np.ones((2, 4), np.float32)), parameter) * factor)

    with ga.compute_dtype("float16"):
        window.accumulate(loss(1.0), weight=1)
        micro_batch = window.micro_batch()
        window.accumulate(loss(1e-20), weight=1)
        assert window.window().underflow == 0.5
        if is_dropped:
            window.accumulate(ga.tensor(np.float32(math.inf)) * ga.sum(parameter), weight=1)
            micro_batch.commit()
        else:
            micro_batch.abort()
    report = window.step()
    assert (report.underflow, report.micro_batches, report.aborted_micro_batches) == (0.0, 1, 1)
