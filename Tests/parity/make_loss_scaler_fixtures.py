"""Writes loss_scaler.npz: what torch.amp.GradScaler does, for Tests/python/test_loss_scaler.py.

    pip install torch==2.15.0 numpy
    python make_loss_scaler_fixtures.py

Two optimizers share a scaler. In a round each has a gradient that is finite or not, and steps with it, steps after its
gradients were unscaled, has them unscaled and does not step, or has no part in the round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from make_fixtures import TORCH_VERSION

ROUNDS = 120
STEP, UNSCALE_AND_STEP, UNSCALE, NOTHING = ACTIONS = range(4)
# init_scale, growth_factor, backoff_factor, growth_interval, how often a gradient overflows, and how often an optimizer
# takes each of the ACTIONS
RUNS = {
    "plain": (65536.0, 2.0, 0.5, 5, 0.1, (1, 0, 0, 0)),
    "eager": (8.0, 4.0, 0.25, 1, 0.3, (1, 0, 0, 0)),
    "patient": (1024.0, 2.0, 0.5, 11, 0.02, (1, 0, 0, 0)),
    "falling": (2.0**24, 2.0, 0.5, 7, 0.12, (1, 0, 0, 0)),
    "unscaled": (65536.0, 2.0, 0.5, 3, 0.15, (0.2, 0.8, 0, 0)),
    "dropped": (65536.0, 2.0, 0.5, 3, 0.15, (0.1, 0.2, 0.7, 0)),
    "apart": (1024.0, 2.0, 0.5, 4, 0.1, (0.4, 0.1, 0.2, 0.3)),
}


def run(
    init_scale: float, growth: float, backoff: float, interval: int, share: float, actions: tuple[float, ...], seed: int
) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((ROUNDS, 2, 9)).astype(np.float32)
    bad = rng.random((ROUNDS, 2)) < share
    gradients[bad, rng.integers(0, 9)] = rng.choice([np.inf, -np.inf, np.nan], bad.sum())
    initial = rng.standard_normal((2, 9)).astype(np.float32)
    taken = rng.choice(ACTIONS, (ROUNDS, 2), p=actions)
    taken[(taken == NOTHING).all(1), 0] = STEP  # GradScaler.update() needs something to go by
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=init_scale, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    parameters = [torch.nn.Parameter(torch.tensor(x)) for x in initial]
    optimizers = [torch.optim.SGD([p], lr=0.125) for p in parameters]
    scales, trackers, weights = [], [], []
    for both, chosen in zip(gradients, taken):
        scaler.scale(torch.zeros(()))  # makes the scale
        scales.append(scaler.get_scale())
        for p, optimizer, gradient, action in zip(parameters, optimizers, both, chosen):
            p.grad = torch.tensor(gradient) * scaler.get_scale()
            if action in (UNSCALE_AND_STEP, UNSCALE):
                scaler.unscale_(optimizer)
            if action in (STEP, UNSCALE_AND_STEP):
                scaler.step(optimizer)
        scaler.update()
        trackers.append(scaler._get_growth_tracker())
        weights.append(np.stack([p.detach().numpy().copy() for p in parameters]))
    return {
        "options": np.array([init_scale, growth, backoff, interval]),
        "gradients": gradients,
        "actions": taken,
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
