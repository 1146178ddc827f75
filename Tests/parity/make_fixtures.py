"""Writes fixtures.npz: what PyTorch computes of operations and a model, for Tests/python/test_parity.py.

    pip install torch==2.15.0 numpy
    python make_fixtures.py

Everything is computed twice by the same code: in float64, which is the reference, and in float32, which says
how far a good float32 implementation is from it. Of the float32 results only that distance is kept: with
each array NAME come NAME:rms and NAME:max, the root of the mean square and the largest of the differences.
All inputs are float32 numbers, so both start from the same values.

Under bf16/ and f16/ is what PyTorch computes in torch.autocast with bfloat16 and float16, which
Tests/python/test_compute.py compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F

TORCH_VERSION = "2.15.0"
MAGIC = "gradaccum parity"
FORMAT = 1

TEXT = Path(__file__).with_name("genesis.txt").read_text(encoding="ascii").rstrip()  # 1, 1-10, King James

VOCABULARY, CHANNELS, HEADS, CONTEXT, LAYERS = 64, 32, 4, 16, 2
EPS = 1e-5
BATCH, UPDATES = 6, 20
IGNORED = -1  # the ignore_index; targets are dropped at random so that micro-batches have uneven weights

# AdamW's eps is larger than usual. The gradient of a key's bias is zero in exact arithmetic, so in float32 it
# is rounding noise, and Adam would blow the noise up to whole steps: 1e-6 keeps it as small as it is.
TRAINING = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
CLIP = 1.3  # so that some updates are clipped and others are not

Arrays = dict[str, Any]


def keep(out: Arrays, name: str, exact: torch.Tensor, single: torch.Tensor) -> None:
    assert exact.dtype == torch.float64 and single.dtype == torch.float32, name
    reference = exact.detach().numpy()
    difference = single.detach().numpy().astype(np.float64) - reference
    out[name] = reference
    out[f"{name}:rms"] = np.sqrt(np.mean(difference**2))
    out[f"{name}:max"] = np.max(np.abs(difference))


# ====== GPT ======


def gpt_parameters(rng: np.random.Generator) -> Arrays:
    """In the order of the examples. Nothing is left at 0 or 1, so that each gradient counts."""

    def normal(*shape: int, mean: float = 0.0, std: float) -> np.ndarray:
        return (mean + std * rng.standard_normal(shape)).astype(np.float32)

    c = CHANNELS
    out = {
        "token_embedding": normal(VOCABULARY, c, std=0.1),
        "position_embedding": normal(CONTEXT, c, std=0.1),
    }
    for layer in range(LAYERS):
        block = {
            "norm1_gain": normal(c, mean=1.0, std=0.1),
            "norm1_bias": normal(c, std=0.05),
            "qkv_weight": normal(3 * c, c, std=0.1),
            "qkv_bias": normal(3 * c, std=0.05),
            "projection_weight": normal(c, c, std=0.1),
            "projection_bias": normal(c, std=0.05),
            "norm2_gain": normal(c, mean=1.0, std=0.1),
            "norm2_bias": normal(c, std=0.05),
            "up_weight": normal(4 * c, c, std=0.1),
            "up_bias": normal(4 * c, std=0.05),
            "down_weight": normal(c, 4 * c, std=0.1),
            "down_bias": normal(c, std=0.05),
        }
        out.update({f"block{layer}.{name}": array for name, array in block.items()})
    out["norm_gain"] = normal(c, mean=1.0, std=0.1)
    out["norm_bias"] = normal(c, std=0.05)
    return out


def gpt_loss(p: dict[str, torch.Tensor], tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the cross-entropies of a batch [batch, time]."""
    batch, time = tokens.shape
    x = F.embedding(tokens, p["token_embedding"]) + p["position_embedding"]
    for layer in range(LAYERS):
        b = {
            name: p[f"block{layer}.{name}"]
            for name in (
                "norm1_gain",
                "norm1_bias",
                "qkv_weight",
                "qkv_bias",
                "projection_weight",
                "projection_bias",
                "norm2_gain",
                "norm2_bias",
                "up_weight",
                "up_bias",
                "down_weight",
                "down_bias",
            )
        }
        h = F.layer_norm(x, (CHANNELS,), b["norm1_gain"], b["norm1_bias"], EPS)
        qkv = F.linear(h, b["qkv_weight"], b["qkv_bias"])
        q, k, v = (part.view(batch, time, HEADS, -1).transpose(1, 2) for part in qkv.split(CHANNELS, dim=2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(batch, time, CHANNELS)
        x = x + F.linear(a, b["projection_weight"], b["projection_bias"])
        h = F.layer_norm(x, (CHANNELS,), b["norm2_gain"], b["norm2_bias"], EPS)
        h = F.gelu(F.linear(h, b["up_weight"], b["up_bias"]), approximate="tanh")
        x = x + F.linear(h, b["down_weight"], b["down_bias"])
    x = F.layer_norm(x, (CHANNELS,), p["norm_gain"], p["norm_bias"], EPS)
    logits = F.linear(x, p["token_embedding"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def gpt_data(rng: np.random.Generator) -> Arrays:
    """tokens and targets [updates, batch, context], and the cuts of each batch into micro-batches."""
    alphabet = sorted(set(TEXT))
    assert len(alphabet) <= VOCABULARY
    codes = np.array([alphabet.index(character) for character in TEXT], np.int64)
    starts = rng.integers(0, len(codes) - CONTEXT - 1, (UPDATES, BATCH))
    windows = codes[starts[..., None] + np.arange(CONTEXT + 1)]
    targets = windows[..., 1:].copy()
    targets[rng.random(targets.shape) < 0.15] = IGNORED
    cuts = [[BATCH], [1, 5], [3, 1, 2], [1] * BATCH, [2, 4], [4, 1, 1]]
    splits = np.zeros((UPDATES, BATCH), np.int64)
    for update in range(UPDATES):
        cut = cuts[update % len(cuts)]
        splits[update, : len(cut)] = cut
    return {"tokens": windows[..., :-1].astype(np.int32), "targets": targets, "splits": splits}


def train_gpt(initial: Arrays, data: Arrays, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    p = {name: torch.tensor(array, dtype=dtype, requires_grad=True) for name, array in initial.items()}
    optimizer = torch.optim.AdamW(list(p.values()), **TRAINING)
    losses, norms, found = [], [], {}
    for update in range(UPDATES):
        tokens = torch.tensor(data["tokens"][update], dtype=torch.int64)
        targets = torch.tensor(data["targets"][update])
        loss = gpt_loss(p, tokens, targets) / (targets != IGNORED).sum()
        optimizer.zero_grad()
        loss.backward()
        if update == 0:
            found = {f"gradient/{name}": x.grad.clone() for name, x in p.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(list(p.values()), CLIP).to(dtype))
        optimizer.step()
        losses.append(loss.detach())
    found.update({f"final/{name}": x.detach() for name, x in p.items()})
    found["losses"] = torch.stack(losses)
    found["norms"] = torch.stack(norms)
    return found


def gpt_fixture(out: Arrays) -> None:
    rng = np.random.default_rng(1)
    initial, data = gpt_parameters(rng), gpt_data(rng)
    exact, single = (train_gpt(initial, data, dtype) for dtype in (torch.float64, torch.float32))
    assert exact["norms"].min() < CLIP < exact["norms"].max(), "both sides of the clip should be seen"
    out.update({f"gpt/initial/{name}": array for name, array in initial.items()})
    out.update({f"gpt/{name}": array for name, array in data.items()})
    for name in exact:
        keep(out, f"gpt/{name}", exact[name], single[name])


# ====== Operations ======


def attention(x: dict[str, torch.Tensor], heads: int) -> torch.Tensor:
    batch, time, channels = x["q"].shape
    q, k, v = (x[name].view(batch, time, heads, -1).transpose(1, 2) for name in "qkv")
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch, time, channels)


def op_cases(
    rng: np.random.Generator,
) -> dict[str, tuple[Arrays, Callable[[dict[str, torch.Tensor]], torch.Tensor]]]:
    """Name to inputs and the operation. Floating inputs get a gradient."""

    def n(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def i(high: int, *shape: int) -> np.ndarray:
        return rng.integers(0, high, shape)

    def away(*shape: int) -> np.ndarray:  # away from zero: divisors, and the corner of relu
        return (np.sign(rng.standard_normal(shape)) * (0.5 + rng.random(shape))).astype(np.float32)

    def cross_entropy(x: dict[str, torch.Tensor], reduction: str, ignored: int = -100) -> torch.Tensor:
        return F.cross_entropy(
            x["logits"].flatten(0, -2), x["targets"].flatten(), ignore_index=ignored, reduction=reduction
        )

    masked = i(11, 3, 7)
    masked[1, 2:5] = 4
    return {
        "add": ({"a": n(3, 5, 7), "b": n(5, 1)}, lambda x: x["a"] + x["b"]),
        "subtract": ({"a": n(5, 7), "b": n(3, 1, 7)}, lambda x: x["a"] - x["b"]),
        "multiply": ({"a": n(3, 5, 7), "b": n(7)}, lambda x: x["a"] * x["b"]),
        "divide": ({"a": n(3, 5, 7), "b": away(1, 5, 7)}, lambda x: x["a"] / x["b"]),
        "matmul": ({"a": n(13, 17), "b": n(17, 9)}, lambda x: x["a"] @ x["b"]),
        "matmul_batched": ({"a": n(3, 1, 5, 7), "b": n(2, 7, 4)}, lambda x: x["a"] @ x["b"]),
        "linear": (
            {"x": n(3, 5, 19), "weight": n(11, 19), "bias": n(11)},
            lambda x: F.linear(x["x"], x["weight"], x["bias"]),
        ),
        "linear_rows": ({"x": n(9, 19), "weight": n(11, 19)}, lambda x: F.linear(x["x"], x["weight"])),
        "layer_norm": (
            {"x": n(3, 5, 33), "weight": n(33), "bias": n(33)},
            lambda x: F.layer_norm(x["x"], (33,), x["weight"], x["bias"], EPS),
        ),
        "layer_norm_plain": ({"x": n(4, 17)}, lambda x: F.layer_norm(x["x"], (17,), eps=EPS)),
        "gelu_tanh": ({"x": 3 * n(5, 13)}, lambda x: F.gelu(x["x"], approximate="tanh")),
        "gelu_erf": ({"x": 3 * n(5, 13)}, lambda x: F.gelu(x["x"])),
        "relu": ({"x": away(5, 13)}, lambda x: F.relu(x["x"])),
        "softmax_last": ({"x": 3 * n(4, 19)}, lambda x: F.softmax(x["x"], -1)),
        "softmax_inner": ({"x": 3 * n(4, 5, 3)}, lambda x: F.softmax(x["x"], 1)),
        "cross_entropy_sum": (
            {"logits": 3 * n(3, 7, 11), "targets": i(11, 3, 7)},
            lambda x: cross_entropy(x, "sum"),
        ),
        "cross_entropy_mean_ignore": (
            {"logits": 3 * n(3, 7, 11), "targets": masked},
            lambda x: cross_entropy(x, "mean", ignored=4),
        ),
        "mse_sum": ({"a": n(5, 7), "b": n(5, 7)}, lambda x: F.mse_loss(x["a"], x["b"], reduction="sum")),
        "mse_mean": ({"a": n(5, 7), "b": n(5, 7)}, lambda x: F.mse_loss(x["a"], x["b"])),
        "embedding": (
            {"weight": n(9, 6), "indices": i(9, 4, 5)},
            lambda x: F.embedding(x["indices"], x["weight"]),
        ),
        "causal_attention": (
            {"q": n(2, 9, 12), "k": n(2, 9, 12), "v": n(2, 9, 12)},
            lambda x: attention(x, 3),
        ),
        "causal_attention_long": (
            {"q": n(1, 131, 8), "k": n(1, 131, 8), "v": n(1, 131, 8)},
            lambda x: attention(x, 2),
        ),
        "reshape": ({"x": n(4, 6)}, lambda x: x["x"].reshape(3, -1)),
        "transpose": ({"x": n(2, 3, 5)}, lambda x: x["x"].transpose(-1, 0)),
        "slice": ({"x": n(3, 8, 2)}, lambda x: x["x"][:, 2:7]),
        "sum_axes": ({"x": n(3, 5, 7)}, lambda x: x["x"].sum((0, 2))),
        "sum_all": ({"x": n(3, 5, 7)}, lambda x: x["x"].sum()),
        "mean_kept": ({"x": n(3, 5, 7)}, lambda x: x["x"].mean((1,), keepdim=True)),
    }


def op_fixtures(out: Arrays) -> None:
    rng = np.random.default_rng(2)
    for name, (inputs, operation) in op_cases(rng).items():
        found = []
        upstream: np.ndarray | None = None
        for dtype in (torch.float64, torch.float32):
            x = {
                key: torch.tensor(array, dtype=dtype, requires_grad=True)
                if array.dtype == np.float32
                else torch.tensor(array)
                for key, array in inputs.items()
            }
            result = operation(x)
            if upstream is None:  # the loss is the sum of the result times this
                upstream = rng.standard_normal(tuple(result.shape)).astype(np.float32)
            (result * torch.tensor(upstream, dtype=dtype)).sum().backward()
            found.append(
                {"result": result}
                | {f"gradient/{key}": value.grad for key, value in x.items() if value.requires_grad}
            )
        out[f"op/{name}/upstream"] = upstream
        out.update({f"op/{name}/input/{key}": array for key, array in inputs.items()})
        for key in found[0]:
            keep(out, f"op/{name}/{key}", found[0][key], found[1][key])


# ====== bfloat16 and float16 ======


def half_cases(
    rng: np.random.Generator,
) -> dict[str, tuple[Arrays, Callable[[dict[str, torch.Tensor]], torch.Tensor]]]:
    """Name to inputs and the operation; with an even and an odd number of rows to a sample."""

    def n(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def linear_cross_entropy(x: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = F.linear(x["hidden"], x["weight"])
        return F.cross_entropy(logits.flatten(0, 1), x["targets"].flatten(), reduction="sum")

    cases: dict[str, tuple[Arrays, Callable[[dict[str, torch.Tensor]], torch.Tensor]]] = {}
    for length in (16, 15):
        cases[f"linear_{length}"] = (
            {"x": n(3, length, 67), "weight": n(33, 67), "bias": n(33)},
            lambda x: F.linear(x["x"], x["weight"], x["bias"]),
        )
        cases[f"causal_attention_{length}"] = (
            {name: n(2, length, 24) for name in "qkv"},
            lambda x: attention(x, 3),
        )
        cases[f"linear_cross_entropy_{length}"] = (
            {
                "hidden": n(2, length, 48),
                "weight": 0.1 * n(21, 48),
                "targets": rng.integers(0, 21, (2, length)),
            },
            linear_cross_entropy,
        )
    return cases


def bf16_fixtures(out: Arrays) -> None:
    half_fixtures(out, "bf16", torch.bfloat16, np.random.default_rng(4))


def f16_fixtures(out: Arrays) -> None:
    half_fixtures(out, "f16", torch.float16, np.random.default_rng(5))


def half_fixtures(out: Arrays, prefix: str, dtype: torch.dtype, rng: np.random.Generator) -> None:
    for name, (inputs, operation) in half_cases(rng).items():
        x = {
            key: torch.tensor(array, requires_grad=array.dtype == np.float32)
            for key, array in inputs.items()
        }
        with torch.autocast("cpu", dtype):
            result = operation(x)
        upstream = rng.standard_normal(tuple(result.shape)).astype(np.float32)
        (result * torch.tensor(upstream)).sum().backward()
        out[f"{prefix}/{name}/upstream"] = upstream
        out.update({f"{prefix}/{name}/input/{key}": array for key, array in inputs.items()})
        out[f"{prefix}/{name}/result"] = result.detach().float().numpy()
        out.update(
            {f"{prefix}/{name}/gradient/{key}": leaf.grad.numpy() for key, leaf in x.items() if leaf.requires_grad}
        )


def write(name: str, *make: Callable[[Arrays], None]) -> None:
    """Writes the arrays that the functions make to a file."""
    if torch.__version__.split("+")[0] != TORCH_VERSION:
        raise SystemExit(f"PyTorch is {torch.__version__}; the fixtures are made with {TORCH_VERSION}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out: Arrays = {"magic": np.array(MAGIC), "format": np.array(FORMAT)}
    for fixture in make:
        fixture(out)
    path = Path(__file__).with_name(name)
    np.savez_compressed(path, **out)
    print(f"{path.name}: {len(out)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    write("fixtures.npz", gpt_fixture, op_fixtures, bf16_fixtures, f16_fixtures)
