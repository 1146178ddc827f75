"""The same updates as PyTorch and the papers, from the fixtures of Tests/parity/make_optimizer_fixtures.py."""

from __future__ import annotations

import gradaccum as ga
import numpy as np
import pytest

from parity import Fixtures

FIXTURES = Fixtures("optimizers.npz")

OPTIMIZERS: dict[str, tuple[type[ga.Optimizer], dict]] = {
    "sgd": (ga.SGD, {"lr": 0.1}),
    "sgd_momentum_decay": (ga.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd_nesterov": (ga.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (ga.Adam, {"lr": 0.1}),
    "adam_decay": (ga.Adam, {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "adamw": (ga.AdamW, {"lr": 0.1}),
    "adamw_betas": (ga.AdamW, {"lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2}),
    "radam": (ga.RAdam, {"lr": 0.1, "betas": (0.9, 0.95)}),
    "radam_decay": (ga.RAdam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}),
    "radam_decoupled": (ga.RAdam, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "nadam": (ga.NAdam, {"lr": 0.1}),
    "nadam_decay": (
        ga.NAdam,
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "momentum_decay": 0.5},
    ),
    "nadam_decoupled": (ga.NAdam, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamw8bit": (ga.AdamW8bit, {"lr": 0.1, "min_8bit_size": 0}),
    "adamw8bit_betas": (
        ga.AdamW8bit,
        {"lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2, "min_8bit_size": 0},
    ),
    "lion": (ga.Lion, {"lr": 0.1}),
    "lion_decay": (ga.Lion, {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "lamb": (ga.LAMB, {"lr": 0.1}),
    "lamb_betas": (ga.LAMB, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    "adafactor": (ga.Adafactor, {"lr": 0.1}),
    "adafactor_decay": (
        ga.Adafactor,
        {"lr": 0.3, "beta2_decay": -0.5, "eps": (0.3, 0.5), "d": 1.5, "weight_decay": 0.1},
    ),
    "muon": (ga.Muon, {"lr": 0.1}),
    "muon_options": (
        ga.Muon,
        {
            "lr": 0.1,
            "weight_decay": 0.3,
            "momentum": 0.8,
            "nesterov": False,
            "ns_coefficients": (2.0, -1.5, 0.5),
            "ns_steps": 8,
            "adjust_lr_fn": "match_rms_adamw",
            "adamw_lr_ratio": 0.5,
            "adamw_betas": (0.8, 0.95),
            "adamw_eps": 1e-4,
            "adamw_weight_decay": 0.2,
        },
    ),
    "muon_spectral": (ga.Muon, {"lr": 0.1, "adjust_lr_fn": "spectral_unclamped"}),
    "lars": (ga.LARS, {"lr": 10.0}),
    "lars_plain": (ga.LARS, {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.1, "trust_coefficient": 0.1}),
}


def test_every_optimizer_of_the_fixtures_is_tested():
    assert set(OPTIMIZERS) == {name.partition("/")[0] for name in FIXTURES.names("optimizer/")}


def test_the_bounds_would_catch_a_small_mistake():
    FIXTURES.check_bounds()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    cls, options = OPTIMIZERS[name]
    keys = FIXTURES.names("initial/")
    x = {key: ga.tensor(FIXTURES[f"initial/{key}"], requires_grad=True) for key in keys}
    accumulator = ga.Accumulator(cls(x.values(), **options))
    updates = sorted({int(key.split("/")[0]) for key in FIXTURES.names(f"optimizer/{name}/")})
    for update in range(1, updates[-1] + 1):
        gradients = [FIXTURES[f"gradients/{key}"][update - 1].astype(np.float32) / 32 for key in keys]
        accumulator.accumulate_gradients(gradients, 0.0, 1)
        accumulator.step()
        if update in updates:
            for key, value in x.items():
                FIXTURES.check(f"optimizer/{name}/{update}/{key}", value.numpy())
