"""The laws of the window as properties of random lives of it, to the last bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import (
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
from programs import (
    Accumulate,
    BadLoss,
    EndData,
    Library,
    MicroBatch,
    Step,
    Zero,
    clipping,
    missing,
    poisons,
    refused,
    seeds,
)
from tally import FLAT_MEMORY, NO_TRACE, ONE_CLOCK, SPLIT_INVARIANCE, TRUE_WEIGHTS, examples

def decayed(parameter: np.ndarray, gradient: np.ndarray, slots: list[np.ndarray], update: ga.Update) -> None:
    """A rule of the caller, with a clock and a state."""
    slots[0] *= np.float32(0.9)
    slots[0] += gradient * np.float32(update.gradient_scale)
    parameter -= np.float32(update.lr / update.update) * slots[0]


def grouped(parameters: Any, **options: Any) -> ga.AdamW:
    """Some parameters with a rate, a decay and a clip of their own."""
    parameters = tuple(parameters)
    optimizer = ga.AdamW(parameters, **options)
    optimizer.add_group(parameters[:2], lr_scale=0.5, weight_decay=0.0, max_grad_norm=0.25)
    optimizer.add_group(parameters[3:], weight_decay=0.2)
    return optimizer


# Every rule, with options that all of its terms take part with.
OPTIMIZERS: dict[str, tuple[Callable[..., ga.Optimizer], dict[str, Any]]] = {
    "sgd": (ga.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "adam": (ga.Adam, {"lr": 0.05, "weight_decay": 0.1}),
    "adamw": (ga.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    "adamw_in_groups": (grouped, {"lr": 0.05, "weight_decay": 0.1}),
    "radam": (ga.RAdam, {"lr": 0.05, "betas": (0.8, 0.7), "weight_decay": 0.1}),
    "nadam": (ga.NAdam, {"lr": 0.05, "weight_decay": 0.1}),
    "lion": (ga.Lion, {"lr": 0.05, "weight_decay": 0.1}),
    "lamb": (ga.LAMB, {"lr": 0.05, "weight_decay": 0.1}),
    "lars": (ga.LARS, {"lr": 0.05, "weight_decay": 0.1, "trust_coefficient": 0.5}),
    "adafactor": (ga.Adafactor, {"lr": 0.05, "weight_decay": 0.1}),
    "muon": (ga.Muon, {"lr": 0.05}),
    "adamw8bit": (ga.AdamW8bit, {"lr": 0.05, "weight_decay": 0.1, "min_8bit_size": 0}),
    "custom": (ga.CustomOptimizer, {"rule": decayed, "lr": 0.05, "slots": 1}),
}

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _threads():
    before = ga.get_num_threads()
    ga.set_num_threads(1)
    yield
    ga.set_num_threads(before)


def test_every_optimizer_is_tested():
    classes = {x for x in vars(ga).values() if isinstance(x, type) and issubclass(x, ga.Optimizer)}
    assert classes - {ga.Optimizer} == {cls for cls, _ in OPTIMIZERS.values()} - {grouped}


# ====== Split invariance ======


@st.composite
def splits(draw: st.DrawFn, samples: int) -> list[int]:
    """Sizes that add up to the samples; some are empty."""
    cuts = draw(st.lists(st.integers(0, samples), max_size=samples))
    return np.diff([0, *sorted(cuts), samples]).tolist()


def trained(kind: str, samples: int, seed: int, split_of_each: list[list[int]], threads: int, **window: Any) -> str:
    """The fingerprint of a window for each of the splits."""
    optimizer, options = window.pop("optimizer")
    ga.set_num_threads(threads)
    if kind == "gpt":
        arrays, loss, weight = gpt_arrays(11, 8, 5, 1, seed), gpt_loss(2), gpt_weight
        data = gpt_data(samples, 5, 11, seed + 1)
    else:
        arrays, loss, weight = mlp_arrays(5, 9, 3, seed=seed), mlp_loss, lambda data: float(len(data["x"]))
        data = mlp_data(samples, 5, 3, seed + 1)
    model = Model(arrays, loss, weight=weight, optimizer=optimizer, options=options, **window)
    return model.fingerprint(data, split_of_each)


@pytest.mark.law(SPLIT_INVARIANCE)
@every_optimizer
@pytest.mark.parametrize("kind", ["gpt", "mlp"])
@examples(12)
@given(data=st.data(), samples=st.integers(1, 9), seed=seeds, clipped=clipping, windows=st.integers(1, 3))
def test_any_two_splits_give_the_same_bits(optimizer, kind, data, samples, seed, clipped, windows):
    found = []
    for threads in (1, data.draw(st.integers(2, 4))):
        parts = [data.draw(splits(samples)) for _ in range(windows)]
        found.append(trained(kind, samples, seed, parts, threads, optimizer=OPTIMIZERS[optimizer], **clipped))
    assert found[0] == found[1]


# ====== Lives of windows of given gradients ======

exact_weights = st.sampled_from([1.0, 2.0, 3.0, 7.0, 0.5, 128.0])
windows_of = st.lists(st.builds(Accumulate, seeds, exact_weights, missing), min_size=1, max_size=4)
lives = st.lists(windows_of, min_size=1, max_size=6)
# With weights that a mean can be made with exactly.
powers = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0, 128.0])
lives_in_powers = st.lists(
    st.lists(st.builds(Accumulate, seeds, powers, missing), min_size=1, max_size=4), min_size=1, max_size=6
)


clocks = st.sampled_from([None, "updates", "weight"])


def run(optimizer: str, calls: list[Any], window: dict[str, Any], clock: str | None = None) -> Library:
    cls, options = OPTIMIZERS[optimizer]
    library = Library(cls, options, window, clock)
    for call in calls:
        library.make(call)
    return library


def ended(window: list[Accumulate]) -> list[Any]:
    return [*window, Step()]


def joined(window: list[Accumulate]) -> tuple[list[np.ndarray | None], float, float]:
    """The window as one micro-batch: sums of these gradients are exact."""
    gradients: list[np.ndarray | None] = []
    for of_one in zip(*(call.gradients() for call in window)):
        given_ = [array for array in of_one if array is not None]
        gradients.append(sum(given_[1:], given_[0]) if given_ else None)
    return gradients, sum(call.loss for call in window), sum(call.weight for call in window)


@pytest.mark.law(TRUE_WEIGHTS, ONE_CLOCK)
@every_optimizer
@examples(40)
@given(life=lives, clipped=clipping, clock=clocks)
def test_a_window_is_one_batch_however_many_calls_it_takes(optimizer, life, clipped, clock):
    """State, decay, bias correction, schedules and averages advance with updates: a window of many calls is one of a
    single call."""
    many = run(optimizer, list(chain.from_iterable(map(ended, life))), clipped, clock)
    single = run(optimizer, [], clipped, clock)
    for number, window in enumerate(life):
        single.accumulator.accumulate_gradients(*joined(window))
        report = single.accumulator.step()
        assert replace(many.reports[number], micro_batches=1) == report
        assert report.update_count == number + 1
    assert many.bits() == single.bits()


@pytest.mark.law(TRUE_WEIGHTS)
@every_optimizer
@examples(25)
@given(life=lives, clipped=clipping, power=st.integers(-12, 12))
def test_the_unit_of_the_weight_does_not_matter(optimizer, life, clipped, power):
    """Sums and weights times a power of two, as if samples were counted in other units: the mean is the same."""
    plain = run(optimizer, list(chain.from_iterable(map(ended, life))), clipped)
    scaled = run(optimizer, [], clipped)
    factor = 2.0**power
    for number, window in enumerate(life):
        for call in window:
            gradients = [None if x is None else x * np.float32(factor) for x in call.gradients()]
            scaled.accumulator.accumulate_gradients(gradients, call.loss * factor, call.weight * factor)
        report = scaled.accumulator.step()
        assert replace(report, weight=report.weight / factor) == plain.reports[number]
    assert plain.bits() == scaled.bits()


@pytest.mark.law(TRUE_WEIGHTS)
@every_optimizer
@examples(25)
@given(life=lives_in_powers, clipped=clipping)
def test_means_with_their_weights_are_sums(optimizer, life, clipped):
    plain = run(optimizer, list(chain.from_iterable(map(ended, life))), clipped)
    means = run(optimizer, [], {**clipped, "loss_reduction": "mean"})
    for number, window in enumerate(life):
        for call in window:
            gradients = [None if x is None else x / np.float32(call.weight) for x in call.gradients()]
            means.accumulator.accumulate_gradients(gradients, call.loss / call.weight, call.weight)
        assert means.accumulator.step() == plain.reports[number]
    assert plain.bits() == means.bits()


# ====== A skip leaves no trace ======

zero_weights = st.builds(Accumulate, seeds, st.just(0.0), missing)
healthy = st.builds(Accumulate, seeds, exact_weights, missing)
poisoned = st.builds(Accumulate, seeds, exact_weights, poison=poisons)


aborted = st.builds(
    MicroBatch, st.lists(healthy | poisoned, min_size=1, max_size=3).map(tuple), abort=st.just(True)
)
bad_losses = st.builds(BadLoss, seeds, poisons)


@st.composite
def dropped(draw: st.DrawFn, isolated: bool) -> list[Any]:
    """Calls after which everything must be as before."""
    kind = draw(st.sampled_from(["poisoned", "zero weight", "zero", "drop", "aborted", "nothing"]))
    whole = draw(st.lists(healthy | poisoned | zero_weights, min_size=1, max_size=4))
    if kind == "poisoned":
        others = [] if isolated else draw(st.lists(healthy, max_size=3))
        place = draw(st.integers(0, len(others)))
        return [*others[:place], draw(poisoned), *others[place:], Step()]
    if kind == "zero weight":
        return [*draw(st.lists(zero_weights, min_size=1, max_size=3)), Step()]
    if kind == "aborted":
        return [*draw(st.lists(aborted, min_size=1, max_size=2)), Step()] if isolated else [draw(bad_losses)]
    ends = {"zero": [*whole, Zero()], "drop": [*whole, EndData("drop")], "nothing": [Zero()]}
    return ends[kind]


def survivors(report: ga.Report) -> ga.Report:
    """The report without what is about those that were dropped."""
    return replace(report, aborted_micro_batches=0, non_finite_parameter=None, non_finite_micro_batch=None)


@pytest.mark.law(NO_TRACE)
@every_optimizer
@pytest.mark.parametrize("isolated", [False, True])
@examples(30)
@given(data=st.data(), life=lives, clipped=clipping, clock=clocks)
def test_what_is_dropped_leaves_no_trace(optimizer, isolated, data, life, clipped, clock):
    """A life with dropped windows before, between and after the others, and refused calls and dropped micro-batches
    within them, has the reports, the weights, their averages, the rates and the state of the life without."""
    clipped = {**clipped, "isolated": isolated}
    clean = run(optimizer, list(chain.from_iterable(map(ended, life))), clipped, clock)
    troubled = run(optimizer, [], clipped, clock)
    aside = [refused, bad_losses, aborted, poisoned] if isolated else [refused, bad_losses]
    kept = []
    for window in life:
        for call in data.draw(dropped(isolated)):
            before = troubled.bits()
            report = troubled.make(call)
            assert report is None or report.update_count == len(kept)
            assert troubled.bits() == before
        for call in window:
            troubled.make(call)
            if data.draw(st.booleans()):
                troubled.make(data.draw(st.one_of(aside)))
        kept.append(troubled.make(Step()))
    assert [survivors(report) for report in kept] == clean.reports
    assert troubled.bits() == clean.bits()
    # One more update of both shows that the state is the same.
    for library in (clean, troubled):
        for call in ended([Accumulate(7, 2.0)]):
            library.make(call)
    assert troubled.bits() == clean.bits()


@pytest.mark.law(NO_TRACE)
@examples(30)
@given(data=st.data(), seed=seeds)
def test_a_loss_that_is_not_finite_leaves_no_trace(data, seed):
    """Refused before it touches an accumulator, wherever in the window it comes."""
    arrays, batch = mlp_arrays(5, 9, 3, seed=seed), mlp_data(6, 5, 3, seed)
    parts = micro_batches(batch, [2, 1, 3])
    clean, troubled = (Model(arrays, mlp_loss, max_grad_norm=0.5) for _ in range(2))
    for _ in range(2):
        clean.window(batch, [2, 1, 3])
        for one in parts:
            if data.draw(st.booleans()):
                bad = {**one, "x": one["x"] * np.float32(data.draw(poisons))}
                with pytest.raises(ga.GANonFiniteError, match="nothing was added"):
                    troubled.accumulate(bad)
            troubled.accumulate(one)
        troubled.accumulator.step()
    assert troubled.weights() == clean.weights()


# ====== Flat memory ======


@pytest.mark.law(FLAT_MEMORY)
@every_optimizer
@examples(8)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=4), clipped=clipping, rows=st.integers(1, 3))
def test_the_peak_does_not_depend_on_the_number_of_micro_batches(optimizer, counts, clipped, rows):
    gc.collect()  # what earlier tests have left in cycles
    cls, options = OPTIMIZERS[optimizer]
    model = Model(
        gpt_arrays(11, 8, 5, 1), gpt_loss(2), weight=gpt_weight, optimizer=cls, options=options, **clipped
    )
    micro_batch = part(gpt_data(4, 5, 11), 0, rows)

    def window(count: int) -> tuple[int, int]:
        ga.memory_reset_peak()
        for _ in range(count):
            model.accumulate(micro_batch)
        model.accumulator.step()
        memory = ga.memory_usage()
        return memory.peak_bytes, memory.live_bytes

    window(2)
    expected = window(2)
    calls = ga.memory_usage().allocator_calls
    for count in counts:
        assert window(count) == expected
    assert ga.memory_usage().allocator_calls == calls
