"""Memory of one update of GPT-2 at an effective batch of 64 x 256 tokens, in every way to have less of it.

Whoever accumulates runs the update as it is: micro-batches of one sample, all of them, after an update of one that
makes the optimizer's state. What does not fit is computed: what a sample takes is what the peak grows by with more
samples, of so many that it is reached in backward and not at the step.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

from lab.lab import Lab
from lab.rows import Measured, Row, at_least

from .gpt_runs import MODELS, Answer, Comparison, child_of, compare_work

SAMPLES = 64
QUICK_SAMPLES = 8
FEW, MANY = 8, 16
MEBIBYTE = 2**20

# By name: what is asked of the child.
OURS: dict[str, dict[str, Any]] = {
    "ours f32": {},
    "ours bf16": {"dtype": "bf16"},
    "ours bf16, sums in bf16": {"dtype": "bf16", "sum_format": "bfloat16_stochastic"},
    "ours bf16, checkpointing": {"dtype": "bf16", "checkpointing": True},
    "ours bf16, checkpointing, 8-bit state": {"dtype": "bf16", "checkpointing": True, "optimizer": "adamw8bit"},
    "ours bf16, checkpointing, AdamA": {"dtype": "bf16", "checkpointing": True, "accumulate_into": "moments"},
}


@dataclass(frozen=True)
class Memory:
    """In MiB: the peak resident set of the process, and the bytes of tensors at their peak with what is in them.

    Sums are those that last from one micro-batch to the next: a full batch has none. The rest is what one micro-batch
    takes.
    """

    resident: float
    tensors: float
    parameters: float
    state: float
    sums: float

    @classmethod
    def of(cls, answer: Answer, counted: Answer) -> Memory:
        names = ("tensor_peak_bytes", "parameter_bytes", "state_bytes", "sum_bytes")
        return cls(answer["peak_mib"], *(counted[name] / MEBIBYTE for name in names))

    def __str__(self) -> str:
        rest = self.tensors - self.parameters - self.state - self.sums
        return (
            f"tensors {self.tensors:,.0f} MiB = parameters {self.parameters:,.0f} + state {self.state:,.0f} + sums "
            f"{self.sums:,.0f} + the rest {rest:,.0f}"
        )


def train(lab: Lab, who: str, batch: int, window: int, **more: Any) -> Answer:
    """An update of one micro-batch and then one of the window."""
    config = {**MODELS["gpt2-124m"], "batch": batch, "window": window}
    lab.progress(f"{who}: window {window}, batch {batch} {more}")
    return child_of(lab, who, {"config": config, "dtype": "f32", "warm_up": 1, "updates": 1, **more})


def count_pytorch(lab: Lab, batch: int, window: int) -> Answer:
    """A run of its own, of no more than two micro-batches: the second adds to gradients as large as they get."""
    return train(lab, "eager", batch, min(window, 2), count_bytes=True)


def full_batch(lab: Lab) -> Memory:
    """Each number goes on as it has grown from the few samples to the many: those that have not stay."""
    few, many = (
        astuple(Memory.of(train(lab, "eager", batch, 1), count_pytorch(lab, batch, 1))) for batch in (FEW, MANY)
    )
    full = Memory(*(b + (SAMPLES - MANY) * (b - a) / (MANY - FEW) for a, b in zip(few, many)))
    return replace(full, sums=0.0)


def compare(name: str, answer: Answer, peer: Answer) -> list[str]:
    """Notes on what shows that ours did not do the same work; moments know no norm of the window."""
    if "accumulate_into" in OURS[name]:
        peer = {"losses": peer["losses"]}
    comparison = Comparison(OURS[name].get("dtype", "f32"), {"ours": [answer], "eager": [peer]})
    compare_work(comparison, "eager")
    return [f"{name}: {note}" for note in comparison.notes]


def measure(lab: Lab) -> Measured:
    window = lab.rounds(SAMPLES, QUICK_SAMPLES)
    peer = train(lab, "eager", 1, window)
    accumulating = Memory.of(peer, count_pytorch(lab, 1, window))
    full = full_batch(lab)
    answers = {name: train(lab, "ours", 1, window, **more) for name, more in OURS.items()}
    found = {name: Memory.of(answer, answer) for name, answer in answers.items()}
    notes = [
        f"the peer is PyTorch f32 with the full batch, computed from batches of {FEW} and {MANY}; peaks are resident "
        "sets of whole processes"
    ]
    if window < SAMPLES:
        notes.append(
            f"--quick: ours, and PyTorch accumulating, ran {window} micro-batches and not {SAMPLES}, which leaves out "
            "the rows of the tied embedding that ours meets in the others, up to 3 KiB for each of their tokens"
        )
    notes += [
        f"{name}: peak {way.resident:,.0f} MiB (full batch over it: {full.resident / way.resident:.1f}x), {way}"
        for name, way in {"PyTorch f32, full batch": full, "PyTorch f32, accumulating": accumulating, **found}.items()
    ]
    differences = [note for name, answer in answers.items() for note in compare(name, answer, peer)]
    best = min(way.resident for way in found.values())
    return Measured(
        best, full.resident, "MiB", full.resident / best, notes=notes + differences, is_valid=not differences
    )


ROWS = [Row("memory", f"GPT-2, an update of {SAMPLES} x 256 tokens", at_least(8), measure)]
