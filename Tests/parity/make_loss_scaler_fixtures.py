"""Writes loss_scaler.npz: what torch.amp.GradScaler does, for Tests/python/test_loss_scaler.py.

    pip install torch==2.15.0 numpy
    python make_loss_scaler_fixtures.py

Two optimizers share a scaler and step once per round, each with a gradient that is finite or not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from make_fixtures import TORCH_VERSION

ROUNDS = 120
# init_scale, growth_factor, backoff_factor, growth_interval, and how often a gradient overflows
RUNS = {
    "plain": (65536.0, 2.0, 0.5, 5, 0.1),
    "eager": (8.0, 4.0, 0.25, 1, 0.3),
    "patient": (1024.0, 2.0, 0.5, 11, 0.02),
    "falling": (2.0**24, 2.0, 0.5, 7, 0.12),
}


def run(init_scale: float, growth: float, backoff: float, interval: int, share: float, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((ROUNDS, 2, 9)).astype(np.float32)
    bad = rng.random((ROUNDS, 2)) < share
    gradients[bad, rng.integers(0, 9)] = rng.choice([np.inf, -np.inf, np.nan], bad.sum())
    initial = rng.standard_normal((2, 9)).astype(np.float32)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=init_scale, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    parameters = [torch.nn.Parameter(torch.tensor(x)) for x in initial]
    optimizers = [torch.optim.SGD([p], lr=0.125) for p in parameters]
    scales, trackers, weights = [], [], []
    for both in gradients:
        scaler.scale(torch.zeros(()))  # makes the scale
        scales.append(scaler.get_scale())
        for p, optimizer, gradient in zip(parameters, optimizers, both):
            p.grad = torch.tensor(gradient) * scaler.get_scale()
            scaler.step(optimizer)
        scaler.update()
        trackers.append(scaler._get_growth_tracker())
        weights.append(np.stack([p.detach().numpy().copy() for p in parameters]))
    return {
        "options": np.array([init_scale, growth, backoff, interval]),
        "gradients": gradients,
        "initial": initial,
        "scales": np.array(scales),
        "growth_trackers": np.array(trackers),
        "weights": np.stack(weights),
    }


def main() -> None:
    if torch.__version__.split("+")[0] != TORCH_VERSION:
        raise SystemExit(f"PyTorch is {torch.__version__}; the fixtures are made with {TORCH_VERSION}")
    out = {}
    for seed, (name, options) in enumerate(RUNS.items()):
        out.update({f"{name}/{key}": value for key, value in run(*options, seed).items()})
    np.savez_compressed(Path(__file__).with_name("loss_scaler.npz"), **out)


if __name__ == "__main__":
    main()
