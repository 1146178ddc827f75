"""Accumulates micro-batches of 150 parameters of 4 elements, whose arithmetic is next to nothing, from Python, and prints
the seconds of a call: with gradients in numpy, and with a loss that depends on one of the parameters."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import gradaccum as ga
from timing import answer, settings

PARAMETERS, ELEMENTS = 150, 4


def seconds_of(calls: int, prepare: Callable[[], object], call: Callable[[object], None]) -> list[float]:
    """Of each call, without what prepares its argument, new for each as in a loop."""
    found = []
    for _ in range(calls):
        argument = prepare()
        begin = time.perf_counter()
        call(argument)
        found.append(time.perf_counter() - begin)
    return found


def main() -> None:
    calls = settings()["calls"]
    parameters = [ga.zeros((ELEMENTS,), requires_grad=True) for _ in range(PARAMETERS)]
    accumulator = ga.Accumulator(ga.AdamW(parameters))
    gradients = seconds_of(
        calls,
        lambda: [np.ones(ELEMENTS, np.float32) for _ in range(PARAMETERS)],
        lambda arrays: accumulator.accumulate_gradients(arrays, 0.0, 1),
    )
    accumulator.zero()
    loss = seconds_of(calls, lambda: ga.sum(parameters[0]), lambda loss: accumulator.accumulate(loss, 1))
    accumulator.zero()
    answer({"gradients": gradients, "loss": loss})


if __name__ == "__main__":
    main()
