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
    """What a step reads and writes, in arrays of four bytes per parameter: a stream that is updated in place is two.

    A step reads the gradients once for their norm and whether they are finite, and then makes its own passes.
    """

    name: str
    optimizer: str
    transfers: float
    passes: str
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("sgd", "SGD", 4, "g; g, p"),
    Case("sgd-momentum", "SGD", 6, "g; g, p, m", {"momentum": 0.9}),
    Case("adam", "Adam", 8, "g; g, p, m, v"),
    Case("adamw", "AdamW", 8, "g; g, p, m, v"),
    Case("radam", "RAdam", 8, "g; g, p, m, v"),
    Case("nadam", "NAdam", 8, "g; g, p, m, v"),
    Case("lion", "Lion", 6, "g; g, p, m"),
    Case("lamb", "LAMB", 11, "g; lengths: g, p read, m, v; step: p, m and v read"),
    Case("lars", "LARS", 8, "g; lengths: g, p read; step: g, p, m"),
    Case("adafactor", "Adafactor", 7, "g; squares: g; p read; size: g; step: g, p"),
    # The products of the iteration are bound by arithmetic: see the note.
    Case("muon", "Muon", 11, "g; momentum: g, m, x written; x scaled; step: x read, p", {"ns_steps": 0}),
    Case("adamw8bit", "AdamW8bit", 5, "g; g, p, m and v of one byte"),
]


def measure(lab: Lab, case: Case) -> Measured:
    settings = {
        "optimizer": case.optimizer,
        "options": case.options,
        "shape": SHAPE,
        "count": COUNT,
        "steps": lab.rounds(10, 6),
    }
    ours: list[float] = []
    streams: list[float] = []
    parameters = math.prod(SHAPE) * COUNT
    # As many streams as hold the traffic, of a length that makes them the traffic.
    count = max(2, math.ceil(case.transfers / 2))
    elements = round(parameters * case.transfers / 2 / count)
    for _ in range(lab.rounds(4, 2)):
        ours += lab.child("optimizer_step_ours", settings)["seconds"]
        streams += lab.program("streams", [elements, lab.threads, settings["steps"], count])
    gigabytes = 4 * case.transfers * parameters / 1e9
    notes = [f"{4 * case.transfers:g} bytes per parameter: {case.passes}"]
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
