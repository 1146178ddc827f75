"""The same numbers as PyTorch, from the fixtures of Tests/parity/make_fixtures.py."""

from __future__ import annotations

from collections.abc import Callable

import gradaccum as ga
import numpy as np
import pytest

from models import EPS, IGNORED, Model, gpt_loss, gpt_weight, micro_batches, part
from parity import FACTOR, Fixtures

FIXTURES = Fixtures("fixtures.npz")
names, check = FIXTURES.names, FIXTURES.check


def test_the_bounds_would_catch_a_small_mistake():
    FIXTURES.check_bounds()


# ====== GPT ======

VOCABULARY, CHANNELS, HEADS, CONTEXT = 64, 32, 4, 16
PARAMETERS = names("gpt/initial/")


def gpt(**options: float) -> Model:
    return Model(
        {name: FIXTURES[f"gpt/initial/{name}"] for name in PARAMETERS},
        gpt_loss(HEADS),
        weight=gpt_weight,
        options={"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1},
        **options,
    )


def gpt_batch(update: int) -> dict[str, np.ndarray]:
    return {name: FIXTURES[f"gpt/{name}"][update] for name in ("tokens", "targets")}


def gpt_split(update: int) -> list[int]:
    return [int(size) for size in FIXTURES["gpt/splits"][update] if size]


def test_gpt_loss_and_every_gradient():
    model = gpt()
    data = gpt_batch(0)
    loss = model.loss(model.parameters, data)
    found = ga.gradients(loss * (1 / gpt_weight(data)), list(model.parameters.values()))
    check_scalar("gpt/losses", 0, loss.item() / gpt_weight(data))
    for name, gradient in zip(PARAMETERS, found):
        check(f"gpt/gradient/{name}", gradient.numpy())


def test_gpt_accumulated_gradients():
    """The window's sum divided by its weight is the gradient of the mean over the whole batch, however uneven
    the tokens of the micro-batches are."""
    model = gpt()
    data = gpt_batch(0)
    for micro_batch in micro_batches(data, [1, 3, 2]):
        model.accumulate(micro_batch)
    for i, name in enumerate(PARAMETERS):
        sum_ = model.accumulator.accumulated_gradient(i).numpy()
        check(f"gpt/gradient/{name}", sum_ / np.float32(gpt_weight(data)))


def check_scalar(name: str, index: int, ours: float) -> None:
    reference = FIXTURES[name][index]
    bound = FACTOR * float(FIXTURES[f"{name}:max"]) + 2.0**-23 * abs(reference)
    assert abs(ours - reference) <= bound, f"{name}[{index}]: {ours} and not {reference}"


def test_gpt_trained_for_20_updates():
    """Loss and gradient norm of every update, and the weights after the last. PyTorch clips with
    max_norm / (norm + 1e-6), which differs from max_norm / norm by less than 1e-6 of the gradient: far below
    what is allowed of a weight, as AdamW hardly depends on the gradient's scale."""
    model = gpt(max_grad_norm=1.3)
    clipped = 0
    for update in range(len(FIXTURES["gpt/losses"])):
        data = gpt_batch(update)
        report = model.window(data, gpt_split(update))
        check_scalar("gpt/losses", update, report.loss)
        check_scalar("gpt/norms", update, report.gradient_norm)
        expected = min(1.0, 1.3 / FIXTURES["gpt/norms"][update])
        assert abs(report.clip_factor - expected) <= 2e-6
        assert report.weight == gpt_weight(data) and report.update_count == update + 1
        assert report.micro_batches == len(gpt_split(update))
        clipped += report.clip_factor < 1
    assert 0 < clipped < 20
    for name in PARAMETERS:
        check(f"gpt/final/{name}", model.parameters[name].numpy())


# ====== Operations ======

Inputs = dict[str, ga.Tensor]
OPERATIONS: dict[str, Callable[[Inputs], ga.Tensor]] = {
    "add": lambda x: ga.add(x["a"], x["b"]),
    "subtract": lambda x: ga.subtract(x["a"], x["b"]),
    "multiply": lambda x: ga.multiply(x["a"], x["b"]),
    "divide": lambda x: ga.divide(x["a"], x["b"]),
    "matmul": lambda x: ga.matmul(x["a"], x["b"]),
    "matmul_batched": lambda x: ga.matmul(x["a"], x["b"]),
    "linear": lambda x: ga.linear(x["x"], x["weight"], x["bias"]),
    "linear_rows": lambda x: ga.linear(x["x"], x["weight"]),
    "layer_norm": lambda x: ga.layer_norm(x["x"], x["weight"], x["bias"], EPS),
    "layer_norm_plain": lambda x: ga.layer_norm(x["x"], eps=EPS),
    "gelu_tanh": lambda x: ga.gelu(x["x"], "tanh"),
    "gelu_erf": lambda x: ga.gelu(x["x"]),
    "relu": lambda x: ga.relu(x["x"]),
    "softmax_last": lambda x: ga.softmax(x["x"]),
    "softmax_inner": lambda x: ga.softmax(x["x"], 1),
    "cross_entropy_sum": lambda x: ga.cross_entropy(x["logits"], x["targets"]),
    "cross_entropy_mean_ignore": lambda x: ga.cross_entropy(
        x["logits"], x["targets"], ignore_index=4, reduction="mean"
    ),
    "mse_sum": lambda x: ga.mse(x["a"], x["b"]),
    "mse_mean": lambda x: ga.mse(x["a"], x["b"], reduction="mean"),
    "embedding": lambda x: ga.embedding(x["weight"], x["indices"]),
    "causal_attention": lambda x: ga.causal_attention(x["q"], x["k"], x["v"], 3),
    "causal_attention_long": lambda x: ga.causal_attention(x["q"], x["k"], x["v"], 2),
    "reshape": lambda x: ga.reshape(x["x"], (3, -1)),
    "transpose": lambda x: ga.transpose(x["x"], -1, 0),
    "slice": lambda x: ga.slice(x["x"], 1, 2, 7),
    "sum_axes": lambda x: ga.sum(x["x"], (0, 2)),
    "sum_all": lambda x: ga.sum(x["x"]),
    "mean_kept": lambda x: ga.mean(x["x"], 1, keepdims=True),
}


def test_every_operation_of_the_fixtures_is_tested():
    assert set(OPERATIONS) == {name.partition("/")[0] for name in names("op/")}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_and_its_gradients(name):
    inputs = {key: FIXTURES[f"op/{name}/input/{key}"] for key in names(f"op/{name}/input/")}
    x = {key: ga.tensor(array, requires_grad=array.dtype == np.float32) for key, array in inputs.items()}
    result = OPERATIONS[name](x)
    check(f"op/{name}/result", result.numpy())
    leaves = {key: value for key, value in x.items() if value.requires_grad}
    loss = ga.sum(result * ga.tensor(FIXTURES[f"op/{name}/upstream"]))
    for key, gradient in zip(leaves, ga.gradients(loss, list(leaves.values()))):
        check(f"op/{name}/gradient/{key}", gradient.numpy())


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_takes_views(name):
    """Operands that are no contiguous arrays give the result of those that are, to the last bit."""
    inputs = {key: FIXTURES[f"op/{name}/input/{key}"] for key in names(f"op/{name}/input/")}

    def scattered(array: np.ndarray) -> ga.Tensor:
        wide = np.zeros((*array.shape, 3), array.dtype) if array.ndim else np.zeros(3, array.dtype)
        wide[..., 1] = array
        return ga.from_numpy(wide[..., 1])

    def upside_down(array: np.ndarray) -> ga.Tensor:
        if array.ndim < 2:
            return ga.tensor(array)
        return ga.transpose(ga.tensor(np.swapaxes(array, 0, 1).copy()), 0, 1)

    expected = OPERATIONS[name]({key: ga.tensor(array) for key, array in inputs.items()}).numpy()
    for view in (scattered, upside_down):
        found = OPERATIONS[name]({key: view(array) for key, array in inputs.items()}).numpy()
        assert found.tobytes() == expected.tobytes(), view.__name__


def test_ignored_targets_are_worth_nothing():
    """A batch in which every target is ignored: no loss, no gradient, a mean without a divisor is NaN as in
    PyTorch's, and no weight."""
    model = gpt()
    data = part(gpt_batch(0), 0, 2)
    data["targets"] = np.full_like(data["targets"], IGNORED)
    assert model.loss(model.parameters, data).item() == 0
    model.accumulate(data)
    assert model.accumulator.step().outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT
