"""What users of accumulation have met elsewhere, each as they met it, with the result that they wanted.

The number in a test's name is that of the list of pains in the project's design; a docstring names who met it.
"""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from models import (
    Arrays,
    Model,
    gpt_arrays,
    gpt_data,
    gpt_loss,
    gpt_weight,
    micro_batches,
    mlp_arrays,
    mlp_data,
    mlp_loss,
    part,
)
from support import OK, ROOT, in_new_process, raw


def gpt(**options: Any) -> Model:
    return Model(gpt_arrays(17, 8, 6, 1), gpt_loss(2), weight=gpt_weight, **options)


def uneven() -> Arrays:
    """Eight samples of which some have one target and some six."""
    data = gpt_data(8, 6, 17)
    for row, kept in enumerate((6, 1, 3, 1, 6, 2, 5, 1)):
        data["targets"][row] = np.where(np.arange(6) < kept, np.abs(data["targets"][row]), -1)
    return data


def scalar(value: float = 0.0) -> ga.Tensor:
    return ga.tensor([value], requires_grad=True)


def add(accumulator: ga.Accumulator, gradient: float, weight: float | None = 1.0, loss: float = 0.0) -> None:
    """A micro-batch with this sum of gradients for a single number."""
    accumulator.accumulate_gradients([np.full(1, gradient, np.float32)], loss, weight)


# ====== Normalisation and windows ======


def test_pain_01_the_mean_of_means_is_not_the_mean_over_tokens():
    """transformers #34191, #34198: the loss of batch size 1 times 32 was not that of batch size 32."""
    data = uneven()
    single, whole = gpt(), gpt()
    means = []
    for one in micro_batches(data, [1] * 8):
        with ga.no_grad():
            means.append(single.loss(single.parameters, one).item() / gpt_weight(one))
        single.accumulate(one)
    report, expected = single.accumulator.step(), whole.window(data, [8])
    assert report.weight == expected.weight == gpt_weight(data)
    assert report.loss == pytest.approx(expected.loss, rel=1e-6)
    assert abs(np.mean(means) - expected.loss) > 0.01, "what the mean of means would have been"
    assert single.weights() == whole.weights()


def test_pain_02_no_weight_is_ever_guessed():
    """transformers #37766: models that do not take the new arguments silently get the old maths."""
    model, data = gpt(), uneven()
    with pytest.raises(TypeError, match="weight"):
        model.accumulator.accumulate(model.loss(model.parameters, data))  # type: ignore[call-arg]
    x = ga.zeros((2, 3), requires_grad=True)
    of_sums = ga.Accumulator(ga.SGD([x]))
    logits = ga.linear(ga.tensor(np.ones((4, 3), np.float32)), x)
    mean = ga.cross_entropy(logits, ga.tensor([0, 1, 1, 0]), reduction="mean")
    with pytest.raises(ga.GAStateError, match="loss is a mean, but the window adds up sums"):
        of_sums.accumulate(mean, 4)
    assert model.window(data, [8]).weight == gpt_weight(data)


def test_pain_03_what_is_normalised_once_is_not_normalised_twice():
    """transformers #35438, #35207, #35203: after a fix, the loss doubled with two micro-batches."""
    data = uneven()
    expected = gpt().window(data, [8])
    for split in ([4, 4], [2] * 4, [1] * 8):
        report = gpt().window(data, split)
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert report.gradient_norm == expected.gradient_norm


def test_pain_04_a_short_last_window_is_divided_by_what_it_has():
    """transformers #38837, #38872, #39659: a last window of two of four micro-batches showed half of its loss."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), accumulation_steps=4)
    for _ in range(2):
        add(accumulator, gradient=2 * 0.998, weight=2, loss=2 * 0.998)
    report = accumulator.end_data("step")
    assert (report.micro_batches, report.weight, report.outcome) == (2, 4, ga.Outcome.APPLIED)
    assert report.loss == pytest.approx(0.998, rel=1e-12)
    assert x.item() == pytest.approx(-0.998, rel=1e-6)


@pytest.mark.parametrize(
    ("tail", "updates", "value", "left"), [("step", 2, -2.0, 0), ("carry", 1, -1.0, 1), ("drop", 1, -1.0, 0)]
)
def test_pain_05_what_happens_to_the_last_window_is_chosen_and_can_be_seen(tail, updates, value, left):
    """Lightning #19987, #4653: wrong at the end of an epoch, and users cannot tell what happens there."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), accumulation_steps=3)
    accumulator.begin_data()
    for _ in range(4):
        add(accumulator, 1.0)
        if accumulator.step_due:
            accumulator.step()
    assert accumulator.window().micro_batches == 1 and accumulator.window().outcome == ga.Outcome.PENDING
    report = accumulator.end_data(tail)
    outcomes = {"step": ga.Outcome.APPLIED, "carry": ga.Outcome.PENDING, "drop": ga.Outcome.DROPPED}
    assert report.outcome == outcomes[tail]
    assert (report.update_count, x.item()) == (updates, value)
    assert accumulator.window().micro_batches == left


def test_pain_06_three_images_and_four_steps_are_an_update_and_no_leak():
    """pet #36, AnimaLoraStudio #305: fewer samples than accumulation steps gave no update in an epoch, or gradients
    that leaked into the next one."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), accumulation_steps=4)
    for epoch in range(3):
        accumulator.begin_data()
        for _ in range(3):
            add(accumulator, 1.0)
        assert accumulator.end_data().update_count == epoch + 1
        assert x.item() == -1 - epoch
    add(accumulator, 1.0)
    with pytest.raises(ga.GAStateError, match="end_data|data_end"):
        accumulator.begin_data()


def test_pain_07_a_loop_of_ones_own_is_normalised_by_tokens_too():
    """torchtune #1875, nanochat #59, mlx-lm #1413, OpenNMT-py #2209: every project finds the first pain again."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(5).astype(np.float32)
    x = ga.tensor(w, requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0))
    inputs = [rng.integers(-8, 9, (tokens, 5)).astype(np.float32) for tokens in (31, 2, 7, 128)]
    for tokens in inputs:
        # Of the loss sum(tokens @ w).
        accumulator.accumulate_gradients([tokens.sum(0)], float((tokens @ w).sum()), len(tokens))
    report = accumulator.step()
    everything = np.concatenate(inputs).astype(np.float64)
    assert report.weight == 168
    assert report.loss == pytest.approx((everything @ w).mean(), rel=1e-5, abs=1e-5)
    assert np.allclose(x.numpy(), w - everything.mean(0), rtol=0, atol=1e-6)


def test_pain_08_a_window_has_nothing_to_do_with_the_length_of_its_samples():
    """llama.cpp #13873: the logical batch is silently limited to the context's length."""
    model = gpt(optimizer=ga.SGD)
    context, weight = 0, 0.0
    for micro_batch in range(40):
        context = 1 + micro_batch % 6
        data = gpt_data(3, context, 17, seed=micro_batch)
        weight += gpt_weight(data)
        model.accumulate(data)
    report = model.accumulator.step()
    assert (report.micro_batches, report.weight, report.outcome) == (40, weight, ga.Outcome.APPLIED)


def test_pain_09_the_number_of_steps_changes_at_the_next_boundary():
    """onnxruntime #5164: accumulation steps that change while training goes on."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), accumulation_steps=2)
    sizes = []
    for micro_batch in range(12):
        add(accumulator, 1.0)
        if micro_batch == 2:
            accumulator.accumulation_steps = 4  # in the middle of the second window, which keeps its two
        if accumulator.step_due:
            sizes.append(accumulator.step().micro_batches)
    assert sizes == [2, 2, 4, 4]
    assert x.item() == -4


def test_pain_10_the_mean_the_tail_and_the_clock_at_once():
    """burn: gradients are summed and not averaged, the tail is dropped, the rate moves with every micro-batch."""
    x = scalar()
    optimizer = ga.SGD([x], lr=1.0)
    optimizer.schedule = ga.schedules.Step(1, gamma=0.5)
    accumulator = ga.Accumulator(optimizer, accumulation_steps=2)
    rates = []
    for _ in range(5):
        add(accumulator, 1.0)
        if accumulator.step_due:
            rates.append(accumulator.step().learning_rate)
    rates.append(accumulator.end_data().learning_rate)
    assert rates == [1.0, 0.5, 0.25]
    assert x.item() == -1.75, "a mean of 1 in each of three windows"


# ====== Schedules, decay, averages, logs ======


@pytest.mark.parametrize("micro_batches_of_one", [1, 4, 8])
def test_pain_11_the_schedule_does_not_know_of_micro_batches(micro_batches_of_one):
    """accelerate #963, #999, #1187, diffusers #4387, #2632: the scheduler advances with every micro-batch."""
    optimizer = ga.SGD([scalar()], lr=0.5)
    optimizer.schedule = ga.schedules.Cosine(10, warmup=4)
    accumulator = ga.Accumulator(optimizer, accumulation_steps=micro_batches_of_one)
    rates = []
    for _ in range(10 * micro_batches_of_one):
        add(accumulator, 1.0)
        if accumulator.step_due:
            rates.append(accumulator.step().learning_rate)
    wave = [0.5 * (1 + np.cos(np.pi * (t - 4) / 6)) for t in range(4, 10)]
    assert rates == pytest.approx([0.5 * factor for factor in [0, 0.25, 0.5, 0.75, *wave]])


def test_pain_12_decay_and_bias_correction_happen_once_per_update():
    """keras #19990: weight decay and Adam's iterations ran in every micro-step."""
    found = []
    for count in (1, 16):
        x = scalar(1.0)
        accumulator = ga.Accumulator(ga.AdamW([x], lr=0.125, weight_decay=0.5))
        for _ in range(3):
            for _ in range(count):
                add(accumulator, 1.0)
            accumulator.step()
        found.append(x.item())
    assert found[0] == found[1]
    expected = 1.0
    for _ in range(3):
        expected = expected * (1 - 0.125 * 0.5) - 0.125
    assert found[0] == pytest.approx(expected, abs=1e-6)


def test_pain_13_the_average_of_the_weights_moves_once_per_update():
    """F5-TTS #631: the moving average was updated in each micro-step."""
    x = scalar(1.0)
    optimizer = ga.SGD([x], lr=1.0)
    average = ga.WeightAverage(optimizer, decay=0.5)
    accumulator = ga.Accumulator(optimizer)
    expected, weights = 1.0, 1.0
    for _ in range(3):
        for _ in range(8):
            add(accumulator, 1.0)
        accumulator.step()
        weights -= 1
        expected = 0.5 * expected + 0.5 * weights
    add(accumulator, np.nan)
    assert accumulator.step().skipped
    assert average.weights(0).item() == expected


def test_pain_14_the_loss_that_is_shown_is_that_of_the_window():
    """allennlp #4706, prime-rl #909, Lightning #1173: the last micro-batch's loss is logged, or a scaled one."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), accumulation_steps=3)
    for loss, weight in ((8.0, 1), (6.0, 3), (1.0, 2)):
        add(accumulator, 0.0, weight, loss)
    report = accumulator.step()
    assert (report.loss, report.weight, report.micro_batches) == (2.5, 6, 3)


def test_pain_15_gradients_of_another_network_do_not_pile_up():
    """Lightning #591: with two optimizers, each network gathered gradients of the other's loss."""
    rng = np.random.default_rng(0)
    generator = ga.tensor(rng.standard_normal((3, 3)).astype(np.float32), requires_grad=True)
    critic = ga.tensor(rng.standard_normal((1, 3)).astype(np.float32), requires_grad=True)
    of_generator = ga.Accumulator(ga.SGD([generator], lr=0.1))
    of_critic = ga.Accumulator(ga.SGD([critic], lr=0.1))
    noise = ga.tensor(rng.standard_normal((4, 3)).astype(np.float32))
    with pytest.raises(ga.GAInvalidArgumentError, match="another optimizer"):
        of_critic.accumulate(ga.sum(ga.linear(ga.linear(noise, generator), critic)), 4)
    before = generator.numpy()
    for _ in range(2):
        of_critic.accumulate(ga.sum(ga.linear(ga.linear(noise, generator).detach(), critic)), 4)
    of_critic.step()
    assert (generator.numpy() == before).all()
    assert (of_generator.accumulated_gradient(0).numpy() == 0).all()
    with pytest.raises(ga.GAStateError, match="another optimizer"):
        ga.SGD([critic])


# ====== Steps, clips and skips ======


def test_pain_16_clipping_is_a_part_of_the_step():
    """LlamaFactory #77, Swin-Transformer #311, accelerate #641, diffusers #721: "unscale_() has already been called"
    when gradients are clipped in each micro-step."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), max_grad_norm=1.0)
    for window in range(2):
        for gradient in (100.0, -100.0, 3.0):
            add(accumulator, gradient)
        report = accumulator.step()
        assert report.gradient_norm == 1 and report.clip_factor == pytest.approx(1, abs=1e-5), "of 3 over 3 samples"
        assert x.item() == pytest.approx(-1 - window, abs=1e-5)
    # Whoever wants the norm before the step ends the window's additions with it, and is told so.
    add(accumulator, 4.0)
    assert accumulator.clip_grad_norm_(1.0) == 4
    for early in (lambda: add(accumulator, 1.0), accumulator.unscale):
        with pytest.raises(ga.GAStateError, match="unscaled.*step"):
            early()
    assert accumulator.step().clip_factor == pytest.approx(0.25, abs=1e-5)


def test_pain_17_a_bad_micro_batch_is_dropped_and_no_other():
    """espnet #3283: a NaN stayed in the gradients with accum_grad above 1; skipping the bad micro-batch alone would
    be better, but "I don't know how to implement it"."""
    x, clean = scalar(), scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), isolated=True)
    without = ga.Accumulator(ga.SGD([clean], lr=1.0), isolated=True)
    for gradient in (3.0, np.nan, 5.0, np.inf):
        add(accumulator, gradient, weight=2)
        if np.isfinite(gradient):
            add(without, gradient, weight=2)
    report = accumulator.step()
    assert (report.outcome, report.micro_batches, report.aborted_micro_batches) == (ga.Outcome.APPLIED, 2, 2)
    without.step()
    assert x.item() == clean.item() == -2
    # In exact mode the window goes, and the next one knows nothing of it.
    exact = ga.Accumulator(ga.SGD([scalar()], lr=1.0))
    add(exact, np.nan)
    assert exact.step().outcome == ga.Outcome.SKIPPED_NON_FINITE
    add(exact, 1.0)
    assert exact.step().gradient_norm == 1


def test_pain_18_a_dropped_micro_batch_counts_neither_in_the_divisor_nor_in_the_window():
    """prime-rl #1961, mflux #447: a NaN micro-batch was still counted in the denominator, or in the window."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), isolated=True, accumulation_steps=2)
    due = []
    for gradient in (4.0, np.nan, 4.0):
        add(accumulator, gradient, weight=4, loss=8.0)
        due.append(accumulator.step_due)
    assert due == [False, False, True]
    report = accumulator.step()
    assert (report.weight, report.loss, x.item()) == (8, 2.0, -1)


def test_pain_19_a_skip_ruins_no_model():
    """NeMo #11272: skip_nan_grad with accumulation ruined the model."""
    data = mlp_data(12, 5, 3)
    clean, troubled = (Model(mlp_arrays(5, 9, 3), mlp_loss, optimizer=ga.AdamW) for _ in range(2))
    for update in range(4):
        clean.window(data, [6, 6])
        weights = troubled.weights()
        nan = [np.full(x.shape, np.nan, np.float32) for x in troubled.parameters.values()]
        troubled.accumulate(part(data, 0, 6))
        troubled.accumulator.accumulate_gradients(nan, 1.0, 6)
        report = troubled.accumulator.step()
        assert report.outcome == ga.Outcome.SKIPPED_NON_FINITE and report.update_count == update
        assert troubled.weights() == weights
        troubled.window(data, [6, 6])
    assert troubled.weights() == clean.weights()


def test_pain_20_gradients_are_divided_by_their_scale_once():
    """pytorch #97415, #94060: a fused optimizer left gradients scaled after a skip, and divided others twice."""
    x = scalar()
    scaler = ga.LossScaler(1024.0)
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), loss_scaler=scaler)
    add(accumulator, np.inf)
    assert accumulator.step().outcome == ga.Outcome.SKIPPED_OVERFLOW and scaler.scale == 512
    add(accumulator, 3.0)
    for norm in (accumulator.window().gradient_norm, accumulator.unscale()):
        assert norm in (0, 3) and accumulator.accumulated_gradient(0).item() == 3
    with pytest.raises(ga.GAStateError, match="unscaled before"):
        accumulator.unscale()
    assert accumulator.step().gradient_norm == 3 and x.item() == -3
    # The scale that gradients from outside carry is said with them, and is none of the window's.
    accumulator.accumulate_gradients([np.full(1, 4 * 64, np.float32)], 0.0, 1, scale=64.0)
    add(accumulator, 4.0)
    assert accumulator.step().gradient_norm == 4 and x.item() == -7
    own, gradient = ga.LossScaler(8.0), np.full(1, 16, np.float32)
    assert own.unscale([gradient], own.scale) == 2 == gradient[0]
    with pytest.raises(ga.GAStateError, match="have been unscaled"):
        own.unscale([gradient], own.scale)
    assert gradient[0] == 2


def test_pain_21_a_step_says_what_it_did():
    """accelerate #2828: whether a step was skipped was wrong while accumulating."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), accumulation_steps=2)
    outcomes = []
    for gradient in (1.0, 1.0, 1.0, np.inf, 1.0, 1.0):
        add(accumulator, gradient)
        outcomes.append(accumulator.step().outcome if accumulator.step_due else None)
    applied, skipped = ga.Outcome.APPLIED, ga.Outcome.SKIPPED_NON_FINITE
    assert outcomes == [None, applied, None, skipped, None, applied]


def test_pain_22_a_scale_at_its_floor_is_a_status_with_a_name():
    """DeepSpeed #931, Chinese-LLaMA-Alpaca #534: "Current loss scale already at minimum ... Exiting run"."""
    x, y = scalar(), scalar()
    y.set_name("head")
    scaler = ga.LossScaler(4.0, min_scale=1.0, hysteresis=2)
    accumulator = ga.Accumulator(ga.SGD([x, y], lr=1.0), loss_scaler=scaler, max_consecutive_skips=4)

    def window(last: float) -> ga.Report:
        for gradient in (1.0, last):
            accumulator.accumulate_gradients([np.ones(1, np.float32), np.full(1, gradient, np.float32)], 0.0, 1)
        return accumulator.step()

    scales = []
    for _ in range(4):
        report = window(np.inf)
        assert (report.outcome, report.update_count) == (ga.Outcome.SKIPPED_OVERFLOW, 0)
        assert (report.non_finite_parameter, report.non_finite_micro_batch) == (1, 1)
        scales.append(report.loss_scale)
    assert scales == [4, 4, 2, 1], "the first overflow is borne, and the scale stays at its floor"
    with pytest.raises(ga.GANonFiniteError, match=r'parameters\[1\], "head" in micro-batch 1.*min_scale'):
        window(np.inf)
    assert (scaler.scale, window(1.0).outcome, x.item(), y.item()) == (1, ga.Outcome.APPLIED, -1, -1)


def test_pain_23_many_small_gradients_of_bfloat16_are_not_lost():
    """Megatron-LM #372, #502, DeepSpeed #2768, Liger-Kernel #830: divergence as gradients are added in bfloat16."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0))
    one = np.array([0x3F80], np.uint16)  # 1 in bfloat16, where 256 + 1 is 256
    for _ in range(4096):
        accumulator.accumulate_gradients([one], 0.0, 1)
    assert accumulator.accumulated_gradient(0).item() == 4096
    accumulator.step()
    assert x.item() == -1
    # Sums in bfloat16 are for those who ask, who are told what plain ones lose.
    found = {}
    for sums in ("bfloat16", "bfloat16_kahan", "bfloat16_stochastic"):
        accumulator = ga.Accumulator(ga.SGD([scalar()]), sum_format=sums)
        for _ in range(4096):
            accumulator.accumulate_gradients([one], 0.0, 1)
        found[sums] = accumulator.accumulated_gradient(0).item()
        accumulator.step()
        additions, unchanged = (int(count[0]) for count in accumulator.stagnation())
        assert additions == 4096 and (unchanged == 4096 - 256 or sums != "bfloat16")
    assert found["bfloat16"] == 256 and found["bfloat16_kahan"] == 4096
    assert 3500 < found["bfloat16_stochastic"] < 4700


def test_pain_24_the_window_is_clipped_and_not_its_micro_batches():
    """transformers #1563, #986, lingua #59, tt-metal #17568: gradients are clipped per micro-batch."""
    x = scalar()
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), max_grad_norm=1.0)
    for gradient in (8.0, -8.0, 0.5, 1.5):
        add(accumulator, gradient)
    report = accumulator.step()
    assert (report.gradient_norm, report.clip_factor) == (0.5, 1.0)
    assert x.item() == -0.5, "clipped one by one, it would be 0.375"


def test_pain_25_memory_does_not_grow_with_the_window():
    """EasyLM #36, gpt-neox #1123, torchtune #2134, DeeperSpeed #66, mlx #2840, #2305: accumulation raised memory."""
    model = gpt()
    one = part(uneven(), 0, 1)

    def window(count: int) -> tuple[int, int]:
        ga.memory_reset_peak()
        for _ in range(count):
            model.accumulate(one)
        report = model.accumulator.step()
        return ga.memory_usage().peak_bytes, report.accumulator_bytes

    window(2)
    peak, sums = window(2)
    assert window(64) == (peak, sums) == window(1)
    assert sums <= 2 * sum(x.numpy().nbytes for x in model.parameters.values()), "one, and another of the tied table"


def test_pain_26_no_gradients_between_micro_batches_and_what_that_excludes_is_an_error():
    """pytorch #124523, verl #1295, torchtune #1934, LOMO #4: a step in the backward pass saves the gradients' memory
    and excludes accumulation, or clipping."""
    w = ga.tensor(np.full((64, 64), 1.0, np.float32), requires_grad=True)
    optimizer = ga.AdamW([w], lr=0.125, betas=(0.5, 0.75), eps=0.0, weight_decay=0.0)
    options = {"accumulate_into": "moments", "normalization": "sum"}
    for excluded in ({"max_grad_norm": 1.0}, {"agc_clipping": 0.01}, {"normalization": "weight"}):
        with pytest.raises(ga.GAInvalidArgumentError, match=next(iter(excluded))):
            ga.Accumulator(optimizer, **{**options, **excluded})
    accumulator = ga.Accumulator(optimizer, **options)
    for gradient in (3.0, 4.0):
        x = ga.tensor(np.full((64, 64), gradient, np.float32))
        accumulator.accumulate(ga.sum(w * x), 1)
        assert accumulator.window().accumulator_bytes == 0
    assert accumulator.step().outcome == ga.Outcome.APPLIED
    # The corrected moments after one update: the sum of the gradients, and of their squares.
    assert np.allclose(w.numpy(), 1 - 0.125 * (3 + 4) / np.sqrt(9 + 16), rtol=1e-6)


def halved_until_it_fits(limit: int) -> tuple[list[int], int, list[str], int]:
    """The sizes of micro-batches that were tried for a batch of 16 samples with so many bytes of memory, the updates
    that came of it, the weights, and the most bytes that were in use."""
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    libc.free.argtypes = (ctypes.c_void_p,)
    used = {"now": 0, "most": 0}

    def allocate(size: int, alignment: int, user: Any) -> int | None:
        # A call for each tensor: no memory in advance.
        if size > 1 << 15 or used["now"] + size > limit:
            return None
        used["now"] += size
        used["most"] = max(used.values())
        return libc.aligned_alloc(alignment, -(-size // alignment) * alignment)

    def release(memory: int, size: int, user: Any) -> None:
        used["now"] -= size
        libc.free(memory)

    ga.memory_trim()
    hooks = _ffi.AllocateFn(allocate), _ffi.ReleaseFn(release)
    assert raw.ga_set_allocator(*hooks, None) == OK
    model, data, size, tried = gpt(max_grad_norm=1.0), gpt_data(16, 6, 17), 16, []
    while True:
        tried.append(size)
        try:
            report = model.window(data, [size] * (16 // size))
            break
        except ga.GAOutOfMemoryError:
            model.accumulator.zero()
            ga.memory_trim()
            size //= 2
    assert report.weight == gpt_weight(data) and report.micro_batches == 16 // size
    return tried, report.update_count, [bits.hex() for bits in model.weights()], used["most"]


def test_pain_28_micro_batches_that_are_halved_until_they_fit_are_the_same_batch():
    """composer #1081, #2117, EuroEval #22, #69: an automatic size was halved too often, and the number of steps was not
    raised to match."""
    tried, updates, expected, most = in_new_process(halved_until_it_fits, 1 << 30)
    assert (tried, updates) == ([16], 1)
    sizes = [tried]
    for limit in (most * 3 // 4, most // 2):
        tried, updates, weights, used = in_new_process(halved_until_it_fits, limit)
        assert used <= limit and updates == 1
        assert weights == expected
        sizes.append(tried)
    assert len(sizes[0]) < len(sizes[1]) < len(sizes[2]), "the less memory there is, the smaller they are"


# ====== Ranks, checkpoints, contracts ======


def test_pain_29_ranks_with_uneven_counts_take_one_step():
    """pytorch #43201, #14462, FunASR #3472, Megatron #7186, EasyR1 #11012, horovod #2420: ranks that have other numbers
    of micro-batches hang or diverge, or only the last one reaches the optimizer. What is to be exchanged is there before
    the step: sums, their loss and their weight."""
    data = uneven()
    ranks, whole = [gpt() for _ in range(3)], gpt()
    for rank, (start, sizes) in zip(ranks, ((0, [2, 1, 2]), (5, [3]), (8, []))):
        for size in sizes:
            rank.accumulate(part(data, start, start + size))
            start += size
    held = [rank.accumulator.window() for rank in ranks]
    assert [one.micro_batches for one in held] == [3, 1, 0]
    loss, weight = sum(one.loss * one.weight for one in held), sum(one.weight for one in held)
    sums = [
        sum(rank.accumulator.accumulated_gradient(index).numpy() for rank in ranks)
        for index in range(len(whole.parameters))
    ]
    expected = whole.window(data, [8])
    for rank in ranks:
        rank.accumulator.zero()
        rank.accumulator.accumulate_gradients(sums, loss, weight)
        report = rank.accumulator.step()
        assert (report.outcome, report.weight, report.update_count) == (ga.Outcome.APPLIED, expected.weight, 1)
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
        assert rank.weights() == ranks[0].weights()


def test_pain_30_a_window_in_progress_is_not_lost_in_silence_and_goes_on_elsewhere_to_the_bit():
    """transformers #22143, OneTrainer #1465, mflux #447: who resumes in the middle of a window loses its gradients."""
    arrays, parts = mlp_arrays(5, 9, 3), micro_batches(mlp_data(12, 5, 3), [3, 1, 4, 2, 2])
    before, through = (Model(arrays, mlp_loss, optimizer=ga.AdamW, max_grad_norm=0.5) for _ in range(2))
    for model in (before, through):
        model.window(mlp_data(6, 5, 3, seed=1), [6])
        for one in parts[:2]:
            model.accumulate(one)
    with pytest.raises(ga.GAStateError, match="2 micro-batches is in progress"):
        before.accumulator.state_dict()
    # What the window holds is at hand.
    held = before.accumulator.window()
    sums = [before.accumulator.accumulated_gradient(index).numpy() for index in range(len(before.parameters))]
    weights = {name: x.numpy() for name, x in before.parameters.items()}
    state = before.accumulator.optimizer.state_dict()
    after = Model(weights, mlp_loss, optimizer=ga.AdamW, max_grad_norm=0.5)
    after.accumulator.optimizer.load_state_dict(state)
    after.accumulator.accumulate_gradients(sums, held.loss * held.weight, held.weight)
    for model in (after, through):
        for one in parts[held.micro_batches :]:
            model.accumulate(one)
    found, expected = after.accumulator.step(), through.accumulator.step()
    assert (found.weight, found.gradient_norm, found.update_count) == (12, expected.gradient_norm, 2)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert after.weights() == through.weights()
    before.accumulator.zero()


def test_pain_31_32_times_16_is_64_times_8_to_the_bit():
    """transformers #14638: two splits of one batch had different curves; the answer was "numerical difference"."""
    arrays, data = mlp_arrays(7, 16, 4), mlp_data(512, 7, 4)
    models = [Model(arrays, mlp_loss, max_grad_norm=1.0) for _ in range(2)]
    for _ in range(3):
        first, second = (model.window(data, split) for model, split in zip(models, ([32] * 16, [64] * 8)))
        assert first.gradient_norm == second.gradient_norm
    assert models[0].weights() == models[1].weights()


def test_pain_32_c_programs_train_without_python(tmp_path):
    """onnxruntime #4002, #11637, #12994, tensorflow #9837: training, gradients and optimizers from C and C++."""
    program = ROOT / "build" / "examples" / "own_gradients"
    done = subprocess.run([program], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libgradaccum" in needed and "python" not in needed and "swift" not in needed
