"""Folds gradients of a PyTorch model with GPT-2's 124 M parameters by gradaccum.torch, and ends its windows: prints the
seconds of each micro-batch of a window, the first one first, and those of each step."""

from __future__ import annotations

import math
import os

import torch

import gradaccum as ga
import gradaccum.torch as gat
from fold_data import GRADIENT_DTYPES, norm_of, tensors
from gpt_config import BETAS, EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import answer, settings, timed


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = GRADIENT_DTYPES[wanted["dtype"]]
    # Gradients have the type of their parameters; those of bfloat16 have float32 master weights.
    parameters = [torch.nn.Parameter(x.to(dtype)) for x in tensors(config, seed=1)]
    optimizer = ga.AdamW(
        gat.parameters(parameters), lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY
    )
    accumulator = gat.Accumulator(
        optimizer, max_grad_norm=MAX_GRAD_NORM, accumulation_steps=wanted["micro_batches"], step_when_due=False
    )
    gradients = [x.to(dtype) for x in tensors(config, seed=3)]

    def micro_batch() -> float:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        return timed(lambda: accumulator.collect(1.0))[0]

    def window() -> tuple[list[float], float, float]:
        folds = [micro_batch() for _ in range(wanted["micro_batches"])]
        seconds, report = timed(accumulator.step)
        return folds, seconds, report.gradient_norm

    norms = [window()[2] for _ in range(2)]
    windows = [window() for _ in range(wanted["windows"])]
    assert math.isclose(norms[0], norm_of(gradients), rel_tol=1e-4)
    answer({"folds": [x[0] for x in windows], "steps": [x[1] for x in windows], "gradient_norms": norms})


if __name__ == "__main__":
    main()
