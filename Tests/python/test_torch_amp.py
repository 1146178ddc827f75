"""torch.amp through gradaccum.torch: autocast in both half types, and our loss scaler in place of PyTorch's."""

from __future__ import annotations

from typing import Any

import gradaccum as ga
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)

import gradaccum.torch as gat  # noqa: E402

from tally import NO_TRACE, SCALING, TRUE_WEIGHTS  # noqa: E402

LR, CUTS = 1e-2, (7, 1, 4)


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 7))


def batch(update: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(update)
    samples = sum(CUTS)
    return torch.randn((samples, 12), generator=generator), torch.randint(0, 7, (samples,), generator=generator)


def loss_of(model: Any, x: Any, y: Any, dtype: Any) -> Any:
    with torch.amp.autocast("cpu", dtype):
        return functional.cross_entropy(model(x), y)


def accumulator_of(model: Any, **options: Any) -> gat.Accumulator:
    return gat.Accumulator(ga.AdamW(gat.parameters(model), lr=LR), accumulation_steps=len(CUTS), **options)


def train(model: Any, accumulator: gat.Accumulator, dtype: Any, updates: int) -> list[float]:
    """Losses of windows of uneven micro-batches."""
    losses = []
    for update in range(updates):
        x, y = batch(update)
        for part_x, part_y in zip(x.split(CUTS), y.split(CUTS)):
            with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
                micro_batch.backward(loss_of(model, part_x, part_y, dtype))
        losses.append(accumulator.last_report.loss)
    return losses


def difference(a: Any, b: Any) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters()))


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_micro_batches_is_autocast_of_the_whole_batch(dtype):
    """Against torch.optim.AdamW and, in float16, torch.amp.GradScaler. Products round to 2^-8 or 2^-11, and the losses
    of twenty updates are as far apart at most."""
    ours, theirs = mlp(), mlp()
    scaler = ga.LossScaler(2.0**12) if dtype == torch.float16 else None
    losses = train(ours, accumulator_of(ours, loss_scaler=scaler), dtype, 20)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR)
    peers = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype == torch.float16)
    for update, loss in enumerate(losses):
        expected = loss_of(theirs, *batch(update), dtype)
        peers.scale(expected).backward()
        peers.step(optimizer)
        peers.update()
        optimizer.zero_grad()
        assert abs(loss - expected.item()) < (2**-8 if dtype == torch.bfloat16 else 2**-11) * expected.item()


@pytest.mark.law(SCALING)
@pytest.mark.parametrize("fold_in_backward", [True, False])
def test_loss_scale_changes_no_bit_of_a_run_that_does_not_overflow(fold_in_backward):
    plain, scaled = mlp(), mlp()
    options = {"fold_in_backward": fold_in_backward}
    a = train(plain, accumulator_of(plain, **options), torch.bfloat16, 5)
    scaler = ga.LossScaler(2.0**20, growth_interval=2)
    b = train(scaled, accumulator_of(scaled, loss_scaler=scaler, **options), torch.bfloat16, 5)
    assert a == b and difference(plain, scaled) == 0
    assert scaler.scale == 2.0**22, "it has grown twice"


@pytest.mark.law(NO_TRACE)
def test_overflow_in_float16_is_skipped_and_the_scale_goes_down():
    model = mlp()
    scaler = ga.LossScaler(2.0**24, backoff_factor=2.0**-6)
    accumulator = accumulator_of(model, loss_scaler=scaler)
    old = [x.detach().clone() for x in model.parameters()]
    train(model, accumulator, torch.float16, 1)
    assert accumulator.last_report.outcome == ga.Outcome.SKIPPED_OVERFLOW and scaler.scale == 2.0**18
    assert all((a == b).all() for a, b in zip(old, model.parameters()))
    for _ in range(3):
        train(model, accumulator, torch.float16, 1)
    assert accumulator.last_report.outcome == ga.Outcome.APPLIED
    assert accumulator.last_report.update_count >= 1


def test_gradient_that_float16_has_no_room_for_is_kept_by_the_scale():
    """1e-9 is nothing in float16, and 1e-9 times 2^16 is something."""
    gradients = []
    for scaler in (None, ga.LossScaler(2.0**16)):
        weight = nn.Parameter(torch.ones(4))
        optimizer = ga.SGD(gat.parameters([weight]), lr=1.0)
        accumulator = gat.Accumulator(optimizer, loss_reduction="sum", loss_scaler=scaler, step_when_due=False)
        with accumulator.micro_batch(weight=1) as micro_batch:
            half = weight.to(torch.float16)
            micro_batch.backward(half.float().sum() * 1e-9)
        gradients.append(accumulator.accumulated_gradient(0).numpy()[0])
        accumulator.step()
    assert gradients[0] == 0 and gradients[1] == pytest.approx(1e-9, rel=1e-2)


def test_overflown_window_is_computed_again_where_the_loop_can():
    model = mlp()
    scaler = ga.LossScaler(2.0**24, backoff_factor=2.0**-4)
    accumulator = accumulator_of(model, loss_scaler=scaler)
    scales = []

    def again(report: ga.Report) -> bool:
        scales.append(report.loss_scale)
        train_micro_batches()
        return True

    def train_micro_batches() -> None:
        x, y = batch(0)
        for part_x, part_y in zip(x.split(CUTS), y.split(CUTS)):
            with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
                micro_batch.backward(loss_of(model, part_x, part_y, torch.float16))

    accumulator.set_retry_handler(again)
    train_micro_batches()
    report = accumulator.last_report
    assert report.outcome == ga.Outcome.APPLIED and report.retries == len(scales) >= 1
    assert report.weight == sum(CUTS) and scales[0] == 2.0**24


@pytest.mark.parametrize("fold_in_backward", [True, False])
def test_loss_without_the_scale_is_noticed(fold_in_backward):
    model = mlp()
    accumulator = accumulator_of(model, loss_scaler=ga.LossScaler(), fold_in_backward=fold_in_backward)
    x, y = batch(0)
    with pytest.raises(ga.GAStateError, match="without the loss scale 65536"):
        with accumulator.micro_batch(weight=len(y)):
            functional.cross_entropy(model(x), y).backward()
    accumulator.zero()
    with accumulator.micro_batch(weight=len(y)) as micro_batch:
        micro_batch.scale(functional.cross_entropy(model(x), y)).backward()
    with accumulator.micro_batch(weight=len(y), loss_scale=8.0):  # a scale of the loop's own
        (functional.cross_entropy(model(x), y) * 8).backward()
    functional.cross_entropy(model(x), y).backward()
    accumulator.collect(len(y), loss=1.0)
    assert accumulator.last_report.outcome == ga.Outcome.APPLIED


def test_own_scale_outside_of_the_range_is_refused():
    accumulator = accumulator_of(mlp())
    for scale in (0.0, -1.0, float("nan"), 2.0**65, 2.0**-65):
        with pytest.raises(ga.GAInvalidArgumentError, match="loss_scale"):
            accumulator.micro_batch(weight=1, loss_scale=scale)
