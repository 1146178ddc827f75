"""Losses and weights of PyTorch's micro-batches: what the report says of them, and weights that come after backward."""

from __future__ import annotations

import math
from typing import Any

import gradaccum as ga
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)

import gradaccum.torch as gat  # noqa: E402

from tally import TRUE_WEIGHTS  # noqa: E402

X = torch.randn((9, 6), generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 4, (9,), generator=torch.Generator().manual_seed(2))
CUTS = (5, 1, 3)


def model_of() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def sgd(model: Any, **options: Any) -> gat.Accumulator:
    return gat.Accumulator(ga.SGD(gat.parameters(model), lr=0.5), **options)


def loss_of(model: Any, x: Any = X, y: Any = Y, reduction: str = "mean") -> Any:
    return functional.cross_entropy(model(x), y, reduction=reduction)


def whole_batch() -> tuple[Any, float, float]:
    """The model after torch.optim's update, the loss before it and the norm of its gradient."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss = loss_of(model)
    loss.backward()
    norm = math.sqrt(sum(x.grad.square().sum().item() for x in model.parameters()))
    optimizer.step()
    return model, loss.item(), norm


# ====== Losses ======


def test_loss_that_nobody_gave_is_none_in_the_report():
    model = model_of()
    accumulator = sgd(model, accumulation_steps=2)
    with accumulator.micro_batch(weight=9) as micro_batch:
        micro_batch.backward(loss_of(model))
    assert accumulator.window().loss is not None
    with accumulator.micro_batch(weight=9) as micro_batch:
        assert micro_batch.loss is None
        loss_of(model).backward()
    assert accumulator.last_report.loss is None and accumulator.last_report.gradient_norm > 0
    assert accumulator.window().loss == 0, "nothing is in it"
    losses = []
    for assigned in (False, True):  # the next window knows nothing of that one
        with accumulator.micro_batch(weight=9) as micro_batch:
            loss = loss_of(model)
            losses.append(loss.item())
            if assigned:
                loss.backward()
                micro_batch.loss = loss
            else:
                micro_batch.backward(loss)
    assert accumulator.last_report.loss == pytest.approx(sum(losses) / 2, rel=1e-6)
    loss_of(model).backward()
    accumulator.collect(9)
    with accumulator.micro_batch(weight=0) as micro_batch:
        pass
    assert accumulator.last_report.loss is None


def test_window_that_was_dropped_leaves_its_losses_behind():
    model = model_of()
    accumulator = sgd(model, accumulation_steps=2)
    for drop in (accumulator.zero, lambda: accumulator.end_data("drop")):
        with accumulator.micro_batch(weight=9):
            loss_of(model).backward()
        assert accumulator.window().loss is None
        drop()
        for _ in range(2):
            accumulator.accumulate(loss_of(model), weight=9)
        assert accumulator.last_report.loss > 0


def test_loss_that_is_not_finite_is_in_the_report():
    model = model_of()
    accumulator = sgd(model, accumulation_steps=2)
    with accumulator.micro_batch(weight=9) as micro_batch:
        loss_of(model).backward()
        micro_batch.loss = math.inf
    accumulator.accumulate(loss_of(model), weight=9)
    assert accumulator.last_report.loss == math.inf


def test_loss_is_a_number():
    accumulator = sgd(model_of())
    micro_batch = accumulator.micro_batch(weight=1)
    for bad, words in ((torch.zeros(3), r"a tensor of shape \(3,\)"), ("high", "'high'")):
        with pytest.raises(ga.GAInvalidArgumentError, match=f"loss is {words}: assign a number"):
            micro_batch.loss = bad
    micro_batch.loss = torch.tensor([2.5], requires_grad=True)
    assert micro_batch.loss == 2.5
    for name in ("weight", "loss_scale", "number"):
        with pytest.raises(AttributeError):
            setattr(micro_batch, name, 6)
    for name in ("isolated", "loss_reduction", "max_grad_norm", "optimizer"):
        with pytest.raises(AttributeError):
            setattr(accumulator, name, None)
    micro_batch.abort()


@pytest.mark.parametrize("fold_in_backward", [True, False])
def test_limit_to_the_loss_needs_losses(fold_in_backward):
    model = model_of()
    accumulator = sgd(model, max_loss_z_score=3, outlier_warmup=4, fold_in_backward=fold_in_backward)
    with pytest.raises(ga.GAStateError, match=r"loss is None, and max_loss_z_score 3 .* backward\(loss\)"):
        with accumulator.micro_batch(weight=9) as micro_batch:
            loss_of(model).backward()
    micro_batch.loss = loss_of(model)
    micro_batch.commit()
    loss_of(model).backward()
    gradient = model[0].weight.grad
    with pytest.raises(ga.GAStateError, match="collect: loss is None"):
        accumulator.collect(9)
    assert model[0].weight.grad is gradient
    accumulator.collect(9, loss=1.5)
    with accumulator.micro_batch(weight=0):
        pass
    for step in range(6):
        accumulator.accumulate(loss_of(model, X + 0.1 * step), weight=9)
    assert accumulator.last_report.outcome == ga.Outcome.APPLIED
    with accumulator.micro_batch(weight=9) as micro_batch:
        micro_batch.backward(loss_of(model) * 1e6)
    assert accumulator.last_report.outcome == ga.Outcome.SKIPPED_OUTLIER
    assert accumulator.last_report.loss_z_score > 3


# ====== Weights that come later ======


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"isolated": True},
        {"isolated": True, "fold_in_backward": False},
        {"fold_in_backward": False},
        {"loss_reduction": "sum"},
        {"loss_reduction": "sum", "isolated": True},
        {"loss_reduction": "sum", "fold_in_backward": False},
    ],
    ids=str,
)
def test_weight_may_come_after_backward(options, scaled):
    expected, loss, norm = whole_batch()
    model = model_of()
    scaler = ga.LossScaler(2.0**10) if scaled else None
    accumulator = sgd(model, accumulation_steps=len(CUTS), loss_scaler=scaler, **options)
    for x, y in zip(X.split(CUTS), Y.split(CUTS)):
        with accumulator.micro_batch() as micro_batch:
            micro_batch.backward(loss_of(model, x, y, options.get("loss_reduction", "mean")))
            assert micro_batch.weight is None
            micro_batch.set_weight(len(y))
            assert micro_batch.weight == len(y)
    report = accumulator.last_report
    assert report.outcome == ga.Outcome.APPLIED and (report.weight, report.micro_batches) == (9, len(CUTS))
    assert report.loss == pytest.approx(loss, rel=1e-6) and report.gradient_norm == pytest.approx(norm, rel=1e-5)
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("options", [{"isolated": True}, {"fold_in_backward": False}], ids=str)
def test_weight_that_turns_out_to_be_nothing_adds_nothing(options, scaled):
    """The mean over no token is 0 / 0, which is no overflow."""
    expected, loss, _ = whole_batch()
    model = model_of()
    scaler = ga.LossScaler(2.0**10) if scaled else None
    accumulator = sgd(model, accumulation_steps=2, loss_scaler=scaler, on_non_finite="raise", **options)
    for y, weight in ((torch.full_like(Y, -100), 0), (Y, 9)):
        with accumulator.micro_batch() as micro_batch:
            micro_batch.backward(loss_of(model, X, y))
            micro_batch.set_weight(weight)
            if weight == 0:
                micro_batch.backward(loss_of(model, X, y))
    report = accumulator.last_report
    assert report.outcome == ga.Outcome.APPLIED and (report.weight, report.micro_batches) == (9, 2)
    assert report.loss == pytest.approx(loss, rel=1e-6) and report.loss_scale == (2.0**10 if scaled else 1)
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_weight_of_a_sum_may_come_after_the_micro_batch():
    expected, _, norm = whole_batch()
    model = model_of()
    accumulator = sgd(model, accumulation_steps=len(CUTS), loss_reduction="sum")
    micro_batches = []
    for x, y in zip(X.split(CUTS), Y.split(CUTS)):
        with accumulator.micro_batch() as micro_batch:
            micro_batch.backward(loss_of(model, x, y, "sum"))
        micro_batches.append(micro_batch)
    assert accumulator.sync_gradients and accumulator.last_report is None
    for micro_batch, weight in zip(micro_batches, CUTS):
        micro_batch.set_weight(weight)
    assert accumulator.step().gradient_norm == pytest.approx(norm, rel=1e-5)


def test_weight_that_would_come_too_late_is_refused_in_time():
    model = model_of()
    with pytest.raises(ga.GAStateError, match="micro_batch: weight is None.* isolated=True"):
        sgd(model).micro_batch()
    loss_of(model).backward()
    gradient = model[0].weight.grad
    for options in ({}, {"isolated": True}, {"fold_in_backward": False}):
        accumulator = sgd(model, **options)
        with pytest.raises(ga.GAStateError, match="collect: weight is None"):
            accumulator.collect(None)
        assert model[0].weight.grad is gradient
    accumulator.zero_grad()
    del accumulator
    for options in ({"isolated": True}, {"fold_in_backward": False}):
        accumulator = sgd(model, **options)
        with pytest.raises(ga.GAStateError, match=r"commit: the weight of micro-batch 0 is missing.*set_weight\(\)"):
            with accumulator.micro_batch() as micro_batch:
                loss_of(model).backward()
        for bad in (-1, math.nan):
            with pytest.raises(ga.GAInvalidArgumentError, match="weight is"):
                micro_batch.set_weight(bad)
        accumulator.set_weight(0, 6)
        with pytest.raises(ga.GAStateError, match="micro-batch 0 has the weight 6"):
            micro_batch.set_weight(7)
        micro_batch.commit()
        assert accumulator.last_report.weight == 6
        with pytest.raises(ga.GAStateError, match="micro-batch 0 is over"):
            micro_batch.set_weight(6)
        accumulator.close()
