"""The models of the tests, on the bindings, and one way to train them under any split of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import gradaccum as ga
import numpy as np

EPS = 1e-5
IGNORED = -1

Arrays = dict[str, np.ndarray]
Loss = Callable[[dict[str, ga.Tensor], Arrays], ga.Tensor]


def gpt_arrays(vocabulary: int, channels: int, context: int, layers: int, seed: int = 0) -> Arrays:
    """Initial parameters in the order and under the names of the parity fixtures."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, std: float = 0.1) -> np.ndarray:
        return (mean + std * rng.standard_normal(shape)).astype(np.float32)

    c = channels
    out = {"token_embedding": normal(vocabulary, c), "position_embedding": normal(context, c)}
    for layer in range(layers):
        block = {
            "norm1_gain": normal(c, mean=1.0),
            "norm1_bias": normal(c),
            "qkv_weight": normal(3 * c, c),
            "qkv_bias": normal(3 * c),
            "projection_weight": normal(c, c),
            "projection_bias": normal(c),
            "norm2_gain": normal(c, mean=1.0),
            "norm2_bias": normal(c),
            "up_weight": normal(4 * c, c),
            "up_bias": normal(4 * c),
            "down_weight": normal(c, 4 * c),
            "down_bias": normal(c),
        }
        out.update({f"block{layer}.{name}": array for name, array in block.items()})
    return {**out, "norm_gain": normal(c, mean=1.0), "norm_bias": normal(c)}


def gpt_loss(heads: int) -> Loss:
    """GPT-2's block with a tied head; data is tokens and targets [batch, time]. A sum over the targets."""

    def loss(p: dict[str, ga.Tensor], data: Arrays) -> ga.Tensor:
        tokens, targets = ga.tensor(data["tokens"]), ga.tensor(data["targets"])
        time, channels = data["tokens"].shape[1], p["token_embedding"].shape[1]
        x = ga.embedding(p["token_embedding"], tokens) + ga.slice(p["position_embedding"], 0, 0, time)
        layer = 0
        while f"block{layer}.qkv_weight" in p:
            b = {name.partition(".")[2]: x for name, x in p.items() if name.startswith(f"block{layer}.")}
            h = ga.layer_norm(x, b["norm1_gain"], b["norm1_bias"], EPS)
            qkv = ga.linear(h, b["qkv_weight"], b["qkv_bias"])
            q, k, v = (ga.slice(qkv, 2, i * channels, (i + 1) * channels) for i in range(3))
            a = ga.causal_attention(q, k, v, heads)
            x = x + ga.linear(a, b["projection_weight"], b["projection_bias"])
            h = ga.layer_norm(x, b["norm2_gain"], b["norm2_bias"], EPS)
            h = ga.gelu(ga.linear(h, b["up_weight"], b["up_bias"]), "tanh")
            x = x + ga.linear(h, b["down_weight"], b["down_bias"])
            layer += 1
        x = ga.layer_norm(x, p["norm_gain"], p["norm_bias"], EPS)
        logits = ga.linear(x, p["token_embedding"])
        return ga.cross_entropy(logits, targets, ignore_index=IGNORED)

    return loss


def gpt_data(batch: int, context: int, vocabulary: int, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, vocabulary, (batch, context + 1))
    targets = windows[:, 1:].copy()
    targets[rng.random(targets.shape) < 0.2] = IGNORED
    return {"tokens": windows[:, :-1].copy(), "targets": targets}


def gpt_weight(data: Arrays) -> float:
    return float((data["targets"] != IGNORED).sum())


def mlp_arrays(*sizes: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    for i, (inner, outer) in enumerate(zip(sizes, sizes[1:])):
        out[f"weight{i}"] = (rng.standard_normal((outer, inner)) / np.sqrt(inner)).astype(np.float32)
        out[f"bias{i}"] = (0.1 * rng.standard_normal(outer)).astype(np.float32)
    return out


def mlp_loss(p: dict[str, ga.Tensor], data: Arrays) -> ga.Tensor:
    """One row per sample; data is x [batch, in] and y [batch] classes."""
    x = ga.tensor(data["x"])
    layers = len(p) // 2
    for i in range(layers):
        x = ga.linear(x, p[f"weight{i}"], p[f"bias{i}"])
        if i + 1 < layers:
            x = ga.gelu(x) if i % 2 else ga.relu(x)
    return ga.cross_entropy(x, ga.tensor(data["y"]))


def mlp_data(batch: int, features: int, classes: int, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, features)).astype(np.float32),
        "y": rng.integers(0, classes, batch),
    }


def samples(data: Arrays) -> int:
    return len(next(iter(data.values())))


def part(data: Arrays, start: int, stop: int) -> Arrays:
    return {name: array[start:stop] for name, array in data.items()}


def micro_batches(data: Arrays, split: Sequence[int]) -> list[Arrays]:
    ends = np.cumsum(split).tolist()
    assert ends[-1] == samples(data), (split, samples(data))
    return [part(data, end - size, end) for size, end in zip(split, ends)]


def random_split(rng: np.random.Generator, count: int) -> list[int]:
    """A composition of count into positive sizes, from one part to all ones."""
    cuts = np.flatnonzero(rng.random(count - 1) < rng.random()) + 1
    return np.diff([0, *cuts, count]).tolist()


class Model:
    """Parameters, an optimizer and an accumulator."""

    def __init__(
        self,
        arrays: Arrays,
        loss: Loss,
        *,
        weight: Callable[[Arrays], float] = samples,
        optimizer: Callable[..., ga.Optimizer] = ga.AdamW,
        options: dict[str, Any] | None = None,
        **window: Any,
    ) -> None:
        self.parameters = {name: ga.tensor(array, requires_grad=True) for name, array in arrays.items()}
        self.loss = loss
        self.weight = weight
        self.optimizer = optimizer(self.parameters.values(), **(options or {}))
        self.accumulator = ga.Accumulator(self.optimizer, **window)

    def accumulate(self, data: Arrays) -> None:
        with ga.Scope():
            self.accumulator.accumulate(self.loss(self.parameters, data), self.weight(data))

    def gradients(self) -> list[bytes]:
        """What the window has accumulated, parameter by parameter."""
        return [
            self.accumulator.accumulated_gradient(i).numpy().tobytes() for i in range(len(self.parameters))
        ]

    def weights(self) -> list[bytes]:
        return [x.numpy().tobytes() for x in self.parameters.values()]

    def window(self, data: Arrays, split: Sequence[int]) -> ga.Report:
        for micro_batch in micro_batches(data, split):
            self.accumulate(micro_batch)
        return self.accumulator.step()

    def fingerprint(self, data: Arrays, splits: Sequence[Sequence[int]]) -> str:
        """Of the accumulated gradients and the report of each window, and of the weights after the last."""
        digest = hashlib.sha256()
        for split in splits:
            for micro_batch in micro_batches(data, split):
                self.accumulate(micro_batch)
            for gradient in self.gradients():
                digest.update(gradient)
            report = self.accumulator.step()
            assert not report.skipped
            digest.update(np.array([report.weight, report.gradient_norm, report.clip_factor]).tobytes())
            digest.update(self.accumulator.gradient_norms().tobytes())
        for array in self.weights():
            digest.update(array)
        return digest.hexdigest()


def gpt() -> tuple[Model, Arrays]:
    """One that keeps several threads busy."""
    model = Model(gpt_arrays(61, 96, 33, 2), gpt_loss(3), weight=gpt_weight, max_grad_norm=0.5)
    return model, gpt_data(6, 33, 61)


def train() -> str:
    """The fingerprint of two windows of it."""
    model, data = gpt()
    return model.fingerprint(data, [[6], [2, 4]])
