"""Batch norms of PyTorch in a window of micro-batches."""

from __future__ import annotations

import copy
import gc
import pickle

import gradaccum as ga
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import gradaccum.torch as gat  # noqa: E402

SIZES = (5, 3, 8, 2)


def model(momentum: float | None = 0.1) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(4, momentum=momentum), torch.nn.Linear(4, 3))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    size = sum(SIZES)
    return [
        (3 + 2 * torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def window(module: torch.nn.Module, **options) -> gat.Accumulator:
    optimizer = ga.SGD(gat.parameters(module), lr=0.1)
    return gat.Accumulator(optimizer, accumulation_steps=len(SIZES), **options)


def loss(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(module(x), y)


def statistics(module: torch.nn.Module) -> list[np.ndarray]:
    return [x.numpy().copy() for x in module[0].buffers()]


def train(accumulator: gat.Accumulator, module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    for part_x, part_y in zip(x.split(SIZES), y.split(SIZES)):
        with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
            micro_batch.backward(loss(module, part_x, part_y))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_pain_27_running_statistics_are_those_of_the_window(momentum):
    """And not a chain of those of its micro-batches, of which the last one counts most. The norm is the first layer, so
    that its input does not depend on the split."""
    whole, plain, ours = model(momentum), model(momentum), model(momentum)
    accumulator = window(ours)
    gat.BatchNormStatistics(accumulator, ours)
    for x, y in batches(3):
        whole(x)
        for part in x.split(SIZES):
            plain(part)
        before = statistics(ours)
        train(accumulator, ours, x, y)
        assert not any(np.array_equal(a, b) for a, b in zip(before, statistics(ours)))
        for a, b in zip(statistics(ours), statistics(whole)):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert ours[0].momentum == momentum and ours[0].num_batches_tracked == 3
    assert not np.allclose(statistics(plain)[1], statistics(whole)[1], rtol=1e-2)
    ours.eval()
    before = statistics(ours)
    ours(batches(1)[0][0])
    assert all(np.array_equal(a, b) for a, b in zip(before, statistics(ours)))


def test_what_is_dropped_leaves_no_trace():
    module = model()
    accumulator = window(module)
    gat.BatchNormStatistics(accumulator, module)
    x, y = batches(1)[0]
    start = statistics(module)
    bad = x.clone()
    bad[1] = np.nan
    train(accumulator, module, bad, y)
    assert accumulator.last_report.skipped
    with accumulator.micro_batch(weight=2) as micro_batch:
        micro_batch.backward(loss(module, x[:2], y[:2]))
    accumulator.zero()
    assert all(np.array_equal(a, b) for a, b in zip(start, statistics(module)))
    train(accumulator, module, x, y)
    whole = model()
    whole(x)
    for a, b in zip(statistics(module), statistics(whole)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_micro_batch_that_is_dropped_does_not_count():
    module, whole = model(), model()
    accumulator = window(module, isolated=True)
    gat.BatchNormStatistics(accumulator, module)
    x, y = batches(1)[0]
    for index, (part_x, part_y) in enumerate(zip(x.split(SIZES), y.split(SIZES))):
        bad = torch.full_like(part_x, torch.nan)
        with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
            micro_batch.backward(loss(module, bad, part_y))
        with pytest.raises(KeyError), accumulator.micro_batch(weight=len(part_y)):
            module(100 * part_x)
            raise KeyError
        assert accumulator.window().micro_batches == index
        with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
            micro_batch.backward(loss(module, part_x, part_y))
    assert accumulator.last_report.outcome == ga.Outcome.APPLIED
    whole(x)
    for a, b in zip(statistics(module), statistics(whole)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_checkpointing_and_collecting_count_once():
    from torch.utils.checkpoint import checkpoint

    checkpointed, collected, whole = model(), model(), model()
    x, y = batches(1)[0]
    whole(x)
    accumulator = window(checkpointed)
    gat.BatchNormStatistics(accumulator, checkpointed)
    train(accumulator, lambda part: checkpoint(checkpointed, part, use_reentrant=False), x, y)
    accumulator = window(collected, fold_in_backward=False)
    gat.BatchNormStatistics(accumulator, collected)
    for part_x, part_y in zip(x.split(SIZES), y.split(SIZES)):
        loss(collected, part_x, part_y).backward()
        accumulator.collect(len(part_y))
    for module in (checkpointed, collected):
        assert module[0].num_batches_tracked == 1
        for a, b in zip(statistics(module), statistics(whole)):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_copy_of_the_model_is_one_of_pytorch():
    module, whole, plain = model(), model(), model()
    accumulator = window(module)
    gat.BatchNormStatistics(accumulator, module)
    with pytest.raises(ga.GAStateError, match="another BatchNormStatistics"):
        gat.BatchNormStatistics(window(module), module)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    x, y = batches(1)[0]
    for part_x, part_y in zip(x.split(SIZES), y.split(SIZES)):
        with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
            for each in (*copies, plain):
                each(input=3 * part_x)
            micro_batch.backward(torch.nn.functional.cross_entropy(module[1](module[0](input=part_x)), part_y))
    whole(x)
    for a, b in zip(statistics(module), statistics(whole)):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for each in copies:
        for a, b in zip(statistics(each), statistics(plain)):
            np.testing.assert_array_equal(a, b)


def test_it_can_be_closed_and_says_what_it_does_not_take():
    module = model()
    accumulator = window(module)
    taken = gat.BatchNormStatistics(accumulator, module)
    taken.close()
    taken.close()
    plain = model()
    x, y = batches(1)[0]
    train(accumulator, module, x, y)
    for part in x.split(SIZES):
        plain(part)
    for a, b in zip(statistics(module), statistics(plain)):
        np.testing.assert_array_equal(a, b)
    assert not module[0]._forward_hooks and not module[0]._forward_pre_hooks
    gat.BatchNormStatistics(accumulator, module)
    del accumulator
    gc.collect()
    assert not module[0]._forward_hooks and not module[0]._forward_pre_hooks
    accumulator = window(model())
    with pytest.raises(ga.GAInvalidArgumentError, match="no batch norm"):
        gat.BatchNormStatistics(accumulator, torch.nn.Linear(2, 2))
    lazy = torch.nn.Sequential(torch.nn.LazyBatchNorm1d())
    with pytest.raises(ga.GAStateError, match="lazy"):
        gat.BatchNormStatistics(accumulator, lazy)
