"""What the digits_*.py programs share: the handwritten digits of scikit-learn, and two runs of the same training whose
batches are cut differently."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
import numpy as np

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit(f"{Path(sys.argv[0]).name}: the digits come with scikit-learn: pip install scikit-learn")

HELD_OUT = 360
BATCH = 96
CLASSES = 10
NEEDED_ACCURACY = 0.97
MOST_MICRO_BATCHES = 12  # none of which is empty


@dataclass(frozen=True)
class Digits:
    """Images of 8x8 pixels, one row each, as float32 in 0 ... 1, and the digits that they show."""

    x: np.ndarray
    y: np.ndarray

    def __getitem__(self, samples):
        return Digits(np.ascontiguousarray(self.x[samples]), self.y[samples])

    def __len__(self):
        return len(self.y)


def load():
    """Those to train with and those held out, of which the digits are drawn without a look at them."""
    images, digits = load_digits(return_X_y=True)
    everything = Digits(images.astype(np.float32) / 16, digits.astype(np.int32))
    order = np.random.default_rng(0).permutation(len(everything))
    return everything[order[HELD_OUT:]], everything[order[:HELD_OUT]]


def batches(digits, epochs):
    """For each epoch, the batches of a new order; its last batch is what is left."""
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(len(digits))
        yield [digits[order[start : start + BATCH]] for start in range(0, len(digits), BATCH)]


def cut(batch, count):
    """A batch in micro-batches, each larger than the one before: a mean of their means is not the mean of the batch."""
    ends = [len(batch) * k * (k + 1) // (count * (count + 1)) for k in range(count + 1)]
    return [batch[start:end] for start, end in zip(ends, ends[1:])]


def steps(digits, epochs):
    """The updates of a run."""
    return epochs * math.ceil(len(digits) / BATCH)


def rounding(updates):
    """How far apart the losses of two runs may be whose gradients are rounded differently.

    A sum of a batch's terms in float32 is wrong by at most 2^-24 of their magnitudes for each addition (Higham, Accuracy
    and Stability of Numerical Algorithms, section 4.2). Each update can move the weights apart by that share of itself, and
    a loss is of the order of 1.
    """
    return updates * BATCH * 2.0**-24


@dataclass(frozen=True)
class Curve:
    """What a run has to show: after each epoch the mean loss of its batches and of the digits held out, and the share
    of these that it knows; and the weights that it ends with."""

    losses: list[float]
    held_out_losses: list[float]
    accuracies: list[float]
    weights: list[np.ndarray]

    def sha256(self):
        return hashlib.sha256(b"".join(x.tobytes() for x in self.weights)).hexdigest()


def perceptron(hidden):
    """The weights and biases of one with a hidden layer, in float32: [w1, b1, w2, b2]."""
    rng = np.random.default_rng(0)
    parameters = []
    for before, after in ((64, hidden), (hidden, CLASSES)):
        weight = rng.standard_normal((before, after), np.float32) * np.float32(math.sqrt(2 / before))
        parameters += [weight, np.zeros(after, np.float32)]
    return parameters


def cross_entropy(logits, classes):
    """The sum of the cross-entropies of float32 logits, added up in float64, and its gradient in float32."""
    shifted = logits - logits.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(1, keepdims=True)
    rows = np.arange(len(classes))
    loss = (np.log(sums[:, 0]) - shifted[rows, classes]).sum(dtype=np.float64)
    gradient = exponentials / sums
    gradient[rows, classes] -= 1
    return float(loss), gradient


def judge(logits, digits):
    """The mean cross-entropy of logits, in float64, and the share of digits that they get right."""
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(digits)), digits.y]
    return float(losses.mean()), float((logits.argmax(1) == digits.y).mean())


def mean_loss(reports):
    """Of an epoch, from the reports of its windows."""
    return sum(report.loss * report.weight for report in reports) / sum(report.weight for report in reports)


def largest_difference(a, b):
    """Between the losses of two curves."""
    return max(
        abs(x - y)
        for x, y in zip(a.losses + a.held_out_losses, b.losses + b.held_out_losses)
    )


def main(description, train, tolerance):
    """Trains in whole batches and in micro-batches, and prints both curves.

    train: makes the Curve of a run with a number of micro-batches. tolerance: how far losses may be apart; None where
    weights have to be the same to the bit. Returns 1 if they are not, or if too few of the digits held out are known.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--micro-batches", type=int, default=8, help="of each batch, in the second run (8)")
    options = parser.parse_args()
    if not 1 <= options.micro_batches <= MOST_MICRO_BATCHES:
        parser.error(f"--micro-batches is {options.micro_batches}: it must be in 1 ... {MOST_MICRO_BATCHES}")

    exact = tolerance is None
    tolerance = 1e-12 if exact else tolerance  # what the float64 of a mean loss may round
    whole, split = train(1), train(options.micro_batches)
    print("epoch   loss of 1  of {0:<7d} held out: of 1  of {0:<7d} accuracy".format(options.micro_batches))
    for epoch, row in enumerate(
        zip(whole.losses, split.losses, whole.held_out_losses, split.held_out_losses, split.accuracies), 1
    ):
        print("{:5d}   {:.5f}    {:.5f}    {:.5f}         {:.5f}    {:.4f}".format(epoch, *row))
    difference = largest_difference(whole, split)
    same_bits = whole.sha256() == split.sha256()
    accuracy = min(whole.accuracies[-1], split.accuracies[-1])
    print(
        f"RESULT accuracy={accuracy:.4f} largest_difference={difference:.3g} tolerance={tolerance:.3g} "
        f"same_bits={'yes' if same_bits else 'no'} weights_sha256={split.sha256()}"
    )
    is_same = difference <= tolerance and (same_bits or not exact)
    return 0 if is_same and accuracy >= NEEDED_ACCURACY else 1
