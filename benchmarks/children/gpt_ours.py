"""Trains the GPT with gradaccum and prints the seconds of each update."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import gradaccum as ga
from gpt_config import BETAS, EPS, LAYER_NORM_EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import COMPUTE_DTYPES, answer, peak_rss_mib, settings, timed_updates


class GPT:
    def __init__(self, config: GPTConfig, *, checkpointing: bool) -> None:
        self.config = config
        self.checkpointing = checkpointing
        self.parameters = {name: ga.tensor(x, requires_grad=True) for name, x in config.weights()}

    def pair(self, name: str) -> tuple[ga.Tensor, ga.Tensor]:
        return self.parameters[name + ".weight"], self.parameters[name + ".bias"]

    def attention(self, prefix: str, x: ga.Tensor) -> ga.Tensor:
        c = self.config.channels
        qkv = ga.linear(
            ga.layer_norm(x, *self.pair(prefix + "ln_1"), eps=LAYER_NORM_EPS), *self.pair(prefix + "attn.c_attn")
        )
        q, k, v = (ga.slice(qkv, -1, i * c, (i + 1) * c) for i in range(3))
        return ga.linear(ga.causal_attention(q, k, v, self.config.heads), *self.pair(prefix + "attn.c_proj"))

    def mlp(self, prefix: str, x: ga.Tensor) -> ga.Tensor:
        h = ga.layer_norm(x, *self.pair(prefix + "ln_2"), eps=LAYER_NORM_EPS)
        h = ga.gelu(ga.linear(h, *self.pair(prefix + "mlp.c_fc")), approximate="tanh")
        return ga.linear(h, *self.pair(prefix + "mlp.c_proj"))

    def block(self, layer: int) -> Callable[[ga.Tensor], ga.Tensor]:
        def run(x: ga.Tensor) -> ga.Tensor:
            x = x + self.attention(f"h.{layer}.", x)
            return x + self.mlp(f"h.{layer}.", x)

        return run

    def loss(self, tokens: np.ndarray, targets: np.ndarray) -> ga.Tensor:
        wte = self.parameters["wte"]
        x = ga.embedding(wte, ga.tensor(tokens)) + self.parameters["wpe"]
        for layer in range(self.config.layers):
            block = self.block(layer)
            x = ga.checkpoint(block, x) if self.checkpointing else block(x)
        x = ga.layer_norm(x, *self.pair("ln_f"), eps=LAYER_NORM_EPS)
        return ga.linear_cross_entropy(x, wte, ga.tensor(targets))


OPTIMIZERS = {"adamw": ga.AdamW, "adamw8bit": ga.AdamW8bit}
# What accumulating into moments excludes is not clipped and not divided.
WINDOWS = {"gradients": {"max_grad_norm": MAX_GRAD_NORM}, "moments": {"normalization": "sum"}}


class Training:
    """The model with its window."""

    def __init__(
        self,
        config: GPTConfig,
        *,
        checkpointing: bool = False,
        optimizer: str = "adamw",
        accumulate_into: str = "gradients",
        sum_format: str = "float32",
    ) -> None:
        self.gpt = GPT(config, checkpointing=checkpointing)
        parameters = self.gpt.parameters.values()
        rule = OPTIMIZERS[optimizer](parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
        self.accumulator = ga.Accumulator(
            rule, accumulate_into=accumulate_into, sum_format=sum_format, **WINDOWS[accumulate_into]
        )

    def update(self, micro_batches: list[tuple[np.ndarray, np.ndarray]]) -> ga.Report:
        for tokens, targets in micro_batches:
            self.accumulator.accumulate(self.gpt.loss(tokens, targets), weight=targets.size)
        return self.accumulator.step()


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    ga.set_compute_dtype(COMPUTE_DTYPES[wanted["dtype"]])
    names = ("checkpointing", "optimizer", "accumulate_into", "sum_format")
    update = Training(config, **{name: wanted[name] for name in names if name in wanted}).update
    batches = config.batches()
    warm_up = next(batches)
    reports = [update(warm_up[: wanted["warm_up"]])]
    memory = ga.memory_usage()
    times, results = timed_updates(update, batches, wanted)
    reports += results
    after = ga.memory_usage()
    # The rest of what is live between updates is the optimizer's.
    parameter_bytes, sum_bytes = 4 * config.parameter_count(), reports[-1].accumulator_bytes
    answer(
        {
            **times,
            "losses": [report.loss for report in reports],
            "gradient_norms": [report.gradient_norm for report in reports],
            "peak_mib": peak_rss_mib(),
            "tensor_peak_bytes": after.peak_bytes,
            "parameter_bytes": parameter_bytes,
            "state_bytes": after.live_bytes - parameter_bytes - sum_bytes,
            "sum_bytes": sum_bytes,
            "allocator_calls": after.allocator_calls - memory.allocator_calls,
            "tokens": config.tokens,
            "flops": config.flops(),
            "parameters": config.parameter_count(),
            "instruction_set": ga.instruction_set(),
        }
    )


if __name__ == "__main__":
    main()
