"""Memory of one update of GPT-2 at an effective batch of 64 x 256 tokens, in every way to have less of it.

Peaks do not depend on how many micro-batches a window has, in PyTorch as in ours (row window-memory), so windows of two
show them. What does not fit is computed: what a sample takes is what the peak grows by with more samples, of so many that
it is reached in backward and not at the step.
"""

from __future__ import annotations

from typing import Any

from lab.lab import Lab
from lab.rows import Measured, Row, at_least

from .gpt_runs import MODELS

SAMPLES = 64
FEW, MANY = 4, 8
ONE = {**MODELS["gpt2-124m"], "batch": 1, "window": 2}

# By name: what is asked of the child.
OURS: dict[str, dict[str, Any]] = {
    "ours f32": {},
    "ours bf16": {"dtype": "bf16"},
    "ours bf16, sums in bf16": {"dtype": "bf16", "sum_format": "bfloat16_stochastic"},
    "ours bf16 + checkpointing": {"dtype": "bf16", "checkpointing": True},
    "ours bf16 + checkpointing + 8-bit state": {"dtype": "bf16", "checkpointing": True, "optimizer": "adamw8bit"},
    "ours bf16 + checkpointing + AdamA": {"dtype": "bf16", "checkpointing": True, "accumulate_into": "moments"},
}


def peak(lab: Lab, script: str, config: dict[str, int], **more: Any) -> float:
    # One update more than the warm-up, so that PyTorch's optimizer has its state in backward.
    settings = {"config": config, "dtype": "f32", "warm_up": config["window"], "updates": 1, **more}
    lab.progress(f"{script} {more}")
    return float(lab.training(script, settings)["peak_mib"])


def measure(lab: Lab) -> Measured:
    accumulating = peak(lab, "gpt_pytorch", ONE)
    few, many = (peak(lab, "gpt_pytorch", {**ONE, "batch": batch, "window": 1}) for batch in (FEW, MANY))
    sample = (many - few) / (MANY - FEW)
    full = many + (SAMPLES - MANY) * sample
    found = {name: peak(lab, "gpt_ours", ONE, **more) for name, more in OURS.items()}
    notes = [
        f"the peer is PyTorch f32 with the full batch, computed: {many:,.0f} MiB with {MANY} samples and {sample:,.0f} "
        "MiB for each more; peaks are those of the whole process",
        f"PyTorch f32, accumulating micro-batches of one sample: {accumulating:,.0f} MiB, {full / accumulating:.1f}x less",
    ]
    notes += [f"{name}: {mib:,.0f} MiB, {full / mib:.1f}x less" for name, mib in found.items()]
    best = min(found.values())
    return Measured(best, full, "MiB", full / best, notes=notes)


ROWS = [Row("memory", f"GPT-2, an update of {SAMPLES} x 256 tokens", at_least(8), measure)]
