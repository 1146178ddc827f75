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

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ._arguments import REAL, require
from .accumulator import Accumulator as _Accumulator
from .accumulator import Tail
from .errors import GADTypeError, GAInvalidArgumentError, GAShapeError
from .optim import Optimizer
from .report import Outcome, Report
from .tensor import DType, Tensor, numpy_dtype_of, tensor

if not hasattr(jax, "tree"):
    raise ImportError(
        f"gradaccum.jax needs JAX 0.4.25 or later, and this is {jax.__version__}: pip install 'jax>=0.4.25'"
    )

_FLOATS = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


class Accumulator(_Accumulator):
    """gradaccum.Accumulator for a pytree of parameters; the options are the same.

    params: a pytree of arrays of float32, bfloat16 or float16. The library keeps them in float32, and `params` is in
    their own types, on their own devices and with their own sharding.
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
        arrays = [self._array(f"params{name}", leaf) for name, (_, leaf) in zip(self._names, leaves)]
        self._shardings = [getattr(leaf, "sharding", None) for _, leaf in leaves]
        self._dtypes = [array.dtype for array in arrays]
        self._leaves = [
            tensor(array.astype(np.float32)).set_name(name) for name, array in zip(self._names, arrays)
        ]
        made = self._optimizer_of(optimizer)
        positions = {id(leaf): position for position, leaf in enumerate(self._leaves)}
        for index, parameter in enumerate(made.parameters):
            if id(parameter) not in positions:
                raise GAInvalidArgumentError(
                    f"parameters[{index}] of the optimizer is a tensor of elsewhere: make the optimizer of the leaves "
                    "that its function is called with"
                )
        super().__init__(made, loss_reduction=loss_reduction, **options)
        self._order = [positions[id(leaf)] for leaf in made.parameters]
        self._params = params
        self._exchanges = 0

    _GIVE_LOSS = "give the loss, as jax.value_and_grad() has it"

    def _optimizer_of(self, make: Callable[[list[Tensor]], Optimizer]) -> Optimizer:
        made = make(self._leaves) if callable(make) else make
        if callable(make) and isinstance(made, Optimizer):
            return made
        given = f"function that returns {type(made).__name__}" if callable(make) else type(make).__name__
        raise GAInvalidArgumentError(
            f"optimizer is a {given}: give a function that makes one of the leaves, such as "
            "lambda leaves: ga.AdamW(leaves, lr=3e-4)"
        )

    @staticmethod
    def _array(name: str, leaf: Any) -> np.ndarray:
        """The elements of an array of JAX where they are, which on the CPU takes no copy."""
        array = np.asarray(leaf)
        if not _is_float(array):
            raise GADTypeError(f"{name} is {array.dtype}: convert it to float32, bfloat16 or float16")
        return array

    @property
    def params(self) -> Any:
        """The parameters as they are now, as a pytree like the one that was given."""
        if self._params is None or self._exchanges != self.optimizer._exchanges:
            self._exchanges = self.optimizer._exchanges
            arrays = [
                _placed(jax.numpy.array(np.asarray(leaf), dtype=dtype, copy=True), sharding)
                for leaf, dtype, sharding in zip(self._leaves, self._dtypes, self._shardings)
            ]
            self._params = jax.tree_util.tree_unflatten(self._structure, arrays)
        return self._params

    def accumulate(  # type: ignore[override]
        self, gradients: Any, weight: float | None, loss: Any = None, *, loss_scale: float = 1.0
    ) -> None:
        """Adds a pytree of gradients as a micro-batch.

        weight: the samples or tokens that they stand for; None to give it later. Means over nothing, of the weight 0,
        may be NaN: they add nothing. loss: for the report, which has none of the window otherwise. loss_scale: what the
        loss was multiplied by before its gradients were taken, such as window().loss_scale with a loss scaler.
        """
        leaves, structure = jax.tree_util.tree_flatten(gradients)
        if structure != self._structure:
            raise GAShapeError(
                f"gradients have the structure {structure}, and the parameters {self._structure}"
            )
        arrays = [self._array(f"gradients{name}", leaf) for name, leaf in zip(self._names, leaves)]
        kinds = {array.dtype for array in arrays}
        if len(kinds) > 1:
            arrays = [array.astype(np.float32) for array in arrays]
        in_order: list[np.ndarray | None] = [arrays[position] for position in self._order]
        if weight is not None:
            REAL.checked("weight", weight)
        if loss is not None:
            REAL.checked("loss", loss)
        if weight == 0 and self.loss_reduction == "mean":  # a mean over nothing is no number
            in_order, loss = [None] * len(in_order), 0.0
        self._require_loss("accumulate", loss, weight)
        if self._open is None and self.window().micro_batches == 0:
            self._untold_loss = 0.0
        self.accumulate_gradients(in_order, 0.0 if loss is None else float(loss), weight, scale=loss_scale)
        if loss is None and weight != 0:
            self._untold_loss = None
        if weight is not None:
            self._step_if_due()

    def step(self) -> Report:
        return self._after(super().step())

    def end_data(self, tail: Tail = "step") -> Report:
        return self._after(super().end_data(tail))

    # ------ state ------

    _STATE = (*_Accumulator._STATE, "masters")

    def state_dict(self) -> dict[str, Any]:
        """That of gradaccum.Accumulator, and the float32 elements of parameters of other types, by the places of leaves:
        to be saved beside params."""
        return {
            **super().state_dict(),
            "masters": {place: np.array(leaf) for place, leaf in self._masters().items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state_dict() in an accumulator that was made with the params of then."""
        super().load_state_dict(state_dict)
        for place, leaf in self._masters().items():
            leaf.copy_(np.asarray(state_dict["masters"][place], np.float32))
        self._params = None

    def _require_state(self, state_dict: Mapping[str, Any]) -> None:
        super()._require_state(state_dict)
        require("state_dict['masters']", state_dict["masters"], Mapping, "what state_dict() had there")
        given, wanted = (
            {place: np.shape(x) for place, x in part.items()}
            for part in (state_dict["masters"], self._masters())
        )
        if given != wanted:
            raise GAInvalidArgumentError(
                f"load_state_dict: masters have the shapes {given}, by leaf, and {wanted} are needed"
            )

    def _masters(self) -> dict[int, Tensor]:
        """Leaves whose parameters are not float32."""
        kinds = enumerate(zip(self._leaves, self._dtypes))
        return {place: leaf for place, (leaf, dtype) in kinds if dtype != np.float32}

    def _after(self, report: Report) -> Report:
        if report.outcome == Outcome.APPLIED:
            self._params = None
        return report


def _is_float(array: np.ndarray) -> bool:
    """Whether the library adds up arrays of its type. uint16, which it reads as bfloat16, is integers to JAX."""
    try:
        return array.dtype != np.uint16 and numpy_dtype_of(array) in _FLOATS
    except GADTypeError:
        return False


def _placed(array: Any, sharding: Any) -> Any:
    """An array where one lay in the place of which it comes; on the default device it stays uncommitted."""
    return array if sharding is None or array.sharding == sharding else jax.device_put(array, sharding)
