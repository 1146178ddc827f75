"""The text to learn from, in two splits, and the random numbers that choose windows from it."""

from __future__ import annotations

import os
import stat

import numpy as np

from console import EXIT_USAGE, Failure


def read_text(path, context):
    """The training and the validation split, as arrays of bytes."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise Failure(f"--text '{path}' cannot be read: it is no file.", EXIT_USAGE)
            text = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise Failure(f"--text '{path}' cannot be read: {error.strerror}.", EXIT_USAGE) from None
    except MemoryError:
        raise Failure(f"--text '{path}' is too large for the memory.") from None
    train_length = len(text) // 10 * 9
    train, validation = text[:train_length], text[train_length:]
    if len(text) == 0:
        raise Failure(f"--text '{path}' is empty.", EXIT_USAGE)
    if min(len(train), len(validation)) <= context:
        raise Failure(
            f"--text '{path}' is too short for --context {context}: it has {len(train)} bytes for training "
            f"and {len(validation)} for validation, and each needs {context + 1}.",
            EXIT_USAGE,
        )
    return train, validation


class Random:
    """SplitMix64 (Steele, Lea and Flood, 2014). Each use of a seed has its own sequence, so that one does not
    shift another."""

    WEIGHTS, BATCHES, SAMPLE = 0, 1, 2
    MASK = 2**64 - 1

    def __init__(self, seed, use):
        self.state = seed
        self.state = (self.next() + use) & self.MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & self.MASK
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & self.MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & self.MASK
        return z ^ z >> 31
