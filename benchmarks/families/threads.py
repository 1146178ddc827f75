"""How two threads compare with one."""

from __future__ import annotations

import os
from statistics import median

from lab.lab import Lab
from lab.rows import Measured, Row, Unsupported, at_least

from .gpt_runs import MODELS


def measure(lab: Lab) -> Measured:
    """One process trains on both in turn, so that the machine's drift meets them alike."""
    if len(os.sched_getaffinity(0)) < 2:
        raise Unsupported("this process may run on one CPU only")
    config = {**MODELS["gpt-char"], "window": 1}
    settings = {"config": config, "updates": lab.rounds(20, 10)}
    one_peak, two_peak = (lab.program("fma_peak", ["f32", threads])["gflops"] for threads in (1, 2))
    answer = lab.child("threads_ours", settings, 2)
    one, two = (answer["tokens"] / median(answer[name]) for name in ("one", "two"))
    ratio = median(a / b for a, b in zip(answer["one"], answer["two"]))
    notes = [
        "the peer is ours on 1 thread, the ratio that of neighbouring updates; "
        f"the multiply-add peak of this machine grows {two_peak / one_peak:.2f}x"
    ]
    return Measured(two, one, "tokens/s", ratio, notes=notes)


ROWS = [Row("threads", "GPT 10.8 M on 2 threads and on 1", at_least(1.85), measure)]
