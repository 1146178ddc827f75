"""The features that the library is asked for; without one, a row says so."""

from __future__ import annotations

from collections.abc import Callable

import gradaccum as ga
from timing import unsupported


def use_compute_dtype(dtype: str) -> None:
    """Lets linear layers and attention compute in "f32" or "bf16"."""
    if dtype == "f32":
        return
    if not hasattr(ga, "set_compute_dtype"):
        unsupported("the library computes in float32 only")
    try:
        ga.set_compute_dtype(ga.bfloat16)
    except ga.GAUnsupportedError as error:
        unsupported(str(error))


def checkpointed(block: Callable[[ga.Tensor], ga.Tensor], x: ga.Tensor) -> ga.Tensor:
    """block(x), computed again in backward instead of kept."""
    if not hasattr(ga, "checkpoint"):
        unsupported("the library has no gradient checkpointing")
    return ga.checkpoint(block, x)


def head_loss(hidden: ga.Tensor, weight: ga.Tensor, targets: ga.Tensor) -> ga.Tensor:
    """The summed cross-entropy of a head that shares the embedding's weight."""
    if hasattr(ga, "linear_cross_entropy"):
        return ga.linear_cross_entropy(hidden, weight, targets)
    return ga.cross_entropy(ga.linear(hidden, weight), targets)
