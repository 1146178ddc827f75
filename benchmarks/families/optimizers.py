"""The steps of all optimizers against the memory traffic that they need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lab.lab import Lab
from lab.rows import Measured, Row, at_least

# 256 MB in each stream, so that a cache of tens of MiB holds next to nothing of a pass for the next. No power of two: plain
# streams that begin at the same place of a set of the cache would drive each other out of it.
SHAPE, COUNT = (1000, 1000), 64


@dataclass(frozen=True)
class Case:
    """What a step reads and writes.

    A step reads the gradients once for their norm and whether they are finite, and then makes its own passes. The plain
    loops make the same passes: each "READS+UPDATES", so many arrays read and so many updated in place.
    """

    name: str
    optimizer: str
    passes: str  # of plain loops
    what: str  # of the step
    options: dict[str, Any] = field(default_factory=dict)
    length: float = 1.0  # of the plain loops' arrays: for a state that is no array of float32

    @property
    def bytes_per_parameter(self) -> float:
        counts = [map(int, each.split("+")) for each in self.passes.split()]
        return 4 * self.length * sum(reads + 2 * updates for reads, updates in counts)


CASES = [
    Case("sgd", "SGD", "1+0 1+1", "g; g, p"),
    Case("sgd-momentum", "SGD", "1+0 1+2", "g; g, p, m", {"momentum": 0.9}),
    Case("adam", "Adam", "1+0 1+3", "g; g, p, m, v"),
    Case("adamw", "AdamW", "1+0 1+3", "g; g, p, m, v"),
    Case("radam", "RAdam", "1+0 1+3", "g; g, p, m, v"),
    Case("nadam", "NAdam", "1+0 1+3", "g; g, p, m, v"),
    Case("lion", "Lion", "1+0 1+2", "g; g, p, m"),
    Case("lamb", "LAMB", "1+0 2+2 2+1", "g; lengths: g, p read, m, v; step: p, m and v read"),
    Case("lars", "LARS", "1+0 2+0 1+2", "g; lengths: g, p read; step: g, p, m"),
    Case("adafactor", "Adafactor", "1+0 1+0 1+0 1+0 1+1", "g; squares: g; p read; size: g; step: g, p"),
    # The products of the iteration are bound by arithmetic: see the note.
    Case("muon", "Muon", "1+0 1+2 0+1 1+1", "g; momentum: g, m, x; x scaled; step: x read, p", {"ns_steps": 0}),
    Case("adamw8bit", "AdamW8bit", "1+0 1+1", "g; g, p, m and v of one byte", length=1.25),
]


def measure(lab: Lab, case: Case) -> Measured:
    settings = {
        "optimizer": case.optimizer,
        "options": case.options,
        "shape": SHAPE,
        "count": COUNT,
        "steps": lab.rounds(8, 4),
    }
    ours: list[float] = []
    streams: list[float] = []
    parameters = math.prod(SHAPE) * COUNT
    # Memory of one process may be faster than that of another: enough of them for their median to mean something.
    for _ in range(lab.rounds(7, 3)):
        ours += lab.child("optimizer_step_ours", settings)["seconds"]
        streams += lab.program(
            "streams", [round(case.length * parameters), lab.threads, settings["steps"], *case.passes.split()]
        )
    gigabytes = case.bytes_per_parameter * parameters / 1e9
    notes = [f"{case.bytes_per_parameter:g} bytes per parameter: {case.what}"]
    if case.name == "muon":
        notes.append("without the products of its iteration, which are arithmetic and no traffic")
    return Measured(
        gigabytes / median(ours),
        gigabytes / median(streams),
        "GB/s",
        median(streams) / median(ours),
        notes=notes,
    )


ROWS = [
    Row(
        f"optimizer-{case.name}",
        f"a step of {case.optimizer}, {COUNT} matrices of {SHAPE[0]} x {SHAPE[1]}",
        at_least(0.8),
        lambda lab, case=case: measure(lab, case),
    )
    for case in CASES
]
