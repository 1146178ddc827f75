#!/usr/bin/env python3
"""Handwritten digits by a perceptron in numpy whose activations and gradients are float16, with a loss scaler.

The gradients are made by hand and carry the scale, which begins so high that they overflow: such windows are skipped, and
each halves the scale until they fit. The weights stay float32. The exit status is 1 if no window was skipped, if the scale
ends no lower than it began, or if too few of the digits held out are known.
"""

from __future__ import annotations

import argparse
import sys

import digits
import numpy as np

import gradaccum as ga

EPOCHS = 20
MICRO_BATCHES = 4
HIDDEN = 128
FIRST_SCALE = 2.0**24
GROWTH_INTERVAL = 100  # far below the default, so that so short a run sees the scale grow again

F16, F32 = np.float16, np.float32


def product(a, b):
    """A product of float16 matrices as accelerators make it: sums in float32, and a result in float16."""
    return (a.astype(F32) @ b.astype(F32)).astype(F16)


def sum_of_rows(a):
    return a.sum(0, dtype=F32).astype(F16)


class Network:
    def __init__(self):
        self.parameters = digits.perceptron(HIDDEN)

    def forward(self, x):
        """The hidden layer and the logits, in float16."""
        w1, b1, w2, b2 = (p.astype(F16) for p in self.parameters)
        hidden = np.maximum(product(x.astype(F16), w1) + b1, 0)
        return hidden, product(hidden, w2) + b2

    def loss_and_scaled_gradients(self, batch, scale):
        """The sum of the cross-entropies of a batch, and scale times its gradients, in the order of the parameters."""
        hidden, logits = self.forward(batch.x)
        # Softmax is float32, as it is wherever the rest is half precision.
        loss, d_logits = digits.cross_entropy(logits.astype(F32), batch.y)
        # The infinities and NaNs of a scale that is too high are what the scaler looks for, and no reason to warn.
        with np.errstate(over="ignore", invalid="ignore"):
            d_logits = (F32(scale) * d_logits).astype(F16)
            w2 = self.parameters[2].astype(F16)
            d_hidden = np.where(hidden > 0, product(d_logits, w2.T), F16(0))
            return loss, [
                product(batch.x.astype(F16).T, d_hidden),
                sum_of_rows(d_hidden),
                product(hidden.T, d_logits),
                sum_of_rows(d_logits),
            ]


def main():
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    train_digits, held_out = digits.load()
    network = Network()
    optimizer = ga.AdamW([ga.from_numpy(x) for x in network.parameters], lr=6e-3, weight_decay=1e-2)
    optimizer.schedule = ga.schedules.Cosine(digits.steps(train_digits, EPOCHS), 0.02)
    scaler = ga.LossScaler(FIRST_SCALE, growth_interval=GROWTH_INTERVAL)
    accumulator = ga.Accumulator(optimizer, accumulation_steps=MICRO_BATCHES, loss_scaler=scaler)

    updates = skipped = 0
    print("epoch  loss     accuracy  updates  skipped  scale")
    for epoch, batches in enumerate(digits.batches(train_digits, EPOCHS), 1):
        reports = []
        for batch in batches:
            for part in digits.cut(batch, MICRO_BATCHES):
                scale = scaler.scale  # it changes in step() alone
                loss, gradients = network.loss_and_scaled_gradients(part, scale)
                accumulator.accumulate_gradients(gradients, loss, weight=len(part), scale=scale)
            reports.append(accumulator.step())
        updates += sum(report.outcome == ga.Outcome.APPLIED for report in reports)
        skipped += sum(report.outcome == ga.Outcome.SKIPPED_OVERFLOW for report in reports)
        _, accuracy = digits.judge(network.forward(held_out.x)[1], held_out)
        loss = digits.mean_loss(reports)
        print(f"{epoch:5d}  {loss:.5f}  {accuracy:.4f}    {updates:7d}  {skipped:7d}  {scaler.scale:g}")
    print(
        f"RESULT accuracy={accuracy:.4f} updates={updates} skipped={skipped} first_scale={FIRST_SCALE:.0f} "
        f"final_scale={scaler.scale:.0f}"
    )
    has_adapted = skipped > 0 and scaler.scale < FIRST_SCALE
    return 0 if has_adapted and accuracy >= digits.NEEDED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
