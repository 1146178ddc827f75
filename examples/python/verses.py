"""What the gpt2_*.py programs share: verses of a text in batches, and the curves that are compared."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
import numpy as np

CONTEXT = 128
VOCABULARY = 256
LAYERS, CHANNELS, HEADS = 2, 64, 4
LR, WEIGHT_DECAY = 1e-3, 0.1


def parse_options(description):
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--text", required=True, help="a text, with a sample on each line")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16, help="verses of an update")
    parser.add_argument("--micro-batches", type=int, default=4, help="that a batch is cut into")
    parser.add_argument("--plot", help="where to draw the curves, as PNG")
    return parser.parse_args()


def read(path):
    """The lines of a text as bytes, those that are longer than the context cut off."""
    lines = Path(path).read_bytes().splitlines()
    return [np.frombuffer(line[:CONTEXT], np.uint8) for line in lines if len(line) > 1]


def batches(verses, count, size):
    """Of verses drawn at random, the short ones first: what a loader does that sorts by length to pad less."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield sorted((verses[index] for index in rng.integers(0, len(verses), size)), key=len)


def cut(verses, micro_batches):
    """A batch in micro-batches of as many verses, and so of fewer tokens and more."""
    size = math.ceil(len(verses) / micro_batches)
    return [verses[start : start + size] for start in range(0, len(verses), size)]


def padded(verses, length=None):
    """Tokens and a mask of those that are no padding, [verses, length], and how many there are to predict."""
    tokens = np.zeros((len(verses), length or max(len(verse) for verse in verses)), np.int64)
    mask = np.zeros_like(tokens)
    for row, verse in enumerate(verses):
        tokens[row, : len(verse)] = verse
        mask[row, : len(verse)] = 1
    return tokens, mask, int(mask[:, 1:].sum())


@dataclass(frozen=True)
class Curves:
    """The mean loss per token of each batch before its update: in whole batches, in these with the samples in reverse,
    which shows what rounding alone does, and in micro-batches by ours and by the recipe named `peer`."""

    whole: list[float]
    in_reverse: list[float]
    ours: list[float]
    plain: list[float]
    peer: str
    tokens: int  # of the largest batch

    def distances(self, losses):
        return [abs(a - b) for a, b in zip(losses, self.whole)]

    @property
    def tolerance(self):
        """Of sums over the tokens of a batch, each addition of which rounds by 2^-24 of its result: sqrt(tokens) of that,
        as roundings are as likely up as down. Each update can move the weights apart by that share of itself."""
        return len(self.whole) * math.sqrt(self.tokens) * 2.0**-24

    def print(self):
        """Returns 1 if ours does not follow the whole batches."""
        print(f"update   whole batches   ours       {self.peer}")
        for update in range(0, len(self.whole), max(1, len(self.whole) // 10)):
            print(f"{update + 1:6d}   {self.whole[update]:.6f}        {self.ours[update]:.6f}   {self.plain[update]:.6f}")
        of_ours, of_plain, of_rounding = (
            max(self.distances(losses)) for losses in (self.ours, self.plain, self.in_reverse)
        )
        print(
            f"RESULT updates={len(self.whole)} whole={self.whole[-1]:.6f} ours={self.ours[-1]:.6f} "
            f"plain={self.plain[-1]:.6f} distance_of_ours={of_ours:.3g} of_plain={of_plain:.3g} "
            f"of_rounding={of_rounding:.3g} tolerance={self.tolerance:.3g}"
        )
        return 0 if of_ours <= self.tolerance else 1

    def draw(self, path, title):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True)
        updates = range(1, len(self.whole) + 1)
        top.plot(updates, self.whole, "k", linewidth=3, label="whole batches")
        top.plot(updates, self.plain, "C3", label=f"micro-batches, {self.peer}")
        top.plot(updates, self.ours, "C1--", label="micro-batches, gradaccum")
        top.set_ylabel("loss, nats per byte")
        top.legend()
        floor = 1e-8  # no difference has no place on this axis
        for losses, style, label in (
            (self.plain, "C3", self.peer),
            (self.ours, "C1", "gradaccum"),
            (self.in_reverse, "C7:", "whole batches with their samples in reverse: rounding alone"),
        ):
            bottom.semilogy(updates, [max(x, floor) for x in self.distances(losses)], style, label=label)
        bottom.set_ylabel("distance from whole batches")
        bottom.set_xlabel("update")
        bottom.legend()
        figure.suptitle(title)
        figure.tight_layout()
        figure.savefig(path, dpi=80)
