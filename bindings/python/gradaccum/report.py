"""What became of a window."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from . import _ffi


class Outcome(enum.IntEnum):
    """What became of a window, and why a step did, or did not, change the parameters."""

    APPLIED = _ffi.STEP_APPLIED
    SKIPPED_NON_FINITE = _ffi.STEP_SKIPPED_NON_FINITE
    SKIPPED_ZERO_WEIGHT = _ffi.STEP_SKIPPED_ZERO_WEIGHT
    SKIPPED_OUTLIER = _ffi.STEP_SKIPPED_OUTLIER
    PENDING = _ffi.STEP_PENDING  # the window goes on
    DROPPED = _ffi.STEP_DROPPED  # by end_data("drop")
    EMPTY = _ffi.STEP_EMPTY  # end_data() found nothing in the window
    SKIPPED_OVERFLOW = _ffi.STEP_SKIPPED_OVERFLOW  # not finite under a loss scale
    MICRO_BATCH_NON_FINITE = _ffi.MICRO_BATCH_NON_FINITE  # a micro-batch is dropped: for a skip handler


class Decision(enum.IntEnum):
    """What to do about a window, or in isolated mode a micro-batch, that would be skipped."""

    SKIP = _ffi.DECISION_SKIP
    RAISE = _ffi.DECISION_RAISE
    APPLY = _ffi.DECISION_APPLY  # only for an outlier


@dataclass(frozen=True)
class Report:
    """What a window held, and what a step did."""

    outcome: Outcome
    loss: float | None  # mean over the window, by weight; None where a loop of PyTorch or JAX gave none
    weight: float  # total of the window
    micro_batches: int  # without those that were aborted
    gradient_norm: float  # of what the update is made of, before clipping
    clip_factor: float  # the norm after clipping over the norm before
    learning_rate: float
    update_count: int
    aborted_micro_batches: int  # or dropped, in isolated mode
    accumulation_steps: int
    loss_scale: float
    loss_z_score: float  # standard deviations above the running mean
    gradient_norm_z_score: float
    consecutive_skips: int  # as not finite or an outlier
    non_finite_parameter: int | None  # the first with a NaN or an infinity
    non_finite_micro_batch: int | None  # where that came in, if it is known
    retries: int  # how often the window was computed again after an overflow
    underflow: float  # with count_underflow, the share of gradients that rounding to a half format made 0
    # What it took, by which reports are not compared.
    accumulator_bytes: int = field(compare=False)
    tensor_bytes: int = field(compare=False)  # of all tensors of the process
    forward_backward_seconds: float = field(compare=False)
    step_seconds: float = field(compare=False)

    @property
    def skipped(self) -> bool:
        """Whether the window ended without an update."""
        return self.outcome in (
            Outcome.SKIPPED_NON_FINITE,
            Outcome.SKIPPED_ZERO_WEIGHT,
            Outcome.SKIPPED_OUTLIER,
            Outcome.SKIPPED_OVERFLOW,
        )

    @classmethod
    def _of(cls, report: _ffi.Report, untold_loss: float | None = 0.0) -> Report:
        """untold_loss: what the library has not been told of the loss: None if nobody knows, or what is not finite."""
        fields: dict[str, Any] = {name: getattr(report, name) for name in cls.__dataclass_fields__}
        fields["outcome"] = Outcome(report.outcome)
        for name in ("non_finite_parameter", "non_finite_micro_batch"):
            fields[name] = None if fields[name] < 0 else fields[name]
        fields["loss"] = None if untold_loss is None else fields["loss"] + untold_loss
        return cls(**fields)
