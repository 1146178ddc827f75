"""Writes clipping.npz: what PyTorch's clipping does, for Tests/python/test_clipping.py.

    pip install torch==2.15.0 numpy
    python make_clipping_fixtures.py

As in make_fixtures.py, everything is computed in float64 and again in float32, of which the distance is kept.
Adaptive clipping is not a part of PyTorch: it is written here as in timm.utils.agc (arXiv 2102.06171).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from make_fixtures import FORMAT, MAGIC, TORCH_VERSION, Arrays, keep

# A scalar, a vector, a linear weight [out, in], filters, and a parameter of zeros.
SHAPES = {
    "scalar": (),
    "bias": (13,),
    "linear": (7, 13),
    "filters": (3, 5, 4),
    "zeros": (4, 6),
}


def adaptive(parameters: list[torch.Tensor], clipping: float, eps: float) -> None:
    def unit_norms(x: torch.Tensor) -> torch.Tensor:
        return x.norm(2.0) if x.ndim <= 1 else x.norm(2.0, dim=tuple(range(1, x.ndim)), keepdim=True)

    for p in parameters:
        limit = unit_norms(p.detach()).clamp(min=eps) * clipping
        norm = unit_norms(p.grad)
        clipped = p.grad * (limit / norm.clamp(min=1e-6))
        p.grad.copy_(torch.where(norm < limit, p.grad, clipped))


CLIPPING: dict[str, Callable[[list[torch.Tensor]], object]] = {
    "none": lambda p: None,
    "norm": lambda p: torch.nn.utils.clip_grad_norm_(p, 1.5),
    "norm_above": lambda p: torch.nn.utils.clip_grad_norm_(p, 1e3),
    "value": lambda p: torch.nn.utils.clip_grad_value_(p, 0.4),
    "value_above": lambda p: torch.nn.utils.clip_grad_value_(p, 1e3),
    "adaptive": lambda p: adaptive(p, 0.01, 1e-3),
    "adaptive_some": lambda p: adaptive(p, 0.9, 0.5),
}


def main() -> None:
    if torch.__version__.split("+")[0] != TORCH_VERSION:
        raise SystemExit(f"PyTorch is {torch.__version__}; the fixtures are made with {TORCH_VERSION}")
    torch.set_num_threads(1)
    rng = np.random.default_rng(4)
    out: Arrays = {"magic": MAGIC, "format": FORMAT}
    for name, shape in SHAPES.items():
        scale = 0.0 if name == "zeros" else 1.0
        out[f"initial/{name}"] = np.asarray(scale * rng.standard_normal(shape), np.float32)
        out[f"gradient/{name}"] = np.asarray(rng.standard_normal(shape), np.float32)
    for kind, clip in CLIPPING.items():
        results = []
        for dtype in (torch.float64, torch.float32):
            parameters = [torch.tensor(out[f"initial/{name}"], dtype=dtype) for name in SHAPES]
            for p, name in zip(parameters, SHAPES):
                p.grad = torch.tensor(out[f"gradient/{name}"], dtype=dtype)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            clip(parameters)
            after = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            results.append([*(p - p.grad for p in parameters), norm, after / norm])
        for name, exact, single in zip([*SHAPES, ":norm", ":factor"], *results):
            keep(out, f"clipped/{kind}/{name.lstrip(':')}", exact, single)
    np.savez_compressed(Path(__file__).with_name("clipping.npz"), **out)


if __name__ == "__main__":
    main()
