"""Splitting a batch into micro-batches."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from ctypes import byref, c_int64
from typing import Any, NamedTuple

from . import ops
from ._arguments import flag, int64_array
from ._ffi import lib
from .errors import GAInvalidArgumentError, GAShapeError
from .tensor import Tensor


class BatchPart(NamedTuple):
    """What an Accumulator is given at a time."""

    batch: Any  # as the batch that it is a part of, with views of its arrays
    weight: int  # its samples, or its tokens where lengths were given


def split(
    batch: Any,
    *,
    micro_batches: int | None = None,
    size: int | None = None,
    token_budget: int | None = None,
    lengths: Sequence[int] | None = None,
    padded: bool = False,
) -> Iterator[BatchPart]:
    """The micro-batches of a batch, in sample order, as `for part, weight in split(...)`. Nothing is copied.

    batch: an array or a Tensor with the samples along its leading axis, or a dict, list or tuple of these.
    Give one of:
    micro_batches: how many, of sizes that differ by 1 at most.
    size: samples in each; the last may have fewer.
    token_budget: each has as many samples as fit, by the tokens of each sample in lengths, or, if padded, by
        those of its longest sample times their number.
    """
    ranges = split_ranges(
        _samples_of(batch, "batch"),
        micro_batches=micro_batches,
        size=size,
        token_budget=token_budget,
        lengths=lengths,
        padded=padded,
    )
    tokens = None if lengths is None else [operator.index(x) for x in lengths]
    return (
        BatchPart(_part(batch, part), len(part) if tokens is None else sum(tokens[part.start : part.stop]))
        for part in ranges
    )


def split_ranges(
    samples: int,
    *,
    micro_batches: int | None = None,
    size: int | None = None,
    token_budget: int | None = None,
    lengths: Sequence[int] | None = None,
    padded: bool = False,
) -> list[range]:
    """The samples of each micro-batch, for batches that split() does not know. See there."""
    given = [name for name, value in _named(micro_batches, size, token_budget) if value is not None]
    if len(given) != 1:
        raise GAInvalidArgumentError(
            f"{' and '.join(given) or 'none'} was given: give one of micro_batches, size and token_budget"
        )
    tokens = None if lengths is None else int64_array("lengths", lengths)
    if tokens is not None and len(tokens) != samples:
        raise GAShapeError(f"lengths has {len(tokens)} entries and the batch {samples} samples")
    if padded and token_budget is None:
        raise GAInvalidArgumentError("padded is for a token_budget: give one, or leave it out")
    count = c_int64()
    arguments: tuple[Any, ...]
    if token_budget is not None:
        if tokens is None:
            raise GAInvalidArgumentError("token_budget needs lengths: the tokens of each sample")
        arguments = (tokens, samples, token_budget, flag("padded", padded))
        function = lib.ga_split_by_tokens
    elif size is not None:
        arguments, function = (samples, size), lib.ga_split_by_size
    else:
        assert micro_batches is not None
        arguments, function = (samples, micro_batches), lib.ga_split_by_count
    function(None, 0, byref(count), *arguments)
    boundaries = (c_int64 * (count.value + 1))()
    function(boundaries, len(boundaries), byref(count), *arguments)
    return [range(start, stop) for start, stop in zip(boundaries, boundaries[1:])]


def _named(*values: int | None) -> Iterator[tuple[str, int | None]]:
    return zip(("micro_batches", "size", "token_budget"), values)


def _samples_of(batch: Any, name: str) -> int:
    """The size of the leading axis, which all arrays of a batch share."""
    if isinstance(batch, dict):
        parts = [(f"{name}[{key!r}]", value) for key, value in batch.items()]
    elif isinstance(batch, (list, tuple)):
        parts = [(f"{name}[{index}]", value) for index, value in enumerate(batch)]
    else:
        shape = getattr(batch, "shape", None)
        if shape is None or len(shape) == 0:
            raise GAInvalidArgumentError(
                f"{name} is a {type(batch).__name__} without a leading axis: it must be an array of samples, or a "
                "dict, list or tuple of arrays"
            )
        return int(shape[0])
    if not parts:
        raise GAInvalidArgumentError(f"{name} is empty: a batch has at least one array")
    sizes = [(label, _samples_of(value, label)) for label, value in parts]
    for label, size in sizes:
        if size != sizes[0][1]:
            raise GAShapeError(f"{label} has {size} samples and {sizes[0][0]} has {sizes[0][1]}")
    return sizes[0][1]


def _part(batch: Any, part: range) -> Any:
    if isinstance(batch, dict):
        return {key: _part(value, part) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple takes its fields one by one
        return type(batch)(*(_part(value, part) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_part(value, part) for value in batch)
    if isinstance(batch, Tensor):
        return ops.slice(batch, 0, part.start, part.stop)
    return batch[part.start : part.stop]
