"""Writes optimizers.npz: what the optimizers do, for Tests/python/test_optimizer_parity.py.

    pip install torch==2.15.0 numpy
    python make_optimizer_fixtures.py

PyTorch's own optimizers where it has them; the others are written down here from their papers. As in
make_fixtures.py, each runs in float64 and in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from make_fixtures import Arrays, keep, write

UPDATES = (1, 10, 100)
SHAPES = {"vector": (67,), "matrix": (12, 23)}


class Lion:
    """Chen et al., arXiv 2302.06675, algorithm 2."""

    def __init__(
        self,
        parameters: list[torch.Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = parameters
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.m = [torch.zeros_like(p) for p in parameters]
        # Below 0 if another order of rounding in float32 may have taken another sign.
        self.margin = 1.0

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        for p, m in zip(self.parameters, self.m):
            c = beta1 * m + (1 - beta1) * p.grad
            self.margin = min(self.margin, (c.abs() - 2e-6 * (m.abs() + p.grad.abs())).min().item())
            p -= self.lr * (torch.sign(c) + self.weight_decay * p)
            m.mul_(beta2).add_((1 - beta2) * p.grad)


class LAMB(torch.optim.Optimizer):
    """You et al., arXiv 1904.00962, algorithm 2, with the identity as its phi."""

    def __init__(
        self,
        parameters: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.updates = 0

    @torch.no_grad()
    def step(self) -> None:
        self.updates += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                m.mul_(beta1).add_((1 - beta1) * p.grad)
                v.mul_(beta2).add_((1 - beta2) * p.grad**2)
                corrected_m, corrected_v = m / (1 - beta1**self.updates), v / (1 - beta2**self.updates)
                r = corrected_m / (corrected_v.sqrt() + group["eps"]) + group["weight_decay"] * p
                p -= group["lr"] * p.norm() / r.norm() * r


class LARS(torch.optim.Optimizer):
    """You et al., arXiv 1708.03888, algorithm 1."""

    def __init__(
        self,
        parameters: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust_coefficient}
        super().__init__(parameters, options)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            decay = group["weight_decay"]
            for p in group["params"]:
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                rate = group["trust"] * p.norm() / (p.grad.norm() + decay * p.norm())
                v.mul_(group["momentum"]).add_(group["lr"] * rate * (p.grad + decay * p))
                p -= v


def segments(parts: int, dtype: torch.dtype) -> torch.Tensor:
    """The beginnings of the codes of G.711's companding, and the end of the last one: 8 segments of as many parts, each
    twice as long as the one before, where the first begins at 0 with parts of 1."""
    codes = torch.arange(8 * parts, dtype=dtype)
    segment = codes.div(parts, rounding_mode="floor")
    begins = 2**segment * (codes - parts * segment + parts) - parts
    return torch.cat([begins, begins.new_tensor([255.0 * parts])])


class AdamW8bit:
    """Dettmers et al., arXiv 2110.02861, with blocks of 256, but other codes: AdamW on moments that are rounded to the
    nearest code with a sign and 16 parts in a segment, and to the middles of 32 parts, of the root of the second."""

    BLOCK = 256

    def __init__(
        self,
        parameters: list[torch.Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self.parameters = parameters
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]
        self.updates = 0
        # Below 0 if another order of rounding in float32 may have taken another code.
        self.margin = 1.0

    def rounded(self, x: torch.Tensor, codes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """To codes, of which the next one begins at an edge; the last one is the largest number of a block."""
        out = torch.empty_like(x).flatten()
        for block, target in zip(x.flatten().split(self.BLOCK), out.split(self.BLOCK)):
            unit = block.abs().max() / codes[-1]
            size = (block / unit).abs()
            margin = (size[:, None] - edges).abs().min(dim=1).values - 2e-6 * (size + 32)
            self.margin = min(self.margin, margin.min().item())
            target.copy_(codes[torch.bucketize(size, edges, right=True)] * unit * block.sign())
        return out.view_as(x)

    def codes_of_mean(self, m: torch.Tensor) -> torch.Tensor:
        codes = segments(16, m.dtype)[:-1]
        return self.rounded(m, codes, (codes[1:] + codes[:-1]) / 2)

    def codes_of_root(self, v: torch.Tensor) -> torch.Tensor:
        edges = segments(32, v.dtype)
        return self.rounded(v.sqrt(), (edges[1:] + edges[:-1]) / 2, edges[1:-1]) ** 2

    @torch.no_grad()
    def step(self) -> None:
        self.updates += 1
        beta1, beta2 = self.betas
        for i, p in enumerate(self.parameters):
            m = beta1 * self.m[i] + (1 - beta1) * p.grad
            v = beta2 * self.v[i] + (1 - beta2) * p.grad**2
            corrected_m, corrected_v = m / (1 - beta1**self.updates), v / (1 - beta2**self.updates)
            p *= 1 - self.lr * self.weight_decay
            p -= self.lr * corrected_m / (corrected_v.sqrt() + self.eps)
            self.m[i], self.v[i] = self.codes_of_mean(m), self.codes_of_root(v)


def newton_schulz(x: torch.Tensor, coefficients: tuple, steps: int, eps: float) -> torch.Tensor:
    """PyTorch's orthogonalisation in the type that it is given, where PyTorch rounds to bfloat16."""
    a, b, c = coefficients
    is_tall = x.shape[0] > x.shape[1]
    x = (x.T if is_tall else x) / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


torch.optim._muon._zeropower_via_newtonschulz = newton_schulz


class Muon:
    """PyTorch's for matrices and AdamW for the others."""

    def __init__(self, parameters: Any, lr: float, adamw: Arrays, **options: Any) -> None:
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        self.muon = torch.optim.Muon(matrices, lr=lr, **options)
        self.adamw = torch.optim.AdamW(others, **adamw)

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()


OPTIMIZERS: dict[str, tuple[type, Arrays]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd_momentum_decay": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd_nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.1}),
    "adam_decay": (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1}),
    "adamw_betas": (torch.optim.AdamW, {"lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2}),
    "radam": (torch.optim.RAdam, {"lr": 0.1, "betas": (0.9, 0.95)}),
    "radam_decay": (torch.optim.RAdam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}),
    "radam_decoupled": (
        torch.optim.RAdam,
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "nadam": (torch.optim.NAdam, {"lr": 0.1}),
    "nadam_decay": (
        torch.optim.NAdam,
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "momentum_decay": 0.5},
    ),
    "nadam_decoupled": (
        torch.optim.NAdam,
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "adamw8bit": (AdamW8bit, {"lr": 0.1}),
    "adamw8bit_betas": (AdamW8bit, {"lr": 0.2, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2}),
    "lion": (Lion, {"lr": 0.1}),
    "lion_decay": (Lion, {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "lamb": (LAMB, {"lr": 0.1}),
    "lamb_betas": (LAMB, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    # PyTorch's default for the first eps depends on the type.
    "adafactor": (torch.optim.Adafactor, {"lr": 0.1, "eps": (2.0**-23, 1e-3)}),
    "adafactor_decay": (
        torch.optim.Adafactor,
        {"lr": 0.3, "beta2_decay": -0.5, "eps": (0.3, 0.5), "d": 1.5, "weight_decay": 0.1},
    ),
    "muon": (Muon, {"lr": 0.1, "adamw": {"lr": 0.1}}),
    "muon_options": (
        Muon,
        {
            "lr": 0.1,
            "weight_decay": 0.3,
            "momentum": 0.8,
            "nesterov": False,
            "ns_coefficients": (2.0, -1.5, 0.5),
            "ns_steps": 8,
            "adjust_lr_fn": "match_rms_adamw",
            "adamw": {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2},
        },
    ),
    "muon_spectral": (Muon, {"lr": 0.1, "adjust_lr_fn": "spectral_unclamped", "adamw": {"lr": 0.1}}),
    "lars": (LARS, {"lr": 10.0}),
    "lars_plain": (LARS, {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.1, "trust_coefficient": 0.1}),
}


def gradient_drawer(rng: np.random.Generator) -> Callable[[], Arrays]:
    """Draws gradients of one update after another, such that no rule with a margin falls below it."""
    rows = [row for row in OPTIMIZERS.values() if row[0] in (AdamW8bit, Lion)]
    start = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
    optimizers = [cls([x.clone() for x in start], **options) for cls, options in rows]

    def draw() -> Arrays:
        nonlocal optimizers
        while True:
            found = {
                key: np.rint(32 + 20 * rng.standard_normal(shape)).clip(-127, 127).astype(np.int8)
                for key, shape in SHAPES.items()
            }
            tried = copy.deepcopy(optimizers)
            for optimizer in tried:
                for p, gradient in zip(optimizer.parameters, found.values()):
                    p.grad = torch.tensor(gradient, dtype=torch.float64) / 32
                optimizer.step()
            if all(optimizer.margin > 0 for optimizer in tried):
                optimizers = tried
                return found

    return draw


def optimizer_fixtures(out: Arrays) -> None:
    """Small parameters, far updates and gradients that mostly agree: the updates are what is seen.

    A gradient is its bytes over 32.
    """
    rng = np.random.default_rng(3)
    for key, shape in SHAPES.items():
        out[f"initial/{key}"] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    draw = gradient_drawer(rng)
    gradients = [draw() for _ in range(UPDATES[-1])]
    for key in SHAPES:
        out[f"gradients/{key}"] = np.stack([gradient[key] for gradient in gradients])
    for name, (cls, options) in OPTIMIZERS.items():
        found = []
        for dtype in (torch.float64, torch.float32):
            x = {key: torch.tensor(out[f"initial/{key}"], dtype=dtype, requires_grad=True) for key in SHAPES}
            optimizer = cls(list(x.values()), **options)
            kept = {}
            for update in range(1, UPDATES[-1] + 1):
                for key, value in x.items():
                    value.grad = torch.tensor(out[f"gradients/{key}"][update - 1], dtype=dtype) / 32
                optimizer.step()
                if update in UPDATES:
                    kept |= {f"{name}/{update}/{key}": value.detach().clone() for key, value in x.items()}
            found.append(kept)
        for key in found[0]:
            keep(out, f"optimizer/{key}", found[0][key], found[1][key])


if __name__ == "__main__":
    write("optimizers.npz", optimizer_fixtures)
