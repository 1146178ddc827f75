"""Gradients of a half format from outside, which may wait in the memory of their sum: to the bit the window of the same
numbers in float32, which are added at once."""

from __future__ import annotations

from typing import Any, NamedTuple, Union

import gradaccum as ga
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import seeds
from support import in_new_process, isas
from tally import NO_TRACE, SPLIT_INVARIANCE, examples
from windows import INF, NAN

FORMATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
HALVES = ("bfloat16", "float16")
# None, less than a group, groups with and without a rest, and several pieces.
SIZES = (0, 1, 31, 64, 97, 70_001)


class All(NamedTuple):
    """A micro-batch of gradients of all parameters, but for those that are missing."""

    seed: int
    format: str
    weight: float
    missing: frozenset[int]


class Singly(NamedTuple):
    """A micro-batch of one parameter after another, some more than once, each in its own format."""

    seed: int
    formats: list[tuple[int, str, float]]


class Own(NamedTuple):
    """A micro-batch of the library's own backward pass."""

    seed: int


class Look(NamedTuple):
    """A look at the sum of a parameter."""

    index: int


Event = Union[All, Singly, Own, Look]

formats = st.sampled_from([*FORMATS, *HALVES, *HALVES])
indices = st.integers(0, len(SIZES) - 1)
factors = st.sampled_from([1.0, 0.3, 3.0, -2.0])
events = st.one_of(
    st.builds(All, seeds, formats, st.sampled_from([1.0, 0.3, 7.0]), st.frozensets(indices, max_size=2)),
    st.builds(Singly, seeds, st.lists(st.tuples(indices, formats, factors), min_size=1, max_size=4)),
    st.builds(Own, seeds),
    st.builds(Look, indices),
)


def numbers(seed: int, index: int, format: str) -> np.ndarray:
    """A gradient, with numbers in it that are denormal in one format or the other."""
    rng = np.random.default_rng((seed, index))
    found = rng.standard_normal(SIZES[index]).astype(np.float32)
    found[::7] *= np.float32(1e-7)
    found[::11] *= np.float32(1e-38)
    return found.astype(FORMATS[format])


class Side:
    """An accumulator that gets gradients as they are, or widened to float32."""

    def __init__(self, is_widened: bool, **options: Any) -> None:
        self.is_widened = is_widened
        self.parameters = [ga.tensor(np.ones(size, np.float32), requires_grad=True) for size in SIZES]
        self.accumulator = ga.Accumulator(ga.SGD(self.parameters, lr=0.1), **options)

    def given(self, seed: int, index: int, format: str) -> np.ndarray:
        found = numbers(seed, index, format)
        return found.astype(np.float32) if self.is_widened else found

    def play(self, event: Event) -> bytes:
        """Returns what the event shows of the window."""
        accumulator = self.accumulator
        if isinstance(event, All):
            gradients = [
                None if index in event.missing else self.given(event.seed, index, event.format)
                for index in range(len(SIZES))
            ]
            accumulator.accumulate_gradients(gradients, 1.0, event.weight)
        elif isinstance(event, Singly):
            with accumulator.micro_batch():
                for index, format, scale in event.formats:
                    accumulator.accumulate_gradient(index, self.given(event.seed, index, format), scale=scale)
                accumulator.accumulate_gradients([None] * len(SIZES), 1.0, 2.0)
        elif isinstance(event, Own):
            with ga.Scope():
                coefficients = [ga.tensor(numbers(event.seed, index, "float32")) for index in (2, 5)]
                products = [ga.sum(self.parameters[i] * x) for i, x in zip((2, 5), coefficients)]
                accumulator.accumulate(products[0] + products[1], 1.0)
        else:
            return accumulator.accumulated_gradient(event.index).numpy().tobytes()
        return b""

    def weights(self) -> list[bytes]:
        return [x.numpy().tobytes() for x in self.parameters]


def require_same(life: list[list[Event]], **options: Any) -> None:
    """Plays windows of events on both sides."""
    sides = Side(False, **options), Side(True, **options)
    for window in life:
        for event in window:
            assert sides[0].play(event) == sides[1].play(event), event
        if sides[0].accumulator.window().micro_batches == 0:
            continue
        reports = [side.accumulator.step() for side in sides]
        assert reports[0] == reports[1]
        assert np.array_equal(*[side.accumulator.gradient_norms() for side in sides])
        assert sides[0].weights() == sides[1].weights()


@pytest.mark.law(SPLIT_INVARIANCE)
@examples(60)
@given(
    life=st.lists(st.lists(events, min_size=1, max_size=6), min_size=1, max_size=3),
    steps=st.integers(1, 6),
    reduction=st.sampled_from(["sum", "mean"]),
    isolated=st.booleans(),
    threads=st.integers(1, 3),
)
def test_formats_change_no_bit_of_a_window(life, steps, reduction, isolated, threads):
    before = ga.get_num_threads()
    ga.set_num_threads(threads)
    try:
        require_same(life, accumulation_steps=steps, loss_reduction=reduction, isolated=isolated)
    finally:
        ga.set_num_threads(before)


def play_every_length() -> str:
    for half in HALVES:
        for count in range(1, 5):
            gradients: list[Event] = [All(number, half, 0.3 + number, frozenset()) for number in range(count)]
            for steps in range(1, 6):
                require_same([gradients, [*gradients[1:], Own(9)]], accumulation_steps=steps)
    return ga.instruction_set()


@pytest.mark.parametrize("isa", isas())
def test_formats_change_no_bit_on_any_instruction_set(isa):
    assert in_new_process(play_every_length, GRADACCUM_ISA=isa) == isa


@pytest.mark.law(NO_TRACE)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("steps, number", [(1, 0), (3, 0), (3, 1), (3, 2), (5, 2)])
def test_what_is_not_finite_is_found_while_it_waits(half, bad, steps, number):
    side, clean = Side(False, accumulation_steps=steps), Side(False, accumulation_steps=steps)
    for index in range(3):
        gradients = [numbers(index, parameter, half) for parameter in range(len(SIZES))]
        if index == number:
            gradients[4][5] = bad
        side.accumulator.accumulate_gradients(gradients, 1.0, 1.0)
    report = side.accumulator.step()
    assert report.outcome == ga.Outcome.SKIPPED_NON_FINITE and report.non_finite_parameter == 4
    require_same_after(side, clean, half)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_micro_batch_of_what_is_not_finite_is_named_while_it_waits(half, number):
    side = Side(False, accumulation_steps=4)

    def window() -> ga.Report:
        for index in range(3):
            gradients = [numbers(index, parameter, half) for parameter in range(len(SIZES))]
            if index == number:
                gradients[3][2] = INF
            side.accumulator.accumulate_gradients(gradients, 1.0, 1.0)
        return side.accumulator.step()

    # It is worth a look after the first skip, or under a loss scale.
    assert window().non_finite_micro_batch is None
    assert window().non_finite_micro_batch == number
    side.accumulator.set_loss_scaler(ga.LossScaler(init_scale=2.0))
    side.accumulator.accumulate_gradients([None] * len(SIZES), 1.0, 1.0)
    assert side.accumulator.step().outcome == ga.Outcome.APPLIED
    report = window()
    assert report.outcome == ga.Outcome.SKIPPED_OVERFLOW and report.non_finite_micro_batch == number


@pytest.mark.law(NO_TRACE)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_window_that_is_dropped_leaves_nothing_waiting(half, number):
    side, clean = Side(False, accumulation_steps=4), Side(False, accumulation_steps=4)
    for index in range(number):
        side.play(All(index, half, 1.0, frozenset()))
    side.accumulator.zero()
    require_same_after(side, clean, half)


def require_same_after(side: Side, clean: Side, half: str) -> None:
    for a in (side, clean):
        for index in range(4):
            a.play(All(10 + index, half, 0.3, frozenset({index})))
    assert side.accumulator.step() == clean.accumulator.step() and side.weights() == clean.weights()
