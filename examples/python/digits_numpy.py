#!/usr/bin/env python3
"""Handwritten digits by a perceptron in numpy, with gradients by hand.

The library holds the sums of gradients and updates the weights in numpy's own memory. Gradients of whole batches and of
micro-batches differ by how numpy's matrix products round, and by nothing else.
"""

from __future__ import annotations

import sys

import digits
import numpy as np

import gradaccum as ga

EPOCHS = 20
HIDDEN = 128


class Network:
    def __init__(self):
        self.parameters = digits.perceptron(HIDDEN)
        self.w1, self.b1, self.w2, self.b2 = self.parameters

    def __call__(self, x):
        return np.maximum(x @ self.w1 + self.b1, 0) @ self.w2 + self.b2

    def loss_and_gradients(self, batch):
        """The sum of the cross-entropies of a batch, and its gradients in the order of the parameters."""
        hidden = np.maximum(batch.x @ self.w1 + self.b1, 0)
        loss, d_logits = digits.cross_entropy(hidden @ self.w2 + self.b2, batch.y)
        d_hidden = d_logits @ self.w2.T * (hidden > 0)
        return loss, [batch.x.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0)]


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
