"""Steps one of gradaccum's optimizers and prints the seconds of each step."""

from __future__ import annotations

import numpy as np

import gradaccum as ga
from timing import answer, settings, timed


def main() -> None:
    wanted = settings()
    rng = np.random.default_rng(5)
    shape = wanted["shape"]
    parameters = [ga.tensor(rng.standard_normal(shape, np.float32), requires_grad=True) for _ in range(wanted["count"])]
    optimizer = getattr(ga, wanted["optimizer"])(parameters, **wanted["options"])
    accumulator = ga.Accumulator(optimizer)
    gradients = [rng.standard_normal(shape, np.float32) for _ in parameters]

    def step() -> float:
        accumulator.accumulate_gradients(gradients, loss=1.0, weight=1.0)
        return timed(accumulator.step)[0]

    for _ in range(2):
        step()
    answer({"seconds": [step() for _ in range(wanted["steps"])]})


if __name__ == "__main__":
    main()
