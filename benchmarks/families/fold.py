"""Gradients of a PyTorch model with 124 M parameters into the window, and its end, beside PyTorch alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from lab.lab import Lab
from lab.rows import Measured, Row, at_least

from .gpt_runs import MODELS

MICRO_BATCHES = 4


@dataclass
class Side:
    """The seconds that one side took, of all rounds."""

    windows: list[list[float]] = field(default_factory=list)  # each micro-batch
    folds: list[float] = field(default_factory=list)  # the mean over the micro-batches of a window
    steps: list[float] = field(default_factory=list)
    norm: float = 0.0

    def add(self, answer: dict[str, Any]) -> None:
        for window in answer["folds"]:
            self.windows.append(window)
            self.folds.append(mean(window))
        self.steps += answer["steps"]
        self.norm = answer["gradient_norms"][0]


def measure(lab: Lab, dtype: str) -> tuple[Side, Side]:
    settings = {
        "config": {**MODELS["gpt2-124m"], "context": 1024},
        "dtype": dtype,
        "micro_batches": MICRO_BATCHES,
        "windows": lab.rounds(6, 4),
    }
    sides = Side(), Side()
    rounds = lab.rounds(4, 2)
    for index in range(rounds):
        lab.progress(f"round {index + 1} of {rounds}: ours, PyTorch")
        for side, script in zip(sides, ("fold_ours", "fold_pytorch")):
            side.add(lab.child(script, settings))
    return sides


def sides(lab: Lab, dtype: str) -> tuple[Side, Side]:
    return lab.once(f"fold {dtype}", lambda: measure(lab, dtype))


def milliseconds(side: Side) -> str:
    return ", ".join(f"{1e3 * median(seconds):.1f}" for seconds in zip(*side.windows))


def fold(lab: Lab, dtype: str) -> Measured:
    ours, theirs = sides(lab, dtype)
    ratio = median(theirs.folds) / median(ours.folds)
    notes = [
        f"the mean over the micro-batches of a window, which take {milliseconds(ours)} ms against "
        f"{milliseconds(theirs)} ms"
    ]
    same_work = math.isclose(ours.norm, theirs.norm, rel_tol=1e-3)
    return Measured(
        1e3 * median(ours.folds), 1e3 * median(theirs.folds), "ms", ratio, notes=notes, is_valid=same_work
    )


def end(lab: Lab) -> Measured:
    ours, theirs = sides(lab, "f32")
    return Measured(
        1e3 * median(ours.steps),
        1e3 * median(theirs.steps),
        "ms",
        median(theirs.steps) / median(ours.steps),
        notes=["the peer is GradScaler.unscale_, clip_grad_norm_, fused AdamW, zero_grad(set_to_none=False)"],
        is_valid=math.isclose(ours.norm, theirs.norm, rel_tol=1e-3),
    )


WHAT = "gradients of a PyTorch model of 124 M parameters"

ROWS = [
    Row("fold-f32", WHAT, at_least(1.0), lambda lab: fold(lab, "f32")),
    Row("fold-bf16", WHAT, at_least(4.0), lambda lab: fold(lab, "bf16")),
    Row("fold-f16", WHAT, at_least(4.0), lambda lab: fold(lab, "f16")),
    Row("fold-window-end", "end of the window of a PyTorch model of 124 M parameters", at_least(1.6), end),
]
