"""Loss scaling for half precision."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ctypes import byref, c_double, c_int64, c_void_p
from typing import Any

import numpy as np

from . import _ffi
from ._arguments import flag, require
from ._ffi import lib
from ._handle import Handle
from .errors import GADTypeError, GAInvalidArgumentError
from .tensor import numpy_dtype_of

# Of _ffi.LossScalerState, what a state is made of.
_STATE = ("scale", "growth_tracker", "hysteresis_tracker")


class LossScaler(Handle):
    """The number that losses are multiplied by, so that gradients in half precision do not vanish: it goes down when
    they overflow, and up again when they have not for a while.

    Given to an Accumulator, or several, it does all by itself. With gradients of your own:

        scale = scaler.scale
        ...  # the backward pass of scale * loss
        norm = scaler.unscale(gradients, scale)
        if math.isfinite(norm):
            ...  # clip and step
        scaler.update()

    growth_interval: the scale grows after this many updates in a row without an overflow.
    hysteresis: it goes down with the last of this many overflows, and each that follows, counted anew once it has
        grown; with consecutive_hysteresis, after each update without an overflow.
    min_scale, max_scale: it never goes below or above these.
    dynamic: False for a scale that stays init_scale.
    allow_any_scale: takes scales and factors that are no powers of two, which change the rounding of gradients.

    After close() accumulators go on with the scaler.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        hysteresis: int = 1,
        consecutive_hysteresis: bool = False,
        min_scale: float = 1.0,
        max_scale: float = 2.0**24,
        dynamic: bool = True,
        allow_any_scale: bool = False,
    ) -> None:
        options = _ffi.LossScalerOptions(
            dynamic=flag("dynamic", dynamic),
            init_scale=init_scale,
            growth_factor=growth_factor,
            backoff_factor=backoff_factor,
            growth_interval=growth_interval,
            hysteresis=hysteresis,
            consecutive_hysteresis=flag("consecutive_hysteresis", consecutive_hysteresis),
            min_scale=min_scale,
            max_scale=max_scale,
            allow_any_scale=flag("allow_any_scale", allow_any_scale),
        )
        out = c_void_p()
        lib.ga_loss_scaler_create(byref(out), byref(options))
        self._own(out.value, lib.ga_loss_scaler_free, "loss scaler")

    @property
    def scale(self) -> float:
        """The scale of windows that begin in this round, and of gradients of your own until update(). The next window of an
        accumulator that has ended one in it begins another round: its window() has the scale."""
        value = c_double()
        lib.ga_loss_scaler_scale(self.handle, byref(value))
        return value.value

    def unscale(self, arrays: Sequence[np.ndarray | None], scale: float, *, optimizer: int = 0) -> float:
        """Divides gradients of your own by the scale that they carry, in place, and returns the norm of all, which is
        finite exactly if all elements are. No two share memory. optimizer: a number that tells your optimizers apart;
        an array that is given under two is divided twice. What is found counts for update(), stepped or not."""
        require("arrays", arrays, Collection, "a sequence of arrays")
        addresses: Any = (c_void_p * len(arrays))()
        counts: Any = (c_int64 * len(arrays))()
        dtype = None
        for index, array in enumerate(arrays):
            if array is None:
                continue
            kind = numpy_dtype_of(array)
            dtype = kind if dtype is None else dtype
            if kind != dtype:
                raise GADTypeError(f"arrays[{index}] is {kind.name.lower()} and others {dtype.name.lower()}")
            if not (array.flags.c_contiguous and array.flags.writeable):
                raise GAInvalidArgumentError(
                    f"arrays[{index}] is not contiguous and writable, and would be changed in place: pass a copy"
                )
            addresses[index] = array.ctypes.data
            counts[index] = array.size
        norm = c_double()
        lib.ga_loss_scaler_unscale(
            self.handle,
            addresses,
            counts,
            len(arrays),
            _ffi.FLOAT32 if dtype is None else dtype,
            scale,
            optimizer,
            byref(norm),
        )
        return norm.value

    def update(self) -> None:
        """Ends a round that unscale() had a part in. Rounds of accumulators alone end by themselves."""
        lib.ga_loss_scaler_update(self.handle)

    def state_dict(self) -> dict[str, Any]:
        """What another scaler with the same options goes on from. GAStateError in the middle of a round, where some
        accumulators that share the scaler have ended a window and others have not, or gradients were unscaled since the
        last update(): step the others, or update() first."""
        state = _ffi.LossScalerState()
        lib.ga_loss_scaler_save(self.handle, byref(state))
        return {name: getattr(state, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; windows in progress keep their scale. GAStateError in the middle of a round."""
        require("state", state, dict, "what state_dict() returned")
        if sorted(state) != sorted(_STATE):
            raise GAInvalidArgumentError(
                f"the state has {', '.join(sorted(state)) or 'nothing'}, and {', '.join(_STATE)} are needed"
            )
        lib.ga_loss_scaler_load(self.handle, byref(_ffi.LossScalerState(**state)))
