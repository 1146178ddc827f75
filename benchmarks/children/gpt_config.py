"""The GPT that ours and the peers train: sizes, starting weights and data, the same in every child."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEARNING_RATE = 3e-4
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class GPTConfig:
    layers: int
    channels: int
    heads: int
    context: int
    batch: int  # samples of a micro-batch
    vocabulary: int
    window: int  # micro-batches of an update

    @property
    def tokens(self) -> int:
        """Of an update."""
        return self.window * self.batch * self.context

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter, by the names of GPT-2. Linear weights are [out, in]."""
        c = self.channels
        yield "wte", (self.vocabulary, c)
        yield "wpe", (self.context, c)
        for layer in range(self.layers):
            for name, shape in (
                ("ln_1.weight", (c,)),
                ("ln_1.bias", (c,)),
                ("attn.c_attn.weight", (3 * c, c)),
                ("attn.c_attn.bias", (3 * c,)),
                ("attn.c_proj.weight", (c, c)),
                ("attn.c_proj.bias", (c,)),
                ("ln_2.weight", (c,)),
                ("ln_2.bias", (c,)),
                ("mlp.c_fc.weight", (4 * c, c)),
                ("mlp.c_fc.bias", (4 * c,)),
                ("mlp.c_proj.weight", (c, 4 * c)),
                ("mlp.c_proj.bias", (c,)),
            ):
                yield f"h.{layer}.{name}", shape
        yield "ln_f.weight", (c,)
        yield "ln_f.bias", (c,)

    def parameter_count(self) -> int:
        return sum(math.prod(shape) for _, shape in self.shapes())

    def flops(self) -> float:
        """Of an update: 6 per parameter and token, and causal attention; nothing for recomputation."""
        attention = 6 * self.layers * self.channels * self.context
        return float(6 * self.parameter_count() + attention) * self.tokens

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """One at a time, so that a child's peak memory is that of its training."""
        rng = np.random.default_rng(1)
        for name, shape in self.shapes():
            if len(shape) == 2:
                yield name, rng.standard_normal(shape, np.float32) * np.float32(0.02)
            else:
                yield name, np.full(shape, float("ln_" in name and name.endswith("weight")), np.float32)

    def batches(self) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """The tokens and targets [batch, context] of the micro-batches of one update after the other."""
        rng = np.random.default_rng(2)
        while True:
            size = (self.window, self.batch, self.context + 1)
            text = rng.integers(0, self.vocabulary, size)
            yield [(x[:, :-1].copy(), x[:, 1:].copy()) for x in text]
