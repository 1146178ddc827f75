"""Optimizers with a rule of the caller."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _ffi
from ._arguments import flag, require
from ._callbacks import Callbacks
from ._ffi import lib
from .optim import Optimizer, Parameters
from .tensor import Tensor


@dataclass(frozen=True)
class Update:
    """What a rule is told besides its arrays."""

    update: int
    """Counts from 1 the updates that the parameter has part in."""
    parameter: int
    """The place among the optimizer's parameters."""
    start: int
    """The element that the arrays start at: 0 unless the rule is elementwise."""
    lr: float
    gradient_scale: float
    """To multiply the gradient by: 1 over the window's weight, times the clip factor."""
    weight_decay: float
    """That of the optimizer, or of the parameter's group."""


Rule = Callable[[np.ndarray, np.ndarray, "list[np.ndarray]", Update], None]

_OK = 0


class _Rule:
    """A Python function as a rule of the library."""

    def __init__(self, function: Rule, slot_count: int) -> None:
        self.function = function
        self.slot_count = slot_count
        self.error: BaseException | None = None


_rules: Callbacks[_Rule] = Callbacks()


def _run(parameter: Any, gradient: Any, slots: Any, count: int, update: Any, user: Any) -> int:
    rule = _rules[user]
    try:
        arrays = [np.ctypeslib.as_array(slots[i], (count,)) for i in range(rule.slot_count)]
        read_only = np.ctypeslib.as_array(gradient, (count,))
        read_only.flags.writeable = False
        told = update[0]
        rule.function(
            np.ctypeslib.as_array(parameter, (count,)),
            read_only,
            arrays,
            Update(
                told.update,
                told.parameter,
                told.start,
                told.learning_rate,
                told.gradient_scale,
                told.weight_decay,
            ),
        )
        return _OK
    except BaseException as error:  # goes on where the library has returned
        if rule.error is None:  # of several threads, the first
            rule.error = error
        return _ffi.status_for(error)


_callback = _ffi.UpdateFn(_run)


class CustomOptimizer(Optimizer):
    """An optimizer whose rule is a function of Python.

    rule(parameter, gradient, slots, update) changes the flat arrays parameter and slots in place; gradient is to be
    multiplied by update.gradient_scale; update.weight_decay is the rule's to use. slots are arrays of the parameter's
    size, zeros at first. An exception ends the step: the window is dropped, the update not counted, and what the rule
    has changed stays.

    elementwise: the rule updates every element alone; it is then called for pieces, on several threads.
    """

    def __init__(
        self,
        parameters: Parameters,
        rule: Rule,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        slots: int = 0,
        elementwise: bool = False,
    ) -> None:
        require("rule", rule, Callable, "a function")
        self._rule = _Rule(rule, slots)
        number = _rules.add(self._rule)

        def create(out: Any, addresses: Any, count: int, options: Structure) -> int:
            status: int = lib.ga_custom_create(
                out, addresses, count, _callback, number, _rules.release, options
            )
            return status

        options = _ffi.CustomOptions(
            elementwise=flag("elementwise", elementwise), learning_rate=lr, slot_count=slots, weight_decay=weight_decay
        )
        try:
            super().__init__(create, parameters, options)
        except BaseException:
            _rules.remove(number)
            raise

    def _take_error(self) -> BaseException | None:
        error, self._rule.error = self._rule.error, None
        return error
