"""The loss scaler against a model of its state machine, on every path of it, and against torch.amp.GradScaler."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from ctypes import c_double
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from calls import handles, sizes
from loss_scaling import ScalerModel
from support import INVALID_ARGUMENT, STATE, raw

DEPTH = 8
CONFIGURATIONS = {
    "plain": {},
    "at the bounds": {"min_scale": 4.0, "max_scale": 16.0, "growth_interval": 1},
    "hysteresis": {"hysteresis": 2},
    "consecutive hysteresis": {"hysteresis": 2, "consecutive_hysteresis": True, "growth_interval": 3},
    "steep": {"growth_factor": 4.0, "backoff_factor": 0.125, "growth_interval": 1},
    "static": {"dynamic": False, "hysteresis": 2},
}
configurations = pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())


# Gradients that overflow float32 at loss scales above 4, at all, and at none. Those of a second micro-batch point the
# other way, so that it is not their sum that overflows.
GRADIENTS = {"above 4": 1.5 * 2.0**125, "always": math.inf, "never": 1.0}
ARRAYS = {
    (name, number): np.full(1, value * (1 - 1.75 * number), np.float32)
    for name, value in GRADIENTS.items()
    for number in (0, 1)
}
POINTERS = {which: handles(array.ctypes.data) for which, array in ARRAYS.items()}


class Window:
    """An accumulator of one number, driven by raw calls."""

    def __init__(self, scaler: ga.LossScaler, **options: Any) -> None:
        self.parameter = ga.zeros((1,), requires_grad=True)
        self.accumulator = ga.Accumulator(ga.SGD([self.parameter], lr=1.0), loss_scaler=scaler, **options)
        self.handle = self.accumulator.handle
        self.report = _ffi.Report()

    def add(self, gradient: str = "never", weight: float = 1.0, number: int = 0) -> None:
        pointers = POINTERS[gradient, number]
        status = raw.ga_accumulate_gradients(self.handle, pointers, 1, _ffi.FLOAT32, 0.0, weight)
        assert status == 0, raw.ga_last_error()

    def step(self) -> _ffi.Report:
        assert raw.ga_step(self.handle, self.report) == 0, raw.ga_last_error()
        return self.report

    def was_updated(self) -> bool:
        """Since the last time it was asked."""
        is_changed = self.parameter.numpy()[0] != 0
        raw.ga_tensor_fill(self.parameter.handle, 0.0)
        return is_changed


class Life:
    """A scaler and its windows, from their creation on, to which nothing happens but the events of one path."""

    def __init__(self, model: ScalerModel, *, windows: int = 0, **options: Any) -> None:
        self.model = copy.deepcopy(model)
        self.scaler = ga.LossScaler(**model.options())
        self.windows = [Window(self.scaler, **options) for _ in range(windows)]
        self.value, self.saved = c_double(), _ffi.LossScalerState()

    def check(self) -> None:
        """The library is where the model is, and what it refuses to save it also refuses to load over."""
        model, handle, saved = self.model, self.scaler.handle, self.saved
        assert raw.ga_loss_scaler_scale(handle, self.value) == 0
        assert self.value.value == model.scale
        status = raw.ga_loss_scaler_save(handle, saved)
        if model.is_between_rounds:
            assert status == 0
            assert (saved.scale, saved.growth_tracker, saved.hysteresis_tracker) == model.state()
        else:
            assert status == STATE and b"ga_loss_scaler_update" not in raw.ga_last_error()
            assert b"loss_scaler_update" in raw.ga_last_error()
            assert raw.ga_loss_scaler_load(handle, saved) == STATE
        for i, window in enumerate(self.windows):
            assert raw.ga_window_report(window.handle, window.report) == 0
            assert window.report.loss_scale == model.begun.get(i, model.next_scale(i))


def explore(live: Callable[[], Life], events: Callable[[Life], list[Any]]) -> int:
    """Lets every event happen in every state that paths of fewer than DEPTH events lead to: all that those paths can
    show. Each of these states is reached by one of its paths, from the creation on. Returns how many paths that stands for."""
    level = {live().key(): State((), events(live()), 1)}
    paths = 0
    for _ in range(DEPTH):
        following: dict[Any, State] = {}
        paths = 0
        for state in level.values():
            for event in state.events:
                life = live()
                for earlier in (*state.path, event):
                    life.act(earlier)
                life.check()
                paths += state.paths
                found = following.setdefault(life.key(), State((*state.path, event), events(life), 0))
                found.paths += state.paths
        level = following
    return paths


@dataclass
class State:
    """One of the paths that lead to it, what can happen next, and the number of those paths."""

    path: tuple[Any, ...]
    events: list[Any]
    paths: int


# ====== Every path ======


class OneOptimizer(Life):
    """Windows of two micro-batches, of which none, either or both overflow, at some scales or at all."""

    def __init__(self, options: dict[str, Any], policy: str) -> None:
        handler = {"retry_handler": self.retry} if policy == "retry" else {}
        super().__init__(ScalerModel(**options), windows=1, isolated=policy == "drop", **handler)
        self.policy = policy
        self.micro_batches: tuple[str, ...] = ()
        self.tried: list[float] = []

    def key(self) -> Any:
        return self.model.state()

    def retry(self, report: ga.Report) -> bool:
        self.tried.append(report.loss_scale)
        assert (report.outcome, report.non_finite_parameter) == (ga.Outcome.SKIPPED_OVERFLOW, 0)
        for number, gradient in enumerate(self.micro_batches):
            self.windows[0].add(gradient, number=number)
        return True

    def overflows(self) -> list[bool]:
        scale = self.model.begun[0]
        return [abs(float(ARRAYS[x, i][0])) * scale >= 2.0**128 for i, x in enumerate(self.micro_batches)]

    def act(self, event: tuple[str, ...]) -> None:
        model, window = self.model, self.windows[0]
        self.micro_batches = event
        self.tried.clear()
        expected_tries = []
        model.begin()
        for number, gradient in enumerate(event):
            window.add(gradient, number=number)
        while self.policy == "retry" and any(self.overflows()):
            expected_tries.append(model.begun[0])
            if not model.retry():
                expected_tries.pop()
                break
        bad, scale = self.overflows(), model.begun[0]
        applied = not all(bad) if self.policy == "drop" else not any(bad)
        model.end(overflow=any(bad), applied=applied)
        report = window.step()
        assert (self.tried, report.retries, report.loss_scale) == (expected_tries, len(expected_tries), scale)
        assert report.outcome == (_ffi.STEP_APPLIED if applied else _ffi.STEP_SKIPPED_OVERFLOW)
        assert report.aborted_micro_batches == (sum(bad) if self.policy == "drop" else 0)
        assert window.was_updated() == applied
        assert report.non_finite_parameter == (0 if any(bad) else -1)
        assert report.non_finite_micro_batch == (bad.index(True) if any(bad) else -1)


@configurations
@pytest.mark.parametrize("policy", ["skip", "drop", "retry"])
def test_every_path_of_one_optimizer(options, policy):
    events = [(a, b) for a in GRADIENTS for b in GRADIENTS]
    assert explore(lambda: OneOptimizer(options, policy), lambda life: events) == len(events) ** DEPTH


class TwoOptimizers(Life):
    """Windows that begin and end in any order, clean, with an overflow, which lower scales may cure, or without weight."""

    def __init__(self, options: dict[str, Any], policy: str) -> None:
        handler = {"retry_handler": self.retry} if policy == "retry" else {}
        super().__init__(
            ScalerModel(**options, accumulators=2), windows=2, isolated=policy == "drop", **handler
        )
        self.policy = policy
        self.stepping = 0
        self.held: list[tuple[str, float]] = []

    def key(self) -> Any:
        model = self.model
        found = model.overflow, model.applied, frozenset(model.ended)
        return model.state(), found, tuple(sorted(model.begun.items()))

    def events(self) -> list[tuple[int, str]]:
        ends = [(i, end) for i in (0, 1) for end in ("clean", "overflow", "weightless")]
        return ends + [(i, "begin") for i in (0, 1) if i not in self.model.begun]

    def retry(self, report: ga.Report) -> bool:
        for gradient, weight in self.held:
            self.windows[self.stepping].add(gradient, weight)
        return True

    def act(self, event: tuple[int, str]) -> None:
        i, what = event
        model, window, policy = self.model, self.windows[i], self.policy
        is_begun = i in model.begun
        held = self.held = [("never", 1.0)] if is_begun else []
        if not is_begun:
            model.begin(i)
        if what == "overflow":
            held.append(("above 4" if policy == "retry" else "always", 1.0))
        elif not is_begun:
            held.append(("never", 0.0 if what == "weightless" else 1.0))
        for gradient, weight in held[is_begun:]:
            window.add(gradient, weight)
        if what == "begin":
            return

        def overflows() -> bool:
            return what == "overflow" and (policy != "retry" or model.begun[i] > 4)

        retries = 0
        while policy == "retry" and overflows() and model.retry(i):
            retries += 1
        is_bad, scale = overflows(), model.begun[i]
        applied = is_begun or what == "clean" if policy == "drop" else not is_bad and (is_begun or what != "weightless")
        model.end(i, overflow=is_bad, applied=applied)
        self.stepping = i
        report = window.step()
        wanted = _ffi.STEP_SKIPPED_OVERFLOW if is_bad else _ffi.STEP_SKIPPED_ZERO_WEIGHT
        assert report.outcome == (_ffi.STEP_APPLIED if applied else wanted)
        assert (report.loss_scale, report.retries) == (scale, retries)


@configurations
@pytest.mark.parametrize("policy", ["skip", "drop", "retry"])
def test_every_path_of_two_optimizers(options, policy):
    assert explore(lambda: TwoOptimizers(options, policy), TwoOptimizers.events) > 6**DEPTH


class OwnGradients(Life):
    """Two optimizers of the caller's that are unscaled in any number and order before each update."""

    def key(self) -> Any:
        return self.model.state()

    def act(self, event: tuple[str | None, str | None]) -> None:
        for optimizer, gradient in enumerate(event):
            if gradient is None:
                continue
            array = np.full(3, GRADIENTS[gradient], np.float32)
            norm = self.scaler.unscale([None, array], self.scaler.scale, optimizer=optimizer)
            assert math.isfinite(norm) == (gradient != "always")
            if math.isfinite(norm):
                assert (array == 1 / self.model.scale).all()
            self.model.unscale(optimizer, overflow=gradient == "always")
            self.check()
            with pytest.raises(ga.GAStateError, match=f"optimizer {optimizer} have been unscaled since"):
                self.scaler.unscale([array], self.scaler.scale, optimizer=optimizer)
        self.model.end_round()
        self.scaler.update()


@configurations
def test_every_path_of_own_gradients(options):
    events = [pair for pair in itertools.product((None, "never", "always"), repeat=2) if any(pair)]
    live = functools.partial(OwnGradients, ScalerModel(**options))
    assert explore(live, lambda life: events) == len(events) ** DEPTH
    with pytest.raises(ga.GAStateError, match="nothing was unscaled"):
        live().scaler.update()


class Everything(Life):
    """Accumulators and optimizers of the caller's on one scaler, with all that can happen to them: norms before the step,
    windows that are dropped, calls that fail, updates by hand, and states that are loaded."""

    def __init__(self, options: dict[str, Any], count: int) -> None:
        super().__init__(ScalerModel(**options, accumulators=count), windows=count)
        self.stranger = ga.sum(ga.zeros((2,), requires_grad=True))
        # Per window in progress: whether it holds an infinity, whether it weighs anything, whether it was unscaled.
        self.held: dict[int, tuple[bool, bool, bool]] = {}

    def key(self) -> Any:
        model = self.model
        found = model.overflow, model.applied, frozenset(model.ended), frozenset(model.unscaled)
        return model.state(), found, tuple(sorted(model.begun.items())), tuple(sorted(self.held.items()))

    def events(self) -> list[tuple[Any, ...]]:
        count, found = len(self.windows), [("update",), ("load",)]
        for i in range(count):
            if i in self.held:
                found += [("step", i), ("zero", i)]
            if i not in self.held or not self.held[i][2]:
                found += [("add", i, "never", 1.0), ("add", i, "always", 1.0), ("add", i, "never", 0.0), ("fail", i)]
            if i in self.held and not self.held[i][2]:
                found += [("unscale", i)]
            if i not in self.model.unscaled:
                found += [("own", i, "never"), ("own", i, "always")]
        return found

    def act(self, event: tuple[Any, ...]) -> None:
        getattr(self, event[0])(*event[1:])

    def add(self, i: int, gradient: str, weight: float) -> None:
        if i not in self.held:
            self.model.begin(i)
        bad, weighs, _ = self.held.get(i, (False, False, False))
        self.held[i] = (bad or gradient == "always", weighs or weight > 0, False)
        self.windows[i].add(gradient, weight)

    def fail(self, i: int) -> None:
        assert raw.ga_accumulate(self.windows[i].handle, self.stranger.handle, 1.0) == INVALID_ARGUMENT

    def unscale(self, i: int) -> None:
        bad, weighs, _ = self.held[i]
        self.held[i] = (bad, weighs, True)
        assert raw.ga_unscale(self.windows[i].handle, self.value) == 0
        assert math.isfinite(self.value.value) == (not bad or not weighs)

    def end(self, i: int) -> tuple[bool, bool]:
        """Whether the window showed an overflow, and whether there was none."""
        bad, weighs, _ = self.held.pop(i)
        self.model.end(i, overflow=weighs and bad, applied=weighs and not bad)
        return weighs and bad, weighs and not bad

    def step(self, i: int) -> None:
        scale = self.model.begun[i]
        bad, applied = self.end(i)
        report = self.windows[i].step()
        assert (report.outcome == _ffi.STEP_SKIPPED_OVERFLOW, report.outcome == _ffi.STEP_APPLIED) == (bad, applied)
        assert report.loss_scale == scale

    def zero(self, i: int) -> None:
        if self.held[i][2]:
            self.end(i)
        else:
            self.held.pop(i)
            self.model.begun.pop(i)
        assert raw.ga_zero(self.windows[i].handle) == 0

    def own(self, k: int, gradient: str) -> None:
        scale, array = self.model.scale, np.full(2, GRADIENTS[gradient], np.float32)
        self.model.unscale(k, overflow=gradient == "always")
        status = raw.ga_loss_scaler_unscale(
            self.scaler.handle, handles(array.ctypes.data), sizes(2), 1, _ffi.FLOAT32, scale, k, self.value
        )
        assert status == 0 and (gradient == "always" or (array == 1 / scale).all())

    def update(self) -> None:
        status = raw.ga_loss_scaler_update(self.scaler.handle)
        assert status == (STATE if self.model.is_between_rounds else 0)
        self.model.end_round()

    def load(self) -> None:
        """That of a new scaler."""
        model = self.model
        status = raw.ga_loss_scaler_load(
            self.scaler.handle, _ffi.LossScalerState(scale=model.init_scale, hysteresis_tracker=model.hysteresis)
        )
        assert status == (0 if model.is_between_rounds else STATE)
        if model.is_between_rounds:
            model.scale, model.growth_tracker, model.hysteresis_tracker = model.init_scale, 0, model.hysteresis


WALKS = 250


@configurations
@pytest.mark.parametrize("count", [1, 2])
def test_walks_through_everything_that_can_happen(options, count):
    """WALKS lives of three times DEPTH events each, drawn evenly."""
    rng = np.random.default_rng(count)
    seen = set()
    for _ in range(WALKS):
        life = Everything(options, count)
        for _ in range(3 * DEPTH):
            events = life.events()
            event = events[rng.integers(len(events))]
            seen.add(event[0])
            life.act(event)
            life.check()
    assert seen == {"add", "fail", "load", "own", "step", "unscale", "update", "zero"}


# ====== torch.amp.GradScaler ======

# Those of Tests/parity/make_loss_scaler_fixtures.py.
STEP, UNSCALE_AND_STEP, UNSCALE, NOTHING = range(4)
FIXTURES = np.load(Path(__file__).resolve().parents[1] / "parity" / "loss_scaler.npz")


@pytest.mark.parametrize("name", sorted({key.partition("/")[0] for key in FIXTURES if "/" in key}))
@pytest.mark.parametrize("is_own", [False, True])
def test_scales_and_weights_are_those_of_torch_gradscaler(name, is_own):
    """Two optimizers on one scaler, of which either may overflow, be unscaled before the step or instead of it, or have no
    part in a round: the fixtures are those of Tests/parity/make_loss_scaler_fixtures.py."""
    get = {key.partition("/")[2]: FIXTURES[key] for key in FIXTURES if key.startswith(f"{name}/")}
    init_scale, growth_factor, backoff_factor, growth_interval = get["options"].tolist()
    scaler = ga.LossScaler(
        init_scale,
        growth_factor=growth_factor,
        backoff_factor=backoff_factor,
        growth_interval=int(growth_interval),
        min_scale=2.0**-20,
        max_scale=2.0**40,
    )
    parameters = [ga.tensor(x, requires_grad=True) for x in get["initial"]]
    accumulators = [
        ga.Accumulator(ga.SGD([p], lr=0.125), loss_scaler=None if is_own else scaler, normalization="sum")
        for p in parameters
    ]
    for round_, gradients in enumerate(get["gradients"]):
        assert scaler.scale == get["scales"][round_]
        actions = get["actions"][round_]
        for i, (gradient, accumulator, action) in enumerate(zip(gradients, accumulators, actions)):
            if action == NOTHING:
                continue
            if is_own:
                scaled = gradient * np.float32(scaler.scale)
                is_finite = math.isfinite(scaler.unscale([scaled], scaler.scale, optimizer=i))
                if is_finite and action != UNSCALE:
                    accumulator.accumulate_gradients([scaled], 0.0, 1)
                    accumulator.step()
                continue
            accumulator.accumulate_gradients([gradient], 0.0, 1)
            if action in (UNSCALE_AND_STEP, UNSCALE):
                assert math.isfinite(accumulator.unscale()) == np.isfinite(gradient).all()
            if action == UNSCALE:
                accumulator.zero()
            else:
                accumulator.step()
        if is_own or NOTHING in actions:
            scaler.update()
        assert scaler.state_dict()["growth_tracker"] == get["growth_trackers"][round_]
        for p, expected in zip(parameters, get["weights"][round_]):
            assert p.numpy().tobytes() == expected.tobytes()
