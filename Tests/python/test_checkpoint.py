"""Gradient checkpointing from Python: a block of C calls back into the interpreter."""

import gc

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import checkpointing as module


def parameters():
    return [ga.zeros(shape, requires_grad=True).normal_(std=0.3, seed=i) for i, shape in enumerate([(9, 9), (9,)])]


def loss(weight, bias, x, run):
    def block(h):
        return ga.add(h, ga.gelu(ga.linear(h, weight, bias)))

    h = ga.linear(x, weight, bias)
    for _ in range(4):
        h = run(block, h)
    return ga.sum(ga.multiply(h, h))


def gradients(run):
    weight, bias = parameters()
    accumulator = ga.Accumulator(ga.SGD([weight, bias], lr=0.1))
    x = ga.tensor(np.random.default_rng(0).standard_normal((3, 20, 9)))
    accumulator.accumulate(loss(weight, bias, x, run), weight=3)
    return [accumulator.accumulated_gradient(i).numpy().tobytes() for i in range(2)]


def test_same_bits_with_and_without():
    assert gradients(ga.checkpoint) == gradients(lambda block, h: block(h))


def test_blocks_are_released():
    gradients(ga.checkpoint)
    gc.collect()
    assert not module._blocks


def test_an_exception_of_the_block_reaches_the_caller():
    (weight, _) = parameters()

    def broken(h):
        raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError):
        ga.checkpoint(broken, weight)
    with pytest.raises(ga.GAShapeError, match="linear"):
        ga.checkpoint(lambda h: ga.linear(h, ga.zeros((2, 4))), weight)
    assert not module._blocks


def test_an_exception_in_the_second_run_is_an_error_of_accumulate():
    weight, bias = parameters()
    accumulator = ga.Accumulator(ga.SGD([weight, bias], lr=0.1))
    runs = []

    def fails_later(h):
        runs.append(h)
        if len(runs) > 1:
            raise RuntimeError("not again")
        return ga.multiply(h, h)

    y = ga.sum(ga.checkpoint(fails_later, ga.linear(weight, weight, bias)))
    with pytest.raises(ga.GAError, match="block returned 1"):
        accumulator.accumulate(y, weight=1)
    accumulator.zero()
    accumulator.accumulate(ga.sum(ga.linear(weight, weight, bias)), weight=1)
    assert accumulator.step().update_count == 1


def test_linear_cross_entropy_is_the_two_in_one():
    rng = np.random.default_rng(1)
    found = []
    for fused in (False, True):
        weight, _ = parameters()
        x = ga.tensor(rng.standard_normal((3, 20, 9)) if not found else found[0][2])
        values = x.numpy()
        targets = ga.tensor(np.arange(60).reshape(3, 20) % 9)
        accumulator = ga.Accumulator(ga.SGD([weight], lr=0.1))
        value = (
            ga.linear_cross_entropy(x, weight, targets, ignore_index=4)
            if fused
            else ga.cross_entropy(ga.linear(x, weight), targets, ignore_index=4)
        )
        accumulator.accumulate(value, weight=60)
        found.append((value.item(), accumulator.accumulated_gradient(0).numpy().tobytes(), values))
    assert found[0][:2] == found[1][:2]


def test_a_block_may_hand_on_a_parameter():
    for through_activation in (False, True):
        weight, _ = parameters()
        h = ga.multiply(weight, weight) if through_activation else weight
        loss = ga.sum(ga.checkpoint(lambda x: weight, h))
        assert (ga.gradients(loss, [weight])[0].numpy() == 1).all()


def test_a_leaf_that_stops_being_one_in_the_middle_gets_its_gradient():
    weight, _ = parameters()
    runs = []

    def block(x):
        runs.append(x)
        if len(runs) > 1:
            weight.requires_grad = False
        return ga.multiply(x, x)

    h = ga.multiply(weight, weight)
    gradient = ga.gradients(ga.sum(ga.checkpoint(block, h)), [weight])[0].numpy()
    assert np.allclose(gradient, 4 * weight.numpy() ** 3)
