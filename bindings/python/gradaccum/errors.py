"""One exception class per status of the C library; each is also the builtin exception it amounts to."""

from __future__ import annotations


class GAError(Exception):
    """Base of every error of the library. `status` is the GA_ERROR_... number of the C call, or 0."""

    status: int = 0


class GAInvalidArgumentError(GAError, ValueError):
    """A value outside of its range, or an object that was closed."""

    status = -1


class GAShapeError(GAError, ValueError):
    """Shapes that do not fit each other or the operation."""

    status = -2


class GADTypeError(GAError, TypeError):
    """An element type that the operation does not take, or an argument of another type than it must have."""

    status = -3


class GAStateError(GAError, RuntimeError):
    """A call that is not due, such as a step on an empty window."""

    status = -4


class GAOutOfMemoryError(GAError, MemoryError):
    """The allocator refused; everything is as it was before the call."""

    status = -5


class GAOverflowError(GAError, OverflowError):
    """A size that does not fit the address space, or a number that its type has no room for."""

    status = -6


class GAIndexError(GAError, IndexError):
    """A class or row index outside of its table."""

    status = -7


class GANonFiniteError(GAError, FloatingPointError):
    """A NaN or infinity where a finite number is needed."""

    status = -8


class GAUnsupportedError(GAError, NotImplementedError):
    """Not possible on this machine or with these settings."""

    status = -9


class GAInternalError(GAError, RuntimeError):
    """A defect of the library."""

    status = -10


class GAOutlierError(GAError, ArithmeticError):
    """A window whose loss or norm stands out, where that is an error."""

    status = -11


class GALibraryError(GAError, ImportError):
    """The shared library was not found, or it is of another ABI."""


BY_STATUS: dict[int, type[GAError]] = {cls.status: cls for cls in GAError.__subclasses__() if cls.status != 0}
