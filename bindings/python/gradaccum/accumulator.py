"""The accumulation window."""

from __future__ import annotations

import contextlib
import enum
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, byref, c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np

from . import _ffi, _python
from ._ffi import lib
from ._handle import Handle
from .errors import GADTypeError, GAError, GAInvalidArgumentError, GAOutOfMemoryError, GAShapeError, GAStateError
from .loss_scaler import LossScaler
from .ops import reduction_constant
from .optim import Optimizer
from .schedules import clock_constant, constant_of
from .tensor import DType, Tensor, int64_array, make, numpy_dtype_of


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
    loss: float  # mean over the window, by weight
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
    def _of(cls, report: _ffi.Report) -> Report:
        fields: dict[str, Any] = {name: getattr(report, name) for name in cls.__dataclass_fields__}
        fields["outcome"] = Outcome(report.outcome)
        for name in ("non_finite_parameter", "non_finite_micro_batch"):
            fields[name] = None if fields[name] < 0 else fields[name]
        return cls(**fields)


SkipHandler = Callable[[Report], Decision]
RetryHandler = Callable[[Report], bool]
Tail = Literal["step", "carry", "drop"]
_TAILS = {"step": _ffi.TAIL_STEP, "carry": _ffi.TAIL_CARRY, "drop": _ffi.TAIL_DROP}
_NORMALIZATIONS = {"weight": _ffi.NORMALIZATION_WEIGHT, "sum": _ffi.NORMALIZATION_SUM}
_DESTINATIONS = {"gradients": _ffi.ACCUMULATE_INTO_GRADIENTS, "moments": _ffi.ACCUMULATE_INTO_MOMENTS}
_ON_NON_FINITE = {"skip": _ffi.ON_NON_FINITE_SKIP, "raise": _ffi.ON_NON_FINITE_RAISE}


def _weight(value: float | None) -> float:
    return _ffi.WEIGHT_LATER if value is None else value


def _free(address: int) -> None:
    """Frees an accumulator, and says so if gradients are lost with it."""
    report = _ffi.Report()
    with contextlib.suppress(GAInvalidArgumentError):  # C has freed it
        lib.ga_window_report(address, byref(report))
    lib.ga_accumulator_free(address)
    if report.micro_batches > 0:
        warnings.warn(
            f"an accumulator was freed with {report.micro_batches} micro-batches in its window, which are "
            "lost: settle them before, with step(), end_data() or zero()",
            ResourceWarning,
            stacklevel=3,
        )


class MicroBatch:
    """An open micro-batch: commits at the end of the with statement, and aborts where an exception ends it."""

    def __init__(self, accumulator: Accumulator) -> None:
        self._accumulator = accumulator
        lib.ga_micro_batch_begin(accumulator.handle)
        window = accumulator.window()
        self.number: int = window.micro_batches + window.aborted_micro_batches
        self._is_open = True

    def set_weight(self, weight: float) -> None:
        """Gives the weight that was None where the losses were accumulated; also after the commit."""
        self._accumulator.set_weight(self.number, weight)

    def commit(self) -> None:
        """Ends the micro-batch, which then counts. In isolated mode it is dropped if it is not finite."""
        try:
            with self._accumulator._running_callbacks():
                lib.ga_micro_batch_commit(self._accumulator.handle)
        except (GAStateError, GAOutOfMemoryError):
            raise
        except BaseException:  # it was dropped
            self._is_open = False
            raise
        self._is_open = False

    def abort(self) -> None:
        """Takes the micro-batch back. In exact mode that can be done before anything was added only."""
        lib.ga_micro_batch_abort(self._accumulator.handle)
        self._is_open = False

    def __enter__(self) -> MicroBatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_open:
            return
        if error is None:
            self.commit()
            return
        try:
            self.abort()
        except GAStateError as refusal:
            # The exception goes on. The window cannot be stepped until zero() drops it, so nothing is lost in silence.
            if hasattr(error, "add_note"):
                error.add_note(str(refusal))


class Accumulator(Handle):
    """Accumulates gradients of micro-batches for an optimizer and updates its parameters at the step, which
    divides by the total weight of the window.

    loss_reduction: what a loss stands for, "sum" over the samples or tokens of its weight, or "mean".
    The mean gradient is clipped once, at the step, in at most one way; 0 does not clip.
    max_grad_norm: its global norm, as torch.nn.utils.clip_grad_norm_.
    max_grad_value: the magnitude of each element, as torch.nn.utils.clip_grad_value_.
    agc_clipping: the norm of each unit, to this times that of its parameter or agc_eps if that is larger (adaptive
        gradient clipping, arXiv 2102.06171, with 0.01). A unit is what one index of the leading axis has; a
        parameter of less than two axes is one.
    isolated: adds a micro-batch when it is committed, so that it can be aborted, and drops one that is not finite
        alone. That takes one more gradient in memory, and bits then depend on where the batch is cut.
    normalization: what the sum is divided by at the step: "weight", or "sum" for nothing.
    accumulate_into: "gradients", or the "moments" of Adam or AdamW (AdamA, arXiv 2305.19982), for which gradients
        are in memory until their micro-batch is committed, and no longer. That needs the normalization "sum" and
        gives up law 1, clipping, limits on outliers and dropping a window: see ga_accumulator_create.
    on_non_finite: what becomes of a window, or in isolated mode a micro-batch, that is not finite: "skip", or
        "raise" for GANonFiniteError. It is dropped in either case.
    skip_handler: asked instead, and about outliers, with the report; returns a Decision.
    max_consecutive_skips: one more in a row is an error; 0 for no limit.
    max_loss_z_score, max_norm_z_score: skip a window whose loss, or norm before clipping, is this many standard
        deviations above its running mean, after outlier_warmup applied windows; 0 for no limit.
    loss_scaler: multiplies losses by its scale, see set_loss_scaler().
    retry_handler: computes a window again that overflowed, see set_retry_handler().

    close() gives a ResourceWarning if gradients are lost.
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
        isolated: bool = False,
        normalization: str = "weight",
        accumulate_into: str = "gradients",
        on_non_finite: str = "skip",
        skip_handler: SkipHandler | None = None,
        max_consecutive_skips: int = 0,
        max_loss_z_score: float = 0.0,
        max_norm_z_score: float = 0.0,
        outlier_warmup: int = 32,
        loss_scaler: LossScaler | None = None,
        retry_handler: RetryHandler | None = None,
    ) -> None:
        options = _ffi.AccumulatorOptions(
            accumulation_steps=accumulation_steps,
            max_grad_norm=max_grad_norm,
            max_grad_value=max_grad_value,
            agc_clipping=agc_clipping,
            agc_eps=agc_eps,
            loss_reduction=reduction_constant("loss_reduction", loss_reduction),
            isolated=int(isolated),
            normalization=constant_of("normalization", normalization, _NORMALIZATIONS),
            accumulate_into=constant_of("accumulate_into", accumulate_into, _DESTINATIONS),
            on_non_finite=constant_of("on_non_finite", on_non_finite, _ON_NON_FINITE),
            max_consecutive_skips=max_consecutive_skips,
            max_loss_z_score=max_loss_z_score,
            max_norm_z_score=max_norm_z_score,
            outlier_warmup=outlier_warmup,
        )
        out = c_void_p()
        lib.ga_accumulator_create(byref(out), optimizer.handle, byref(options))
        self._hold(out.value, optimizer)
        if loss_scaler is not None:
            self.set_loss_scaler(loss_scaler)
        if retry_handler is not None:
            self.set_retry_handler(retry_handler)
        if skip_handler is not None:
            self.set_skip_handler(skip_handler)

    def _hold(self, address: int | None, optimizer: Optimizer) -> None:
        self._own(address, _free, "accumulator")
        self.optimizer = optimizer
        self._skip_callback: Any = None  # what the library calls, which must live as long
        self._retry_callback: Any = None
        self._error_of_handler: BaseException | None = None
        self._is_retrying = False
        self._arrays: _python.Arrays | None = None
        self.loss_scaler: LossScaler | None = None

    @staticmethod
    def borrow(handle: int, optimizer: Optimizer) -> Accumulator:
        """The accumulator of a ga_accumulator handle that somebody else owns, such as the C program that this
        interpreter runs in, and its optimizer. It is not freed here, and keeps its owner's handlers and loss scaler."""
        borrowed = Accumulator.__new__(Accumulator)
        borrowed._hold(handle, optimizer)
        borrowed._disown()
        return borrowed

    def _require_own(self, handler: str) -> None:
        if self._is_borrowed:
            raise GAStateError(f"the accumulator is borrowed: its owner sets the {handler}")

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches after which a step is due. A change holds from the next window on."""
        value = c_int64()
        lib.ga_accumulator_accumulation_steps(self.handle, byref(value))
        return value.value

    @accumulation_steps.setter
    def accumulation_steps(self, value: int) -> None:
        lib.ga_accumulator_set_accumulation_steps(self.handle, value)

    def set_ramp(
        self,
        times: Sequence[float],
        accumulation_steps: Sequence[int],
        *,
        clock: str = "updates",
        interpolated: bool = False,
    ) -> None:
        """Lets accumulation_steps follow a ramp until it is set: a window gets the number that holds where the
        optimizer's clock stands when it begins, accumulation_steps[i] from times[i] on, or on a straight line to the
        next if interpolated. clock: "updates", or "weight" for times in samples or tokens."""
        if len(times) != len(accumulation_steps):
            raise GAInvalidArgumentError(
                f"times has {len(times)} entries and accumulation_steps {len(accumulation_steps)}: give one for each"
            )
        lib.ga_accumulator_set_ramp(
            self.handle,
            clock_constant(clock),
            int(interpolated),
            (c_double * len(times))(*times),
            int64_array(accumulation_steps),
            len(times),
        )

    def accumulate(self, loss: Tensor, weight: float | None) -> None:
        """Runs backward from a scalar loss and adds the gradients to the window, as a micro-batch of its own or
        to the one that is open. weight: the samples or tokens that the loss stands for; None to give it later."""
        with self._running_callbacks():
            lib.ga_accumulate(self.handle, loss.handle, _weight(weight))

    def accumulate_gradients(
        self,
        arrays: Sequence[np.ndarray | None],
        loss: float,
        weight: float | None,
        *,
        dtype: DType | None = None,
        scale: float = 1.0,
    ) -> None:
        """Adds gradients that the caller computed, one array per parameter in the optimizer's order; None
        adds nothing for that parameter. Arrays that are contiguous are read where they are. scale: the loss scale
        that they carry, 1 for none, whatever that of the window is."""
        addresses, kind, held = self._gathered(arrays, dtype)
        with self._running_callbacks():
            lib.ga_accumulate_scaled_gradients(
                self.handle, addresses, len(arrays), kind, scale, loss, _weight(weight)
            )

    def _gathered(self, arrays: Sequence[np.ndarray | None], dtype: DType | None) -> tuple[Any, DType, Any]:
        """The addresses and the type of one gradient per parameter, and what keeps them where they are."""
        parameters = self.optimizer.parameters
        if len(arrays) != len(parameters):
            raise GAShapeError(
                f"arrays has {len(arrays)} entries and the optimizer {len(parameters)} parameters"
            )
        first = next((array for array in arrays if array is not None), None)
        if first is None:
            return (c_void_p * len(arrays))(), DType.FLOAT32 if dtype is None else dtype, None
        kind = numpy_dtype_of(first)
        if _python.CAN_READ_ARRAYS and dtype in (None, kind):
            if self._arrays is None:
                self._arrays = _python.Arrays([parameter.shape for parameter in parameters])
            given = tuple(arrays)
            addresses = self._arrays.addresses(given, first.dtype)
            if addresses is not None:
                return addresses, kind, given
        return self._gathered_one_by_one(arrays, dtype)

    def _gathered_one_by_one(
        self, arrays: Sequence[np.ndarray | None], dtype: DType | None
    ) -> tuple[Any, DType, Any]:
        """For arrays that are not contiguous, which are copied, subclasses of them, and errors."""
        held: list[np.ndarray] = []
        addresses: Any = (c_void_p * len(arrays))()
        for index, (array, parameter) in enumerate(zip(arrays, self.optimizer.parameters)):
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
        assert dtype is not None
        return addresses, dtype, held

    def accumulate_gradient(self, index: int, array: np.ndarray, *, scale: float = 1.0) -> None:
        """Adds the gradient of one parameter to the open micro-batch, for a loop whose gradients appear one after
        another. accumulate_gradients with None for every array gives the loss and the weight, which a commit needs.
        scale: what the array is multiplied by, which is the weight where it is a mean."""
        parameters = self.optimizer.parameters
        if 0 <= index < len(parameters) and array.shape != parameters[index].shape:
            raise GAShapeError(f"array has shape {array.shape} and its parameter {parameters[index].shape}")
        kind = numpy_dtype_of(array)
        held = np.ascontiguousarray(array)  # lives until the call is over
        lib.ga_accumulate_gradient(self.handle, index, held.ctypes.data, kind, scale)

    def micro_batch(self) -> MicroBatch:
        """Begins a micro-batch: all that is accumulated until its commit belongs to it and counts as one. In a with
        statement it commits itself, or aborts where an exception ends the statement."""
        return MicroBatch(self)

    def set_weight(self, micro_batch: int, weight: float) -> None:
        """Gives a micro-batch the weight that was None when it was accumulated, before the step. They are numbered
        from 0 in each window, aborted ones included."""
        lib.ga_micro_batch_set_weight(self.handle, micro_batch, weight)

    @property
    def step_due(self) -> bool:
        """Whether the window has accumulation_steps micro-batches. A step may be taken earlier."""
        value = c_int32()
        lib.ga_step_due(self.handle, byref(value))
        return value.value != 0

    def step(self) -> Report:
        """Ends the window: divides by its weight, clips, updates and empties the accumulators."""
        report = _ffi.Report()
        with self._running_callbacks():
            lib.ga_step(self.handle, byref(report))
        return Report._of(report)

    def window(self) -> Report:
        """What the window holds so far."""
        report = _ffi.Report()
        lib.ga_window_report(self.handle, byref(report))
        return Report._of(report)

    def set_skip_handler(self, handler: SkipHandler | None) -> None:
        """Asks the handler about windows, and in isolated mode micro-batches, that would be skipped; None for the
        policy again. An exception of the handler comes out of the call that asked, after the drop."""

        def decide(report: Any, user: Any) -> int:
            accumulator = this()
            assert accumulator is not None and handler is not None
            try:
                return int(handler(Report._of(report.contents)))
            except BaseException as error:  # goes on where the library has returned
                accumulator._error_of_handler = error
                return _ffi.DECISION_RAISE

        self._require_own("skip handler")
        this = weakref.ref(self)
        callback = _ffi.SkipFn() if handler is None else _ffi.SkipFn(decide)
        lib.ga_accumulator_set_skip_handler(self.handle, callback, None)
        self._skip_callback = callback

    def set_loss_scaler(self, scaler: LossScaler | None) -> None:
        """Multiplies losses by the scale of a scaler, from the next window on; None ends that. Sums then hold scaled
        gradients, which the step divides by the scale along with the weight; all that is reported is without it."""
        lib.ga_accumulator_set_loss_scaler(self.handle, None if scaler is None else scaler.handle)
        self.loss_scaler = scaler

    def set_retry_handler(self, handler: RetryHandler | None) -> None:
        """Has a window computed again that overflowed, where the loss scale can go lower; None for a skip again.

        The handler accumulates the same micro-batches, into the window that is empty by then, and returns True, or
        False for a skip. An exception of the handler comes out of the step, after the drop."""

        def retry(report: Any, user: Any) -> int:
            accumulator = this()
            assert accumulator is not None and handler is not None
            accumulator._is_retrying = True
            try:
                return int(bool(handler(Report._of(report.contents))))
            except BaseException as error:  # goes on where the library has returned
                accumulator._error_of_handler = error
                return -1
            finally:
                accumulator._is_retrying = False

        self._require_own("retry handler")
        this = weakref.ref(self)
        callback = _ffi.RetryFn() if handler is None else _ffi.RetryFn(retry)
        lib.ga_accumulator_set_retry_handler(self.handle, callback, None)
        self._retry_callback = callback

    def unscale(self) -> float:
        """Ends the additions to the window and returns the global norm of its mean gradient, without the loss scale
        and before clipping. A step needs no such call: it is for those that want the norm before it."""
        norm = c_double()
        lib.ga_unscale(self.handle, byref(norm))
        return norm.value

    @contextlib.contextmanager
    def _running_callbacks(self) -> Iterator[None]:
        """Around a call that may run the skip handler, or an update rule of the caller: raises what those raised."""
        try:
            yield
        except GAError:
            error, self._error_of_handler = self._error_of_handler, None
            if error is not None:
                raise error from None
            self.optimizer.raise_own_error()
            raise

    def begin_data(self) -> None:
        """Says that data begins, such as an epoch. GAStateError if the window holds micro-batches of earlier data
        that end_data() did not carry over."""
        lib.ga_data_begin(self.handle)

    def end_data(self, tail: Tail = "step") -> Report:
        """Says that the data ends, and what becomes of a window that was not stepped: "step" it, divided by the
        weight that went in, "carry" it over into what comes next, or "drop" it."""
        report = _ffi.Report()
        with self._running_callbacks():
            lib.ga_data_end(self.handle, constant_of("tail", tail, _TAILS), byref(report))
        return Report._of(report)

    def gradient_norms(self) -> np.ndarray:
        """The norm of each parameter's mean gradient in the window of the last step, before clipping."""
        norms = np.empty(len(self.optimizer.parameters))
        lib.ga_gradient_norms(self.handle, norms.ctypes.data_as(POINTER(c_double)), norms.size)
        return norms

    def zero(self) -> None:
        """Drops what was accumulated, an open micro-batch included."""
        lib.ga_zero(self.handle)

    def accumulated_gradient(self, index: int) -> Tensor:
        """A copy of the accumulated sum of a parameter, in the optimizer's order."""
        return make(lib.ga_accumulated_gradient, self.handle, index)
