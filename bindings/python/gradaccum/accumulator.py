"""The accumulation window."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Sequence
from ctypes import POINTER, byref, c_double, c_int32, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _ffi
from ._ffi import lib
from .errors import GADTypeError, GAError, GAInvalidArgumentError, GAShapeError
from .ops import reduction_constant
from .optim import Optimizer
from .tensor import DType, Tensor, make, numpy_dtype_of


class Outcome(enum.IntEnum):
    """Why a step did, or did not, change the parameters."""

    APPLIED = _ffi.STEP_APPLIED
    SKIPPED_NON_FINITE = _ffi.STEP_SKIPPED_NON_FINITE
    SKIPPED_ZERO_WEIGHT = _ffi.STEP_SKIPPED_ZERO_WEIGHT


@dataclass(frozen=True)
class Report:
    """What a step did."""

    outcome: Outcome
    loss: float  # mean over the window, by weight
    weight: float  # total of the window
    micro_batches: int
    gradient_norm: float  # of the mean gradient, before clipping
    clip_factor: float  # the norm after clipping over the norm before
    learning_rate: float
    update_count: int

    @property
    def skipped(self) -> bool:
        return self.outcome != Outcome.APPLIED


class Accumulator:
    """Accumulates gradients of micro-batches for an optimizer and updates its parameters at the step, which
    divides by the total weight of the window.

    loss_reduction: what a loss stands for, "sum" over the samples or tokens of its weight, or "mean".
    The mean gradient is clipped once, at the step, in at most one way; 0 does not clip.
    max_grad_norm: its global norm, as torch.nn.utils.clip_grad_norm_.
    max_grad_value: the magnitude of each element, as torch.nn.utils.clip_grad_value_.
    agc_clipping: the norm of each unit, to this times that of its parameter or agc_eps if that is larger (adaptive
        gradient clipping, arXiv 2102.06171, with 0.01). A unit is what one index of the leading axis has; a
        parameter of less than two axes is one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        accumulation_steps: int = 1,
        max_grad_norm: float = 0.0,
        max_grad_value: float = 0.0,
        agc_clipping: float = 0.0,
        agc_eps: float = 1e-3,
        loss_reduction: str = "sum",
    ) -> None:
        self.optimizer = optimizer
        options = _ffi.AccumulatorOptions(
            accumulation_steps=accumulation_steps,
            max_grad_norm=max_grad_norm,
            max_grad_value=max_grad_value,
            agc_clipping=agc_clipping,
            agc_eps=agc_eps,
            loss_reduction=reduction_constant("loss_reduction", loss_reduction),
        )
        out = c_void_p()
        lib.ga_accumulator_create(byref(out), optimizer.handle, byref(options))
        self._address: int | None = out.value
        self._finalizer = weakref.finalize(self, lib.ga_accumulator_free, self._address)

    @property
    def handle(self) -> int:
        """The ga_accumulator address, for calls of the C library."""
        if self._address is None:
            raise GAInvalidArgumentError("the accumulator was closed")
        return self._address

    def close(self) -> None:
        """Frees the handle now. Closing twice does nothing."""
        self._address = None
        self._finalizer()

    def __enter__(self) -> Accumulator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def accumulate(self, loss: Tensor, weight: float) -> None:
        """Runs backward from a scalar loss and adds the gradients to the window. weight: the samples or
        tokens that the loss stands for."""
        lib.ga_accumulate(self.handle, loss.handle, weight)

    def accumulate_gradients(
        self,
        arrays: Sequence[np.ndarray | None],
        loss: float,
        weight: float,
        *,
        dtype: DType | None = None,
    ) -> None:
        """Adds gradients that the caller computed, one array per parameter in the optimizer's order; None
        adds nothing for that parameter. Arrays that are contiguous are read where they are."""
        parameters = self.optimizer.parameters
        if len(arrays) != len(parameters):
            raise GAShapeError(
                f"arrays has {len(arrays)} entries and the optimizer {len(parameters)} parameters"
            )
        held: list[np.ndarray] = []  # copies of arrays that were not contiguous live until the call is over
        addresses: Any = (c_void_p * len(arrays))()
        for index, (array, parameter) in enumerate(zip(arrays, parameters)):
            if array is None:
                continue
            kind = numpy_dtype_of(array)
            dtype = kind if dtype is None else dtype
            if kind != dtype:
                raise GADTypeError(f"arrays[{index}] is {kind.name.lower()} and others {dtype.name.lower()}")
            if array.shape != parameter.shape:
                raise GAShapeError(
                    f"arrays[{index}] has shape {array.shape} and its parameter {parameter.shape}"
                )
            held.append(np.ascontiguousarray(array))
            addresses[index] = held[-1].ctypes.data
        lib.ga_accumulate_gradients(
            self.handle, addresses, len(arrays), DType.FLOAT32 if dtype is None else dtype, loss, weight
        )

    @property
    def step_due(self) -> bool:
        """Whether the window has accumulation_steps micro-batches. A step may be taken earlier."""
        value = c_int32()
        lib.ga_step_due(self.handle, byref(value))
        return value.value != 0

    def step(self) -> Report:
        """Ends the window: divides by its weight, clips, updates and empties the accumulators."""
        report = _ffi.Report()
        try:
            lib.ga_step(self.handle, byref(report))
        except GAError:
            self.optimizer.raise_own_error()
            raise
        return Report(
            outcome=Outcome(report.outcome),
            loss=report.loss,
            weight=report.weight,
            micro_batches=report.micro_batches,
            gradient_norm=report.gradient_norm,
            clip_factor=report.clip_factor,
            learning_rate=report.learning_rate,
            update_count=report.update_count,
        )

    def gradient_norms(self) -> np.ndarray:
        """The norm of each parameter's mean gradient in the window of the last step, before clipping."""
        norms = np.empty(len(self.optimizer.parameters))
        lib.ga_gradient_norms(self.handle, norms.ctypes.data_as(POINTER(c_double)), norms.size)
        return norms

    def zero(self) -> None:
        """Drops what was accumulated."""
        lib.ga_zero(self.handle)

    def accumulated_gradient(self, index: int) -> Tensor:
        """A copy of the accumulated sum of a parameter, in the optimizer's order."""
        return make(lib.ga_accumulated_gradient, self.handle, index)
