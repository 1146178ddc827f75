"""Running statistics of PyTorch's batch norms over whole windows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ._arguments import require
from .errors import GAInvalidArgumentError, GAStateError

if TYPE_CHECKING:
    from .torch import Accumulator, MicroBatch

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class _Moments:
    """Of some values per channel: their number, mean, and sum of squares of the distance from it."""

    count: int
    mean: torch.Tensor
    squares: torch.Tensor

    def joined(self, other: _Moments) -> _Moments:
        """Chan, Golub and LeVeque (1979), equation 2.1b."""
        count = self.count + other.count
        distance = other.mean - self.mean
        return _Moments(
            count,
            self.mean + distance * (other.count / count),
            self.squares + other.squares + distance.square() * (self.count * other.count / count),
        )


def _join(moments: dict[int, _Moments], place: int, part: _Moments) -> None:
    moments[place] = moments[place].joined(part) if place in moments else part


class BatchNormStatistics:
    """Moves the running statistics of a model's batch norms once per applied window, to the mean and the variance of all
    of its samples, as one batch of them would, instead of once per micro-batch to its own.

    A window or a micro-batch that is dropped leaves no trace in them, nor does what checkpointing computes again. In
    training each micro-batch is still normalised by its own statistics: of a model with batch norms the gradient depends
    on the split, whatever adds it up. Layer and group norms have no such edge.

    accumulator: of this package. model: every batch norm in it that tracks running statistics is taken; compile it after
        this, as a compiled model that has run does not look for it. A copy of the model is left to PyTorch.
    """

    def __init__(self, accumulator: Accumulator, model: torch.nn.Module) -> None:
        from .torch import Accumulator

        require("accumulator", accumulator, Accumulator, "an accumulator of gradaccum.torch")
        require("model", model, torch.nn.Module, "a model of PyTorch")
        self._norms: list[Any] = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and isinstance(module.running_mean, torch.Tensor)
        ]
        if not self._norms:
            raise GAInvalidArgumentError("model has no batch norm with running statistics: leave this out")
        if any(torch.nn.parameter.is_lazy(norm.running_mean) for norm in self._norms):
            raise GAStateError("model has a lazy batch norm that has seen no input: run the model once before")
        if any(norm in _taken for norm in self._norms):
            raise GAStateError("model has a batch norm whose statistics another BatchNormStatistics keeps: close() that one")
        # Weakly, as the model has the hooks.
        self._accumulator = weakref.ref(accumulator)
        self._owner: MicroBatch | None = None
        # By the places of the norms: of the micro-batch that is computed, and of those that count in the window.
        self._parts: dict[int, _Moments] = {}
        self._window: dict[int, _Moments] = {}
        self._micro_batches = 0
        self._before: dict[int, tuple[Any, ...]] = {}
        self._hooks: list[Any] = []
        for place, norm in enumerate(self._norms):
            self._hooks.append(norm.register_forward_pre_hook(_Hook(self._enter, place), with_kwargs=True))
            self._hooks.append(
                norm.register_forward_hook(_Hook(self._leave, place), with_kwargs=True, always_call=True)
            )
        _taken.update(self._norms)
        self._let_go = weakref.finalize(accumulator, _remove, self._hooks, weakref.WeakSet(self._norms))
        self._let_go.atexit = False
        accumulator._batch_norms.append(self)

    def close(self) -> None:
        """Leaves the running statistics to PyTorch again, as closing the accumulator does."""
        self._let_go()
        accumulator = self._accumulator()
        if accumulator is not None and self in accumulator._batch_norms:
            accumulator._batch_norms.remove(self)

    # ------ around the forward pass of a norm ------

    def _enter(self, place: int, norm: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not norm.training:
            return
        self._before[place] = (norm.momentum, *(getattr(norm, name) for name in _BUFFERS))
        # In copies, which backward needs as they are, and with which they become those of this input alone.
        for name in _BUFFERS:
            setattr(norm, name, getattr(norm, name).clone())
        norm.momentum = 1.0

    def _leave(
        self, place: int, norm: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: object
    ) -> None:
        before = self._before.pop(place, None)
        if before is None:
            return
        mean, variance, batches = (getattr(norm, name) for name in _BUFFERS)
        norm.momentum = before[0]
        for name, buffer in zip(_BUFFERS, before[1:]):
            setattr(norm, name, buffer)
        is_computed = bool(batches != norm.num_batches_tracked)
        # Checkpointing runs a forward pass once more within backward.
        if is_computed and torch._C._current_graph_task_id() == -1:
            count = (inputs[0] if inputs else named["input"]).numel() // norm.num_features
            self._note(place, _Moments(count, mean.double(), variance.double() * (count - 1)))

    def _note(self, place: int, part: _Moments) -> None:
        accumulator = self._accumulator()
        owner = None if accumulator is None else accumulator._open
        if owner is not self._owner:
            self._parts = {}
            self._owner = owner
        _join(self._parts, place, part)

    # ------ around the window ------

    def _committed(self, micro_batch: MicroBatch, counted: int) -> None:
        """After a micro-batch that may have been dropped, and before the step: the window has `counted`."""
        if micro_batch.number == 0:
            self._window, self._micro_batches = {}, 0
        # Gradients that are collected are of forward passes before the micro-batch has begun.
        if counted > self._micro_batches and self._owner in (None, micro_batch):
            for place, part in self._parts.items():
                _join(self._window, place, part)
        self._micro_batches = counted
        self._parts, self._owner = {}, None

    def _applied(self) -> None:
        for place, moments in self._window.items():
            norm = self._norms[place]
            with torch.no_grad():
                norm.num_batches_tracked += 1
                share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
                variance = moments.squares / (moments.count - 1)
                norm.running_mean.lerp_(moments.mean.to(norm.running_mean.dtype), share)
                norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
        self._window = {}


# Norms whose statistics are kept.
_taken: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def _remove(hooks: list[Any], norms: weakref.WeakSet[torch.nn.Module]) -> None:
    for hook in hooks:
        hook.remove()
    for norm in norms:
        _taken.discard(norm)


class _Hook:
    """Of one norm. A copy of the model, or one from a file, has hooks that do nothing."""

    def __init__(self, call: Callable[..., None] | None = None, place: int = 0) -> None:
        self._call = call
        self._place = place

    def __call__(self, *arguments: Any) -> None:
        if self._call is not None:
            self._call(self._place, *arguments)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
