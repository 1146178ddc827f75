"""The accumulation window."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from ctypes import POINTER, byref, c_double, c_int32, c_int64, c_void_p
from typing import Any, Literal

import numpy as np

from . import _ffi, _python
from ._arguments import INT32, INT64, constant_of, double_array, flag, int64_array, require
from ._ffi import lib
from ._handle import Handle
from .errors import GADTypeError, GAError, GAInvalidArgumentError, GAShapeError, GAStateError
from .loss_scaler import LossScaler
from .micro_batch import MicroBatch
from .ops import reduction_constant
from .optim import Optimizer, require_optimizer
from .report import Decision, Outcome, Report
from .schedules import clock_constant
from .tensor import DType, Tensor, dtype_of, make, numpy_dtype_of


SkipHandler = Callable[[Report], Decision]
RetryHandler = Callable[[Report], bool]
Tail = Literal["step", "carry", "drop"]
_TAILS = {"step": _ffi.TAIL_STEP, "carry": _ffi.TAIL_CARRY, "drop": _ffi.TAIL_DROP}
_NORMALIZATIONS = {"weight": _ffi.NORMALIZATION_WEIGHT, "sum": _ffi.NORMALIZATION_SUM}
_DESTINATIONS = {"gradients": _ffi.ACCUMULATE_INTO_GRADIENTS, "moments": _ffi.ACCUMULATE_INTO_MOMENTS}
_SUM_FORMATS = {
    "float32": _ffi.SUM_FLOAT32,
    "bfloat16_stochastic": _ffi.SUM_BFLOAT16_STOCHASTIC,
    "bfloat16_kahan": _ffi.SUM_BFLOAT16_KAHAN,
    "bfloat16": _ffi.SUM_BFLOAT16,
}
# What a loop does whose micro-batches take the step.
_IN_PLACE_OF = {
    "step": "leave step() out",
    "clip_grad_norm_": "leave clip_grad_norm_() out and give its limit to the accumulator as max_grad_norm",
    "unscale": "read last_report.gradient_norm",
}
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
    sum_format: what sums of gradients are kept in. "bfloat16_stochastic" takes half of the memory of "float32", and
        rounds at random with no error on average, to the same bits for every split; "bfloat16_kahan" keeps beside the
        sum what was added too much, and takes as much as "float32"; with "bfloat16" alone, additions of less than about
        1/512 of the sum are lost, see stagnation(). They exclude moments, max_grad_value and agc_clipping.
    count_underflow: finds out the underflow of the report.
    on_non_finite: what becomes of a window, or in isolated mode a micro-batch, that is not finite: "skip", or
        "raise" for GANonFiniteError. It is dropped in either case.
    skip_handler: asked instead, and about outliers, with the report; returns a Decision.
    max_consecutive_skips: one more in a row is an error; 0 for no limit.
    max_loss_z_score, max_norm_z_score: skip a window whose loss, or norm before clipping, is this many standard
        deviations above its running mean, after outlier_warmup applied windows; 0 for no limit.
    loss_scaler: multiplies losses by its scale, see set_loss_scaler().
    retry_handler: computes a window again that overflowed, see set_retry_handler().
    step_when_due: see micro_batch().

    last_report is that of the last window that ended without an exception, or None.
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
        sum_format: str = "float32",
        count_underflow: bool = False,
        on_non_finite: str = "skip",
        skip_handler: SkipHandler | None = None,
        max_consecutive_skips: int = 0,
        max_loss_z_score: float = 0.0,
        max_norm_z_score: float = 0.0,
        outlier_warmup: int = 32,
        loss_scaler: LossScaler | None = None,
        retry_handler: RetryHandler | None = None,
        step_when_due: bool = True,
    ) -> None:
        options = _ffi.AccumulatorOptions(
            accumulation_steps=accumulation_steps,
            max_grad_norm=max_grad_norm,
            max_grad_value=max_grad_value,
            agc_clipping=agc_clipping,
            agc_eps=agc_eps,
            loss_reduction=reduction_constant("loss_reduction", loss_reduction),
            isolated=flag("isolated", isolated),
            normalization=constant_of("normalization", normalization, _NORMALIZATIONS),
            accumulate_into=constant_of("accumulate_into", accumulate_into, _DESTINATIONS),
            on_non_finite=constant_of("on_non_finite", on_non_finite, _ON_NON_FINITE),
            max_consecutive_skips=max_consecutive_skips,
            max_loss_z_score=max_loss_z_score,
            max_norm_z_score=max_norm_z_score,
            outlier_warmup=outlier_warmup,
            sum_format=constant_of("sum_format", sum_format, _SUM_FORMATS),
            count_underflow=flag("count_underflow", count_underflow),
        )
        steps_when_due = bool(flag("step_when_due", step_when_due))
        require_optimizer(optimizer)
        out = c_void_p()
        lib.ga_accumulator_create(byref(out), optimizer.handle, byref(options))
        self._hold(out.value, optimizer)
        self._loss_reduction = loss_reduction
        self._max_grad_norm = max_grad_norm
        self._max_loss_z_score = max_loss_z_score
        self._steps_when_due = steps_when_due
        if loss_scaler is not None:
            self.set_loss_scaler(loss_scaler)
        if retry_handler is not None:
            self.set_retry_handler(retry_handler)
        if skip_handler is not None:
            self.set_skip_handler(skip_handler)

    def _hold(self, address: int | None, optimizer: Optimizer) -> None:
        self._own(address, _free, "accumulator")
        self._optimizer = optimizer
        self._skip_callback: Any = None  # what the library calls, which must live as long
        self._retry_callback: Any = None
        self._is_retrying = False
        self._arrays: _python.Arrays | None = None
        self._open: MicroBatch | None = None
        self._has_ended = False  # and nothing came after
        self._has_stepped_itself = False
        self._untold_loss: float | None = 0.0  # of the window, and not in the library's: None if nobody knows it
        self.last_report: Report | None = None
        self._loss_reduction = "sum"
        self._max_grad_norm = 0.0
        self._max_loss_z_score = 0.0
        self._steps_when_due = True
        self._loss_scaler: LossScaler | None = None

    @staticmethod
    def borrow(
        handle: int, optimizer: Optimizer, *, loss_reduction: str = "sum", max_grad_norm: float = 0.0
    ) -> Accumulator:
        """The accumulator of a ga_accumulator handle that somebody else owns, such as the C program that this
        interpreter runs in, its optimizer, and the options that it was created with. It is not freed here, and keeps
        its owner's handlers and loss scaler."""
        borrowed = Accumulator.__new__(Accumulator)
        borrowed._hold(handle, optimizer)
        borrowed._loss_reduction, borrowed._max_grad_norm = loss_reduction, max_grad_norm
        borrowed._disown()
        return borrowed

    def _require_own(self, handler: str) -> None:
        if self._is_borrowed:
            raise GAStateError(f"the accumulator is borrowed: its owner sets the {handler}")

    @property
    def optimizer(self) -> Optimizer:
        """What it accumulates for."""
        return self._optimizer

    @property
    def loss_reduction(self) -> str:
        """What a loss stands for, as it was created."""
        return self._loss_reduction

    @property
    def max_grad_norm(self) -> float:
        """What the step clips to, as it was created."""
        return self._max_grad_norm

    @property
    def step_when_due(self) -> bool:
        """Whether micro-batches take the step, see micro_batch()."""
        return self._steps_when_due

    @step_when_due.setter
    def step_when_due(self, value: bool) -> None:
        self._steps_when_due = bool(flag("step_when_due", value))

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
        given, steps = double_array("times", times), int64_array("accumulation_steps", accumulation_steps)
        if len(given) != len(steps):
            raise GAInvalidArgumentError(
                f"times has {len(given)} entries and accumulation_steps {len(steps)}: give one for each"
            )
        lib.ga_accumulator_set_ramp(
            self.handle,
            clock_constant(clock),
            flag("interpolated", interpolated),
            given,
            steps,
            len(given),
        )

    def accumulate(self, loss: Tensor, weight: float | None) -> None:
        """Runs backward from a scalar loss and adds the gradients to the window, as a micro-batch of its own or
        to the one that is open. weight: the samples or tokens that the loss stands for; None to give it later."""
        self._has_ended = False
        self._call(lib.ga_accumulate, loss, _weight(weight))

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
        if not isinstance(arrays, (list, tuple)):
            require("arrays", arrays, Collection, "a sequence of arrays, or None, in the order of the parameters")
        addresses, kind, held = self._gathered(arrays, None if dtype is None else dtype_of(dtype))
        self._has_ended = False
        self._call(
            lib.ga_accumulate_scaled_gradients, addresses, len(arrays), kind, scale, loss, _weight(weight)
        )

    def _gathered(self, arrays: Sequence[np.ndarray | None], dtype: DType | None) -> tuple[Any, DType, Any]:
        """The addresses and the type of one gradient per parameter, and what keeps them where they are."""
        parameters = self.optimizer.parameters
        if len(arrays) != len(parameters):
            raise GAShapeError(
                f"arrays has {len(arrays)} entries and the optimizer {len(parameters)} parameters"
            )
        for first in arrays:
            if first is not None:
                break
        else:
            return (c_void_p * len(arrays))(), DType.FLOAT32 if dtype is None else dtype, None
        kind = numpy_dtype_of(first)
        if _python.CAN_READ_ARRAYS and (dtype is None or dtype == kind):
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
        kind = numpy_dtype_of(array)
        if not isinstance(index, int):
            index = INT64.checked("index", index)
        parameters = self.optimizer.parameters
        if 0 <= index < len(parameters) and array.shape != parameters[index].shape:
            raise GAShapeError(f"array has shape {array.shape} and its parameter {parameters[index].shape}")
        held = np.ascontiguousarray(array)  # lives until the call is over
        lib.ga_accumulate_gradient(self.handle, index, held.ctypes.data, kind, scale)

    def micro_batch(self, weight: float | None = None) -> MicroBatch:
        """Begins a micro-batch: all that is accumulated until its commit belongs to it and counts as one. In a with
        statement it commits itself, or aborts where an exception ends the statement.

        With a weight, its backward() needs none, and the commit of a window's last micro-batch takes the step, unless
        step_when_due is False:

            with accumulator.micro_batch(weight=n_tokens) as micro_batch:
                micro_batch.backward(loss)
            if accumulator.sync_gradients:
                print(accumulator.last_report)
        """
        return MicroBatch(self, weight)

    def _committed(self, micro_batch: MicroBatch) -> None:
        if micro_batch.weight is not None:
            self._step_if_due()

    def _step_if_due(self) -> None:
        """The step with the last micro-batch of a window; where a handler computes one again, it is on its way."""
        if self.step_when_due and not self._is_retrying and self.step_due:
            self.step()
            self._has_stepped_itself = True

    @property
    def sync_gradients(self) -> bool:
        """In a micro-batch, whether it is the last of its window; after it, whether it was."""
        if self._open is not None:
            return self._open.number + 1 - self.window().aborted_micro_batches >= self.accumulation_steps
        return self._has_ended or self.step_due

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
        self._require_step_of_the_loop("step")
        report = _ffi.Report()
        self._call(lib.ga_step, byref(report))
        return self._ended(self._report(report))

    def _require_step_of_the_loop(self, operation: str) -> None:
        """Errors: GAStateError where the micro-batches take the step, and the loop means to."""
        if not self.step_when_due:
            return
        instead = (
            f"{_IN_PLACE_OF[operation]}, or create the accumulator with step_when_due=False and call {operation}() "
            "after the micro-batch"
        )
        if self._open is not None and self._open.weight is not None:
            raise GAStateError(
                f"{operation}: micro-batch {self._open.number} is open, and where it is the last of its window, its "
                f"end (that of the with statement) takes the step: {instead}"
            )
        if self._has_ended and self._has_stepped_itself:
            raise GAStateError(
                f"{operation}: the window is empty, as the end of its last micro-batch (that of the with statement) "
                f"has taken the step, see last_report: {instead}"
            )

    # What a loop whose losses may be unknown is told where one is needed.
    _GIVE_LOSS = "give the loss"

    def _require_loss(self, operation: str, loss: Any, weight: float | None) -> None:
        """Errors: GAStateError if a loss that a limit is set to is not known."""
        if loss is None and weight != 0 and self._max_loss_z_score > 0:
            raise GAStateError(
                f"{operation}: loss is None, and max_loss_z_score {self._max_loss_z_score:g} is a limit to it: "
                f"{self._GIVE_LOSS}"
            )

    def _report(self, report: _ffi.Report) -> Report:
        """A report of the window, whose loss is None if it is not known."""
        return Report._of(report, self._untold_loss if report.micro_batches > 0 else 0.0)

    def _ended(self, report: Report) -> Report:
        if report.outcome not in (Outcome.PENDING, Outcome.EMPTY):
            self._has_ended = True
            self._has_stepped_itself = False
            self._open = None  # one that was dropped with its window
            self.last_report = report
        return report

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing, for loops that call it after each step: that empties the window itself. zero() drops one."""

    def clip_grad_norm_(self, max_norm: float) -> float:
        """The norm of the window's mean gradient, which the step will clip to max_norm: that is the accumulator's
        max_grad_norm, as a window is clipped once. Ends the additions to the window, see unscale()."""
        self._require_step_of_the_loop("clip_grad_norm_")
        if max_norm != self.max_grad_norm:
            raise GAInvalidArgumentError(
                f"clip_grad_norm_: max_norm is {max_norm} and the accumulator's max_grad_norm {self.max_grad_norm}, "
                "which the step clips to: create it with the limit that is meant"
            )
        return self.unscale()

    def window(self) -> Report:
        """What the window holds so far."""
        report = _ffi.Report()
        lib.ga_window_report(self.handle, byref(report))
        return self._report(report)

    def set_skip_handler(self, handler: SkipHandler | None) -> None:
        """Asks the handler about windows, and in isolated mode micro-batches, that would be skipped; None for the
        policy again. An exception of the handler comes out of the call that asked, after the drop."""

        def decide(report: Any, user: Any) -> int:
            accumulator = this()
            assert accumulator is not None and handler is not None
            try:
                decision: int = INT32.checked("the skip handler's answer", handler(accumulator._report(report.contents)))
                return decision
            except BaseException as error:
                _ffi.keep(error)
                return _ffi.DECISION_RAISE

        self._require_own("skip handler")
        require("skip_handler", handler, (Callable, type(None)), "a function, or None")
        this = weakref.ref(self)
        callback = _ffi.SkipFn() if handler is None else _ffi.SkipFn(decide)
        lib.ga_accumulator_set_skip_handler(self.handle, callback, None)
        self._skip_callback = callback

    def set_loss_scaler(self, scaler: LossScaler | None) -> None:
        """Multiplies losses by the scale of a scaler, from the next window on; None ends that. Sums then hold scaled
        gradients, which the step divides by the scale along with the weight; all that is reported is without it."""
        require("loss_scaler", scaler, (LossScaler, type(None)), "a LossScaler, or None")
        lib.ga_accumulator_set_loss_scaler(self.handle, None if scaler is None else scaler.handle)
        self._loss_scaler = scaler

    @property
    def loss_scaler(self) -> LossScaler | None:
        """What multiplies losses; assigning is set_loss_scaler()."""
        return self._loss_scaler

    @loss_scaler.setter
    def loss_scaler(self, scaler: LossScaler | None) -> None:
        self.set_loss_scaler(scaler)

    def set_retry_handler(self, handler: RetryHandler | None) -> None:
        """Has a window computed again that overflowed, where the loss scale can go lower; None for a skip again.

        The handler accumulates the same micro-batches, into the window that is empty by then, and returns True, or
        False for a skip. An exception of the handler comes out of the step, after the drop."""

        def retry(report: Any, user: Any) -> int:
            accumulator = this()
            assert accumulator is not None and handler is not None
            accumulator._is_retrying = True
            try:
                return int(bool(handler(accumulator._report(report.contents))))
            except BaseException as error:
                _ffi.keep(error)
                return -1
            finally:
                accumulator._is_retrying = False
                accumulator._open = None  # what it left open is dropped with its window

        self._require_own("retry handler")
        require("retry_handler", handler, (Callable, type(None)), "a function, or None")
        this = weakref.ref(self)
        callback = _ffi.RetryFn() if handler is None else _ffi.RetryFn(retry)
        lib.ga_accumulator_set_retry_handler(self.handle, callback, None)
        self._retry_callback = callback

    def unscale(self) -> float:
        """Ends the additions to the window and returns the global norm of its mean gradient, without the loss scale
        and before clipping. A step needs no such call: it is for those that want the norm before it."""
        self._require_step_of_the_loop("unscale")
        norm = c_double()
        lib.ga_unscale(self.handle, byref(norm))
        return norm.value

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        """Calls a function that may run an update rule of the caller: raises what that has raised."""
        try:
            function(self.handle, *arguments)
            return
        except GAError:
            error = self.optimizer._take_error()
            if error is None:
                raise
        try:
            raise error
        finally:
            del error  # whose traceback has this frame

    def begin_data(self) -> None:
        """Says that data begins, such as an epoch. GAStateError if the window holds micro-batches of earlier data
        that end_data() did not carry over."""
        lib.ga_data_begin(self.handle)

    def end_data(self, tail: Tail = "step") -> Report:
        """Says that the data ends, and what becomes of a window that was not stepped: "step" it, divided by the
        weight that went in, "carry" it over into what comes next, or "drop" it."""
        report = _ffi.Report()
        self._call(lib.ga_data_end, constant_of("tail", tail, _TAILS), byref(report))
        return self._ended(self._report(report))

    def gradient_norms(self) -> np.ndarray:
        """The norm of each parameter's mean gradient in the window of the last step, before clipping."""
        norms = np.empty(len(self.optimizer.parameters))
        lib.ga_gradient_norms(self.handle, norms.ctypes.data_as(POINTER(c_double)), norms.size)
        return norms

    def stagnation(self) -> tuple[np.ndarray, np.ndarray]:
        """What became of additions to each parameter's sum in bfloat16, in the window of the last step: additions of numbers
        other than 0 to elements, and how many of them have changed nothing. With "bfloat16_stochastic" many do by
        design; otherwise their share tells how much of the gradient is lost."""
        additions, unchanged = (np.empty(len(self.optimizer.parameters), np.int64) for _ in range(2))
        lib.ga_stagnation(
            self.handle,
            additions.ctypes.data_as(POINTER(c_int64)),
            unchanged.ctypes.data_as(POINTER(c_int64)),
            additions.size,
        )
        return additions, unchanged

    def zero(self) -> None:
        """Drops what was accumulated, an open micro-batch included. The loss scaler learns what unscale() has found, or
        isolated mode of a micro-batch that it dropped."""
        lib.ga_zero(self.handle)
        self._open = None
        self._has_ended = False

    # ------ state ------

    _STATE: tuple[str, ...] = ("optimizer", "loss_scaler")

    def state_dict(self) -> dict[str, Any]:
        """A copy of what updates have made of the optimizer and the loss scaler, for load_state_dict().

        Not in it are weights, hyperparameters, schedules, averages, and what outliers are found with. GAStateError in
        the middle of a window, whose sums are not in it either.
        """
        held = self.window().micro_batches
        if held > 0 or self._open is not None:
            raise GAStateError(
                f"state_dict: a window that holds {held} micro-batches is in progress, and no state has its sums: "
                "step(), end_data() or zero() first"
            )
        scaler = None if self.loss_scaler is None else self.loss_scaler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "loss_scaler": scaler}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state_dict() of an accumulator over the same parameters; with the weights of then and the data
        that followed, to the bit. What it refuses changes nothing."""
        self._require_state(state_dict)
        scaler = self.loss_scaler
        if scaler is None:
            self.optimizer.load_state_dict(state_dict["optimizer"])
            return
        before = scaler.state_dict()
        scaler.load_state_dict(dict(state_dict["loss_scaler"]))
        try:
            self.optimizer.load_state_dict(state_dict["optimizer"])
        except BaseException:
            scaler.load_state_dict(before)
            raise

    def _require_state(self, state_dict: Mapping[str, Any]) -> None:
        require("state_dict", state_dict, Mapping, "what state_dict() returned")
        missing = set(self._STATE) - set(state_dict)
        if missing:
            raise GAInvalidArgumentError(
                f"load_state_dict: state_dict lacks {', '.join(sorted(missing))}: pass what state_dict() returned"
            )
        scaler = state_dict["loss_scaler"]
        require("state_dict['loss_scaler']", scaler, (Mapping, type(None)), "what state_dict() had there")
        if (scaler is None) != (self.loss_scaler is None):
            ours = self.loss_scaler is not None
            has, lacks = ("accumulator", "state_dict") if ours else ("state_dict", "accumulator")
            raise GAInvalidArgumentError(
                f"load_state_dict: the {has} has a loss scaler and the {lacks} has none: give both one, or neither"
            )

    def accumulated_gradient(self, index: int) -> Tensor:
        """A copy of the accumulated sum of a parameter, in the optimizer's order."""
        return make(lib.ga_accumulated_gradient, self.handle, index)
