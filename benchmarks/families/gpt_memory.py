"""Peak memory of training GPT-2: the resident set of the whole process."""

from __future__ import annotations

from lab.lab import Lab
from lab.rows import Measured, Row, at_most

from .gpt_runs import gpt2, gpt2_checkpointing, gpt2_pytorch_checkpointing
from .gpt_speed import GPT2


def memory(lab: Lab, dtype: str) -> Measured:
    comparison = gpt2(lab, dtype)
    ours, theirs = comparison.peak_mib("ours"), comparison.peak_mib("eager")
    return Measured(ours, theirs, "MiB", ours / theirs, is_valid=comparison.same_work)


def memory_checkpointing(lab: Lab, dtype: str) -> Measured:
    ours = gpt2_checkpointing(lab, dtype)["peak_mib"]
    comparison = gpt2(lab, dtype)
    theirs = comparison.peak_mib("eager")
    notes = ["ours with checkpointing of every block against PyTorch without"]
    if not lab.quick:
        peak_mib = gpt2_pytorch_checkpointing(lab, dtype)["peak_mib"]
        notes.append(f"PyTorch with it: {peak_mib:,.0f} MiB")
    return Measured(ours, theirs, "MiB", ours / theirs, notes=notes, is_valid=comparison.same_work)


ROWS = [
    Row("gpt2-memory-f32", GPT2, at_most(0.65), lambda lab: memory(lab, "f32")),
    Row("gpt2-memory-bf16", GPT2, at_most(0.65), lambda lab: memory(lab, "bf16")),
    Row("gpt2-memory-checkpointing-f32", GPT2, at_most(0.55), lambda lab: memory_checkpointing(lab, "f32")),
    Row("gpt2-memory-checkpointing-bf16", GPT2, at_most(0.55), lambda lab: memory_checkpointing(lab, "bf16")),
]
