"""Ends windows of GPT-2's 124 M parameters with gradaccum and prints the seconds of each ga_step, also of windows under a
loss scale in turn with them where that is asked for."""

from __future__ import annotations

import numpy as np

import gradaccum as ga
from gpt_config import BETAS, EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import answer, settings, timed


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    parameters = [ga.tensor(x, requires_grad=True) for _, x in config.weights()]
    optimizer = ga.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    accumulator = ga.Accumulator(optimizer, max_grad_norm=MAX_GRAD_NORM)
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal(shape, np.float32) for _, shape in config.shapes()]

    scaler = ga.LossScaler(2.0**16, dynamic=False)

    def window(*, scaled: bool = False) -> tuple[float, ga.Report]:
        accumulator.set_loss_scaler(scaler if scaled else None)
        accumulator.accumulate_gradients(gradients, loss=1.0, weight=1.0)
        return timed(accumulator.step)

    norms = [window()[1].gradient_norm for _ in range(2)]
    seconds, scaled = [], []
    for _ in range(wanted["windows"]):
        seconds.append(window()[0])
        if wanted.get("scaled"):
            scaled.append(window(scaled=True)[0])
    answer({"seconds": seconds, "scaled": scaled, "parameters": config.parameter_count(), "gradient_norms": norms})


if __name__ == "__main__":
    main()
