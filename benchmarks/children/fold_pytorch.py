"""The same by PyTorch: torch._foreach_add_ of the gradients to buffers of float32, and at the end of a window
GradScaler.unscale_, clip_grad_norm_, fused AdamW and zero_grad, with the mean taken on the way."""

from __future__ import annotations

import os

import torch

from fold_data import GRADIENT_DTYPES, tensors
from gpt_config import BETAS, EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import answer, settings, timed


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    parameters = [torch.nn.Parameter(x) for x in tensors(config, seed=1)]
    gradients = [x.to(GRADIENT_DTYPES[wanted["dtype"]]) for x in tensors(config, seed=3)]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    # Dividing by the scale divides by the number of micro-batches: no pass of its own is charged for the mean.
    scaler = torch.amp.GradScaler("cpu", init_scale=float(wanted["micro_batches"]))
    scaler.scale(torch.ones(()))  # as a backward would: makes the tensor of the scale
    buffers = [torch.zeros_like(parameter) for parameter in parameters]
    for parameter, buffer in zip(parameters, buffers):
        parameter.grad = buffer

    def end() -> float:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)
        return norm.item()

    def window() -> tuple[list[float], float, float]:
        folds = [timed(lambda: torch._foreach_add_(buffers, gradients))[0] for _ in range(wanted["micro_batches"])]
        seconds, norm = timed(end)
        return folds, seconds, norm

    norms = [window()[2] for _ in range(2)]
    windows = [window() for _ in range(wanted["windows"])]
    answer({"folds": [x[0] for x in windows], "steps": [x[1] for x in windows], "gradient_norms": norms})


if __name__ == "__main__":
    main()
