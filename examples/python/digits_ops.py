#!/usr/bin/env python3
"""Handwritten digits by a perceptron of the library's own operations.

Whole batches and micro-batches of any size give the same weights, to the last bit.
"""

from __future__ import annotations

import sys

import digits
import numpy as np

import gradaccum as ga

EPOCHS = 20
SIZES = (64, 128, digits.CLASSES)


class Network:
    def __init__(self):
        self.layers = [
            (
                ga.zeros((after, before), requires_grad=True).normal_(std=(2 / before) ** 0.5, seed=seed),
                ga.zeros((after,), requires_grad=True),
            )
            for seed, (before, after) in enumerate(zip(SIZES, SIZES[1:]))
        ]
        self.parameters = [x for layer in self.layers for x in layer]

    def __call__(self, x):
        for weight, bias in self.layers[:-1]:
            x = ga.gelu(ga.linear(x, weight, bias))
        return ga.linear(x, *self.layers[-1])


def train(micro_batches):
    train_digits, held_out = digits.load()
    network = Network()
    optimizer = ga.AdamW(network.parameters, lr=6e-3, weight_decay=1e-2)
    optimizer.schedule = ga.schedules.Cosine(digits.steps(train_digits, EPOCHS), 0.02)
    accumulator = ga.Accumulator(optimizer, accumulation_steps=micro_batches)
    curve = digits.Curve([], [], [], [])
    for batches in digits.batches(train_digits, EPOCHS):
        reports = []
        for batch in batches:
            for part in digits.cut(batch, micro_batches):
                loss = ga.cross_entropy(network(ga.tensor(part.x)), ga.tensor(part.y))
                accumulator.accumulate(loss, weight=len(part))
            reports.append(accumulator.step())
        with ga.no_grad():
            loss, accuracy = digits.judge(network(ga.tensor(held_out.x)).numpy(), held_out)
        curve.losses.append(digits.mean_loss(reports))
        curve.held_out_losses.append(loss)
        curve.accuracies.append(accuracy)
    curve.weights.extend(np.array(x) for x in network.parameters)
    return curve


if __name__ == "__main__":
    sys.exit(digits.main(__doc__, train, tolerance=None))
