"""Learning-rate schedules: `optimizer.schedule = ga.schedules.Cosine(10_000, warmup=500)`.

A schedule gives the factor that the optimizer's learning rate is multiplied by for an update. It is a function of the
optimizer's clock, which only an applied update moves: by 1, or with clock="weight" by the weight of its window, in
samples or tokens. Durations and times are readings of that clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_double
from typing import Any, ClassVar

from . import _ffi
from ._arguments import constant_of, double_array, flag
from ._dataclasses import dataclass, field
from ._ffi import lib
from .errors import GAInvalidArgumentError

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "OneCycle",
    "Plateau",
    "Schedule",
    "Step",
    "Table",
]

_CLOCKS = {"updates": _ffi.CLOCK_UPDATES, "weight": _ffi.CLOCK_WEIGHT}


def clock_constant(clock: str) -> int:
    return constant_of("clock", clock, _CLOCKS)


@dataclass(frozen=True)
class Schedule:
    """What all schedules have.

    warmup: how long the factor first rises along a straight line, to what the schedule begins with.
    warmup_start_factor: the share of that which the line begins with, in 0 ... 1. With 0, the first update changes
        nothing.
    clock: "updates" or "weight".
    start: the reading of the optimizer's clock that is 0 to the schedule.
    """

    warmup: float = field(default=0.0, kw_only=True)
    warmup_start_factor: float = field(default=0.0, kw_only=True)
    clock: str = field(default="updates", kw_only=True)
    start: float = field(default=0.0, kw_only=True)

    _kind: ClassVar[int]

    def _own(self) -> dict[str, Any]:
        """What the kind has, as fields of the C struct."""
        return {}

    def options(self) -> _ffi.ScheduleOptions:
        """The ga_schedule_options of the C library."""
        return _ffi.ScheduleOptions(
            kind=self._kind,
            warmup=self.warmup,
            warmup_start_factor=self.warmup_start_factor,
            clock=clock_constant(self.clock),
            start=self.start,
            **self._own(),
        )

    def factor(self, clock: float) -> float:
        """The factor of the update that is made at a reading of the clock; of a plateau, that of its warm-up."""
        value = c_double()
        lib.ga_schedule_factor(byref(self.options()), clock, byref(value))
        return value.value


@dataclass(frozen=True)
class Constant(Schedule):
    """The learning rate as it is, after the warm-up."""

    _kind = _ffi.SCHEDULE_CONSTANT


@dataclass(frozen=True)
class Linear(Schedule):
    """From 1 along a straight line to end_factor, which it has from duration on. That includes the warm-up."""

    duration: float
    end_factor: float = 0.0

    _kind = _ffi.SCHEDULE_LINEAR

    def _own(self) -> dict[str, Any]:
        return {"duration": self.duration, "end_factor": self.end_factor}


@dataclass(frozen=True)
class Cosine(Linear):
    """From 1 along half a wave to end_factor, as torch's CosineAnnealingLR (arXiv 1608.03983)."""

    _kind = _ffi.SCHEDULE_COSINE


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """sqrt(timescale / (timescale + t)), with t from the end of the warm-up, which is the timescale if none is
    given (arXiv 1706.03762)."""

    timescale: float | None = None

    _kind = _ffi.SCHEDULE_INVERSE_SQRT

    def _own(self) -> dict[str, Any]:
        return {"timescale": 0.0 if self.timescale is None else self.timescale}


@dataclass(frozen=True)
class Step(Schedule):
    """Times gamma at the end of each period, as torch's StepLR."""

    period: float
    gamma: float = 0.1

    _kind = _ffi.SCHEDULE_STEP

    def _own(self) -> dict[str, Any]:
        return {"period": self.period, "gamma": self.gamma}


@dataclass(frozen=True)
class Exponential(Schedule):
    """Times gamma over each period, evenly; with a period of 1, torch's ExponentialLR."""

    gamma: float
    period: float = 1.0

    _kind = _ffi.SCHEDULE_EXPONENTIAL

    def _own(self) -> dict[str, Any]:
        return {"period": self.period, "gamma": self.gamma}


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From 1 / div_factor up to 1 at the share pct_start of the duration, and down to
    1 / div_factor / final_div_factor at its end (arXiv 1708.07120).

    torch's OneCycleLR with total_steps n and pct_start p is a duration of n - 1 with pct_start (p n - 1) / (n - 1).
    anneal: "cosine" or "linear".
    """

    duration: float
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: str = "cosine"

    _kind = _ffi.SCHEDULE_ONE_CYCLE

    def _own(self) -> dict[str, Any]:
        anneals = {"cosine": _ffi.ANNEAL_COSINE, "linear": _ffi.ANNEAL_LINEAR}
        return {
            "duration": self.duration,
            "pct_start": self.pct_start,
            "div_factor": self.div_factor,
            "final_div_factor": self.final_div_factor,
            "anneal": constant_of("anneal", self.anneal, anneals),
        }


@dataclass(frozen=True)
class Plateau(Schedule):
    """Times gamma, but not below min_factor, when a value has not improved for more than patience values, as torch's
    ReduceLROnPlateau.

    signal: "loss" looks at the mean loss of each applied window, "metric" at each Optimizer.report_metric().
    mode: "min" or "max".
    threshold: an improvement is one by this share of the best value, or with threshold_mode "absolute" by this.
    cooldown: values after a drop that do not count.
    """

    gamma: float = 0.1
    patience: int = 10
    signal: str = "loss"
    mode: str = "min"
    threshold: float = 1e-4
    threshold_mode: str = "relative"
    cooldown: int = 0
    min_factor: float = 0.0

    _kind = _ffi.SCHEDULE_PLATEAU

    def _own(self) -> dict[str, Any]:
        signals = {"loss": _ffi.PLATEAU_WINDOW_LOSS, "metric": _ffi.PLATEAU_METRIC}
        modes = {"min": _ffi.PLATEAU_MIN, "max": _ffi.PLATEAU_MAX}
        threshold_modes = {"relative": _ffi.THRESHOLD_RELATIVE, "absolute": _ffi.THRESHOLD_ABSOLUTE}
        return {
            "gamma": self.gamma,
            "patience": self.patience,
            "plateau_signal": constant_of("signal", self.signal, signals),
            "plateau_mode": constant_of("mode", self.mode, modes),
            "threshold": self.threshold,
            "threshold_mode": constant_of("threshold_mode", self.threshold_mode, threshold_modes),
            "cooldown": self.cooldown,
            "min_factor": self.min_factor,
        }


@dataclass(frozen=True)
class Table(Schedule):
    """factors[i] at times[i], and between them along straight lines, or if not interpolated that of the time before."""

    times: Sequence[float]
    factors: Sequence[float]
    interpolated: bool = True

    _kind = _ffi.SCHEDULE_TABLE

    def _own(self) -> dict[str, Any]:
        times, factors = double_array("times", self.times), double_array("factors", self.factors)
        if len(times) != len(factors):
            raise GAInvalidArgumentError(
                f"times has {len(times)} entries and factors {len(factors)}: give one for each"
            )
        return {
            "times": times,
            "factors": factors,
            "table_count": len(times),
            "interpolated": flag("interpolated", self.interpolated),
        }
