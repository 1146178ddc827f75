"""The life of a window, written down plainly in numpy: the model that the library is compared with.

A window is the list of its micro-batches, and a step is a function of that list; nothing is added up before. Numbers
are float64, or float32 if asked. Every rule also says how far a float32 computation of the same may be from it, see
Bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

APPLIED, SKIPPED_NON_FINITE, SKIPPED_ZERO_WEIGHT, _, PENDING, DROPPED, EMPTY = range(7)

ROUNDING = 2.0**-24  # the relative error of one float32 operation

Gradients = Sequence["np.ndarray | None"]


class Refused(Exception):
    """A call that is not due; the text is a part of the library's sentence."""


@dataclass(frozen=True)
class Loss:
    """What one call accumulates."""

    gradients: Gradients  # sums over the weight, or means
    loss: float
    weight: float | None  # None: it comes later


@dataclass
class MicroBatch:
    losses: list[Loss]
    weight_given_later: float | None = None
    is_aborted: bool = False

    @property
    def needs_weight(self) -> bool:
        return not self.is_aborted and self.weight_given_later is None and any(x.weight is None for x in self.losses)

    @property
    def weight(self) -> float:
        return (self.weight_given_later or 0.0) + sum(x.weight or 0.0 for x in self.losses)

    def weight_of(self, loss: Loss) -> float | None:
        """What a mean is multiplied by: the weight of its own, or that which all of the micro-batch have."""
        return self.weight_given_later if loss.weight is None else loss.weight

    def non_finite(self, scaled: Callable[[MicroBatch], list[list[np.ndarray | None]]]) -> tuple[int | None] | None:
        """The first parameter with a NaN or an infinity, (None,) for a loss, or None."""
        if not all(np.isfinite(x.loss) for x in self.losses):
            return (None,)
        return first_non_finite(add_up(scaled(self)))


def add_up(rows: list[list[np.ndarray | None]]) -> list[np.ndarray | None]:
    """The sum for each parameter, None for nothing."""
    found: list[np.ndarray | None] = []
    with np.errstate(invalid="ignore"):
        for column in zip(*rows):
            arrays = [x for x in column if x is not None]
            found.append(sum(arrays[1:], arrays[0]) if arrays else None)
    return found


def first_non_finite(sums: list[np.ndarray | None]) -> tuple[int] | None:
    for index, array in enumerate(sums):
        if array is not None and not np.isfinite(array).all():
            return (index,)
    return None


@dataclass(frozen=True)
class Report:
    outcome: int
    loss: float
    weight: float
    micro_batches: int
    gradient_norm: float
    clip_factor: float
    learning_rate: float
    update_count: int
    aborted_micro_batches: int
    accumulation_steps: int
    consecutive_skips: int
    non_finite_parameter: int | None
    non_finite_micro_batch: int | None
    norms: list[float]  # of each parameter's mean gradient


@dataclass
class Bound:
    """How far a float32 parameter may be from the exact one.

    An update rounds its direction a few times, each time by at most ROUNDING times the magnitude that its terms would
    have without cancellation; so did each of the updates before to the state that it is made from. The parameter itself
    is rounded when it decays and when it moves. What the parameter is off by already comes back through weight decay.
    """

    parameter: float = 0.0

    def update(
        self, number: int, moved: np.ndarray, parameter: np.ndarray, feedback: float
    ) -> None:
        """moved: the step in this update, made of magnitudes. feedback: of the parameter's error in its step."""
        step = float(np.max(moved, initial=0.0))
        size = float(np.max(np.abs(parameter), initial=0.0))
        self.parameter = self.parameter * (1 + feedback) + ROUNDING * ((10 + 6 * number) * step + 4 * (size + step))


@dataclass
class SGD:
    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], number: int, bound: Bound) -> None:
        size = np.abs(g) + self.weight_decay * np.abs(p)
        g = g + self.weight_decay * p
        if "buffer" in state and number > 1:
            state["buffer"] = self.momentum * state["buffer"] + g
            state["size"] = self.momentum * state["size"] + size
        else:
            state["buffer"], state["size"] = g, size
        direction = g + self.momentum * state["buffer"] if self.nesterov else state["buffer"]
        p -= self.lr * direction
        bound.update(
            number, self.lr * (size + state["size"]), p, self.lr * self.weight_decay / (1 - self.momentum)
        )


@dataclass
class Adam:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], number: int, bound: Bound) -> None:
        beta1, beta2 = self.betas
        zero = np.zeros_like(p)
        state["m"] = beta1 * state.get("m", zero) + (1 - beta1) * g
        state["v"] = beta2 * state.get("v", zero) + (1 - beta2) * g * g
        state["size"] = beta1 * state.get("size", zero) + (1 - beta1) * np.abs(g)
        root = np.sqrt(state["v"] / (1 - beta2**number)) + self.eps
        step = self.lr / (1 - beta1**number)
        p -= step * state["m"] / root
        bound.update(number, step * state["size"] / root, p, 0.0)


@dataclass
class AdamW(Adam):
    weight_decay: float = 1e-2

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], number: int, bound: Bound) -> None:
        p *= 1 - self.lr * self.weight_decay
        super().update(p, g, state, number, bound)


@dataclass
class Window:
    """Parameters with an optimizer and a window, whose calls are those of the library."""

    initial: Sequence[np.ndarray]
    rule: SGD | Adam
    accumulation_steps: int = 1
    loss_reduction: str = "sum"
    normalization: str = "weight"
    isolated: bool = False
    max_grad_norm: float = 0.0
    max_grad_value: float = 0.0
    agc_clipping: float = 0.0
    agc_eps: float = 1e-3
    dtype: type = np.float64

    def __post_init__(self) -> None:
        self.parameters = [array.astype(self.dtype) for array in self.initial]
        self.bounds = [Bound() for _ in self.initial]
        self._state: list[dict[str, np.ndarray]] = [{} for _ in self.initial]
        self._updates = [0] * len(self.initial)  # per parameter, those that it had part in
        self.update_count = 0
        self.consecutive_skips = 0
        self.zero()

    # ------ what a window holds ------

    def zero(self) -> None:
        """micro_batches: all that were begun, aborted ones too."""
        self.micro_batches: list[MicroBatch] = []
        self._steps: int | None = None  # of this window
        self._first_non_finite: tuple[int | None, int] | None = None
        self._is_carried = False

    @property
    def _counted(self) -> list[MicroBatch]:
        return [m for m in self.micro_batches if not m.is_aborted]

    @property
    def steps(self) -> int:
        return self.accumulation_steps if self._steps is None else self._steps

    @property
    def step_due(self) -> bool:
        return len(self._counted) >= self.steps

    def _scaled(self, micro_batch: MicroBatch) -> list[list[np.ndarray | None]]:
        """The gradients of each of its losses, as sums."""
        rows = []
        for loss in micro_batch.losses:
            factor = micro_batch.weight_of(loss) if self.loss_reduction == "mean" else 1.0
            with np.errstate(invalid="ignore"):
                rows.append([None if x is None else factor * x.astype(self.dtype) for x in loss.gradients])
        return rows

    def sums(self) -> list[np.ndarray | None]:
        rows = [row for m in self._counted for row in self._scaled(m)]
        return add_up(rows) if rows else [None] * len(self.parameters)

    @property
    def total_weight(self) -> float:
        return sum(m.weight for m in self._counted)

    @property
    def mean_loss(self) -> float:
        mean = self.loss_reduction == "mean"
        total = sum(x.loss * m.weight_of(x) if mean else x.loss for m in self._counted for x in m.losses)
        return total / self.total_weight if self.total_weight > 0 else 0.0

    # ------ calls ------

    def accumulate(self, *losses: Loss, abort: bool = False, given: float | None = None) -> None:
        """A micro-batch of these losses, with the weight of all that have none, which is then aborted if asked and
        possible."""
        micro_batch = MicroBatch(list(losses), given)
        number = len(self.micro_batches)
        if self._steps is None:
            self._steps = self.accumulation_steps
        self.micro_batches.append(micro_batch)
        if abort and (self.isolated or not losses):
            micro_batch.is_aborted = True
            return
        if self.isolated:
            bad = micro_batch.non_finite(self._scaled)
            if bad is not None:
                micro_batch.is_aborted = True
                self._first_non_finite = self._first_non_finite or (bad[0], number)
                return
        elif self.consecutive_skips > 0 and self._first_non_finite is None:
            found = first_non_finite(self.sums())
            self._first_non_finite = None if found is None else (found[0], number)
        self._is_carried = False

    def give_weights(self, weight: float) -> None:
        for m in self.micro_batches:
            if m.needs_weight:
                m.weight_given_later = weight

    def set_steps(self, steps: int) -> None:
        self.accumulation_steps = steps

    def begin_data(self) -> None:
        if self._counted and not self._is_carried:
            raise Refused(f"holds {len(self._counted)} micro-batches")
        if not self._counted:
            self.zero()
        self._is_carried = False

    def end_data(self, tail: str) -> Report:
        if not self.micro_batches:
            return self._report(EMPTY)
        if tail == "step":
            return self.step()
        report = self._report(PENDING if tail == "carry" else DROPPED)
        if tail == "carry":
            self._is_carried = True
        else:
            self.zero()
        return report

    def step(self) -> Report:
        if not self.micro_batches:
            raise Refused("accumulate a micro-batch first")
        if any(m.needs_weight for m in self.micro_batches):
            raise Refused("weight of micro-batch")
        weight, count = self.total_weight, len(self._counted)
        sums = self.sums()
        try:
            if weight > 0:
                return self._update(sums, weight if self.normalization == "weight" else 1.0)
            if count == 0 and self._first_non_finite is not None:
                self.consecutive_skips += 1
                return self._report(SKIPPED_NON_FINITE)
            return self._report(SKIPPED_ZERO_WEIGHT)
        finally:
            self.zero()

    def _report(self, outcome: int, norms: list[float] | None = None, factor: float = 1.0) -> Report:
        norms = norms or [0.0] * len(self.parameters)
        parameter, micro_batch = self._first_non_finite or (None, None)
        return Report(
            outcome=outcome,
            loss=self.mean_loss,
            weight=self.total_weight,
            micro_batches=len(self._counted),
            gradient_norm=float(np.sqrt(np.sum(np.square(norms)))),
            clip_factor=factor,
            learning_rate=self.rule.lr,
            update_count=self.update_count,
            aborted_micro_batches=len(self.micro_batches) - len(self._counted),
            accumulation_steps=self.steps,
            consecutive_skips=self.consecutive_skips,
            non_finite_parameter=parameter,
            non_finite_micro_batch=micro_batch,
            norms=norms,
        )

    def _update(self, sums: list[np.ndarray | None], divisor: float) -> Report:
        means = [None if x is None else x / divisor for x in sums]
        norms = [0.0 if g is None else float(np.sqrt(np.sum(g.astype(np.float64) ** 2))) for g in means]
        norm = float(np.sqrt(np.sum(np.square(norms))))
        if not np.isfinite(norm):
            self.consecutive_skips += 1
            if self._first_non_finite is None:
                (parameter,) = first_non_finite(sums) or (None,)
                self._first_non_finite = (parameter, 0 if len(self.micro_batches) == 1 else None)
            return self._report(SKIPPED_NON_FINITE, norms)
        clipped = [None if g is None else self._clip(g, p, norm) for g, p in zip(means, self.parameters)]
        after = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in clipped if g is not None))
        self.update_count += 1
        self.consecutive_skips = 0
        for i, g in enumerate(clipped):
            if g is not None:
                self._updates[i] += 1
                self.rule.update(self.parameters[i], g, self._state[i], self._updates[i], self.bounds[i])
        return self._report(APPLIED, norms, float(after / norm) if norm > 0 else 1.0)

    def _clip(self, g: np.ndarray, p: np.ndarray, norm: float) -> np.ndarray:
        if self.max_grad_norm:
            return g * min(1.0, self.max_grad_norm / (norm + 1e-6))
        if self.max_grad_value:
            return np.clip(g, -self.max_grad_value, self.max_grad_value)
        if self.agc_clipping:
            axes = tuple(range(1, g.ndim)) if g.ndim > 1 else None
            limit = self.agc_clipping * np.maximum(np.sqrt(np.sum(p**2, axes, keepdims=True)), self.agc_eps)
            own = np.sqrt(np.sum(g**2, axes, keepdims=True))
            return np.where(own > limit, g * (limit / np.where(own > 0, own, 1.0)), g)
        return g
