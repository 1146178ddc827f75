"""Training loops of PyTorch with exact accumulation windows: the model's own parameters on the CPU, updated in place.

    import gradaccum as ga
    import gradaccum.torch as gat

    optimizer = ga.AdamW(gat.parameters(model), lr=3e-4)
    accumulator = gat.Accumulator(optimizer, accumulation_steps=8, max_grad_norm=1.0)
    for x, y in batches:
        with accumulator.micro_batch(weight=len(y)):
            torch.nn.functional.cross_entropy(model(x), y).backward()
        if accumulator.sync_gradients:
            print(accumulator.last_report)

Gradients are added to the window as backward makes them, and freed at once. The step divides by the weight that went
in, so micro-batches of any size give the update of the whole batch.

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
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from ctypes import byref, c_void_p
from typing import Any, Union

import numpy as np
import torch

from . import _ffi, _python
from ._ffi import lib
from .accumulator import Accumulator as _Accumulator
from .accumulator import Tail
from .errors import GADTypeError, GAInvalidArgumentError, GAStateError, GAUnsupportedError
from .micro_batch import MicroBatch as _MicroBatch
from .optim import Optimizer
from .report import Outcome, Report
from .tensor import DType, Tensor, int64_array

_DTYPES = {torch.float32: DType.FLOAT32, torch.bfloat16: DType.BFLOAT16, torch.float16: DType.FLOAT16}

Source = Union[torch.nn.Module, Iterable[torch.Tensor], Iterable[tuple[str, torch.Tensor]]]


# ====== Parameters ======


class Parameter(Tensor):
    """A parameter of a PyTorch model as the library sees it: its own memory where that is float32, else float32 master
    weights, which are rounded into it after each update."""

    __slots__ = ("name", "source", "_order", "_elements", "_master", "_address_of_source", "_version")

    def __init__(self, source: torch.Tensor, name: str) -> None:
        self.source = source
        self.name = name
        self._order = _order_in_memory(source, name)
        self._elements = self._in_order(source.detach())
        if self._elements.dtype not in _DTYPES:
            raise GADTypeError(f"{name} is {source.dtype}: convert it to float32, bfloat16 or float16")
        is_half = self._elements.dtype != torch.float32
        self._master = self._elements.float() if is_half else None
        super().__init__(_wrapped(self._elements if self._master is None else self._master))
        self.set_name(name)
        self._address_of_source = source.data_ptr()
        self._version = source._version

    def _in_order(self, x: torch.Tensor) -> torch.Tensor:
        """The axes in the order in which they lie in memory, where that is another one."""
        return x if self._order is None else x.permute(self._order)

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient in the arrangement of the parameter: itself, or where it lies in another one, a copy."""
        if gradient.layout != torch.strided:
            raise GAUnsupportedError(
                f"{self.name}.grad is {gradient.layout}: use a layer with a dense gradient"
            )
        return self._in_order(gradient.resolve_neg()).contiguous()

    def require_in_place(self) -> None:
        """Errors: GAStateError if PyTorch's parameter is no longer what this one was made of."""
        if self.source.data_ptr() != self._address_of_source:
            raise GAStateError(
                f"{self.name} has moved in memory since gradaccum.torch.parameters(): convert and move the model "
                "first, and do not assign to its .data"
            )
        if self._master is not None and self.source._version != self._version:
            raise GAStateError(
                f"{self.name} is {self.source.dtype} and was written to, and its float32 master weights were not: call "
                "reload_masters() to take over what was written"
            )

    def reload_master(self) -> None:
        """Takes over what was written to a parameter that is not float32."""
        if self._master is not None:
            self._master.copy_(self._elements)
            self._version = self.source._version

    def write_back(self) -> None:
        """Lets PyTorch see an update: its values, and that a graph of before is out of date."""
        if self._master is None:
            torch.autograd.graph.increment_version(self.source)
        else:
            self._elements.copy_(self._master)
            self._version = self.source._version


def parameters(source: Source) -> list[Parameter]:
    """The parameters of a model, for an optimizer of this package, on the model's own memory.

    source: a module, of which those that require a gradient are taken, or tensors, or pairs of a name and a tensor, as
    from model.parameters() and model.named_parameters(). They are on the CPU; bfloat16 and float16 get float32 master
    weights.
    """
    if isinstance(source, torch.nn.Module):
        source = [(name, x) for name, x in source.named_parameters() if x.requires_grad]
    made: list[Parameter] = []
    for index, item in enumerate(source):
        name, x = item if isinstance(item, tuple) else (f"parameters[{index}]", item)
        made.append(Parameter(x, name))
    return made


def _order_in_memory(x: torch.Tensor, name: str) -> tuple[int, ...] | None:
    """The axes in the order in which they lie in memory, the outermost first, or None for the usual order."""
    if not isinstance(x, torch.Tensor):
        raise GAInvalidArgumentError(f"{name} is {type(x).__name__}, and a tensor of PyTorch is needed")
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise GAUnsupportedError(
            f"{name} is on {x.device} in layout {x.layout}: the CPU and torch.strided are needed"
        )
    if x.is_neg():
        raise GAInvalidArgumentError(f"{name} is negated when it is read: pass a tensor of resolve_neg()")
    if x.is_contiguous():
        return None
    strides = x.stride()
    order = tuple(sorted(range(x.dim()), key=lambda axis: strides[axis], reverse=True))
    if not x.permute(order).is_contiguous():
        raise GAInvalidArgumentError(
            f"{name} has strides {x.stride()}, which leave gaps or overlap: make it contiguous"
        )
    return order


def _wrapped(x: torch.Tensor) -> int:
    """The address of a new ga_tensor on a contiguous tensor's memory."""
    out = c_void_p()
    shape = int64_array(x.shape)
    if x.numel() == 0:
        lib.ga_tensor_create(byref(out), _ffi.DEVICE_CPU, DType.FLOAT32, x.dim(), shape)
    else:
        owner = _python.lend(x)
        try:
            lib.ga_tensor_wrap(
                byref(out),
                _ffi.DEVICE_CPU,
                DType.FLOAT32,
                x.dim(),
                shape,
                None,
                x.data_ptr(),
                _python.release,
                owner,
            )
        except BaseException:
            _python.take_back(x)
            raise
    assert out.value is not None
    return out.value


# ====== Micro-batches ======


class MicroBatch(_MicroBatch):
    """An open micro-batch, whose gradients come from loss.backward() or from its own backward().

    It commits at the end of the with statement and aborts where an exception ends it. In exact mode gradients that
    backward has made cannot be taken back: drop the window by zero() then, or use isolated mode.
    loss: for the report, set by backward(): the sum or the mean, as the accumulator's loss_reduction says.
    loss_scale: what losses are multiplied by before backward: by scale(), or by the loop where it chose the scale.
    """

    loss: float
    loss_scale: float

    def __init__(self, accumulator: Accumulator, weight: float | None, loss_scale: float | None) -> None:
        accumulator._require_no_gradients()
        if loss_scale is not None and not 2.0**-64 <= loss_scale <= 2.0**64:
            raise GAInvalidArgumentError(f"loss_scale is {loss_scale}: it must be in 2^-64 ... 2^64")
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise GAInvalidArgumentError(f"weight is {weight}: it must be finite and at least 0")
        factor = weight if accumulator.loss_reduction == "mean" and weight is not None else 1.0
        super().__init__(accumulator, weight)
        self._torch = accumulator
        # The scaler's loss scale holds for the whole window, and so is known once the micro-batch has begun.
        self.loss_scale = accumulator.window().loss_scale if loss_scale is None else loss_scale
        self._is_scaled = accumulator.loss_scaler is None or loss_scale is not None
        self.loss = 0.0
        self._scale = factor / self.loss_scale

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the loss scale, to run backward from, as torch.amp.GradScaler.scale()."""
        self._is_scaled = True
        return loss if self.loss_scale == 1 else loss * self.loss_scale

    def _require_scaled(self, name: str) -> None:
        if not self._is_scaled:
            raise GAStateError(
                f"{name} has a gradient of a loss without the loss scale {self.loss_scale:g}: use backward(loss), or "
                "scale(loss).backward(), of the micro-batch"
            )

    def backward(self, loss: torch.Tensor) -> None:
        """Runs backward from a loss, times the loss scale, and notes its value for the report."""
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
        self.loss += value

    def _complete(self) -> None:
        self._torch._give(self)

    def abort(self) -> None:
        """Takes the micro-batch back, and what backward has left in .grad."""
        super().abort()
        self._torch._clear_gradients()


# ====== The accumulator ======


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
        self._parameters: list[Parameter] = []
        for index, parameter in enumerate(optimizer.parameters):
            if not isinstance(parameter, Parameter):
                raise GAInvalidArgumentError(
                    f"parameters[{index}] of the optimizer is a {type(parameter).__name__}: make it by "
                    "gradaccum.torch.parameters()"
                )
            self._parameters.append(parameter)
        super().__init__(optimizer, loss_reduction=loss_reduction, isolated=isolated, **options)
        self.isolated = isolated
        self._open: MicroBatch | None = None
        self._pointers: Any = (c_void_p * len(self._parameters))()
        this = weakref.ref(self)
        self._hooks = [
            parameter.source.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                _folding(this, index)
            )
            for index, parameter in enumerate(self._parameters)
            if fold_in_backward and parameter.source.requires_grad
        ]

    def close(self) -> None:
        """Frees the handle, and leaves the model's gradients to PyTorch again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().close()

    # ------ micro-batches ------

    def micro_batch(self, weight: float | None = None, *, loss_scale: float | None = None) -> MicroBatch:
        """Begins a micro-batch: the gradients of every backward until its end belong to it.

        weight: the samples or tokens that its loss stands for; None to give it later by set_weight(). loss_scale: what
        the loop multiplies losses by before backward, for gradients to be divided by; None for the scale of the loss
        scaler, which the micro-batch's backward() and scale() multiply by, or for 1 if there is none.
        """
        return MicroBatch(self, weight, loss_scale)

    def accumulate(self, loss: Any, weight: float | None = None) -> None:
        """Runs backward from a loss as a micro-batch of its own."""
        with self.micro_batch(weight) as micro_batch:
            micro_batch.backward(loss)

    def collect(self, weight: float | None, *, loss: float = 0.0, loss_scale: float = 1.0) -> None:
        """Adds the gradients that backward has left in .grad as a micro-batch, in one call, and frees them.

        loss_scale: what the loss was multiplied by before backward.
        """
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
        dtype = _DTYPES.get(gradient.dtype)
        if dtype is None:
            raise GADTypeError(
                f"{self._parameters[index].name}.grad is {gradient.dtype}: float32, bfloat16 or float16 is needed"
            )
        return dtype

    def _give(self, micro_batch: MicroBatch) -> None:
        """Adds the gradients that are still in .grad, and the loss and the weight of the micro-batch."""
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
        loss = micro_batch.loss
        if micro_batch.weight == 0 or not (self.isolated or math.isfinite(loss)):
            loss = 0.0  # of the gradients that it has made, the step finds that they are not finite
        weight = _ffi.WEIGHT_LATER if micro_batch.weight is None else micro_batch.weight
        scale = micro_batch.loss_scale
        lib.ga_accumulate_scaled_gradients(self.handle, pointers, len(pointers), dtype, scale, loss, weight)
        self._clear_gradients()

    def _after(self, report: Report) -> Report:
        if report.outcome == Outcome.APPLIED:
            self.write_back()
        return report

    def _require_in_place(self) -> None:
        for parameter in self._parameters:
            parameter.require_in_place()

    def _require_no_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.source.grad is not None:
                raise GAStateError(
                    f"{parameter.name}.grad is left from a backward outside of a micro-batch: add it by collect(), or "
                    "free it by zero_grad()"
                )

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.source.grad = None


def _folding(accumulator: weakref.ref[Accumulator], index: int) -> Callable[[torch.Tensor], None]:
    def fold(source: torch.Tensor) -> None:
        this = accumulator()
        if this is not None:
            this._fold(index, source)

    return fold
