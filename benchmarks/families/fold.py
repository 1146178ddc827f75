"""Gradients of a PyTorch model with 124 M parameters into the window, and its end, beside PyTorch alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from lab.lab import Lab
from lab.rows import Measured, Row, at_least

from .gpt_runs import MODELS

MICRO_BATCHES = 4


@dataclass
class Side:
    """The seconds that one side took, of all windows."""

    windows: list[list[float]] = field(default_factory=list)  # each micro-batch
    ends: list[float] = field(default_factory=list)
    norm: float = 0.0

    def add(self, answer: dict[str, Any]) -> None:
        self.windows += answer["folds"]
        self.ends += answer["ends"]
        self.norm = answer["norm"]

    @property
    def folds(self) -> list[float]:
        """The mean over the micro-batches of each window."""
        return [mean(window) for window in self.windows]

    @property
    def milliseconds(self) -> str:
        return ", ".join(f"{1e3 * median(seconds):.1f}" for seconds in zip(*self.windows))


def measure(lab: Lab, dtype: str) -> tuple[Side, Side]:
    settings = {
        "config": {**MODELS["gpt2-124m"], "context": 1024},
        "dtype": dtype,
        "micro_batches": MICRO_BATCHES,
        "windows": lab.rounds(8, 6),
    }
    ours, theirs = Side(), Side()
    rounds = lab.rounds(4, 2)
    for index in range(rounds):
        lab.progress(f"round {index + 1} of {rounds}: ours and PyTorch in turns")
        answer = lab.child("fold", settings)
        ours.add(answer["ours"])
        theirs.add(answer["peer"])
    return ours, theirs


def compare(ours: Side, theirs: Side, seconds: Callable[[Side], list[float]], notes: list[str]) -> Measured:
    """By the median of the ratios of windows that followed each other."""
    ratios = [peer / own for own, peer in zip(seconds(ours), seconds(theirs))]
    return Measured(
        1e3 * median(seconds(ours)),
        1e3 * median(seconds(theirs)),
        "ms",
        median(ratios),
        notes=[*notes, f"ratios of pairs of windows from {min(ratios):.3f} to {max(ratios):.3f}"],
        is_valid=math.isclose(ours.norm, theirs.norm, rel_tol=1e-3),
    )


def sides(lab: Lab, dtype: str) -> tuple[Side, Side]:
    return lab.once(f"fold {dtype}", lambda: measure(lab, dtype))


def fold(lab: Lab, dtype: str) -> Measured:
    ours, theirs = sides(lab, dtype)
    note = (
        f"the mean over the micro-batches of a window, which take {ours.milliseconds} ms against "
        f"{theirs.milliseconds} ms"
    )
    return compare(ours, theirs, lambda side: side.folds, [note])


def end(lab: Lab) -> Measured:
    note = "the peer is GradScaler.unscale_, clip_grad_norm_, fused AdamW, zero_grad(set_to_none=False)"
    return compare(*sides(lab, "f32"), lambda side: side.ends, [note])


WHAT = "gradients of a PyTorch model of 124 M parameters"

ROWS = [
    Row("fold-f32", WHAT, at_least(1.0), lambda lab: fold(lab, "f32")),
    Row("fold-bf16", WHAT, at_least(4.0), lambda lab: fold(lab, "bf16")),
    Row("fold-f16", WHAT, at_least(4.0), lambda lab: fold(lab, "f16")),
    Row("fold-window-end", "end of the window of a PyTorch model of 124 M parameters", at_least(1.6), end),
]
