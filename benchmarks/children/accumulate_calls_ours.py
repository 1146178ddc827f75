"""Accumulates micro-batches of 150 parameters of 4 elements, whose arithmetic is next to nothing, from Python, and prints
the seconds of a call: with gradients in numpy, and with a loss that depends on one of the parameters."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import gradaccum as ga
from timing import answer, settings

PARAMETERS, ELEMENTS = 150, 4
CALLS = 200


def seconds_per_call(rounds: int, prepare: Callable[[], list], call: Callable[[object], None]) -> list[float]:
    """Of each round of calls, without what prepares them."""
    found = []
    for _ in range(rounds):
        arguments = prepare()
        begin = time.perf_counter()
        for argument in arguments:
            call(argument)
        found.append((time.perf_counter() - begin) / CALLS)
    return found


def main() -> None:
    rounds = settings()["rounds"]
    parameters = [ga.zeros((ELEMENTS,), requires_grad=True) for _ in range(PARAMETERS)]
    accumulator = ga.Accumulator(ga.AdamW(parameters))
    # New arrays for each call, as a loop makes them.
    gradients = seconds_per_call(
        rounds,
        lambda: [[np.ones(ELEMENTS, np.float32) for _ in range(PARAMETERS)] for _ in range(CALLS)],
        lambda arrays: accumulator.accumulate_gradients(arrays, 0.0, 1),
    )
    accumulator.zero()
    loss = seconds_per_call(
        rounds,
        lambda: [ga.sum(parameters[0]) for _ in range(CALLS)],
        lambda loss: accumulator.accumulate(loss, 1),
    )
    accumulator.zero()
    answer({"gradients": gradients, "loss": loss})


if __name__ == "__main__":
    main()
