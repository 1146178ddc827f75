"""Ends windows of GPT-2's 124 M parameters with PyTorch: unscale, clip, fused AdamW, zero."""

from __future__ import annotations

import os

import numpy as np
import torch

from gpt_config import BETAS, EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import answer, settings, timed


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    parameters = [torch.nn.Parameter(torch.from_numpy(x)) for _, x in config.weights()]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))  # as a backward would: makes the tensor of the scale
    rng = np.random.default_rng(3)
    gradients = [torch.from_numpy(rng.standard_normal(shape, np.float32)) for _, shape in config.shapes()]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)

    def end() -> float:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)
        return norm.item()

    def window() -> tuple[float, float]:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad.copy_(gradient)
        return timed(end)

    norms = [window()[1] for _ in range(2)]
    seconds = [window()[0] for _ in range(wanted["windows"])]
    answer({"seconds": seconds, "gradient_norms": norms})


if __name__ == "__main__":
    main()
