"""What an update costs besides its arithmetic: calls of the allocator, and our own time per operation."""

from __future__ import annotations

from statistics import mean, median

from lab.lab import Lab
from lab.rows import Measured, Row, at_most

from .gpt_runs import MODELS

OPERATIONS = ("add", "multiply", "gelu", "layer_norm", "linear")
# As many operations in one graph as a GPT has in its blocks.
CHAIN = 150


def allocations(lab: Lab) -> Measured:
    updates = lab.rounds(10, 5)
    config = {**MODELS["gpt-char"], "window": 2}
    answer = lab.training("gpt_ours", {"config": config, "dtype": "f32", "warm_up": 2, "updates": updates})
    notes = [f"{sum(answer['page_faults']) / updates:.1f} page faults per update, of Python and numpy too"]
    return Measured(answer["allocator_calls"] / updates, None, "calls/update", None, notes=notes)


def own_time(lab: Lab) -> Measured:
    whole: dict[str, float] = {}
    forward: dict[str, float] = {}
    for operation in OPERATIONS:
        measured = lab.program("tiny_ops", [operation, CHAIN, lab.rounds(200, 100)], linked=True)
        whole[operation] = median(measured["whole"])
        forward[operation] = median(measured["forward"])
    notes = [
        "forward, backward and release of tensors of 1x16, µs (forward alone): "
        + ", ".join(f"{operation} {whole[operation]:.2f} ({forward[operation]:.2f})" for operation in OPERATIONS)
    ]
    return Measured(mean(whole.values()), None, "µs/op", None, notes=notes)


def call_time(lab: Lab) -> Measured:
    answer = lab.child("accumulate_calls_ours", {"calls": lab.rounds(3000, 1000)})
    notes = [f"a call with a loss that one of the 150 parameters is in: {1e6 * median(answer['loss']):.1f} µs"]
    return Measured(1e6 * median(answer["gradients"]), None, "µs/call", None, notes=notes)


ROWS = [
    Row("steady-state", "allocator calls in an update", at_most(0, ""), allocations),
    Row("steady-state-op", "our own time per operation", at_most(2, " µs"), own_time),
    Row("accumulate-call", "our own time per micro-batch of gradients", at_most(20, " µs"), call_time),
]
