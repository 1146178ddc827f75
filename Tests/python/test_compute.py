"""The type that operations compute in: how it is set, what it changes, and how far bfloat16 and float16 are from PyTorch's.

Tolerance. The roundoff of bfloat16 is U = 2^-8, that of float16 2^-11: rounding x changes it by at most U |x|, or in
float16 by half of its smallest number. Both sides round the same operands, whose products are exact in float32, add up n of them in float32, and round the result. So two results
differ by at most

    2 U |result|  +  n 2^-23 x the sum of the terms' magnitudes

and by what the cases below add, where an operand was itself computed: probabilities and the gradients of scores and
logits are rounded by both, from values that already differ by the bounds of what came before. Sums are bounded by
sums of magnitudes, in float64 and to first order; SLACK is for what that leaves out.
"""

from __future__ import annotations

import re
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from models import Model, gpt_arrays, gpt_data, gpt_loss, gpt_weight, random_split
from support import ROOT, environment, in_new_process, isas
from test_programs import C_GPT

FIXTURES = np.load(ROOT / "Tests" / "parity" / "fixtures.npz")
SLACK = 1.05

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Half:
    """A type of two bytes to compute in."""

    dtype: ga.DType
    fixtures: str
    roundoff: float
    smallest: float

    def error(self, x: np.ndarray) -> np.ndarray:
        """How far a number may be from the one that it is rounded to."""
        return self.roundoff * np.abs(x) + self.smallest / 2

    def round(self, x: np.ndarray) -> np.ndarray:
        """To the nearest, ties to even, as float64."""
        if self.dtype is ga.float16:
            return np.asarray(x, np.float32).astype(np.float16).astype(np.float64)
        bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)


HALVES = {
    "bfloat16": Half(ga.bfloat16, "bf16", 2.0**-8, 0.0),
    "float16": Half(ga.float16, "f16", 2.0**-11, 2.0**-24),
}


@pytest.fixture(params=HALVES)
def half(request) -> Half:
    return HALVES[request.param]


# ====== Setting it ======


def test_it_is_float32_until_it_is_set():
    assert ga.get_compute_dtype() is ga.float32
    ga.set_compute_dtype(ga.bfloat16)
    try:
        assert ga.get_compute_dtype() is ga.bfloat16
        with ga.compute_dtype("float32"):
            assert ga.get_compute_dtype() is ga.float32
        assert ga.get_compute_dtype() is ga.bfloat16
    finally:
        ga.set_compute_dtype("float32")
    assert ga.get_compute_dtype() is ga.float32


def test_an_exception_brings_the_former_type_back():
    with pytest.raises(KeyError):
        with ga.compute_dtype("bfloat16"):
            raise KeyError
    assert ga.get_compute_dtype() is ga.float32


def test_other_types_are_refused_and_change_nothing():
    with ga.compute_dtype("bfloat16"):
        for wrong in (ga.int32, ga.int64):
            with pytest.raises(ga.GAUnsupportedError, match="float32, bfloat16 or float16"):
                ga.set_compute_dtype(wrong)
        for word in ("bf16", "half", "BFLOAT16", ""):
            with pytest.raises(ga.GAInvalidArgumentError, match="'float32' or 'bfloat16' or 'float16'"):
                with ga.compute_dtype(word):
                    pass
        assert ga.get_compute_dtype() is ga.bfloat16


def test_each_thread_has_its_own():
    found: list[ga.DType] = []

    def other() -> None:
        found.append(ga.get_compute_dtype())
        ga.set_compute_dtype("bfloat16")
        found.append(ga.linear(ga.zeros((1, 2)), ga.zeros((3, 2))).dtype)

    with ga.compute_dtype("bfloat16"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [ga.float32, ga.bfloat16]
    assert ga.get_compute_dtype() is ga.float32


def test_what_is_of_that_type_and_what_is_not(half):
    x, weight = (ga.tensor(np.ones(shape), requires_grad=True) for shape in ((2, 3, 4), (4, 4)))
    targets = ga.tensor(np.zeros((2, 3), np.int64))
    with ga.compute_dtype(half.dtype):
        hidden = ga.linear(x, weight)
        narrow = [
            hidden,
            ga.layer_norm(x),
            ga.causal_attention(x, x, x, 2),
            ga.gelu(hidden),
            ga.relu(hidden),
            hidden + hidden,
            ga.slice(hidden, 2, 0, 2),
        ]
        wide = [
            x + hidden,
            ga.gelu(x),
            ga.softmax(hidden),
            ga.sum(hidden),
            ga.cross_entropy(hidden, targets),
            ga.linear_cross_entropy(hidden, weight, targets),
            *ga.gradients(ga.sum(ga.layer_norm(hidden)), [x, weight]),
        ]
    assert [y.dtype for y in narrow] == [half.dtype] * len(narrow)
    assert [y.dtype for y in wide] == [ga.float32] * len(wide)


def test_a_part_of_a_model_has_a_type_of_its_own(half):
    """As if each operation had been set apart, in backward too."""
    rng = np.random.default_rng(5)
    x = ga.tensor(rng.standard_normal((2, 4, 6)))
    body, head = (ga.tensor(rng.standard_normal((6, 6)), requires_grad=True) for _ in range(2))
    with ga.compute_dtype(half.dtype):
        hidden = ga.linear(x, body)
        with ga.compute_dtype("float32"):
            out = ga.linear(hidden, head)
        again = ga.linear(x, body)
    assert [y.dtype for y in (hidden, out, again)] == [half.dtype, ga.float32, half.dtype]
    narrow = ga.cast(hidden, ga.float32).numpy().reshape(8, 6)
    np.testing.assert_array_equal(again.numpy(), hidden.numpy())
    upstream = rng.standard_normal((8, 6))
    loss = ga.sum(out * ga.tensor(upstream.reshape(2, 4, 6)))
    of_body, of_head = (gradient.numpy() for gradient in ga.gradients(loss, [body, head]))
    upstream = np.float64(np.float32(upstream))
    np.testing.assert_allclose(of_head, upstream.T @ narrow, rtol=1e-5, atol=1e-5)
    exact = half.round((upstream @ head.numpy()).astype(np.float32)).T @ half.round(x.numpy()).reshape(8, 6)
    np.testing.assert_allclose(of_body, exact, rtol=1e-5, atol=2 * half.roundoff)
    assert np.abs(of_head - upstream.T @ (half.round(x.numpy()).reshape(8, 6) @ half.round(body.numpy()).T)).max() > 1e-5


def run_blocks(dtype: ga.DType, *, checkpointing: bool) -> list[bytes]:
    weight = ga.zeros((9, 9), requires_grad=True).normal_(std=0.3, seed=1)
    accumulator = ga.Accumulator(ga.SGD([weight], lr=0.1))
    x = ga.tensor(np.random.default_rng(0).standard_normal((3, 20, 9)))

    def block(h: ga.Tensor) -> ga.Tensor:
        return h + ga.linear(ga.gelu(ga.linear(h, weight)), weight)

    with ga.compute_dtype(dtype):
        h = ga.linear(x, weight)
        for _ in range(3):
            h = ga.checkpoint(block, h) if checkpointing else block(h)
        loss = ga.sum(h * h)
    accumulator.accumulate(loss, weight=3)
    return [np.float64(loss.item()).tobytes(), accumulator.accumulated_gradient(0).numpy().tobytes()]


def test_a_checkpoint_computes_in_the_type_of_its_forward_pass(half):
    """Backward runs it again where the type is another one."""
    assert run_blocks(half.dtype, checkpointing=True) == run_blocks(half.dtype, checkpointing=False)


# ====== Law 1 ======

SPLITS = [[12], [4] * 3, [1] * 12, [5, 5, 2]]


def gpt(context: int) -> tuple[Model, Arrays]:
    model = Model(gpt_arrays(61, 36, context, 2), gpt_loss(3), weight=gpt_weight, max_grad_norm=0.5)
    return model, gpt_data(12, context, 61)


def fingerprint(dtype: ga.DType, context: int, split: list[int], threads: int) -> str:
    before = ga.get_num_threads()
    ga.set_num_threads(threads)
    try:
        with ga.compute_dtype(dtype):
            model, data = gpt(context)
            return model.fingerprint(data, [split, SPLITS[threads % len(SPLITS)]])
    finally:
        ga.set_num_threads(before)


@pytest.mark.parametrize("context", [1, 13, 16, 67])
def test_any_split_and_any_number_of_threads_give_the_same_bits(half, context):
    """In bfloat16 weight gradients multiply in float32 where a sample has an odd number of rows."""
    rng = np.random.default_rng(context)
    expected = fingerprint(half.dtype, context, [12], 1)
    for split in [*SPLITS, random_split(rng, 12), random_split(rng, 12)]:
        for threads in (1, 2, 3, 4):
            assert fingerprint(half.dtype, context, split, threads) == expected, f"split {split}, {threads} threads"
    model, data = gpt(context)
    assert model.fingerprint(data, [[12], [12]]) != expected


def fingerprints(dtype: str, context: int) -> list[str]:
    return [fingerprint(HALVES[dtype].dtype, context, split, 1 + i) for i, split in enumerate(SPLITS)]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("context", [13, 16])
@pytest.mark.parametrize("dtype", HALVES)
def test_each_instruction_set_gives_the_same_bits_for_any_split(isa, dtype, context):
    assert len(set(in_new_process(fingerprints, dtype, context, GRADACCUM_ISA=isa))) == 1


# ====== PyTorch ======


def case(half: Half, name: str) -> tuple[Arrays, np.ndarray]:
    prefix = f"{half.fixtures}/{name}/input/"
    inputs = {key.removeprefix(prefix): FIXTURES[key] for key in FIXTURES.files if key.startswith(prefix)}
    return inputs, FIXTURES[f"{half.fixtures}/{name}/upstream"]


def product_bound(a: np.ndarray, b: np.ndarray, error_a: np.ndarray | float = 0.0) -> np.ndarray:
    """Of a @ b, before it is rounded, whose a is off by error_a."""
    terms = np.abs(a) @ np.abs(b)
    return a.shape[-1] * 2.0**-23 * terms + (np.broadcast_to(error_a, a.shape) @ np.abs(b))


def multiplies_floats(half: Half, length: int) -> bool:
    """Whether the gradient of a weight multiplies in float32, where samples have this many rows."""
    return half.dtype is ga.bfloat16 and length % 2 == 1


def transposed(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def run(half: Half, name: str, operation: Any) -> dict[str, np.ndarray]:
    inputs, upstream = case(half, name)
    x = {key: ga.tensor(array, requires_grad=array.dtype == np.float32) for key, array in inputs.items()}
    with ga.compute_dtype(half.dtype):
        result = operation(x)
    leaves = {key: value for key, value in x.items() if value.requires_grad}
    found = ga.gradients(ga.sum(result * ga.tensor(upstream)), list(leaves.values()))
    return {
        "result": ga.cast(result, ga.float32).numpy(),
        **{f"gradient/{key}": gradient.numpy() for key, gradient in zip(leaves, found)},
    }


def check(half: Half, name: str, found: dict[str, np.ndarray], bounds: dict[str, np.ndarray]) -> None:
    assert found.keys() == bounds.keys()
    for key, ours in found.items():
        reference = FIXTURES[f"{half.fixtures}/{name}/{key}"].astype(np.float64)
        allowed = SLACK * (bounds[key] + 2 * half.error(reference))
        excess = np.abs(ours - reference) / (allowed + 1e-30)
        assert excess.max() <= 1, f"{name}, {key}: {excess.max():.3g} times what is allowed"
        assert np.median(allowed) < 0.1 * np.abs(reference).max(), f"{name}, {key}: a bound that says nothing"


@pytest.mark.parametrize("length", [16, 15])
def test_linear_is_that_of_pytorch(half, length):
    name = f"linear_{length}"
    inputs, upstream = case(half, name)
    x, weight, dy = (half.round(array).reshape(-1, array.shape[-1]) for array in (inputs["x"], inputs["weight"], upstream))
    # PyTorch rounds the bias, and in the gradient of the weight what ours does not for an odd length.
    both = 2 * half.roundoff * np.abs(dy.T) @ np.abs(x) if multiplies_floats(half, length) else 0.0
    bounds = {
        "result": product_bound(x, weight.T) + half.error(inputs["bias"]),
        "gradient/x": product_bound(dy, weight),
        "gradient/weight": product_bound(dy.T, x) + both,
        "gradient/bias": (len(dy) * 2.0**-23 + 2 * half.roundoff) * np.abs(dy).sum(0),
    }
    shaped = {key: bound.reshape(FIXTURES[f"{half.fixtures}/{name}/{key}"].shape) for key, bound in bounds.items()}
    check(half, name, run(half, name, lambda x: ga.linear(x["x"], x["weight"], x["bias"])), shaped)


def heads_of(x: np.ndarray, heads: int) -> np.ndarray:
    batch, time, channels = x.shape
    return x.reshape(batch, time, heads, channels // heads).transpose(0, 2, 1, 3)


def joined(x: np.ndarray) -> np.ndarray:
    batch, heads, time, channels = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, time, heads * channels)


@pytest.mark.parametrize("length", [16, 15])
def test_attention_is_that_of_pytorch(half, length):
    """Probabilities p and the gradients of scores are rounded by both, after or before they are divided by their
    sum; the gradient of a score is p (dp - delta), with a delta that is made of the rounded output."""
    name = f"causal_attention_{length}"
    inputs, upstream = case(half, name)
    q, k, v, dy = (heads_of(half.round(x), 3) for x in (inputs["q"], inputs["k"], inputs["v"], upstream))
    scale = 1 / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(length, dtype=bool), scale * q @ transposed(k), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out_bound = product_bound(p, v, error_a=2 * half.error(p))
    dp = dy @ transposed(v)
    delta = (dp * p).sum(-1, keepdims=True)
    # The upstream itself is rounded where PyTorch makes delta, and not in ours.
    out = np.abs(p @ v)
    delta_bound = (np.abs(dy) * (out_bound + 3 * half.error(out))).sum(-1, keepdims=True)
    ds = p * (dp - delta)
    ds_bound = p * delta_bound + 2 * half.error(ds)
    bounds = {
        "result": out_bound,
        "gradient/q": scale * product_bound(ds, k, error_a=ds_bound),
        "gradient/k": scale * product_bound(transposed(ds), q, error_a=transposed(ds_bound)),
        "gradient/v": product_bound(transposed(p), dy, error_a=2 * half.error(transposed(p))),
    }
    check(
        half,
        name,
        run(half, name, lambda x: ga.causal_attention(x["q"], x["k"], x["v"], 3)),
        {key: joined(bound) for key, bound in bounds.items()},
    )


@pytest.mark.parametrize("length", [16, 15])
def test_linear_cross_entropy_is_that_of_pytorch(half, length):
    """Logits z are rounded by both, so that their softmax p is off by p times what they and their mean under p are;
    the gradient of the logits is rounded again."""
    name = f"linear_cross_entropy_{length}"
    inputs, upstream = case(half, name)
    hidden, weight = (half.round(inputs[key]).reshape(-1, 48) for key in ("hidden", "weight"))
    targets = np.eye(21)[inputs["targets"].ravel()]
    z = hidden @ weight.T
    z_bound = product_bound(hidden, weight.T) + 2 * half.error(z)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean_bound = (p * z_bound).sum(-1, keepdims=True)
    dz = float(upstream) * (p - targets)
    dz_bound = abs(float(upstream)) * p * (z_bound + mean_bound) + 2 * half.error(dz)
    hidden_bound = product_bound(dz, weight, error_a=dz_bound)
    bounds = {
        "result": (mean_bound + (targets * z_bound).sum(-1, keepdims=True)).sum(),
        "gradient/hidden": hidden_bound.reshape(inputs["hidden"].shape),
        # Ours multiplies hidden states as they are where the length is odd.
        "gradient/weight": product_bound(dz.T, hidden, error_a=dz_bound.T)
        + multiplies_floats(half, length) * half.roundoff * np.abs(dz.T) @ np.abs(hidden),
    }
    found = run(half, name, lambda x: ga.linear_cross_entropy(x["hidden"], x["weight"], x["targets"]))
    check(half, name, found, bounds)


# ====== Learning ======

SMALL_GPT = (
    "--layers 2 --channels 64 --heads 2 --context 33 --batch 8 --updates 200 --warmup 20 --learning-rate 3e-3 "
    "--eval-every 20 --sample 0"
).split()


def validation_losses(text: Path, seed: int, compute: str, sums: str = "f32") -> list[float]:
    """After every 20 updates."""
    command = [*C_GPT, "--text", str(text), *SMALL_GPT, "--seed", str(seed), "--compute", compute, "--sums", sums]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"^update .* validation ([0-9.]+) ", done.stdout, re.MULTILINE)]
    assert len(losses) == 10, done.stdout
    return losses


def test_half_precision_learns_as_float32_does(tmp_path):
    """On the King James Bible, all along the way: from float32 with the same seed it is never further than float32
    with different seeds is from itself. float16 has a loss scale, which starts too high. The same of sums in bfloat16."""
    text = tmp_path / "text.txt"
    subprocess.run([str(ROOT / "examples" / "text.sh"), str(text)], check=True)
    wide = np.array([validation_losses(text, seed, "f32") for seed in (1, 2, 3, 4)])
    noise = np.ptp(wide, axis=0)
    assert (noise < 0.5).all() and (wide[:, -1] < wide[:, 0] - 0.5).all()
    for half in HALVES.values():
        narrow = np.array([validation_losses(text, seed, half.fixtures) for seed in (1, 2)])
        assert (np.abs(narrow - wide[:2]) <= noise).all(), half
        assert (narrow != wide[:2]).any()
    for sums in ("bf16-stochastic", "bf16-kahan"):
        rounded = np.array(validation_losses(text, 1, "f32", sums))
        assert (np.abs(rounded - wide[0]) <= noise).all(), sums
