"""How two threads compare with one."""

from __future__ import annotations

import os
from statistics import median

from lab.lab import Lab
from lab.rows import Measured, Row, Unsupported, at_least

from .gpt_runs import MODELS


def measure(lab: Lab) -> Measured:
    if len(os.sched_getaffinity(0)) < 2:
        raise Unsupported("this process may run on one CPU only")
    config = {**MODELS["gpt-char"], "window": 1}
    settings = {"config": config, "dtype": "f32", "warm_up": 1, "updates": lab.rounds(8, 4)}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    peaks: dict[int, list[float]] = {1: [], 2: []}
    rounds = lab.rounds(3, 2)
    for index in range(rounds):
        lab.progress(f"round {index + 1} of {rounds}: 1 thread, 2 threads")
        for threads in (1, 2):
            answer = lab.training("gpt_ours", settings, threads)
            seconds[threads] += answer["seconds"]
            peaks[threads] += answer["peaks"]
    one, two = (answer["tokens"] / median(seconds[threads]) for threads in (1, 2))
    growth = median(peaks[2]) / median(peaks[1])
    notes = [f"the peer is ours on 1 thread; the multiply-add peak of this machine grows {growth:.2f}x"]
    return Measured(two, one, "tokens/s", two / one, notes=notes)


ROWS = [Row("threads", "GPT 10.8 M on 2 threads and on 1", at_least(1.85), measure)]
