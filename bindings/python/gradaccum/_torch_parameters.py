"""Parameters of a PyTorch model as an optimizer of this package takes them: on the model's own memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from ctypes import byref, c_void_p
from typing import Any, Union

import torch

from . import _ffi, _python
from ._arguments import int64_array, require, shown
from ._ffi import lib
from .errors import GADTypeError, GAInvalidArgumentError, GAStateError, GAUnsupportedError
from .tensor import DType, Tensor

DTYPES = {torch.float32: DType.FLOAT32, torch.bfloat16: DType.BFLOAT16, torch.float16: DType.FLOAT16}

Source = Union[torch.nn.Module, Iterable[torch.Tensor], Iterable[tuple[str, torch.Tensor]]]


class Parameter(Tensor):
    """A parameter of a PyTorch model as the library sees it: its own memory where that is float32, else float32 master
    weights, which are rounded into it after each update."""

    __slots__ = ("name", "source", "_order", "_elements", "_master", "_address_of_source", "_version", "_model")

    def __init__(
        self, source: torch.Tensor, name: str, model: weakref.ref[torch.nn.Module] | None = None
    ) -> None:
        self.source = source
        self.name = name
        self._model = model  # where it has this name
        self._order = _order_in_memory(source, name)
        if not source.is_leaf:
            raise GAInvalidArgumentError(
                f"{name} is the result of an operation, which backward gives no .grad: pass what it is made from"
            )
        self._elements = self._in_order(source.detach())
        if self._elements.dtype not in DTYPES:
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
    model = None
    if isinstance(source, torch.nn.Module):
        model = weakref.ref(source)
        source = [(name, x) for name, x in source.named_parameters() if x.requires_grad]
    if isinstance(source, torch.Tensor) or not isinstance(source, Iterable):
        raise GADTypeError(f"source is {shown(source)}: it must be a module, or a sequence of tensors, such as [tensor]")
    made: list[Parameter] = []
    item: Any
    for index, item in enumerate(source):
        name, x = item if isinstance(item, tuple) and len(item) == 2 else (f"parameters[{index}]", item)
        require(f"parameters[{index}]'s name", name, str, "text")
        made.append(Parameter(x, name, model))
    return made


def require_in_their_models(made: Iterable[Parameter]) -> None:
    """Errors: GAStateError if a module has got another parameter in the place of one that was taken from it."""
    models: dict[weakref.ref[torch.nn.Module], dict[str, torch.nn.Parameter]] = {}
    for parameter in made:
        reference = parameter._model
        model = None if reference is None else reference()
        if reference is None or model is None:
            continue
        if reference not in models:
            models[reference] = dict(model.named_parameters(remove_duplicate=False))
        now = models[reference].get(parameter.name)
        if now is not None and now is not parameter.source:
            raise GAStateError(
                f"{parameter.name} of the model is another parameter than when gradaccum.torch.parameters() took it, "
                "as after load_state_dict(assign=True) or where a layer was replaced: load without assign, or make the "
                "optimizer and the accumulator anew"
            )


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
    shape = int64_array("shape", x.shape)
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
