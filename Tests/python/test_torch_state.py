"""State of gradaccum.torch's accumulator: training that stops and goes on, through a file, to the bit."""

from __future__ import annotations

import io
from typing import Any

import gradaccum as ga
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)

import gradaccum.torch as gat  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]


def model_of(dtype: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype)


def accumulator_of(model: Any, *, scaled: bool = True, **options: Any) -> gat.Accumulator:
    scaler = ga.LossScaler(2.0**10, growth_interval=3) if scaled else None
    return gat.Accumulator(ga.AdamW(gat.parameters(model), lr=1e-3), loss_scaler=scaler, **options)


def train(model: Any, accumulator: gat.Accumulator, updates: range) -> list[float]:
    """The losses of windows of two micro-batches."""
    losses = []
    for update in updates:
        x = torch.randn((8, 6), generator=torch.Generator().manual_seed(update)).to(model[0].weight.dtype)
        for part in x.split((5, 3)):
            with accumulator.micro_batch(weight=len(part)) as micro_batch:
                micro_batch.backward(model(part).float().square().mean())
        losses.append(accumulator.last_report.loss)
    return losses


def through_a_file(state: Any) -> Any:
    """As torch.load has it that takes nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bits(model: Any) -> list[bytes]:
    return [x.detach().float().numpy().tobytes() for x in model.parameters()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_goes_on_to_the_bit(dtype):
    """Half parameters too, whose master weights the model's own state has not."""
    whole, first, second = (model_of(dtype) for _ in range(3))
    expected = train(whole, accumulator_of(whole, accumulation_steps=2), range(10))
    accumulator = accumulator_of(first, accumulation_steps=2)
    losses = train(first, accumulator, range(5))
    state = through_a_file({"model": first.state_dict(), "training": accumulator.state_dict()})
    train(first, accumulator, range(5, 7))  # which the state is a copy of before
    second.load_state_dict(state["model"])
    resumed = accumulator_of(second, accumulation_steps=2)
    resumed.load_state_dict(state["training"])
    assert losses + train(second, resumed, range(5, 10)) == expected
    assert bits(second) == bits(whole)
    assert resumed.last_report.update_count == 10 and resumed.loss_scaler.scale == 2.0**13


def test_master_weights_come_back_without_a_load_of_the_model():
    first, second = (model_of(torch.bfloat16) for _ in range(2))
    accumulator = accumulator_of(first, accumulation_steps=2)
    train(first, accumulator, range(3))
    accumulator_of(second).load_state_dict(accumulator.state_dict())
    assert bits(first) == bits(second)


def test_window_in_progress_has_no_state():
    model = model_of(torch.float32)
    accumulator = accumulator_of(model, accumulation_steps=2)
    with pytest.raises(ga.GAStateError, match="holds 0 micro-batches is in progress"):
        with accumulator.micro_batch(weight=1):
            accumulator.state_dict()
    with accumulator.micro_batch(weight=1) as micro_batch:
        micro_batch.backward(model(torch.ones(1, 6)).mean())
    with pytest.raises(ga.GAStateError, match="holds 1 micro-batches"):
        accumulator.state_dict()
    accumulator.zero()
    assert accumulator.state_dict()["optimizer"]["updates"] == 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("masters"), "lacks masters"),
        (lambda state: state.update(loss_scaler=None), "the accumulator has a loss scaler"),
        (lambda state: state["masters"].pop(0), "masters have the shapes"),
        (lambda state: state["masters"].update({0: torch.zeros(3)}), "masters have the shapes"),
        (lambda state: state["optimizer"].pop("rule"), "rule"),
        (lambda state: state["optimizer"]["state"][1].pop("exp_avg"), "slots of parameters"),
        (lambda state: state["loss_scaler"].update(scale=3.0), "scale"),
    ],
)
def test_what_is_refused_changes_nothing(spoil, words):
    model, other = (model_of(torch.bfloat16) for _ in range(2))
    accumulator, source = accumulator_of(model, accumulation_steps=2), accumulator_of(other, accumulation_steps=2)
    train(model, accumulator, range(2))
    train(other, source, range(7))
    state = source.state_dict()
    spoil(state)
    before = accumulator.state_dict()
    with pytest.raises(ga.GAInvalidArgumentError, match=words):
        accumulator.load_state_dict(state)
    after = accumulator.state_dict()
    assert repr(after) == repr(before) and bits(model) != bits(other)


def test_state_without_a_scaler_needs_an_accumulator_without_one():
    model, other = (model_of(torch.float32) for _ in range(2))
    state = accumulator_of(model, scaled=False).state_dict()
    with pytest.raises(ga.GAInvalidArgumentError, match="the accumulator has a loss scaler and the state_dict has none"):
        accumulator_of(other).load_state_dict(state)
