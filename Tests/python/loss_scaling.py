"""The loss scaler as a plain state machine, written from its documentation: what the library is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field


@dataclass
class ScalerModel:
    init_scale: float = 8.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2
    hysteresis: int = 1
    consecutive_hysteresis: bool = False
    min_scale: float = 1.0
    max_scale: float = 32.0
    dynamic: bool = True
    accumulators: int = 1

    scale: float = field(init=False)
    growth_tracker: int = field(init=False, default=0)
    hysteresis_tracker: int = field(init=False)
    overflow: bool = field(init=False, default=False)
    applied: bool = field(init=False, default=False)
    ended: set[int] = field(init=False, default_factory=set)
    unscaled: set[int] = field(init=False, default_factory=set)
    begun: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.scale = self.init_scale
        self.hysteresis_tracker = self.hysteresis

    def options(self) -> dict[str, float]:
        names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "hysteresis")
        names += ("consecutive_hysteresis", "min_scale", "max_scale", "dynamic")
        return {name: getattr(self, name) for name in names}

    def state(self) -> tuple[float, int, int]:
        return self.scale, self.growth_tracker, self.hysteresis_tracker

    @property
    def is_between_rounds(self) -> bool:
        return not (self.ended or self.unscaled)

    def next_scale(self, accumulator: int = 0) -> float:
        """Of a window that begins now."""
        after = copy.copy(self)
        if accumulator in self.ended and not self.unscaled:
            after.end_round()
        return after.scale

    def begin(self, accumulator: int = 0) -> float:
        """A window begins, and keeps the scale that this returns."""
        if accumulator in self.ended and not self.unscaled:
            self.end_round()
        self.begun[accumulator] = self.scale
        return self.scale

    def end(self, accumulator: int = 0, *, overflow: bool = False, applied: bool = False) -> None:
        self.take(self.begun.pop(accumulator), overflow=overflow, applied=applied)
        self.ended.add(accumulator)
        if len(self.ended) == self.accumulators and not self.unscaled:
            self.end_round()

    def take(self, scale: float, *, overflow: bool = False, applied: bool = False) -> None:
        self.overflow |= overflow and scale <= self.scale
        self.applied |= applied and not overflow and scale >= self.scale

    def unscale(self, optimizer: int, *, overflow: bool) -> None:
        """Gradients of the caller, under the present scale."""
        self.take(self.scale, overflow=overflow, applied=True)
        self.unscaled.add(optimizer)

    def lower(self) -> None:
        if self.dynamic:
            self.scale = max(self.scale * self.backoff_factor, self.min_scale)

    def retry(self, accumulator: int = 0) -> bool:
        """Whether a window that overflowed is computed again, at what is then the scale."""
        if not self.dynamic or self.begun[accumulator] <= self.min_scale:
            return False
        self.growth_tracker = 0
        if self.scale >= self.begun[accumulator]:
            self.scale = self.begun[accumulator]
            self.lower()
        self.begun[accumulator] = self.scale
        return True

    def end_round(self) -> None:
        if self.overflow:
            self.growth_tracker = 0
            if self.hysteresis_tracker > 1:
                self.hysteresis_tracker -= 1
            else:
                self.lower()
        elif self.applied:
            if self.consecutive_hysteresis:
                self.hysteresis_tracker = self.hysteresis
            self.growth_tracker += 1
            if self.growth_tracker == self.growth_interval:
                self.growth_tracker = 0
                self.hysteresis_tracker = self.hysteresis
                if self.dynamic:
                    self.scale = min(self.scale * self.growth_factor, self.max_scale)
        self.overflow = self.applied = False
        self.ended, self.unscaled = set(), set()
