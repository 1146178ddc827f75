"""Training loops of PyTorch with exact accumulation windows: the model's own parameters on the CPU, updated in place.

    import gradaccum as ga
    import gradaccum.torch as gat

    optimizer = ga.AdamW(gat.parameters(model), lr=3e-4)
    accumulator = gat.Accumulator(optimizer, accumulation_steps=8, max_grad_norm=1.0)
    for x, y in batches:
        with accumulator.micro_batch(weight=len(y)) as micro_batch:
            micro_batch.backward(torch.nn.functional.cross_entropy(model(x), y))
        if accumulator.sync_gradients:
            print(accumulator.last_report)

Gradients are added to the window as backward makes them, and freed at once. The step divides by the weight that went
in, so micro-batches of any size give the update of the whole batch. The loss's own backward() does as well, and the
report then has no loss.

Under torch.amp.autocast in float16, the accumulator's loss scaler takes the place of torch.amp.GradScaler:

    accumulator = gat.Accumulator(optimizer, loss_scaler=ga.LossScaler(), accumulation_steps=8)
    ...
        with accumulator.micro_batch(weight=len(y)) as micro_batch:
            with torch.amp.autocast("cpu", torch.float16):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            micro_batch.scale(loss).backward()
"""

from __future__ import annotations

import ctypes
import gc
import math
import weakref
from collections.abc import Callable, Mapping
from ctypes import c_void_p
from typing import Any

import numpy as np
import torch

from . import _ffi
from ._arguments import REAL, flag, require
from ._ffi import lib
from ._torch_batch_norm import BatchNormStatistics
from ._torch_parameters import DTYPES, Parameter, parameters, require_in_their_models
from .accumulator import Accumulator as _Accumulator
from .accumulator import Tail
from .errors import GADTypeError, GAInvalidArgumentError, GAStateError, GAUnsupportedError
from .micro_batch import MicroBatch as _MicroBatch
from .optim import Optimizer, require_optimizer
from .report import Outcome, Report
from .tensor import DType

if not hasattr(torch.autograd.graph, "increment_version"):
    raise ImportError(
        f"gradaccum.torch needs PyTorch 2.3 or later, and this is {torch.__version__}: pip install 'torch>=2.3'"
    )

__all__ = ["Accumulator", "BatchNormStatistics", "MicroBatch", "Parameter", "parameters"]


# ====== Micro-batches ======


class MicroBatch(_MicroBatch):
    """An open micro-batch, whose gradients come from loss.backward() or from its own backward().

    It commits at the end of the with statement and aborts where an exception ends it, or where no parameter has got a
    gradient. In exact mode gradients that backward has made cannot be taken back: drop the window by zero() then, or
    use isolated mode.
    """

    def __init__(self, accumulator: Accumulator, weight: float | None, loss_scale: float | None) -> None:
        accumulator._require_no_gradients()
        accumulator._require_alone()
        if loss_scale is not None and not 2.0**-64 <= REAL.checked("loss_scale", loss_scale) <= 2.0**64:
            raise GAInvalidArgumentError(f"loss_scale is {loss_scale}: it must be in 2^-64 ... 2^64")
        _require_weight(weight)
        super().__init__(accumulator, weight)
        self._torch = accumulator
        # The scaler's loss scale holds for the whole window, and so is known once the micro-batch has begun.
        self._loss_scale = accumulator.window().loss_scale if loss_scale is None else loss_scale
        self._is_scaled = accumulator.loss_scaler is None or loss_scale is not None
        self._loss: float | None = None
        # Gradients that were added before the weight is known are multiplied by it when they are committed.
        self._is_weight_of_commit = (
            weight is None and accumulator.loss_reduction == "mean" and accumulator._folds_in_backward
        )
        self._has_gradients = False
        self._is_given = False
        self._scale = self._factor()

    def _factor(self) -> float:
        """What gradients are multiplied by where they are added one by one."""
        is_mean = self._torch.loss_reduction == "mean" and not self._is_weight_of_commit
        return (self._weight if is_mean and self._weight is not None else 1.0) / self._loss_scale

    @property
    def loss(self) -> float | None:
        """For the report: the sum or the mean, as the accumulator's loss_reduction says, that backward() has noted, or
        that the loop has assigned. None where neither did, which makes that of the window None."""
        return self._loss

    @loss.setter
    def loss(self, value: float | torch.Tensor | None) -> None:
        number: Any = value.detach() if isinstance(value, torch.Tensor) else value
        try:
            self._loss = None if value is None else float(number)
        except (TypeError, ValueError, RuntimeError):
            is_tensor = isinstance(value, torch.Tensor)
            said = f"a tensor of shape {tuple(number.shape)}" if is_tensor else repr(value)
            raise GAInvalidArgumentError(f"loss is {said}: assign a number, or a tensor of one element") from None

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before backward: by scale(), or by the loop where it chose the scale."""
        return self._loss_scale

    def set_weight(self, weight: float) -> None:
        """Gives the weight that was None. That of a mean is needed before the micro-batch ends; that of a sum may come
        after it, and then leaves the step to the loop."""
        if self._torch._open is not self:
            if self._torch.loss_reduction == "mean":
                raise GAStateError(
                    f"set_weight: micro-batch {self.number} is over, and the weight of a mean is part of its gradient: "
                    "give it before the end"
                )
            super().set_weight(weight)
            return
        if self._weight is not None:
            raise GAStateError(
                f"set_weight: micro-batch {self.number} has the weight {self._weight}: begin it without one for it to "
                "come later"
            )
        _require_weight(weight)
        if weight == 0 and self._is_weight_of_commit:
            # A mean over nothing is no number, nor is 0 times that: what was added is taken back.
            super().abort()
            lib.ga_micro_batch_begin(self._torch.handle)
            self._torch._open = self
            self._number += 1
            self._is_weight_of_commit = False
        self._weight = weight
        self._scale = self._factor()

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the loss scale, to run backward from, as torch.amp.GradScaler.scale()."""
        _require_loss_tensor(loss)
        self._is_scaled = True
        return loss if self._loss_scale == 1 else loss * self._loss_scale

    def _require_scaled(self, name: str) -> None:
        if not self._is_scaled:
            raise GAStateError(
                f"{name} has a gradient of a loss without the loss scale {self._loss_scale:g}: use backward(loss), or "
                "scale(loss).backward(), of the micro-batch"
            )

    def backward(self, loss: torch.Tensor) -> None:
        """Runs backward from a loss, times the loss scale, and notes its value for the report."""
        self._require_this_open("backward")
        _require_loss_tensor(loss)
        reduction = getattr(loss.grad_fn, "_saved_reduction", None)
        is_mean = reduction == 1 or (
            loss.grad_fn is not None and loss.grad_fn.name().startswith("MeanBackward")
        )
        wanted = self._torch.loss_reduction
        if (wanted == "sum" and is_mean) or (wanted == "mean" and reduction == 2):
            raise GAStateError(
                f"loss is a {'mean' if is_mean else 'sum'}, but loss_reduction is {wanted!r}: compute the other, or "
                "create the accumulator with the other"
            )
        value = loss.item()
        self.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._loss = value + (self._loss or 0.0)

    def _complete(self) -> None:
        if not self._is_given:
            self._torch._give(self)
            self._is_given = True
            if self._is_weight_of_commit and self._weight is not None:
                lib.ga_micro_batch_set_weight(self._torch.handle, self.number, self._weight)

    def abort(self) -> None:
        """Takes the micro-batch back, and what backward has left in .grad."""
        super().abort()
        self._torch._clear_gradients()


def _require_loss_tensor(loss: object) -> None:
    require("loss", loss, torch.Tensor, "a tensor of PyTorch, such as the .loss of what a model returns")


def _require_weight(weight: float | None) -> None:
    if weight is not None and not (math.isfinite(REAL.checked("weight", weight)) and weight >= 0):
        raise GAInvalidArgumentError(f"weight is {weight}: it must be finite and at least 0")


# ====== The accumulator ======

# By the parameters that have hooks, the accumulator that began a micro-batch last: the key is the id of a tensor that
# the accumulator keeps alive.
_last_begun: dict[int, weakref.ref[Accumulator]] = {}


class Accumulator(_Accumulator):
    """gradaccum.Accumulator for the gradients of a PyTorch model; the options are the same.

    optimizer: of this package, over what parameters() returns.
    loss_reduction: what a loss stands for: "mean", the default of PyTorch's losses, or "sum", over its weight.
    fold_in_backward: add each gradient when backward has made it, and free it. Otherwise the gradients stay in .grad
        until the micro-batch ends, and are added in one call.
    step_when_due: take the step with the last micro-batch of accumulation_steps, whatever its weight.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        loss_reduction: str = "mean",
        isolated: bool = False,
        fold_in_backward: bool = True,
        **options: Any,
    ) -> None:
        require_optimizer(optimizer)
        self._parameters: list[Parameter] = []
        self._isolated = isolated
        self._folds_in_backward = bool(flag("fold_in_backward", fold_in_backward))
        for index, parameter in enumerate(optimizer.parameters):
            if not isinstance(parameter, Parameter):
                raise GAInvalidArgumentError(
                    f"parameters[{index}] of the optimizer is a {type(parameter).__name__}: make it by "
                    "gradaccum.torch.parameters()"
                )
            self._parameters.append(parameter)
        super().__init__(optimizer, loss_reduction=loss_reduction, isolated=isolated, **options)
        self._open: MicroBatch | None = None
        self._batch_norms: list[BatchNormStatistics] = []
        self._pointers: Any = (c_void_p * len(self._parameters))()
        this = weakref.ref(self)
        self._begun = {id(parameter.source): this for parameter in self._parameters}
        hooks: list[Any] = []
        self._let_go = weakref.finalize(self, _let_go, hooks, self._begun)
        self._let_go.atexit = False
        for index, parameter in enumerate(self._parameters):
            source: Any = parameter.source
            if self._folds_in_backward and source.requires_grad:
                hooks.append(source.register_post_accumulate_grad_hook(_folding(this, index)))

    @property
    def isolated(self) -> bool:
        """Whether a micro-batch is added when it is committed, as it was created."""
        return self._isolated

    def close(self) -> None:
        """Frees the handle, and leaves the model's gradients to PyTorch again."""
        for statistics in list(self._batch_norms):
            statistics.close()
        self._let_go()
        super().close()

    # ------ micro-batches ------

    def micro_batch(self, weight: float | None = None, *, loss_scale: float | None = None) -> MicroBatch:
        """Begins a micro-batch: the gradients of every backward until its end belong to it.

        weight: the samples or tokens that its loss stands for; None to give it by the micro-batch's set_weight(). Where
        losses are means, that takes isolated mode or fold_in_backward=False, as gradients are multiplied by it.
        loss_scale: what the loop multiplies losses by before backward, for gradients to be divided by; None for the
        scale of the loss scaler, which the micro-batch's backward() and scale() multiply by, or for 1 if there is none.
        """
        if weight is None and self.loss_reduction == "mean" and self._folds_in_backward and not self._isolated:
            raise GAStateError(
                "micro_batch: weight is None, and a mean's gradient is multiplied by it when backward has made it: "
                "give the weight now, or create the accumulator with isolated=True, fold_in_backward=False or "
                "loss_reduction='sum' to give it by set_weight()"
            )
        return MicroBatch(self, weight, loss_scale)

    def set_weight(self, micro_batch: int, weight: float) -> None:
        if self._open is not None and self._open.number == micro_batch:
            self._open.set_weight(weight)
        else:
            super().set_weight(micro_batch, weight)

    def accumulate(self, loss: Any, weight: float | None = None) -> None:
        """Runs backward from a loss as a micro-batch of its own."""
        with self.micro_batch(weight) as micro_batch:
            micro_batch.backward(loss)

    def collect(self, weight: float | None, *, loss: float | None = None, loss_scale: float = 1.0) -> None:
        """Adds the gradients that backward has left in .grad as a micro-batch, in one call, and frees them.

        weight: None, where losses are sums, to give it by set_weight(). loss: for the report. loss_scale: what the loss
        was multiplied by before backward.
        """
        if weight is None and self.loss_reduction == "mean":
            raise GAStateError("collect: weight is None, and that of a mean is part of its gradient: give it now")
        _require_weight(weight)
        self._require_loss("collect", loss, weight)
        left = [parameter.source.grad for parameter in self._parameters]
        self._clear_gradients()
        try:
            micro_batch = self.micro_batch(weight, loss_scale=loss_scale)
        finally:
            for parameter, gradient in zip(self._parameters, left):
                parameter.source.grad = gradient
        with micro_batch:
            micro_batch.loss = loss

    # ------ the step ------

    def step(self) -> Report:
        self._require_in_place()
        return self._after(super().step())

    def end_data(self, tail: Tail = "step") -> Report:
        self._require_in_place()
        return self._after(super().end_data(tail))

    def zero(self) -> None:
        super().zero()
        self._clear_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees what a backward outside of a micro-batch has left in .grad. The window empties itself at its step, so
        this may be called after each; zero() drops a window."""
        if not set_to_none:
            raise GAUnsupportedError("set_to_none is False, and gradients are freed here: leave it out")
        self._clear_gradients()

    def write_back(self) -> None:
        """Lets the model see what the library has written to its parameters, as a step does by itself: to be called
        after averages of the weights were swapped in or out."""
        for parameter in self._parameters:
            parameter.write_back()

    def reload_masters(self) -> None:
        """Takes over what was written to parameters that are not float32, as by load_state_dict."""
        for parameter in self._parameters:
            parameter.reload_master()

    _GIVE_LOSS = "run the micro-batch's backward(loss), or assign its loss before its end"

    # ------ state ------

    _STATE = (*_Accumulator._STATE, "masters")

    def state_dict(self) -> dict[str, Any]:
        """A copy of what updates have made of the optimizer and the loss scaler, and the master weights of parameters that
        are not float32, by the places of the parameters: for torch.save, beside model.state_dict().

        Not in it are hyperparameters, schedules, averages, and what outliers are found with. GAStateError in the middle
        of a window, whose sums are not in it either.
        """
        state_dict = super().state_dict()
        for state in state_dict["optimizer"]["state"].values():
            for name, value in state.items():
                if isinstance(value, np.ndarray):
                    state[name] = torch.from_numpy(value)
        masters = {place: master.clone() for place, master in self._masters().items()}
        return {**state_dict, "masters": masters}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state_dict() of an accumulator over the same parameters, after model.load_state_dict(): with
        the data that followed, to the bit. What it refuses changes nothing."""
        super().load_state_dict(state_dict)
        for place, master in self._masters().items():
            master.copy_(state_dict["masters"][place])
        self.write_back()

    def _require_state(self, state_dict: Mapping[str, Any]) -> None:
        super()._require_state(state_dict)
        given, masters = state_dict["masters"], self._masters()
        require("state_dict['masters']", given, Mapping, "what state_dict() had there")
        for place, master in given.items():
            require(f"state_dict['masters'][{place!r}]", master, torch.Tensor, "a tensor of PyTorch")
        shapes, wanted = ({place: tuple(x.shape) for place, x in part.items()} for part in (given, masters))
        if shapes != wanted:
            raise GAInvalidArgumentError(
                f"load_state_dict: masters have the shapes {shapes}, by parameter, and {wanted} are needed"
            )

    def _masters(self) -> dict[int, torch.Tensor]:
        """Those that there are, by the places of their parameters."""
        return {
            place: parameter._master
            for place, parameter in enumerate(self._parameters)
            if parameter._master is not None
        }

    # ------ between backward and the window ------

    def _fold(self, index: int, source: torch.Tensor) -> None:
        """Adds a gradient that backward has just made, and frees it; outside of a micro-batch it stays in .grad."""
        if self._open is None or source.grad is None:
            return
        self._add(index, source.grad)
        source.grad = None

    def _add(self, index: int, gradient: torch.Tensor) -> None:
        assert self._open is not None
        self._open._has_gradients = True
        self._open._require_scaled(self._parameters[index].name)
        scale = self._open._scale
        if scale == 0:  # a mean over nothing is no number
            return
        elements = self._parameters[index].gradient(gradient)
        # data_ptr() takes 0.1 µs; a struct by DLPack's functions in C would take 0.7.
        if elements.numel() > 0:
            lib.ga_accumulate_gradient(
                self.handle, index, elements.data_ptr(), self._dtype_of(index, elements), scale
            )

    def _dtype_of(self, index: int, gradient: torch.Tensor) -> DType:
        dtype = DTYPES.get(gradient.dtype)
        if dtype is None:
            raise GADTypeError(
                f"{self._parameters[index].name}.grad is {gradient.dtype}: float32, bfloat16 or float16 is needed"
            )
        return dtype

    def _give(self, micro_batch: MicroBatch) -> None:
        """Adds the gradients that are still in .grad, and the loss and the weight of the micro-batch."""
        weight, loss = micro_batch.weight, micro_batch.loss
        self._require_gradients(micro_batch)
        self._require_loss(f"commit of micro-batch {micro_batch.number}", loss, weight)
        if weight is None and self.loss_reduction == "mean":
            raise GAStateError(
                f"commit: the weight of micro-batch {micro_batch.number} is missing, and that of a mean is part of its "
                "gradient: call its set_weight() first"
            )
        left = [
            (index, self._parameters[index].gradient(parameter.source.grad))
            for index, parameter in enumerate(self._parameters)
            if parameter.source.grad is not None
        ]
        dtypes = {self._dtype_of(index, gradient) for index, gradient in left}
        pointers = self._pointers
        ctypes.memset(pointers, 0, ctypes.sizeof(pointers))
        if len(dtypes) == 1 and micro_batch._scale != 0:
            for index, gradient in left:
                micro_batch._require_scaled(self._parameters[index].name)
                pointers[index] = gradient.data_ptr() or None
        else:
            for index, gradient in left:
                self._add(index, gradient)
        dtype = next(iter(dtypes)) if len(dtypes) == 1 else DType.FLOAT32
        if weight == 0:
            loss = 0.0  # of nothing
        elif loss is None:
            self._untold_loss = None
        elif not (self._isolated or math.isfinite(loss)):
            # The library refuses it, but backward was run. What gradients that has made, the step finds out.
            self._untold_loss = None if self._untold_loss is None else self._untold_loss + loss
            loss = 0.0
        is_later = weight is None or micro_batch._is_weight_of_commit
        lib.ga_accumulate_scaled_gradients(
            self.handle,
            pointers,
            len(pointers),
            dtype,
            micro_batch.loss_scale,
            loss or 0.0,
            _ffi.WEIGHT_LATER if is_later else weight,
        )
        self._clear_gradients()

    def _require_gradients(self, micro_batch: MicroBatch) -> None:
        """Errors: GAStateError if backward has reached no parameter, and the micro-batch is aborted."""
        if micro_batch.weight == 0 or micro_batch._has_gradients:
            return
        if any(parameter.source.grad is not None for parameter in self._parameters):
            return
        micro_batch.abort()
        require_in_their_models(self._parameters)
        raise GAStateError(
            f"commit: no parameter has got a gradient in micro-batch {micro_batch.number}, which is aborted: run "
            "backward in it, from a loss of the model that the parameters are of (torch.autograd.grad() leaves nothing "
            "in .grad), or give it the weight 0"
        )

    def _committed(self, micro_batch: _MicroBatch) -> None:
        assert isinstance(micro_batch, MicroBatch)
        if self._batch_norms:
            counted = self.window().micro_batches
            for statistics in self._batch_norms:
                statistics._committed(micro_batch, counted)
        super()._committed(micro_batch)

    def _after(self, report: Report) -> Report:
        if report.outcome == Outcome.APPLIED:
            self.write_back()
            for statistics in self._batch_norms:
                statistics._applied()
        return report

    def _require_in_place(self) -> None:
        for parameter in self._parameters:
            parameter.require_in_place()
        require_in_their_models(self._parameters)

    def _require_no_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.source.grad is not None:
                raise GAStateError(
                    f"{parameter.name}.grad is left from a backward outside of a micro-batch: add it by collect(), or "
                    "free it by zero_grad()"
                )

    def _require_alone(self) -> None:
        """Errors: GAStateError if another accumulator's micro-batch is open, which would take the gradients."""
        other = self._other_open()
        if other is not None:
            # In a cycle with its micro-batch, one that nobody has any more lives until this.
            other = None
            gc.collect()
            other = self._other_open()
        if other is not None and other._open is not None:
            raise GAStateError(
                f"micro_batch: micro-batch {other._open.number} of another accumulator over the same parameters is "
                "open, and a gradient goes into one window: end it, or drop it by that accumulator's zero() or close()"
            )
        _last_begun.update(self._begun)

    def _other_open(self) -> Accumulator | None:
        references = {id(reference): reference for reference in map(_last_begun.get, self._begun)}
        for reference in references.values():
            other = None if reference is None else reference()
            if other is not None and other is not self and other._open is not None:
                return other
        return None

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.source.grad = None


def _let_go(hooks: list[Any], begun: dict[int, weakref.ref[Accumulator]]) -> None:
    """Leaves a model to PyTorch, or to other accumulators."""
    for hook in hooks:
        hook.remove()
    for key, accumulator in begun.items():
        if _last_begun.get(key) is accumulator:
            del _last_begun[key]


def _folding(accumulator: weakref.ref[Accumulator], index: int) -> Callable[[torch.Tensor], None]:
    def fold(source: torch.Tensor) -> None:
        this = accumulator()
        if this is not None:
            this._fold(index, source)

    return fold
