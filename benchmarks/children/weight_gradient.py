"""Times the weight gradient of a linear layer [batch, time, in] and of the same rows as one sample."""

from __future__ import annotations

import numpy as np

import gradaccum as ga
from timing import COMPUTE_DTYPES, answer, settings, timed


def main() -> None:
    wanted = settings()
    ga.set_compute_dtype(COMPUTE_DTYPES[wanted["dtype"]])
    batch, time, inputs, outputs = (wanted[name] for name in ("batch", "time", "inputs", "outputs"))
    rng = np.random.default_rng(4)
    weight = ga.tensor(rng.standard_normal((outputs, inputs), np.float32), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([weight], lr=0.0))
    rows = rng.standard_normal((batch, time, inputs), np.float32)
    sample_by_sample = ga.tensor(rows)
    in_one = ga.tensor(rows.reshape(1, batch * time, inputs))

    def backward(x: ga.Tensor) -> float:
        """The input needs no gradient, so that the products are the weight gradient's alone; the sum's own
        backward is the same in both."""
        loss = ga.sum(ga.linear(x, weight))
        return timed(lambda: accumulator.accumulate(loss, weight=1.0))[0]

    for x in (sample_by_sample, in_one):
        backward(x)
    by_sample: list[float] = []
    whole: list[float] = []
    for _ in range(wanted["repeats"]):
        by_sample.append(backward(sample_by_sample))
        whole.append(backward(in_one))
    answer({"by_sample": by_sample, "whole": whole})


if __name__ == "__main__":
    main()
