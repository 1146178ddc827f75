"""The same by PyTorch: torch._foreach_add_ of the gradients to buffers of float32, and at the end of a window
GradScaler.unscale_, clip_grad_norm_, fused AdamW and zero_grad, with the mean taken on the way."""

from __future__ import annotations

import torch

from fold_data import tensors
from gpt_config import BETAS, EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import timed


class PyTorch:
    def __init__(self, config: GPTConfig, gradients: list[torch.Tensor], micro_batches: int) -> None:
        self.parameters = [torch.nn.Parameter(x) for x in tensors(config, seed=1)]
        self.gradients = gradients
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
        )
        # Dividing by the scale divides by the number of micro-batches: no pass of its own is charged for the mean.
        self.scaler = torch.amp.GradScaler("cpu", init_scale=float(micro_batches))
        self.scaler.scale(torch.ones(()))  # as a backward would: makes the tensor of the scale
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, buffer in zip(self.parameters, self.buffers):
            parameter.grad = buffer

    def fold(self) -> float:
        return timed(lambda: torch._foreach_add_(self.buffers, self.gradients))[0]

    def end(self) -> tuple[float, float]:
        seconds, norm = timed(self._end)
        return seconds, norm.item()

    def _end(self) -> torch.Tensor:
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=False)
        return norm
