#!/usr/bin/env python3
"""Handwritten digits by a convolutional network in PyTorch, through gradaccum.torch.

The model and its backward are PyTorch's. Gradients of whole batches and of micro-batches differ by how its kernels
round, and by nothing else.
"""

from __future__ import annotations

import sys

import digits

try:
    import torch
except ImportError:
    sys.exit("digits_torch.py: PyTorch is needed: pip install torch")

import gradaccum as ga
import gradaccum.torch as gat

EPOCHS = 14

torch.set_num_threads(1)  # the batches are too small to share


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5, padding=2),
        torch.nn.GELU(),
        torch.nn.Conv2d(16, 32, 3, padding=1, stride=2),
        torch.nn.GELU(),
        torch.nn.Conv2d(32, 32, 3),
        torch.nn.GELU(),
        torch.nn.Flatten(),
        torch.nn.Linear(128, digits.CLASSES),
    )


def images(part):
    return torch.from_numpy(part.x).reshape(-1, 1, 8, 8)


def train(micro_batches):
    train_digits, held_out = digits.load()
    model = network()
    optimizer = ga.AdamW(gat.parameters(model), lr=6e-3, weight_decay=1e-2)
    optimizer.schedule = ga.schedules.Cosine(digits.steps(train_digits, EPOCHS), 0.02)
    accumulator = gat.Accumulator(optimizer, accumulation_steps=micro_batches)
    curve = digits.Curve([], [], [], [x.detach().numpy() for x in model.parameters()])
    for batches in digits.batches(train_digits, EPOCHS):
        reports = []
        for batch in batches:
            for part in digits.cut(batch, micro_batches):
                with accumulator.micro_batch(weight=len(part)) as micro_batch:
                    logits = model(images(part))
                    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(part.y).long())
                    micro_batch.backward(loss)
            reports.append(accumulator.last_report)
        with torch.no_grad():
            loss, accuracy = digits.judge(model(images(held_out)).numpy(), held_out)
        curve.losses.append(digits.mean_loss(reports))
        curve.held_out_losses.append(loss)
        curve.accuracies.append(accuracy)
    return curve


if __name__ == "__main__":
    tolerance = digits.rounding(digits.steps(digits.load()[0], EPOCHS))
    sys.exit(digits.main(__doc__, train, tolerance))
