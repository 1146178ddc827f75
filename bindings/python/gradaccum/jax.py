"""Training loops of JAX with exact accumulation windows: gradients as a pytree in, parameters as a pytree out.

    import gradaccum as ga
    import gradaccum.jax as gaj

    accumulator = gaj.Accumulator(params, lambda leaves: ga.AdamW(leaves, lr=3e-4), accumulation_steps=8)
    for x, y in batches:
        loss, gradients = jax.value_and_grad(mean_loss)(accumulator.params, x, y)
        accumulator.accumulate(gradients, weight=len(y), loss=loss)
        if accumulator.sync_gradients:
            print(accumulator.last_report)

Gradients are read where they are. Arrays of JAX never change, so each update makes new ones for `params`, and that is
the one copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .accumulator import Accumulator as _Accumulator
from .accumulator import Tail
from .errors import GADTypeError, GAShapeError
from .optim import Optimizer
from .report import Outcome, Report
from .tensor import DType, Tensor, numpy_dtype_of, tensor

_FLOATS = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


class Accumulator(_Accumulator):
    """gradaccum.Accumulator for a pytree of parameters; the options are the same.

    params: a pytree of arrays of float32, bfloat16 or float16. The library keeps them in float32, and `params` is in
    their own types.
    optimizer: makes an optimizer of this package from the leaves, which are tensors in the order of jax.tree.leaves and
    are named by their paths.
    loss_reduction: what gradients and losses stand for, "mean", as of a mean loss, or "sum", over their weight.
    step_when_due: take the step with the last micro-batch of accumulation_steps.
    """

    def __init__(
        self,
        params: Any,
        optimizer: Callable[[list[Tensor]], Optimizer],
        *,
        loss_reduction: str = "mean",
        **options: Any,
    ) -> None:
        self._structure: Any
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(params)
        self._names = [jax.tree_util.keystr(path) for path, _ in leaves]
        arrays = [self._array(name, leaf) for name, (_, leaf) in zip(self._names, leaves)]
        self._dtypes = [array.dtype for array in arrays]
        self._leaves = [
            tensor(array.astype(np.float32)).set_name(name) for name, array in zip(self._names, arrays)
        ]
        super().__init__(optimizer(self._leaves), loss_reduction=loss_reduction, **options)
        positions = {id(leaf): position for position, leaf in enumerate(self._leaves)}
        self._order = [positions[id(leaf)] for leaf in self.optimizer.parameters]
        self._params = params

    @staticmethod
    def _array(name: str, leaf: Any) -> np.ndarray:
        """The elements of an array of JAX where they are, which on the CPU takes no copy."""
        array = np.asarray(leaf)
        if numpy_dtype_of(array) not in _FLOATS or array.dtype == np.uint16:
            raise GADTypeError(f"{name} is {array.dtype}: float32, bfloat16 or float16 is needed")
        return array

    @property
    def params(self) -> Any:
        """The parameters as they are now, as a pytree like the one that was given."""
        if self._params is None:
            arrays = [
                jax.numpy.array(np.asarray(leaf), dtype=dtype, copy=True)
                for leaf, dtype in zip(self._leaves, self._dtypes)
            ]
            self._params = jax.tree_util.tree_unflatten(self._structure, arrays)
        return self._params

    def accumulate(self, gradients: Any, weight: float | None, loss: Any = 0.0) -> None:  # type: ignore[override]
        """Adds a pytree of gradients as a micro-batch.

        weight: the samples or tokens that they stand for; None to give it later. loss: for the report.
        """
        leaves, structure = jax.tree_util.tree_flatten(gradients)
        if structure != self._structure:
            raise GAShapeError(
                f"gradients have the structure {structure}, and the parameters {self._structure}"
            )
        arrays = [self._array(f"the gradient of {name}", leaf) for name, leaf in zip(self._names, leaves)]
        kinds = {array.dtype for array in arrays}
        if len(kinds) > 1:
            arrays = [array.astype(np.float32) for array in arrays]
        self.accumulate_gradients([arrays[position] for position in self._order], float(loss), weight)
        self._step_if_due()

    def step(self) -> Report:
        return self._after(super().step())

    def end_data(self, tail: Tail = "step") -> Report:
        return self._after(super().end_data(tail))

    def _after(self, report: Report) -> Report:
        if report.outcome == Outcome.APPLIED:
            self._params = None
        return report
