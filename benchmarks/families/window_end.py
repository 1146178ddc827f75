"""Everything after the last backward: finite check, norm, clip, AdamW and zero, of 124 M parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from lab.lab import Lab
from lab.rows import Measured, Row, at_least, at_most

from .gpt_runs import MODELS

# Weights, gradients and two moments, each read and written.
BYTES_PER_PARAMETER = 4 * 2 * 4


@dataclass(frozen=True)
class Ends:
    ours: float
    pytorch: float
    streams: float
    parameters: int
    same_work: bool


def measure_ends(lab: Lab) -> Ends:
    settings = {"config": MODELS["gpt2-124m"], "windows": lab.rounds(6, 4)}
    ours: list[float] = []
    pytorch: list[float] = []
    streams: list[float] = []
    rounds = lab.rounds(4, 2)
    for index in range(rounds):
        lab.progress(f"round {index + 1} of {rounds}: ours, PyTorch, plain streams")
        mine = lab.child("window_end_ours", settings)
        theirs = lab.child("window_end_pytorch", settings)
        ours += mine["seconds"]
        pytorch += theirs["seconds"]
        streams += lab.program("streams", [mine["parameters"], lab.threads, settings["windows"]])
    same_work = all(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(mine["gradient_norms"], theirs["gradient_norms"])
    )
    return Ends(median(ours), median(pytorch), median(streams), mine["parameters"], same_work)


def ends(lab: Lab) -> Ends:
    return lab.once("window end", lambda: measure_ends(lab))


def against_pytorch(lab: Lab) -> Measured:
    measured = ends(lab)
    return Measured(
        1e3 * measured.ours,
        1e3 * measured.pytorch,
        "ms",
        measured.pytorch / measured.ours,
        notes=["the peer is GradScaler.unscale_, clip_grad_norm_, fused AdamW, zero_grad(set_to_none=False)"],
        is_valid=measured.same_work,
    )


def against_bandwidth(lab: Lab) -> Measured:
    measured = ends(lab)
    gigabytes = BYTES_PER_PARAMETER * measured.parameters / 1e9
    return Measured(
        gigabytes / measured.ours,
        gigabytes / measured.streams,
        "GB/s",
        measured.streams / measured.ours,
        notes=["the peer is a plain in-place update of four streams of that size"],
    )


def scaled(lab: Lab) -> Measured:
    """Windows with and without in turn: neighbours of each other, so that the drift of the machine counts little."""
    settings = {"config": MODELS["gpt2-124m"], "windows": lab.rounds(20, 12), "scaled": True}
    answer = lab.child("window_end_ours", settings)
    ratio = median(a / b for a, b in zip(answer["scaled"], answer["seconds"]))
    ours, peer = (1e3 * median(answer[name]) for name in ("scaled", "seconds"))
    notes = ["under a loss scale of 65536 against none, the ratio that of neighbouring windows"]
    return Measured(ours, peer, "ms", ratio, notes=notes)


WHAT = "end of a window, 124 M parameters"

ROWS = [
    Row("window-end", WHAT, at_least(1.6), against_pytorch),
    Row("window-end-bandwidth", WHAT, at_least(0.85), against_bandwidth),
    Row("scaled-window-end", WHAT, at_most(1.03), scaled),
]
