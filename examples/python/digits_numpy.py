#!/usr/bin/env python3
"""Handwritten digits by a perceptron in numpy, with gradients by hand.

The library holds the sums of gradients and updates the weights in numpy's own memory. Gradients of whole batches and of
micro-batches differ by how numpy's matrix products round, and by nothing else.
"""

from __future__ import annotations

import math
import sys

import digits
import numpy as np

import gradaccum as ga

EPOCHS = 20
SIZES = (64, 128, digits.CLASSES)


class Network:
    def __init__(self):
        rng = np.random.default_rng(0)
        before, hidden, after = SIZES
        self.w1 = rng.standard_normal((before, hidden), np.float32) * np.float32(math.sqrt(2 / before))
        self.b1 = np.zeros(hidden, np.float32)
        self.w2 = rng.standard_normal((hidden, after), np.float32) * np.float32(math.sqrt(2 / hidden))
        self.b2 = np.zeros(after, np.float32)
        self.parameters = [self.w1, self.b1, self.w2, self.b2]

    def __call__(self, x):
        return np.maximum(x @ self.w1 + self.b1, 0) @ self.w2 + self.b2

    def loss_and_gradients(self, batch):
        """The sum of the cross-entropies of a batch, and its gradients in the order of the parameters."""
        hidden = np.maximum(batch.x @ self.w1 + self.b1, 0)
        logits = hidden @ self.w2 + self.b2
        shifted = logits - logits.max(1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(1, keepdims=True)
        rows = np.arange(len(batch))
        loss = (np.log(sums[:, 0]) - shifted[rows, batch.y]).sum(dtype=np.float64)
        d_logits = exponentials / sums
        d_logits[rows, batch.y] -= 1
        d_hidden = d_logits @ self.w2.T * (hidden > 0)
        return float(loss), [batch.x.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0)]


def train(micro_batches):
    train_digits, held_out = digits.load()
    network = Network()
    weights = [ga.from_numpy(x) for x in network.parameters]
    optimizer = ga.AdamW(weights, lr=6e-3, weight_decay=1e-2)
    optimizer.schedule = ga.schedules.Cosine(digits.steps(train_digits, EPOCHS), 0.02)
    accumulator = ga.Accumulator(optimizer, accumulation_steps=micro_batches)
    curve = digits.Curve([], [], [], network.parameters)
    for batches in digits.batches(train_digits, EPOCHS):
        reports = []
        for batch in batches:
            for part in digits.cut(batch, micro_batches):
                loss, gradients = network.loss_and_gradients(part)
                accumulator.accumulate_gradients(gradients, loss, weight=len(part))
            reports.append(accumulator.step())
        loss, accuracy = digits.judge(network(held_out.x), held_out)
        curve.losses.append(digits.mean_loss(reports))
        curve.held_out_losses.append(loss)
        curve.accuracies.append(accuracy)
    return curve


if __name__ == "__main__":
    tolerance = digits.rounding(digits.steps(digits.load()[0], EPOCHS))
    sys.exit(digits.main(__doc__, train, tolerance))
