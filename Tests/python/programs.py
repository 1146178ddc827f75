"""Random lives of a window: sequences of calls for hypothesis to draw, and what makes them on the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from hypothesis import strategies as st

SHAPES = ((3, 5), (4,), (), (2, 3, 2), (1, 1))


@dataclass(frozen=True)
class Accumulate:
    """Gradients of its own. They are small multiples of 1/8, whose sums are exact."""

    seed: int
    weight: float | None  # None: it comes later
    missing: frozenset[int] = frozenset()
    poison: float | None = None  # in one element

    def gradients(self) -> list[np.ndarray | None]:
        rng = np.random.default_rng(self.seed)
        arrays = [np.asarray(rng.integers(-64, 65, shape) / 8, np.float32) for shape in SHAPES]
        if self.poison is not None:
            arrays[self.seed % len(SHAPES)].reshape(-1)[-1] = self.poison
        return [None if i in self.missing else array for i, array in enumerate(arrays)]

    @property
    def loss(self) -> float:
        return (self.seed % 97) / 8


@dataclass(frozen=True)
class MicroBatch:
    """What is accumulated between begin and commit, or abort."""

    losses: tuple[Accumulate, ...]
    abort: bool = False
    given: float | None = None  # the weight of losses without one, given before the end


@dataclass(frozen=True)
class BadLoss:
    """An accumulate with a loss that is not finite: refused, or in isolated mode a micro-batch that is dropped."""

    seed: int
    loss: float


@dataclass(frozen=True)
class Refused:
    """An accumulate that is refused and changes nothing."""

    seed: int
    weight: float


@dataclass(frozen=True)
class Step:
    pass


@dataclass(frozen=True)
class Zero:
    pass


@dataclass(frozen=True)
class SetLearningRate:
    value: float


@dataclass(frozen=True)
class SetSteps:
    value: int


@dataclass(frozen=True)
class GiveWeights:
    """To all micro-batches that wait for one."""

    value: float


@dataclass(frozen=True)
class BeginData:
    pass


@dataclass(frozen=True)
class EndData:
    tail: str


Call = (
    Accumulate
    | MicroBatch
    | BadLoss
    | Refused
    | Step
    | Zero
    | SetLearningRate
    | SetSteps
    | GiveWeights
    | BeginData
    | EndData
)

seeds = st.integers(0, 10_000)
missing = st.frozensets(st.integers(0, len(SHAPES) - 1), max_size=len(SHAPES) - 1)
poisons = st.sampled_from([np.nan, np.inf, -np.inf])
refused = st.builds(Refused, seeds, st.sampled_from([-1.0, np.nan, np.inf, 1e-40, 1e39]))


class _Life:
    """Draws calls: windows of a few micro-batches, most of which end well. late: some weights come later, and those of
    means before their micro-batch ends."""

    def __init__(self, random: Random, late: bool, means: bool) -> None:
        self._random = random
        self._late = late
        self._means = means

    def calls(self) -> list[Call]:
        return [call for _ in range(self._random.randint(3, 10)) for call in self._window()]

    def _once_in(self, count: int) -> bool:
        return self._random.randrange(count) == 0

    def _weight(self) -> float:
        return self._random.choice([1.0, 2.0, 3.0, 7.0, 0.5, 128.0, 0.0])

    def _poison(self) -> float:
        return self._random.choice([np.nan, np.inf, -np.inf])

    def _accumulate(self, late: bool) -> Accumulate:
        return Accumulate(
            seed=self._random.randrange(10_000),
            weight=None if late else self._weight(),
            missing=frozenset(i for i in range(len(SHAPES) - 1) if self._once_in(6)),
            poison=self._poison() if self._once_in(15) else None,
        )

    def _micro_batch(self) -> Call:
        late = self._late and self._once_in(3)
        if self._once_in(4) or (late and self._means):
            losses = tuple(self._accumulate(late) for _ in range(self._random.randint(1, 3)))
            given = self._weight() if late and (self._means or self._once_in(2)) else None
            return MicroBatch(losses, abort=self._once_in(3), given=given)
        return self._accumulate(late)

    def _aside(self) -> Call:
        """What may come anywhere."""
        return self._random.choice(
            [
                BadLoss(self._random.randrange(10_000), self._poison()),
                Refused(self._random.randrange(10_000), self._random.choice([-1.0, np.nan, np.inf, 1e-40, 1e39])),
                MicroBatch((), abort=True),
                SetLearningRate(self._random.choice([0.0, 0.01, 0.05, 0.1])),
                SetSteps(self._random.randint(1, 4)),
                BeginData(),
                Step(),
            ]
        )

    def _window(self) -> list[Call]:
        calls: list[Call] = []
        for _ in range(self._random.randint(1, 4)):
            if self._once_in(5):
                calls.append(self._aside())
            calls.append(self._micro_batch())
            if self._late and not self._means and self._once_in(3):
                calls.append(GiveWeights(self._weight()))
        if self._late and not self._means and not self._once_in(5):
            calls.append(GiveWeights(self._weight()))
        tails = [EndData(tail) for tail in ("step", "carry", "drop")]
        calls.append(self._random.choice([*[Step()] * 6, Zero(), *tails]))
        if self._once_in(4):
            calls.append(BeginData())
        return calls


def _life(seed: int, late: bool, means: bool = False) -> list[Call]:
    return _Life(Random(seed), late, means).calls()


lives = st.builds(_life, st.integers(0, 2**32), st.just(False))
# With weights that come later: those of means, in isolated mode, before their micro-batch ends.
late_lives = st.builds(_life, st.integers(0, 2**32), st.just(True))
late_lives_of_means = st.builds(_life, st.integers(0, 2**32), st.just(True), st.just(True))

clipping: st.SearchStrategy[dict[str, float]] = st.sampled_from(
    [
        {},
        {"max_grad_norm": 1.0},
        {"max_grad_norm": 100.0},
        {"max_grad_value": 0.75},
        {"agc_clipping": 0.05},
        {"agc_clipping": 0.5, "agc_eps": 0.1},
    ]
)


def initial() -> list[np.ndarray]:
    """Parameters of which no unit is small."""
    rng = np.random.default_rng(42)
    return [np.asarray(rng.choice([-1, 1], s) * (1 + rng.random(s)), np.float32) for s in SHAPES]


@dataclass
class Library:
    """Parameters, an optimizer and an accumulator, and calls made on them."""

    optimizer: Callable[..., ga.Optimizer]
    rule: dict[str, Any]
    window: dict[str, Any]
    clock: str | None = None  # of a schedule and an average, "updates" or "weight"
    reports: list[ga.Report] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = [ga.tensor(array, requires_grad=True) for array in initial()]
        self.owner = self.optimizer(self.parameters, **self.rule)
        self.averages: list[ga.WeightAverage] = []
        if self.clock is not None:
            long = 8.0 if self.clock == "updates" else 200.0
            self.owner.schedule = ga.schedules.Cosine(long, end_factor=0.25, warmup=long / 4, clock=self.clock)
            self.averages = [
                ga.WeightAverage(self.owner, decay=0.75, warmup=True),
                ga.WeightAverage(self.owner, half_life=long / 4, clock=self.clock),
            ]
        self.accumulator = ga.Accumulator(self.owner, **self.window)
        self.accumulator_is_isolated: bool = self.window.get("isolated", False)
        self.adds_means = self.window.get("loss_reduction") == "mean"
        self.waiting: list[int] = []  # numbers of micro-batches without a weight

    def _add(self, call: Accumulate) -> None:
        self.accumulator.accumulate_gradients(call.gradients(), call.loss, call.weight)

    def make(self, call: Call) -> ga.Report | None:
        """Makes a call that must succeed, or that must be refused where it says so."""
        match call:
            case Accumulate():
                number = self._number()
                self._add(call)
                self._wait(call, number)
            case MicroBatch():
                self._make_micro_batch(call)
            case BadLoss():
                gradients = Accumulate(call.seed, 1.0).gradients()
                if self.accumulator_is_isolated:
                    self.accumulator.accumulate_gradients(gradients, call.loss, 1.0)
                else:
                    with pytest.raises(ga.GANonFiniteError, match="nothing was added"):
                        self.accumulator.accumulate_gradients(gradients, call.loss, 1.0)
            case Refused():
                with pytest.raises(ga.GAError, match="weight"):
                    self.accumulator.accumulate_gradients(Accumulate(call.seed, 1.0).gradients(), 0.0, call.weight)
            case Step():
                self.reports.append(self.accumulator.step())
                self.waiting = []
                return self.reports[-1]
            case Zero():
                self.accumulator.zero()
                self.waiting = []
            case SetLearningRate():
                self.owner.lr = call.value
            case SetSteps():
                self.accumulator.accumulation_steps = call.value
            case GiveWeights():
                for number in self.waiting:
                    self.accumulator.set_weight(number, call.value)
                self.waiting = []
            case BeginData():
                self.accumulator.begin_data()
            case EndData():
                report = self.accumulator.end_data(call.tail)  # type: ignore[arg-type]
                if call.tail != "carry":
                    self.waiting = []
                return report
        return None

    def _number(self) -> int:
        """Of the next micro-batch."""
        window = self.accumulator.window()
        self._counted = window.micro_batches
        return window.micro_batches + window.aborted_micro_batches

    def _wait(self, call: Accumulate, number: int) -> None:
        """For the weight of a micro-batch, unless it was dropped."""
        if call.weight is None and self.accumulator.window().micro_batches > self._counted:
            self.waiting.append(number)

    def _make_micro_batch(self, call: MicroBatch) -> None:
        self._number()
        with self.accumulator.micro_batch() as micro_batch:
            for loss in call.losses:
                self._add(loss)
            if call.given is not None:
                micro_batch.set_weight(call.given)
                if self.adds_means:
                    with pytest.raises(ga.GAStateError, match="micro-batch .* was given its weight"):
                        self._add(Accumulate(0, 1.0))
            if call.abort:
                if call.losses and not self.accumulator_is_isolated:
                    with pytest.raises(ga.GAStateError, match="isolated mode"):
                        micro_batch.abort()
                else:
                    micro_batch.abort()
                    return
        if call.losses and call.given is None:
            self._wait(call.losses[0], micro_batch.number)

    def bits(self) -> list[bytes]:
        """Of the parameters and their averages."""
        averages = [x.weights(i) for x in self.averages for i in range(len(SHAPES))]
        return [x.numpy().tobytes() for x in (*self.parameters, *averages)]

    def sums(self) -> list[np.ndarray]:
        return [self.accumulator.accumulated_gradient(i).numpy() for i in range(len(SHAPES))]
