#!/usr/bin/env python3
"""A recipe for growing batches: a small network learns to tell two spirals apart.

The learning rate warms up and falls along a cosine, by the clock of samples; a window grows from one batch of data to
four, and the rate and beta2 of AdamW follow it; an average of the weights is what is evaluated. Any --micro-batch gives
the same weights, to the last bit. The exit status is 1 if the spirals are not told apart.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
import numpy as np

import gradaccum as ga

SAMPLES = 24_000
BATCH = 32
HIDDEN = 48


def spirals(rng, count):
    """Points [count, 2] on two arms, which wind around each other, and the arm of each."""
    arm = rng.integers(0, 2, count)
    turn = np.sqrt(rng.random(count)) * 3 * np.pi
    angle = turn + np.pi * arm
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * turn[:, None] / 5
    return (points + 0.05 * rng.standard_normal((count, 2))).astype(np.float32), arm


class Network:
    def __init__(self):
        sizes = [(2, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)]
        self.layers = [
            (
                ga.zeros((after, before), requires_grad=True).normal_(std=(2 / before) ** 0.5, seed=seed),
                ga.zeros((after,), requires_grad=True),
            )
            for seed, (before, after) in enumerate(sizes)
        ]
        self.parameters = [x for layer in self.layers for x in layer]

    def __call__(self, points):
        x = ga.tensor(points)
        for weight, bias in self.layers[:-1]:
            x = ga.relu(ga.linear(x, weight, bias))
        return ga.linear(x, *self.layers[-1])


def accuracy(network, points, arms):
    with ga.no_grad():
        return float((network(points).numpy().argmax(1) == arms).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--micro-batch", type=int, default=16, help=f"samples at a time, of batches of {BATCH}")
    parser.add_argument("--threads", type=int, default=ga.get_num_threads())
    options = parser.parse_args()
    ga.set_num_threads(options.threads)

    network = Network()
    optimizer = ga.AdamW(network.parameters, lr=8e-3, weight_decay=1e-2)
    optimizer.schedule = ga.schedules.Cosine(SAMPLES, 0.05, warmup=SAMPLES / 20, clock="weight")
    optimizer.scaling = ga.BatchScaling("sqrt", base_weight=BATCH, beta2_half_life=True)
    average = ga.WeightAverage(optimizer, half_life=SAMPLES / 40, clock="weight", warmup=True)
    accumulator = ga.Accumulator(optimizer, max_grad_norm=1.0)
    accumulator.set_ramp([0, SAMPLES / 6, SAMPLES / 3], [1, 2, 4], clock="weight")

    rng = np.random.default_rng(1)
    while optimizer.clock("weight") < SAMPLES:
        with accumulator.micro_batch():  # a batch counts as one, however it is split
            for (x, y), weight in ga.split(spirals(rng, BATCH), size=options.micro_batch):
                accumulator.accumulate(ga.cross_entropy(network(x), ga.tensor(y)), weight)
        if not accumulator.step_due:
            continue
        report = accumulator.step()
        if report.update_count % 50 == 0:
            print(
                f"update {report.update_count}  window {report.weight:.0f}  lr {report.learning_rate:.6f}  "
                f"loss {report.loss:.4f}"
            )

    test = spirals(np.random.default_rng(2), 2000)
    last = accuracy(network, *test)
    with average.swapped():
        averaged = accuracy(network, *test)
    digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in network.parameters)).hexdigest()
    print(
        f"RESULT updates={report.update_count} accuracy={last:.4f} averaged_accuracy={averaged:.4f} "
        f"weights_sha256={digest}"
    )
    return 0 if averaged > 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
