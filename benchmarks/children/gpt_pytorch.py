"""Trains the GPT with PyTorch, as its users do on a CPU, and prints the seconds of each update.

With count_bytes it also prints the bytes of tensors, by PyTorch's profiler, which takes memory itself: the peak
resident set is then not that of the training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from gpt_config import BETAS, EPS, LAYER_NORM_EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import answer, peak_rss_mib, settings, timed_updates


class Block(nn.Module):
    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(c, 3 * c), "c_proj": nn.Linear(c, c)})
        self.ln_2 = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(c, 4 * c), "c_proj": nn.Linear(4 * c, c)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).split(c, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig, *, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.wte = nn.Parameter(torch.empty(config.vocabulary, config.channels))
        self.wpe = nn.Parameter(torch.empty(config.context, config.channels))
        self.h = nn.ModuleList(Block(config.channels, config.heads) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.channels, eps=LAYER_NORM_EPS)
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, array in config.weights():
                own.pop(name).copy_(torch.from_numpy(array))
        assert not own, f"weights that nothing was given for: {own.keys()}"

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens, self.wte) + self.wpe
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        logits = F.linear(self.ln_f(x), self.wte)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), reduction="sum")


def exact_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of the gradients in float64, in pieces that do not raise the peak memory. clip_grad_norm_ adds up
    squares in float32, which is 5e-4 off for 124 M parameters: too far for telling whether both did the same work."""
    pieces = (piece for x in parameters for piece in x.grad.flatten().split(1 << 20))
    return math.sqrt(sum(piece.double().square().sum().item() for piece in pieces))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def peak_bytes(recorded: profile) -> int:
    """The most bytes that tensors, and what operations work in, had at a time since the profiler was started."""
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def train(wanted: dict[str, Any]) -> dict[str, Any]:
    config = GPTConfig(**wanted["config"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gpt = GPT(config, checkpointing=wanted.get("checkpointing", False))
    loss_of = torch.compile(gpt) if wanted.get("compile") else gpt
    optimizer = torch.optim.AdamW(
        gpt.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    held = {"parameter_bytes": bytes_of(gpt.parameters())}

    def update(micro_batches: list[tuple[np.ndarray, np.ndarray]], *, exact: bool = False) -> tuple[float, float]:
        total = 0.0
        weight = sum(targets.size for _, targets in micro_batches)
        for tokens, targets in micro_batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=wanted["dtype"] == "bf16"):
                loss = loss_of(torch.from_numpy(tokens), torch.from_numpy(targets))
            (loss / weight).backward()
            total += loss.item()
        reported = None
        if exact:
            reported = exact_norm(gpt.parameters())
            held["sum_bytes"] = bytes_of(x.grad for x in gpt.parameters())
        norm = torch.nn.utils.clip_grad_norm_(gpt.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total / weight, norm.item() if reported is None else reported

    batches = config.batches()
    reports = [update(next(batches)[: wanted["warm_up"]], exact=True)]
    times, results = timed_updates(update, batches, wanted)
    losses, norms = zip(*reports, *results)
    held["state_bytes"] = bytes_of(array for state in optimizer.state.values() for array in state.values())
    return {**times, **held, "losses": losses, "gradient_norms": norms, "peak_mib": peak_rss_mib()}


def main() -> None:
    wanted = settings()
    if wanted.get("count_bytes"):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            found = train(wanted)
        answer({**found, "tensor_peak_bytes": peak_bytes(recorded)})
    else:
        answer(train(wanted))


if __name__ == "__main__":
    main()
