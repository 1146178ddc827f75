"""Writes schedules.npz: the learning rates of PyTorch's schedulers, for Tests/python/test_schedules.py.

    pip install torch==2.15.0 numpy
    python make_schedule_fixtures.py

Each array NAME holds the rates of the updates 0, 1, 2 and so on, in float64, with a learning rate of 1. Each array
NAME:metrics holds what a plateau was shown after each update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch.optim import lr_scheduler as s

TORCH_VERSION = "2.15.0"
UPDATES = 60


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=1.0)


def rates(make: Callable[[torch.optim.Optimizer], Any], metrics: np.ndarray | None = None) -> np.ndarray:
    own = optimizer()
    scheduler = make(own)
    out = []
    for update in range(UPDATES):
        out.append(own.param_groups[0]["lr"])
        own.step()
        if metrics is None:
            scheduler.step()
        else:
            scheduler.step(metrics[update])
    return np.array(out)


def warmed(after: Callable[[torch.optim.Optimizer], Any]) -> Callable[[torch.optim.Optimizer], Any]:
    """After 10 updates of warm-up from a quarter."""
    return lambda own: s.SequentialLR(
        own, [s.LinearLR(own, start_factor=0.25, total_iters=10), after(own)], milestones=[10]
    )


def main() -> None:
    assert torch.__version__.split("+")[0] == TORCH_VERSION, torch.__version__
    rng = np.random.default_rng(0)
    loss = np.exp(-np.arange(UPDATES) / 8) + 0.05 * rng.random(UPDATES)
    accuracy = 1 - loss
    cycle = {"max_lr": 1.0, "cycle_momentum": False}
    schedulers: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
        "linear": lambda own: s.LinearLR(own, start_factor=1.0, end_factor=0.2, total_iters=40),
        "cosine": lambda own: s.CosineAnnealingLR(own, T_max=59, eta_min=0.1),
        "step": lambda own: s.StepLR(own, step_size=7, gamma=0.3),
        "exponential": lambda own: s.ExponentialLR(own, gamma=0.93),
        "one_cycle": lambda own: s.OneCycleLR(own, total_steps=UPDATES + 1, pct_start=0.4, **cycle),
        "one_cycle_linear": lambda own: s.OneCycleLR(
            own, total_steps=UPDATES + 1, anneal_strategy="linear", div_factor=10, final_div_factor=100, **cycle
        ),
        "warm_constant": lambda own: s.LinearLR(own, start_factor=0.25, total_iters=10),
        "warm_cosine": warmed(lambda own: s.CosineAnnealingLR(own, T_max=50)),
        "warm_exponential": warmed(lambda own: s.ExponentialLR(own, gamma=0.9)),
    }
    out: dict[str, Any] = {name: rates(make) for name, make in schedulers.items()}
    plateaus: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "plateau": (loss, {"patience": 2, "factor": 0.5}),
        "plateau_cooldown": (loss, {"patience": 1, "factor": 0.5, "cooldown": 4, "min_lr": 0.05}),
        "plateau_absolute": (loss, {"patience": 2, "factor": 0.3, "threshold": 0.02, "threshold_mode": "abs"}),
        "plateau_max": (accuracy, {"mode": "max", "patience": 1, "factor": 0.7, "threshold": 0.01}),
    }
    for name, (metrics, options) in plateaus.items():
        out[name] = rates(lambda own: s.ReduceLROnPlateau(own, eps=0.0, **options), metrics)
        out[f"{name}:metrics"] = metrics
        assert len(set(out[name])) > 3, name
    np.savez_compressed(Path(__file__).with_name("schedules.npz"), **out)


if __name__ == "__main__":
    main()
