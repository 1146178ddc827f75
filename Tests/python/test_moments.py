"""Micro-batches that go into the moments of Adam (AdamA), against a plain reference."""

from __future__ import annotations

from random import Random

import gradaccum as ga
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import gpt_arrays, gpt_data, gpt_loss, gpt_weight, part
from tally import NO_TRACE, ONE_CLOCK, SCALING, TRUE_WEIGHTS, examples

SHAPES = ((7, 5), (11,), (3, 300))


class Reference:
    """Zhang et al., arXiv 2305.19982, algorithm 1, in float64, with AdamW's weight decay."""

    def __init__(self, arrays, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        self.values = [x.astype(np.float64) for x in arrays]
        self.m = [np.zeros(x.shape) for x in arrays]
        self.v = [np.zeros(x.shape) for x in arrays]
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.updates = 0

    def update(self, micro_batches):
        self.updates += 1
        beta1, beta2 = self.betas
        for i in range(len(self.values)):
            self.m[i] *= beta1
            self.v[i] *= beta2
            for gradients in micro_batches:
                g = gradients[i].astype(np.float64)
                self.m[i] += (1 - beta1) * g
                self.v[i] += (1 - beta2) * g * g
            m = self.m[i] / (1 - beta1**self.updates)
            v = self.v[i] / (1 - beta2**self.updates)
            self.values[i] *= 1 - self.lr * self.weight_decay
            self.values[i] -= self.lr * m / (np.sqrt(v) + self.eps)


def leaves(seed=1):
    rng = np.random.default_rng(seed)
    return [ga.tensor(rng.standard_normal(shape), requires_grad=True) for shape in SHAPES]


def gradients(seed):
    rng = np.random.default_rng(100 + seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def moments(optimizer, **options):
    return ga.Accumulator(optimizer, normalization="sum", accumulate_into="moments", **options)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 3, 3), (1, 4, 2, 1, 3)])
@pytest.mark.parametrize("way", ["plain", "bfloat16", "begun"])
def test_parity_with_the_paper(sizes, way):
    x = leaves()
    reference = Reference([value.numpy() for value in x])
    accumulator = moments(ga.AdamW(x, 0.1))
    seed = 0
    for size in sizes:
        batches = []
        for _ in range(size):
            seed += 1
            arrays = gradients(seed)
            if way == "bfloat16":
                halves = [(a.view(np.uint32) >> 16).astype(np.uint16) for a in arrays]
                arrays = [(h.astype(np.uint32) << 16).view(np.float32) for h in halves]
                accumulator.accumulate_gradients(halves, 0.0, 1, dtype=ga.bfloat16)
            elif way == "begun":  # two additions, which are one micro-batch
                with accumulator.micro_batch():
                    accumulator.accumulate_gradients(arrays, 0.0, 1)
                    accumulator.accumulate_gradients(arrays, 0.0, 1)
                arrays = [2 * a for a in arrays]
            else:
                accumulator.accumulate_gradients(arrays, 0.0, 1)
            batches.append(arrays)
        assert accumulator.step().micro_batches == size
        reference.update(batches)
    for value, expected in zip(x, reference.values):
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-5)


def gpt(accumulate_into, options=None):
    parameters = {name: ga.tensor(a, requires_grad=True) for name, a in gpt_arrays(17, 16, 8, 2).items()}
    optimizer = ga.AdamW(parameters.values(), 1e-2)
    accumulator = ga.Accumulator(
        optimizer, normalization="sum", accumulate_into=accumulate_into, **(options or {})
    )
    return parameters, accumulator


def accumulate(parameters, accumulator, data):
    loss = gpt_loss(2)(parameters, data)
    accumulator.accumulate(loss, gpt_weight(data))


def test_one_micro_batch_to_a_window_is_adamw_to_the_bit():
    found = []
    for accumulate_into in ("gradients", "moments"):
        parameters, accumulator = gpt(accumulate_into)
        for seed in range(4):
            accumulate(parameters, accumulator, gpt_data(5, 8, 17, seed=seed) if seed else gpt_data(5, 8, 17))
            accumulator.step()
        found.append([x.numpy().tobytes() for x in parameters.values()])
    assert found[0] == found[1]


def test_a_checkpoint_makes_no_difference():
    found = []
    for is_checkpointed in (False, True):
        w = [ga.tensor(np.random.default_rng(i).standard_normal((6, 6)), requires_grad=True) for i in range(2)]
        accumulator = moments(ga.AdamW(w, 0.1))
        block = lambda h: ga.relu(ga.linear(ga.relu(ga.linear(h, w[0])), w[1]))  # noqa: E731
        for seed in range(4):
            x = ga.tensor(np.random.default_rng(9 + seed).standard_normal((5, 6)))
            hidden = ga.linear(x, w[0])
            accumulator.accumulate(ga.sum(ga.checkpoint(block, hidden) if is_checkpointed else block(hidden)), 5)
            if seed % 2:
                accumulator.step()
        found.append([value.numpy().tobytes() for value in w])
    assert found[0] == found[1]


def test_a_model_is_trained_and_several_micro_batches_are_near_to_adamw():
    data = gpt_data(8, 8, 17)
    losses = {}
    for accumulate_into in ("gradients", "moments"):
        parameters, accumulator = gpt(accumulate_into)
        losses[accumulate_into] = []
        for _ in range(30):
            for start in range(0, 8, 2):
                accumulate(parameters, accumulator, part(data, start, start + 2))
            losses[accumulate_into].append(accumulator.step().loss)
    assert losses["moments"][-1] < 0.7 * losses["moments"][0]
    assert losses["moments"][0] == losses["gradients"][0]


def test_a_micro_batch_that_is_not_finite_is_dropped_without_a_trace():
    found = []
    for bad in (False, True):
        x = leaves()
        accumulator = moments(ga.AdamW(x, 0.1))
        for seed in range(6):
            if bad:
                spoiled = gradients(99)
                spoiled[1][3] = np.nan
                accumulator.accumulate_gradients(spoiled, 0.0, 1)
                accumulator.accumulate_gradients(gradients(98), np.inf, 1)
            accumulator.accumulate_gradients(gradients(seed), 1.0, 1)
            if seed % 2:
                report = accumulator.step()
                assert (report.micro_batches, report.weight, report.loss) == (2, 2.0, 1.0)
                assert report.aborted_micro_batches == (4 if bad else 0)
        found.append([value.numpy().tobytes() for value in x])
    assert found[0] == found[1]
    only_bad = moments(ga.AdamW(leaves()))
    only_bad.accumulate_gradients([np.full(s, np.nan, np.float32) for s in SHAPES], 0.0, 1)
    assert only_bad.step().outcome == ga.Outcome.SKIPPED_NON_FINITE
    raising = moments(ga.AdamW(leaves()), on_non_finite="raise")
    with pytest.raises(ga.GANonFiniteError, match=r"parameters\[0\]"):
        raising.accumulate_gradients([np.full(s, np.nan, np.float32) for s in SHAPES], 0.0, 1)


def test_no_memory_is_kept_across_a_window():
    x = leaves()
    accumulator = moments(ga.AdamW(x))
    accumulator.accumulate_gradients(gradients(0), 0.0, 1)
    assert accumulator.window().accumulator_bytes == 0
    parameters, gpt_accumulator = gpt("moments")
    accumulate(parameters, gpt_accumulator, gpt_data(4, 8, 17))
    assert gpt_accumulator.window().accumulator_bytes == 0
    micro_batch = accumulator.micro_batch()
    accumulator.accumulate(ga.sum(x[0]), 1.0)
    assert accumulator.window().accumulator_bytes > 0
    micro_batch.abort()
    assert accumulator.window().accumulator_bytes == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"normalization": "weight"}, "normalization"),
        ({"max_grad_norm": 1.0}, "max_grad_norm"),
        ({"max_grad_value": 1.0}, "max_grad_value"),
        ({"agc_clipping": 0.01}, "agc_clipping"),
        ({"max_loss_z_score": 3.0}, "max_loss_z_score"),
        ({"max_norm_z_score": 3.0}, "max_norm_z_score"),
    ],
)
def test_what_moments_exclude_is_an_error(options, word):
    with pytest.raises(ga.GAInvalidArgumentError, match=word):
        ga.Accumulator(ga.AdamW(leaves()), accumulate_into="moments", **{"normalization": "sum", **options})


def test_what_cannot_be_taken_back_is_an_error():
    with pytest.raises(ga.GAStateError, match="AdamW"):
        moments(ga.SGD(leaves()))
    with pytest.raises(ga.GAInvalidArgumentError, match="accumulate_into is .state."):
        ga.Accumulator(ga.AdamW(leaves()), accumulate_into="state")
    accumulator = moments(ga.AdamW(leaves()))
    accumulator.accumulate_gradients(gradients(0), 0.0, 1)
    for call in (accumulator.zero, lambda: accumulator.end_data("drop")):
        with pytest.raises(ga.GAStateError, match="take a step"):
            call()
    assert accumulator.end_data("step").outcome == ga.Outcome.APPLIED


@pytest.mark.law(NO_TRACE)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("way", ["at once", "begun"])
def test_a_window_without_weight_changes_nothing(reduction, way):
    found = []
    for is_tried in (False, True):
        x = leaves()
        optimizer = ga.AdamW(x, 0.1)
        optimizer.schedule = ga.schedules.Step(1, gamma=0.5)
        accumulator = moments(optimizer, loss_reduction=reduction)
        for seed in range(3):
            if is_tried:
                before = [value.numpy().tobytes() for value in x], optimizer.clock("updates")
                if way == "begun":
                    with accumulator.micro_batch():
                        accumulator.accumulate_gradients(gradients(50), 1.0, 0)
                else:
                    accumulator.accumulate_gradients(gradients(50), 1.0, 0)
                report = accumulator.step()
                assert (report.outcome, report.micro_batches) == (ga.Outcome.SKIPPED_ZERO_WEIGHT, 1)
                assert ([value.numpy().tobytes() for value in x], optimizer.clock("updates")) == before
            accumulator.accumulate_gradients(gradients(seed), 1.0, 2)
            assert accumulator.step().outcome == ga.Outcome.APPLIED
        found.append([value.numpy().tobytes() for value in x])
    assert found[0] == found[1]


def test_what_turns_out_to_weigh_nothing_stays_for_the_next_window():
    x = leaves()
    reference = Reference([value.numpy() for value in x])
    accumulator = moments(ga.AdamW(x, 0.1))
    before = [value.numpy().tobytes() for value in x]
    accumulator.accumulate_gradients(gradients(0), 1.0, None)
    accumulator.set_weight(0, 0.0)
    report = accumulator.step()
    assert (report.outcome, report.update_count) == (ga.Outcome.SKIPPED_ZERO_WEIGHT, 0)
    assert [value.numpy().tobytes() for value in x] == before
    with pytest.raises(ga.GAStateError, match="take a step"):
        accumulator.zero()
    accumulator.accumulate_gradients(gradients(1), 1.0, 1)
    assert accumulator.step().outcome == ga.Outcome.APPLIED
    reference.update([gradients(0), gradients(1)])
    for value, expected in zip(x, reference.values):
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_frozen_parameters_alone_are_an_update_as_with_sums():
    found = []
    for options in ({}, {"accumulate_into": "moments"}):
        x = leaves()
        accumulator = ga.Accumulator(ga.AdamW(x, 0.1), normalization="sum", **options)
        for value in x:
            value.requires_grad = False
        accumulator.accumulate_gradients(gradients(0), 1.0, 1)
        report = accumulator.step()
        found.append((report.outcome, report.update_count))
    assert found[0] == found[1] == (ga.Outcome.APPLIED, 1)


@pytest.mark.law(SCALING)
@pytest.mark.parametrize("way", ["plain", "float16", "scaled", "autograd"])
def test_loss_scale_changes_no_bit_and_an_overflow_is_dropped(way):
    found = []
    for way, scaler in (("plain", None), (way, None), (way, ga.LossScaler(2.0**14))):
        x = leaves()
        accumulator = moments(ga.AdamW(x, 0.1), loss_scaler=scaler)
        with pytest.raises(ga.GAStateError, match="accumulate_into is moments"):
            accumulator.unscale()
        for number in range(6):
            arrays = [np.round(a * 8) / 8 for a in gradients(number)]
            if way == "autograd":
                with ga.Scope():
                    terms = [ga.sum(value * ga.tensor(a)) for value, a in zip(x, arrays)]
                    accumulator.accumulate(terms[0] + terms[1] + terms[2], 1)
            elif way == "scaled":
                accumulator.accumulate_gradients([a * np.float32(8) for a in arrays], 1.0, 1, scale=8.0)
            else:
                kind = np.float16 if way == "float16" else np.float32
                accumulator.accumulate_gradients([a.astype(kind) for a in arrays], 1.0, 1)
            if number % 2:
                if scaler is not None and number == 3:
                    accumulator.accumulate_gradients([np.full(s, np.inf, np.float32) for s in SHAPES], 1.0, 1)
                report = accumulator.step()
                assert report.outcome == ga.Outcome.APPLIED
        found.append([value.numpy().tobytes() for value in x])
    assert found[0] == found[1] == found[2]
    assert report.loss_scale == scaler.scale == 2.0**13
    accumulator.accumulate_gradients([np.full(s, np.inf, np.float32) for s in SHAPES], 1.0, 1)
    report = accumulator.step()
    assert (report.outcome, report.non_finite_micro_batch, scaler.scale) == (ga.Outcome.SKIPPED_OVERFLOW, 0, 2.0**12)


class Moments:
    """Parameters in float64 whose moments take in one micro-batch after another; a frozen one keeps what its moments
    hold."""

    lr, betas, eps, weight_decay = 0.05, (0.8, 0.9), 1e-8, 0.1

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.values = [x.astype(np.float64) for x in arrays]
        self.moments = [(np.zeros(x.shape), np.zeros(x.shape)) for x in arrays]
        self.holds = [False] * len(arrays)
        self.counts = [0] * len(arrays)
        self.frozen = [False] * len(arrays)

    def take(self, gradients: list[np.ndarray | None], factor: float) -> None:
        beta1, beta2 = self.betas
        for i, gradient in enumerate(gradients):
            if gradient is None or self.frozen[i]:
                continue
            (m, v), g = self.moments[i], factor * gradient.astype(np.float64)
            if not self.holds[i]:
                m, v = beta1 * m, beta2 * v
            self.moments[i] = m + (1 - beta1) * g, v + (1 - beta2) * g * g
            self.holds[i] = True

    def update(self) -> None:
        beta1, beta2 = self.betas
        for i, (m, v) in enumerate(self.moments):
            if not self.holds[i] or self.frozen[i]:
                continue
            self.holds[i] = False
            self.counts[i] += 1
            root = np.sqrt(v / (1 - beta2 ** self.counts[i])) + self.eps
            self.values[i] *= 1 - self.lr * self.weight_decay
            self.values[i] -= self.lr * m / (1 - beta1 ** self.counts[i]) / root


@pytest.mark.law(TRUE_WEIGHTS, NO_TRACE, ONE_CLOCK)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@examples(60)
@given(seed=st.integers(0, 2**32), scaled=st.booleans())
def test_random_lives_do_what_the_paper_does(reduction, seed, scaled):
    """Micro-batches of any weight, given at once or later, aborted or not finite; parameters that freeze and thaw."""
    random, rng = Random(seed), np.random.default_rng(seed)
    shapes = ((3, 5), (4,), ())
    x = [ga.tensor(np.asarray(rng.standard_normal(shape), np.float32), requires_grad=True) for shape in shapes]
    model = Moments([value.numpy() for value in x])
    optimizer = ga.AdamW(x, lr=model.lr, betas=model.betas, eps=model.eps, weight_decay=model.weight_decay)
    scaler = ga.LossScaler(256.0, dynamic=False) if scaled else None
    accumulator = moments(optimizer, loss_reduction=reduction, loss_scaler=scaler)
    begun = counted = updates = 0
    total, waiting = 0.0, []

    def micro_batch() -> None:
        nonlocal begun, counted, total
        arrays = [
            None if i and random.random() < 0.15 else np.asarray(rng.integers(-64, 65, shape) / 8, np.float32)
            for i, shape in enumerate(shapes)
        ]
        weight = random.choice([0.0, 0.5, 1.0, 2.0, 3.0])
        way = random.choice(["plain", "begun", "late", "abort", "bad"])
        begun += 1
        if way == "bad":
            arrays[0].flat[0] = np.nan
            accumulator.accumulate_gradients(arrays, 1.0, weight)
            if not model.frozen[0]:  # nobody looks at it there
                return
        elif way == "plain":
            accumulator.accumulate_gradients(arrays, 1.0, weight)
        elif way == "late" and reduction == "sum":
            accumulator.accumulate_gradients(arrays, 1.0, None)
            waiting.append(begun - 1)
            counted += 1
            model.take(arrays, 1.0)
            return
        else:
            one = accumulator.micro_batch()
            accumulator.accumulate_gradients(arrays, 1.0, None if way == "late" else weight)
            if way == "late":
                one.set_weight(weight)
            if way == "abort":
                one.abort()
                return
            one.commit()
        counted += 1
        total += weight
        if weight > 0:
            model.take(arrays, weight if reduction == "mean" else 1.0)

    for _ in range(random.randint(5, 30)):
        what = random.random()
        if what < 0.5:
            micro_batch()
        elif what < 0.65:
            weight = random.choice([0.0, 1.0, 2.0])
            for number in waiting:
                accumulator.set_weight(number, weight)
                total += weight
            waiting.clear()
        elif what < 0.75:
            i = random.randrange(len(x))
            model.frozen[i] = not model.frozen[i]
            x[i].requires_grad = not model.frozen[i]
        elif waiting:
            with pytest.raises(ga.GAStateError, match="weight of micro-batch"):
                accumulator.step()
        elif begun > 0:
            report = accumulator.step()
            if total > 0:
                model.update()
                updates += 1
            assert (report.outcome == ga.Outcome.APPLIED) == (total > 0)
            assert (report.weight, report.micro_batches, report.update_count) == (total, counted, updates)
            begun = counted = 0
            total = 0.0
        for value, expected in zip(x, model.values):
            np.testing.assert_allclose(value.numpy(), expected, rtol=2e-4, atol=2e-4)
    for number in waiting:
        accumulator.set_weight(number, 1.0)
    accumulator.end_data()
