"""Averages of weights move once per applied update, are swapped for an evaluation, and need no memory on the way."""

from __future__ import annotations

import gc
import math

import gradaccum as ga
import numpy as np
import pytest

from tally import FLAT_MEMORY, ONE_CLOCK


class Training:
    """Two parameters that no test cares for the optimizer of."""

    def __init__(self, sizes: tuple[int, ...] = (3, 50_000)) -> None:
        self.rng = np.random.default_rng(7)
        self.parameters = [ga.tensor(self.rng.standard_normal(n), requires_grad=True) for n in sizes]
        self.optimizer = ga.AdamW(self.parameters, lr=0.1)
        self.accumulator = ga.Accumulator(self.optimizer)

    def window(self, weight: float = 1.0, factor: float = 1.0) -> ga.Report:
        gradients = [np.float32(factor) * self.rng.standard_normal(p.shape).astype(np.float32) for p in self.parameters]
        self.accumulator.accumulate_gradients(gradients, 0.0, weight)
        return self.accumulator.step()

    def weights(self) -> list[np.ndarray]:
        return [p.numpy() for p in self.parameters]


def averages(average: ga.WeightAverage) -> list[np.ndarray]:
    return [average.weights(index).numpy() for index in range(len(average.optimizer.parameters))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return [x.tobytes() for x in a] == [x.tobytes() for x in b]


@pytest.mark.law(ONE_CLOCK)
@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda t, w: 0.999),
        ({"decay": 0.5}, lambda t, w: 0.5),
        ({"decay": 0.6, "warmup": True}, lambda t, w: min(0.6, (1 + t) / (10 + t))),
        ({"half_life": 4}, lambda t, w: 2 ** (-1 / 4)),
        ({"half_life": 10, "clock": "weight"}, lambda t, w: 2 ** (-w / 10)),
        ({"half_life": 1e9, "clock": "weight", "warmup": True}, lambda t, w: (1 + t) / (10 + t)),
    ],
)
def test_averages_are_those_of_the_formula(options, keep):
    training = Training()
    average = ga.WeightAverage(training.optimizer, **options)
    expected = [x.astype(np.float64) for x in training.weights()]
    for update in range(1, 25):
        weight = float(update % 4 + 1)
        training.window(weight)
        training.window(weight, math.nan)
        kept = keep(update, weight)
        expected = [kept * x + (1 - kept) * y for x, y in zip(expected, training.weights())]
    for found, value in zip(averages(average), expected):
        np.testing.assert_allclose(found, value, rtol=0, atol=24 * 2**-22)


def test_weights_are_swapped_for_an_evaluation_only():
    training = Training()
    average = ga.WeightAverage(training.optimizer, 0.9)
    for _ in range(3):
        training.window()
    own, averaged = training.weights(), averages(average)
    with average.swapped():
        assert same(training.weights(), averaged) and same(averages(average), averaged)
        with ga.no_grad():
            assert ga.sum(training.parameters[0]).item() == pytest.approx(float(averaged[0].sum()), rel=1e-5)
        with pytest.raises(ga.GAStateError, match="swap_out"):
            training.window()
    assert same(training.weights(), own) and same(averages(average), averaged)
    assert training.window().update_count == 4
    with pytest.raises(KeyError):
        with average.swapped():
            raise KeyError
    training.window()


def test_a_closed_average_brings_the_weights_back_and_moves_no_more():
    training = Training()
    average = ga.WeightAverage(training.optimizer, 0.9)
    training.window()
    own = training.weights()
    average.swap_in()
    assert not same(training.weights(), own)
    average.close()
    assert same(training.weights(), own)
    training.window()
    with pytest.raises(ga.GAInvalidArgumentError, match="closed"):
        average.swap_in()


def test_an_average_keeps_its_optimizer_and_several_move_together():
    training = Training()
    slow, fast = (ga.WeightAverage(training.optimizer, decay) for decay in (0.9, 0.1))
    training.window()
    own = training.weights()
    assert not same(averages(slow), averages(fast))
    training.optimizer.close()
    training.accumulator.close()
    gc.collect()
    slow.swap_in()
    slow.swap_out()
    assert same(training.weights(), own)


@pytest.mark.law(FLAT_MEMORY)
def test_updates_with_an_average_need_no_memory():
    training = Training()
    before = ga.memory_usage().live_bytes
    average = ga.WeightAverage(training.optimizer, 0.9)
    own = ga.memory_usage().live_bytes - before
    assert 0 <= own - 4 * 50_003 < 4096
    training.window()
    steady = ga.memory_usage()
    for _ in range(5):
        training.window()
        with average.swapped():
            pass
    now = ga.memory_usage()
    assert (now.live_bytes, now.allocator_calls) == (steady.live_bytes, steady.allocator_calls)
    del average
    gc.collect()
    assert ga.memory_usage().live_bytes == before + (now.live_bytes - before - own)


def test_nothing_is_accumulated_or_swapped_while_the_weights_are_averages():
    training = Training()
    average, other = ga.WeightAverage(training.optimizer, 0.9), ga.WeightAverage(training.optimizer)
    training.window()
    p = training.parameters[0]
    training.accumulator.accumulate(ga.sum(p * p), 2)
    before = ga.sum(p * p)
    average.swap_in()
    for call in (
        average.swap_in,
        other.swap_in,
        average.reset,
        other.reset,
        training.accumulator.step,
        lambda: training.accumulator.accumulate(ga.sum(p * p), 2),
        lambda: ga.WeightAverage(training.optimizer),
    ):
        with pytest.raises(ga.GAStateError, match="swap_out"):
            call()
    with pytest.raises(ga.GAStateError, match="swap_in"):
        other.swap_out()
    between = ga.sum(p * p)
    average.swap_out()
    for loss in (before, between):
        with pytest.raises(ga.GAStateError, match="changed"):
            training.accumulator.accumulate(loss, 2)
    assert training.accumulator.step().weight == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 0.9, "half_life": 2}, "one of them"),
        ({"half_life": 0}, "half_life is 0"),
        ({"clock": "weight"}, "half_life"),
        ({"decay": math.nan}, "decay is nan"),
        ({"clock": "steps"}, "clock is 'steps'"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ga.GAInvalidArgumentError, match=words):
        ga.WeightAverage(Training().optimizer, **options)


def test_a_loaded_average_goes_on_to_the_bit():
    def average_of(training: Training) -> ga.WeightAverage:
        return ga.WeightAverage(training.optimizer, half_life=6, warmup=True)

    training, plain = Training(), Training()
    average, expected = average_of(training), average_of(plain)
    for _ in range(5):
        training.window()
        plain.window()
    saved = average.state_dict()
    assert saved["updates"] == average.updates == 5
    average.close()
    resumed = average_of(training)
    resumed.load_state_dict(saved)
    for _ in range(5):
        training.window()
        plain.window()
    assert resumed.updates == 10
    assert same(averages(resumed), averages(expected))


def test_what_is_not_loaded_changes_nothing():
    training = Training()
    average = ga.WeightAverage(training.optimizer, decay=0.5)
    training.window()
    before = average.state_dict()
    halves = [x[::2] for x in before["weights"]]
    for state, words in [
        ({}, "nothing"),
        ({**before, "weights": before["weights"][:1]}, "count is 1"),
        ({**before, "weights": [before["weights"][0], halves[1]]}, "25000"),
        ({**before, "weights": [x.astype(np.int64) for x in before["weights"]]}, "int64"),
        ({**before, "updates": -1}, "updates is -1"),
    ]:
        with pytest.raises(ga.GAError, match=words):
            average.load_state_dict(state)
    with average.swapped(), pytest.raises(ga.GAStateError, match="swap_out"):
        average.load_state_dict(before)
    assert average.updates == 1
    assert same(averages(average), before["weights"])
    spread = [np.repeat(x, 2)[::2] for x in before["weights"]]
    average.load_state_dict({"updates": 9, "weights": spread})
    assert average.updates == 9
    assert same(averages(average), before["weights"])
