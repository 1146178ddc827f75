"""Tensors in the shapes of GPT-2's parameters, the same in ours and the peer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpt_config import GPTConfig

GRADIENT_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def tensors(config: GPTConfig, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _, shape in config.shapes():
        yield torch.randn(shape, generator=generator) * 0.02


def norm_of(gradients: list[torch.Tensor]) -> float:
    return sum(float(x.double().square().sum()) for x in gradients) ** 0.5
