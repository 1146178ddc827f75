"""Averages of weights over the updates of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import byref, c_int64, c_void_p
from typing import Any

from . import _ffi
from ._arguments import flag, require
from ._ffi import lib
from ._handle import Handle
from .errors import GAInvalidArgumentError
from .optim import Optimizer, require_optimizer
from .schedules import clock_constant
from .tensor import Tensor, handles_of, make, tensor


class WeightAverage(Handle):
    """An exponential moving average of an optimizer's parameters, in float32. It starts as they are and moves once per
    applied update.

    decay: what it keeps of itself at an update; 0.999 if neither this nor a half_life is given.
    half_life: the time after which it has kept half, in updates or, with clock="weight", in samples or tokens.
    warmup: update t, counted from 1, keeps (1 + t) / (10 + t) at most.

    close() brings the weights back if they are swapped.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: float | None = None,
        *,
        half_life: float | None = None,
        clock: str = "updates",
        warmup: bool = False,
    ) -> None:
        if decay is not None and half_life is not None:
            raise GAInvalidArgumentError(f"decay is {decay} and half_life {half_life}: give one of them")
        if half_life is not None and half_life == 0:
            raise GAInvalidArgumentError(f"half_life is {half_life}: it must be above 0")
        require_optimizer(optimizer)
        self.optimizer = optimizer
        own = {} if decay is None else {"decay": decay}
        options = _ffi.AverageOptions(
            clock=clock_constant(clock), half_life=half_life or 0.0, warmup=flag("warmup", warmup), **own
        )
        out = c_void_p()
        lib.ga_average_create(byref(out), optimizer.handle, byref(options))
        self._own(out.value, lib.ga_average_free, "average")

    def weights(self, index: int) -> Tensor:
        """A copy of the averaged weights of a parameter, in the optimizer's order."""
        return make(lib.ga_average_weights, self.handle, index)

    def swap_in(self) -> None:
        """Exchanges the parameters' weights with their averages. Nothing can be accumulated or stepped meanwhile."""
        lib.ga_average_swap_in(self.handle)
        self.optimizer._exchanges += 1

    def swap_out(self) -> None:
        """Brings the weights back, to the bit."""
        lib.ga_average_swap_out(self.handle)
        self.optimizer._exchanges += 1

    def close(self) -> None:
        super().close()
        self.optimizer._exchanges += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters have their averages inside of the with block, as for an evaluation."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    def reset(self) -> None:
        """Starts anew from the weights as they are, such as after they were loaded."""
        lib.ga_average_reset(self.handle)

    @property
    def updates(self) -> int:
        """The updates that it has seen since it was created, reset or loaded."""
        value = c_int64()
        lib.ga_average_updates(self.handle, byref(value))
        return value.value

    def state_dict(self) -> dict[str, Any]:
        """A copy of the averages, in numpy arrays in the optimizer's order, and the updates that they have seen."""
        weights = [self.weights(index).numpy().copy() for index in range(len(self.optimizer.parameters))]
        return {"updates": self.updates, "weights": weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state_dict() of an average over parameters of the same shapes. What it refuses changes
        nothing."""
        require("state_dict", state_dict, Mapping, "what state_dict() returned")
        if set(state_dict) != {"updates", "weights"}:
            raise GAInvalidArgumentError(
                f"load_state_dict: state_dict has {', '.join(sorted(state_dict)) or 'nothing'}, and updates and weights "
                "are needed: pass what state_dict() returned"
            )
        weights = [tensor(each) for each in state_dict["weights"]]
        handles = handles_of("weights", weights)
        lib.ga_average_load(self.handle, handles, len(weights), state_dict["updates"])
