"""What exactness costs: weight gradients added sample by sample against one product over all rows."""

from __future__ import annotations

from statistics import median
from typing import Any

from lab.lab import Lab
from lab.rows import Measured, Row, at_most

SHAPE = {"batch": 8, "time": 256, "inputs": 768, "outputs": 3072}


def measure_dtype(lab: Lab, dtype: str) -> tuple[float, float]:
    """Both alternate in one process, where the machine's drift meets them alike."""
    settings: dict[str, Any] = {**SHAPE, "dtype": dtype, "repeats": lab.rounds(60, 30)}
    answer = lab.child("weight_gradient", settings)
    return median(answer["by_sample"]), median(answer["whole"])


def measure(lab: Lab) -> Measured:
    by_sample, whole = measure_dtype(lab, "f32")
    bf16 = measure_dtype(lab, "bf16")
    note = f"bf16: {1e3 * bf16[0]:.1f} against {1e3 * bf16[1]:.1f} ms, {bf16[0] / bf16[1]:.3f}x"
    return Measured(1e3 * by_sample, 1e3 * whole, "ms", by_sample / whole, notes=[note])


ROWS = [Row("weight-gradient", "[8, 256, 768] by [3072, 768]", at_most(1.08), measure)]
