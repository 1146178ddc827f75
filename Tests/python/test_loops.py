"""Loops as users of PyTorch and Accelerate write them: micro-batches that know their weight, and names that are known."""

from __future__ import annotations

import gradaccum as ga
import numpy as np
import pytest

RNG = np.random.default_rng(8)
SAMPLES, FEATURES, CLASSES = 24, 5, 3
X = RNG.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, SAMPLES)


def weights() -> list[ga.Tensor]:
    return [ga.zeros((CLASSES, FEATURES)).normal_(std=0.3, seed=3), ga.zeros((CLASSES,))]


def trained(cuts: list[int], steps: int, epochs: int = 2, **options) -> tuple[list[np.ndarray], list[ga.Report]]:
    """The weights after epochs over the samples, cut at these places, and the reports of the windows."""
    params = weights()
    acc = ga.Accumulator(ga.AdamW(params, lr=3e-2), accumulation_steps=steps, max_grad_norm=0.5, **options)
    batches = [(ga.tensor(x), ga.tensor(y)) for x, y in zip(np.split(X, cuts), np.split(Y, cuts))]
    reduction = options.get("loss_reduction", "sum")

    def model(x: ga.Tensor, y: ga.Tensor) -> ga.Tensor:
        return ga.cross_entropy(ga.linear(x, *params), y, reduction=reduction)

    reports = []
    for _ in range(epochs):
        for x, y in batches:
            n_tokens = y.shape[0]
            with acc.micro_batch(weight=n_tokens) as mb:  # commits on exit, aborts on an exception
                mb.backward(model(x, y))
            if acc.sync_gradients:
                reports.append(acc.last_report)
    return [x.numpy() for x in params], reports


@pytest.mark.law("split invariance", "true weights")
def test_a_loop_of_micro_batches_steps_by_itself_and_does_not_depend_on_the_cut():
    whole, reports = trained([], 1)
    assert [(x.outcome, x.weight, x.micro_batches) for x in reports] == [(ga.Outcome.APPLIED, SAMPLES, 1)] * 2
    assert reports[1].loss < reports[0].loss and reports[0].clip_factor < 1
    for cuts in ([3, 20], [1, 2], list(range(1, SAMPLES))):
        found, windows = trained(cuts, len(cuts) + 1)
        assert all(map(np.array_equal, found, whole))
        assert [x.weight for x in windows] == [SAMPLES] * 2
    means, _ = trained([3, 20], 3, loss_reduction="mean")
    for found, expected in zip(means, whole):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def one(**options) -> tuple[ga.Tensor, ga.Accumulator]:
    w = ga.zeros((2,))
    return w, ga.Accumulator(ga.SGD([w], lr=1.0), **options)


def test_gradients_are_synced_in_the_last_micro_batch_of_a_window_and_after_it():
    w, acc = one(accumulation_steps=2)
    said = [acc.sync_gradients]
    for _ in range(4):
        with acc.micro_batch(weight=1) as mb:
            said.append(acc.sync_gradients)
            mb.backward(ga.sum(w))
        said.append(acc.sync_gradients)
    assert said == [False, False, False, True, True] + [False, False, True, True]
    assert acc.last_report.update_count == 2 and w.numpy().tolist() == [-2, -2]
    acc.accumulate(ga.sum(w), weight=1)
    assert not acc.sync_gradients
    acc.zero()
    assert not acc.sync_gradients and acc.last_report.update_count == 2


def test_a_step_that_is_left_to_the_loop():
    w, acc = one(accumulation_steps=2, step_when_due=False, max_grad_norm=1.0)
    for _ in range(2):
        with acc.micro_batch(weight=2) as mb:
            mb.backward(ga.sum(w) * 6)
        assert acc.last_report is None
    assert acc.sync_gradients
    with pytest.raises(ga.GAInvalidArgumentError, match="max_norm is 2.0 .* max_grad_norm 1.0"):
        acc.clip_grad_norm_(2.0)
    assert acc.clip_grad_norm_(1.0) == pytest.approx(3 * 2**0.5)
    acc.step()
    acc.zero_grad()
    assert acc.sync_gradients and acc.last_report.clip_factor == pytest.approx(1 / (3 * 2**0.5))
    acc.accumulate(ga.sum(w), weight=1)
    acc.zero_grad()  # drops nothing
    assert acc.window().micro_batches == 1
    acc.zero()


def test_loop_that_steps_is_told_where_the_micro_batch_has_stepped():
    w, acc = one(accumulation_steps=2, max_grad_norm=1.0)
    calls = {"step": acc.step, "clip_grad_norm_": lambda: acc.clip_grad_norm_(1.0), "unscale": acc.unscale}

    def refused(words: str) -> None:
        for name, call in calls.items():
            with pytest.raises(ga.GAStateError, match=f"{name}: {words}.*step_when_due=False") as found:
                call()
            assert ("max_grad_norm" in str(found.value)) == (name == "clip_grad_norm_")

    for number in range(2):
        with acc.micro_batch(weight=2) as mb:
            mb.backward(ga.sum(w))
            refused(f"micro-batch {number} is open, .* with statement")
    refused("the window is empty, .* with statement.* has taken the step, see last_report")
    assert acc.last_report.update_count == 1 and acc.end_data().outcome == ga.Outcome.EMPTY
    acc.accumulate(ga.sum(w), weight=2)
    assert acc.step().update_count == 2  # a window may be stepped early
    with pytest.raises(ga.GAStateError, match="accumulate a micro-batch first"):
        acc.step()


def test_what_was_settled_at_creation_is_not_assigned():
    w, acc = one(max_grad_norm=1.0)
    for name in ("optimizer", "loss_reduction", "max_grad_norm"):
        with pytest.raises(AttributeError):
            setattr(acc, name, getattr(acc, name))
    acc.loss_scaler = ga.LossScaler(64.0)
    assert acc.window().loss_scale == 64 and acc.state_dict()["loss_scaler"] is not None
    acc.loss_scaler = None
    with acc.micro_batch(weight=2) as mb:
        mb.backward(ga.sum(w))
        for name in ("weight", "number"):
            with pytest.raises(AttributeError):
                setattr(mb, name, 6)
    assert acc.last_report.loss_scale == 1 and acc.last_report.weight == 2


def test_micro_batches_without_a_weight_leave_the_step_to_the_loop():
    w, acc = one()
    with acc.micro_batch() as mb:
        acc.accumulate(ga.sum(w), weight=3)
    assert acc.step_due and acc.sync_gradients and acc.last_report is None
    assert acc.step().weight == 3
    with acc.micro_batch() as mb:
        mb.backward(ga.sum(w))
    mb.set_weight(4)
    assert acc.step() == acc.last_report and acc.last_report.weight == 4


def test_losses_of_one_micro_batch_have_its_weight_together():
    w, acc = one()
    with acc.micro_batch(weight=4) as mb:
        mb.backward(ga.sum(w) * 2)
        mb.backward(ga.sum(w) * 6)
    assert acc.last_report.weight == 4 and w.numpy().tolist() == [-2, -2]
    w, acc = one(loss_reduction="mean")
    mb = acc.micro_batch(weight=4)
    mb.backward(ga.mean(w))
    with pytest.raises(ga.GAStateError, match="add them up"):
        mb.backward(ga.mean(w))
    mb.commit()
    assert acc.last_report.weight == 4


def test_a_weight_without_a_loss_is_refused_at_the_commit():
    w, acc = one(isolated=True)
    mb = acc.micro_batch(weight=4)
    with pytest.raises(ga.GAStateError, match="weight 4 and no loss"):
        mb.commit()
    acc.accumulate(ga.sum(w), weight=4)
    with pytest.raises(ga.GAStateError, match="backward"):
        mb.commit()
    mb.abort()
    assert not acc.sync_gradients and acc.window().aborted_micro_batches == 1


@pytest.mark.law("a skip leaves no trace")
def test_an_exception_aborts_the_micro_batch_and_no_step_is_taken():
    w, acc = one(isolated=True, accumulation_steps=2)
    with acc.micro_batch(weight=1) as mb:
        mb.backward(ga.sum(w))
    with pytest.raises(KeyError), acc.micro_batch(weight=1) as mb:
        mb.backward(ga.sum(w) * 100)
        raise KeyError("of the loop")
    assert not acc.sync_gradients and acc.last_report is None
    with acc.micro_batch(weight=1) as mb:
        mb.backward(ga.sum(w) * 3)
    assert acc.last_report.aborted_micro_batches == 1 and w.numpy().tolist() == [-2, -2]


def test_the_tail_of_the_data_is_the_last_report():
    w, acc = one(accumulation_steps=3)
    acc.begin_data()
    with acc.micro_batch(weight=1) as mb:
        mb.backward(ga.sum(w))
    carried = acc.end_data("carry")
    assert carried.outcome == ga.Outcome.PENDING and acc.last_report is None
    stepped = acc.end_data()
    assert acc.last_report == stepped and acc.end_data().outcome == ga.Outcome.EMPTY and acc.last_report == stepped


def test_a_window_that_is_computed_again_steps_once():
    w = ga.zeros((2,))
    scaler = ga.LossScaler(2.0**10)
    acc = ga.Accumulator(ga.SGD([w], lr=1.0), accumulation_steps=2, loss_scaler=scaler)
    factors = [1.0, 2.0**120]

    def window(report=None) -> bool:
        for factor in factors:
            with acc.micro_batch(weight=1) as mb:
                mb.backward(ga.sum(w) * factor)
        return True

    acc.set_retry_handler(window)
    window()
    assert acc.last_report.retries >= 1 and acc.last_report.update_count == 1
    assert acc.last_report.outcome == ga.Outcome.APPLIED and acc.sync_gradients


# ====== State ======


@pytest.mark.parametrize("scaled", [False, True])
def test_state_goes_on_to_the_bit(scaled):
    def make() -> tuple[list[ga.Tensor], ga.Accumulator]:
        params = weights()
        scaler = ga.LossScaler(1024.0, growth_interval=2) if scaled else None
        return params, ga.Accumulator(ga.AdamW(params, lr=1e-2), loss_scaler=scaler)

    def update(params: list[ga.Tensor], acc: ga.Accumulator) -> None:
        with acc.micro_batch(weight=SAMPLES) as mb:
            mb.backward(ga.cross_entropy(ga.linear(ga.tensor(X), *params), ga.tensor(Y)))

    params, acc = make()
    update(params, acc)
    state, then = acc.state_dict(), [x.numpy() for x in params]
    update(params, acc)
    again, resumed = make()
    for tensor, values in zip(again, then):
        tensor.copy_(values)
    resumed.load_state_dict(state)
    update(again, resumed)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(params, again))
    assert resumed.last_report == acc.last_report
    if scaled:
        assert resumed.loss_scaler.scale == acc.loss_scaler.scale == 2048


def test_state_that_does_not_fit_is_refused_and_changes_nothing():
    w, acc = one(loss_scaler=ga.LossScaler(64.0))
    state = acc.state_dict()
    for damaged, words in (
        ({}, "lacks loss_scaler, optimizer"),
        ({**state, "loss_scaler": None}, "accumulator has a loss scaler"),
        ({**state, "loss_scaler": {**state["loss_scaler"], "scale": 32.0}, "optimizer": {}}, "lacks"),
    ):
        with pytest.raises(ga.GAInvalidArgumentError, match=words):
            acc.load_state_dict(damaged)
    assert acc.loss_scaler.scale == 64
    _, plain = one()
    with pytest.raises(ga.GAInvalidArgumentError, match="state_dict has a loss scaler"):
        plain.load_state_dict(state)
    acc.accumulate(ga.sum(w), weight=1)
    with pytest.raises(ga.GAStateError, match="1 micro-batches is in progress"):
        acc.state_dict()
    acc.zero()
    with acc.micro_batch(weight=1) as mb:
        with pytest.raises(ga.GAStateError, match="in progress"):
            acc.state_dict()
        mb.abort()


@pytest.mark.parametrize("way", ["end of the data", "retry"])
def test_a_micro_batch_that_was_dropped_with_its_window_is_not_open(way):
    weight, accumulator = one(accumulation_steps=1, loss_scaler=ga.LossScaler(4.0))

    def add(value: float) -> None:
        accumulator.accumulate_gradients([np.full(weight.shape, value, np.float32)], 0.0, 1.0)

    def left_open(report: ga.Report) -> bool:
        accumulator.micro_batch(weight=1.0)
        add(1.0)
        return True

    if way == "retry":
        accumulator.set_retry_handler(left_open)
        add(np.inf)
        with pytest.raises(ga.GAStateError, match="micro-batch 0 is open"):
            accumulator.step()
    else:
        accumulator.micro_batch(weight=1.0)
        add(1.0)
        assert accumulator.end_data("drop").outcome == ga.Outcome.DROPPED
    accumulator.state_dict()
    add(1.0)
    assert accumulator.step().outcome == ga.Outcome.APPLIED


def test_a_micro_batch_that_is_over_touches_no_other():
    weight, accumulator = one(isolated=True)
    stale = accumulator.micro_batch()
    accumulator.zero()
    current = accumulator.micro_batch()
    accumulator.accumulate_gradients([np.ones(weight.shape, np.float32)], 0.0, 1.0)
    for call in (stale.commit, stale.abort, lambda: stale.backward(ga.sum(weight))):
        with pytest.raises(ga.GAStateError, match="micro-batch 0 is not open"):
            call()
    assert accumulator.window().micro_batches == 0
    current.commit()
    with pytest.raises(ga.GAStateError, match="backward: micro-batch 0 is not open"):
        current.backward(ga.sum(weight))
    with pytest.raises(ga.GAStateError, match="with: micro-batch 0 is not open"):
        with current:
            pytest.fail("what is accumulated here would be a micro-batch of its own")
    assert accumulator.window().micro_batches == 1
    with accumulator.micro_batch():
        accumulator.zero()
