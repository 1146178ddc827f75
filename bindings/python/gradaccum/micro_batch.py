"""Micro-batches that are begun, and committed or aborted."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ._ffi import lib
from ._handle import Uncopied
from .errors import GAOutOfMemoryError, GAStateError

if TYPE_CHECKING:
    from .accumulator import Accumulator

_Self = TypeVar("_Self", bound="MicroBatch")


class MicroBatch(Uncopied):
    """An open micro-batch: commits at the end of the with statement, and aborts where an exception ends it.

    weight: the samples or tokens of all losses that backward() is called with; None if they come otherwise.
    """

    _COPIED = "the state_dict() of its accumulator after the window"

    def __init__(self, accumulator: Accumulator, weight: float | None = None) -> None:
        self._accumulator = accumulator
        lib.ga_micro_batch_begin(accumulator.handle)
        window = accumulator.window()
        self._number = window.micro_batches + window.aborted_micro_batches
        self._weight = weight
        self._has_loss = False
        if self._number == 0:
            accumulator._untold_loss = 0.0
        accumulator._open = self
        accumulator._has_ended = False

    @property
    def number(self) -> int:
        """That in its window, from 0 on, aborted ones included."""
        return self._number

    @property
    def weight(self) -> float | None:
        """As it was given: see set_weight() for one that comes later."""
        return self._weight

    def backward(self, loss: Any) -> None:
        """Runs backward from a scalar loss and adds the gradients. Of several losses that are sums, the weight is that
        of all together; of means there is one."""
        self._require_this_open("backward")
        if self._has_loss and self._accumulator.loss_reduction == "mean":
            raise GAStateError(
                "backward: the micro-batch has its loss, and the mean of two means would need the weight of each: add "
                "them up before, or accumulate each with its weight"
            )
        self._accumulator.accumulate(loss, 0.0 if self._has_loss and self.weight is not None else self.weight)
        self._has_loss = True

    def set_weight(self, weight: float) -> None:
        """Gives the weight that was None where the losses were accumulated; also after the commit."""
        self._accumulator.set_weight(self.number, weight)

    def commit(self) -> None:
        """Ends the micro-batch, which then counts. In isolated mode it is dropped if it is not finite. The window steps
        if this was its last one: see Accumulator.micro_batch()."""
        self._require_open("commit")
        self._complete()
        try:
            self._accumulator._call(lib.ga_micro_batch_commit)
        except (GAStateError, GAOutOfMemoryError):
            raise
        except BaseException:  # it was dropped
            self._end()
            raise
        self._end()
        self._accumulator._committed(self)

    def _complete(self) -> None:
        """Before the commit: what the micro-batch still lacks."""
        if self.weight is not None and not self._has_loss:
            raise GAStateError(
                f"commit: micro-batch {self.number} has the weight {self.weight} and no loss: call its backward(), or "
                "give the weight where something is accumulated"
            )

    def _end(self) -> None:
        self._accumulator._open = None

    def abort(self) -> None:
        """Takes the micro-batch back. In exact mode that can be done before anything was added only."""
        self._require_open("abort")
        lib.ga_micro_batch_abort(self._accumulator.handle)
        self._end()

    def _require_open(self, operation: str) -> None:
        if self._accumulator._open not in (None, self):  # of none, the library says it
            raise GAStateError(f"{operation}: micro-batch {self.number} is not open: begin another")

    def _require_this_open(self, operation: str) -> None:
        """Errors: GAStateError if it has ended: another, or one of its own, would get what is meant for it."""
        if self._accumulator._open is not self:
            raise GAStateError(f"{operation}: micro-batch {self.number} is not open: begin another")

    def __enter__(self: _Self) -> _Self:
        self._require_this_open("with")  # whose gradients would go nowhere, or be micro-batches of their own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._accumulator._open is not self:
            return
        if error is None:
            self.commit()
            return
        try:
            self.abort()
        except GAStateError as refusal:
            # The exception goes on. The window cannot be stepped until zero() drops it, so nothing is lost in silence.
            if hasattr(error, "add_note"):
                error.add_note(str(refusal))
