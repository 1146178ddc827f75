"""The gradients of a PyTorch model of GPT-2's 124 M parameters by gradaccum.torch."""

from __future__ import annotations

import torch

import gradaccum as ga
import gradaccum.torch as gat
from fold_data import tensors
from gpt_config import BETAS, EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import timed


class Ours:
    def __init__(self, config: GPTConfig, gradients: list[torch.Tensor], micro_batches: int) -> None:
        # Gradients have the type of their parameters; those of bfloat16 have float32 master weights.
        self.parameters = [torch.nn.Parameter(x.to(gradients[0].dtype)) for x in tensors(config, seed=1)]
        self.gradients = gradients
        optimizer = ga.AdamW(
            gat.parameters(self.parameters), lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY
        )
        self.accumulator = gat.Accumulator(
            optimizer, max_grad_norm=MAX_GRAD_NORM, accumulation_steps=micro_batches, step_when_due=False
        )

    def fold(self) -> float:
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        return timed(lambda: self.accumulator.collect(1.0))[0]

    def end(self) -> tuple[float, float]:
        seconds, report = timed(self.accumulator.step)
        return seconds, report.gradient_norm
