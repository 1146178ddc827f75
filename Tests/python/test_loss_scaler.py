"""The loss scaler against a model of its state machine, on every path of it, and against torch.amp.GradScaler."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from calls import handles
from loss_scaling import ScalerModel
from support import raw

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


class Window:
    """An accumulator of one number, driven by raw calls."""

    def __init__(self, scaler: ga.LossScaler, **options: Any) -> None:
        self.parameter = ga.zeros((1,), requires_grad=True)
        self.accumulator = ga.Accumulator(ga.SGD([self.parameter], lr=1.0), loss_scaler=scaler, **options)
        self.handle = self.accumulator.handle
        self.arrays = {
            (name, number): np.full(1, value * (1 - 1.75 * number), np.float32)
            for name, value in GRADIENTS.items()
            for number in (0, 1)
        }
        self.pointers = {which: handles(array.ctypes.data) for which, array in self.arrays.items()}
        self.report = _ffi.Report()

    def add(self, gradient: str = "never", weight: float = 1.0, number: int = 0) -> None:
        pointers = self.pointers[gradient, number]
        status = raw.ga_accumulate_gradients(self.handle, pointers, 1, _ffi.FLOAT32, 0.0, weight)
        assert status == 0, raw.ga_last_error()

    def step(self) -> _ffi.Report:
        assert raw.ga_step(self.handle, self.report) == 0, raw.ga_last_error()
        return self.report


def state(scaler: ga.LossScaler) -> tuple[float, int, int, int]:
    found = scaler.state_dict()
    return found["scale"], found["growth_tracker"], found["hysteresis_tracker"], found["found"]


def load(scaler: ga.LossScaler, scale: float, growth: int, hysteresis: int, found: int) -> None:
    scaler.load_state_dict(
        {"scale": scale, "growth_tracker": growth, "hysteresis_tracker": hysteresis, "found": found}
    )


def bring_to(model: ScalerModel, scaler: ga.LossScaler, windows: list[Window]) -> None:
    """Puts the library into the state of a model, which is all that what follows depends on."""
    for window in windows:
        raw.ga_zero(window.handle)
    scale, growth, hysteresis, found = model.state()
    for i, begun in model.begun.items():
        load(scaler, begun, growth, hysteresis, 0)
        windows[i].add()
    load(scaler, scale, growth, hysteresis, found)
    for i in model.ended:
        windows[i].add(weight=0.0)
        windows[i].step()
    assert state(scaler) == model.state()


def explore(model: ScalerModel, act: Callable[[ScalerModel, Any], None], events: Callable[[ScalerModel], list]) -> int:
    """Lets every event happen in every state that paths of fewer than DEPTH events lead to: all that those paths can
    show. Returns how many paths that stands for."""
    level = {key(model): (model, 1)}
    paths = 0
    for _ in range(DEPTH):
        following: dict[Any, tuple[ScalerModel, int]] = {}
        paths = 0
        for start, count in level.values():
            for event in events(start):
                after = copy.deepcopy(start)
                act(after, event)
                paths += count
                ways = following[key(after)][1] if key(after) in following else 0
                following[key(after)] = (after, ways + count)
        level = following
    return paths


def key(model: ScalerModel) -> Any:
    return model.state(), model.overflow, frozenset(model.ended), tuple(sorted(model.begun.items()))


# ====== Every path ======


@configurations
@pytest.mark.parametrize("policy", ["skip", "drop", "retry"])
def test_every_path_of_one_optimizer(options, policy):
    """Windows of two micro-batches, of which none, either or both overflow, at some scales or at all."""
    scaler = ga.LossScaler(**ScalerModel(**options).options())
    micro_batches: tuple[str, ...] = ()
    tried: list[float] = []

    def retry(report: ga.Report) -> bool:
        tried.append(report.loss_scale)
        assert (report.outcome, report.non_finite_parameter) == (ga.Outcome.SKIPPED_OVERFLOW, 0)
        for number, gradient in enumerate(micro_batches):
            window.add(gradient, number=number)
        return True

    window = Window(scaler, isolated=policy == "drop", retry_handler=retry if policy == "retry" else None)

    def overflows(scale: float) -> list[bool]:
        return [abs(float(window.arrays[x, i][0])) * scale >= 2.0**128 for i, x in enumerate(micro_batches)]

    def act(model: ScalerModel, event: tuple[str, ...]) -> None:
        nonlocal micro_batches
        bring_to(model, scaler, [window])
        micro_batches = event
        tried.clear()
        expected_tries = []
        model.begin()
        for number, gradient in enumerate(event):
            window.add(gradient, number=number)
        while policy == "retry" and any(overflows(model.begun[0])):
            expected_tries.append(model.begun[0])
            if not model.retry():
                expected_tries.pop()
                break
        bad = overflows(model.begun[0])
        applied = not all(bad) if policy == "drop" else not any(bad)
        scale = model.begun[0]
        model.end(overflow=any(bad), applied=applied)
        before = window.parameter.numpy().tobytes()
        report = window.step()
        assert (tried, report.retries, report.loss_scale) == (expected_tries, len(expected_tries), scale)
        assert report.outcome == (_ffi.STEP_APPLIED if applied else _ffi.STEP_SKIPPED_OVERFLOW)
        assert report.aborted_micro_batches == (sum(bad) if policy == "drop" else 0)
        assert (window.parameter.numpy().tobytes() != before) == applied
        assert report.non_finite_parameter == (0 if any(bad) else -1)
        assert report.non_finite_micro_batch == (bad.index(True) if any(bad) else -1)
        assert state(scaler) == model.state()
        raw.ga_tensor_fill(window.parameter.handle, 0.0)

    events = [(a, b) for a in GRADIENTS for b in GRADIENTS]
    assert explore(ScalerModel(**options), act, lambda model: events) == len(events) ** DEPTH


@configurations
@pytest.mark.parametrize("policy", ["skip", "drop", "retry"])
def test_every_path_of_two_optimizers(options, policy):
    """Windows that begin and end in any order, clean, with an overflow, which lower scales may cure, or without weight."""
    scaler = ga.LossScaler(**ScalerModel(**options).options())
    held: list[tuple[str, float]] = []

    def retry(report: ga.Report) -> bool:
        for gradient, weight in held:
            windows[stepping].add(gradient, weight)
        return True

    handler = {"retry_handler": retry} if policy == "retry" else {}
    windows = [Window(scaler, isolated=policy == "drop", **handler) for _ in range(2)]
    stepping = 0
    bad_gradient = "above 4" if policy == "retry" else "always"

    def events(model: ScalerModel) -> list[tuple[int, str]]:
        ends = [(i, end) for i in (0, 1) for end in ("clean", "overflow", "weightless")]
        return ends + [(i, "begin") for i in (0, 1) if i not in model.begun]

    def act(model: ScalerModel, event: tuple[int, str]) -> None:
        nonlocal stepping
        i, what = event
        bring_to(model, scaler, windows)
        is_begun = i in model.begun
        held[:] = [("never", 1.0)] if is_begun else []
        if not is_begun:
            model.begin(i)
        if what == "overflow":
            held.append((bad_gradient, 1.0))
        elif not is_begun:
            held.append(("never", 0.0 if what == "weightless" else 1.0))
        for gradient, weight in held[is_begun:]:
            windows[i].add(gradient, weight)
        if what == "begin":
            assert windows[i].accumulator.window().loss_scale == model.begun[i]
            return

        def overflows() -> bool:
            return what == "overflow" and (policy != "retry" or model.begun[i] > 4)

        retries = 0
        while policy == "retry" and overflows() and model.retry(i):
            retries += 1
        is_bad, scale = overflows(), model.begun[i]
        applied = is_begun or what == "clean" if policy == "drop" else not is_bad and (is_begun or what != "weightless")
        model.end(i, overflow=is_bad, applied=applied)
        stepping = i
        report = windows[i].step()
        wanted = _ffi.STEP_SKIPPED_OVERFLOW if is_bad else _ffi.STEP_SKIPPED_ZERO_WEIGHT
        assert report.outcome == (_ffi.STEP_APPLIED if applied else wanted)
        assert (report.loss_scale, report.retries) == (scale, retries)
        assert state(scaler) == model.state()
        raw.ga_tensor_fill(windows[i].parameter.handle, 0.0)

    assert explore(ScalerModel(**options, accumulators=2), act, events) > 6**DEPTH


@configurations
def test_every_path_of_own_gradients(options):
    """Two optimizers of the caller's that are unscaled in any number and order before each update."""
    scaler = ga.LossScaler(**ScalerModel(**options).options())

    def act(model: ScalerModel, event: tuple[str | None, str | None]) -> None:
        bring_to(model, scaler, [])
        for optimizer, gradient in enumerate(event):
            if gradient is not None:
                array = np.full(3, GRADIENTS[gradient] if gradient != "above 4" else 1.0, np.float32)
                norm = scaler.unscale([None, array], scaler.scale, optimizer=optimizer)
                assert math.isfinite(norm) == (gradient != "always")
                if math.isfinite(norm):
                    assert (array == 1 / model.scale).all()
                with pytest.raises(ga.GAStateError, match=f"optimizer {optimizer} have been unscaled since"):
                    scaler.unscale([array], scaler.scale, optimizer=optimizer)
        model.overflow, model.applied = "always" in event, "always" not in event
        model.end_round()
        scaler.update()
        assert state(scaler) == model.state()

    events = [pair for pair in itertools.product((None, "never", "always"), repeat=2) if any(pair)]
    assert explore(ScalerModel(**options), act, lambda model: events) == len(events) ** DEPTH
    with pytest.raises(ga.GAStateError, match="nothing was unscaled"):
        scaler.update()


# ====== torch.amp.GradScaler ======

FIXTURES = np.load(Path(__file__).resolve().parents[1] / "parity" / "loss_scaler.npz")


@pytest.mark.parametrize("name", sorted({key.partition("/")[0] for key in FIXTURES if "/" in key}))
@pytest.mark.parametrize("is_own", [False, True])
def test_scales_and_weights_are_those_of_torch_gradscaler(name, is_own):
    """Two optimizers on one scaler, of which either may overflow: the fixtures are those of
    Tests/parity/make_loss_scaler_fixtures.py."""
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
        for i, (gradient, accumulator) in enumerate(zip(gradients, accumulators)):
            if is_own:
                scaled = gradient * np.float32(scaler.scale)
                if math.isfinite(scaler.unscale([scaled], scaler.scale, optimizer=i)):
                    accumulator.accumulate_gradients([scaled], 0.0, 1)
                    accumulator.step()
            else:
                accumulator.accumulate_gradients([gradient], 0.0, 1)
                accumulator.step()
        if is_own:
            scaler.update()
        assert scaler.state_dict()["growth_tracker"] == get["growth_trackers"][round_]
        for p, expected in zip(parameters, get["weights"][round_]):
            assert p.numpy().tobytes() == expected.tobytes()
