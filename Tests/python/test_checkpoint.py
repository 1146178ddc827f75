"""Gradient checkpointing from Python: a block of C calls back into the interpreter."""

import ctypes
import gc
import weakref

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi
from gradaccum import checkpointing as module
from gradaccum.tensor import handles_of

from support import OK, raw


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


def test_what_a_block_has_captured_goes_with_it():
    """Of micro-batch after micro-batch it would be kept until a garbage collection, and it can be large."""
    weight, _ = parameters()
    accumulator = ga.Accumulator(ga.SGD([weight], lr=0.1))
    gc.collect()
    gc.disable()
    try:
        captured = ga.tensor(np.ones(weight.shape, np.float32))
        gone = weakref.ref(captured)
        y = ga.sum(ga.checkpoint(lambda h, mask=captured: h * mask, weight))
        del captured
        accumulator.accumulate(y, weight=1)
        del y
        assert gone() is None
    finally:
        gc.enable()
    accumulator.zero()


def test_an_exception_of_the_block_reaches_the_caller():
    (weight, _) = parameters()

    def broken(h):
        raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError):
        ga.checkpoint(broken, weight)
    with pytest.raises(ga.GAShapeError, match="linear"):
        ga.checkpoint(lambda h: ga.linear(h, ga.zeros((2, 4))), weight)
    assert not module._blocks


class FailsLater:
    """A block that raises when backward runs it again."""

    def __init__(self, error, block=lambda h: ga.multiply(h, h)):
        self.error, self.block, self.runs = error, block, 0

    def __call__(self, h):
        self.runs += 1
        if self.runs > 1:
            raise self.error
        return self.block(h)


ERRORS = [KeyError("not again"), KeyboardInterrupt(), SystemExit(3), ga.GAShapeError("mine"), ga.GALibraryError("mine")]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("call", ["accumulate", "gradients"])
def test_an_exception_in_the_second_run_comes_out_of_backward(error, call):
    weight, bias = parameters()
    accumulator = ga.Accumulator(ga.SGD([weight, bias], lr=0.1))
    error.__cause__ = cause = OSError("why")

    def run(y):
        if call == "accumulate":
            accumulator.accumulate(y, weight=1)
        else:
            ga.gradients(y, [weight])

    y = ga.sum(ga.checkpoint(FailsLater(error), ga.linear(weight, weight, bias)))
    with pytest.raises(type(error)) as caught:
        run(y)
    assert caught.value is error and error.__cause__ is cause
    del caught
    error.__traceback__ = error.__context__ = None
    del y
    gc.collect()
    assert not module._blocks and not _ffi._kept
    accumulator.zero()
    run(ga.sum(ga.checkpoint(lambda h: ga.multiply(h, h), ga.linear(weight, weight, bias))))
    accumulator.zero()
    accumulator.accumulate(ga.sum(ga.linear(weight, weight, bias)), weight=1)
    assert accumulator.step().update_count == 1


def test_an_exception_in_the_second_run_of_a_nested_block_comes_out_of_backward():
    weight, _ = parameters()
    error = KeyError("inner")
    for inner in (FailsLater(error), FailsLater(error, lambda h: ga.relu(h))):
        inner.runs = -1  # the second run of the outer block is the inner's second first run
        y = ga.sum(ga.checkpoint(lambda h: ga.checkpoint(inner, ga.relu(h)), ga.multiply(weight, weight)))
        with pytest.raises(KeyError) as caught:
            ga.gradients(y, [weight])
        assert caught.value is error and inner.runs == 2
        error.__traceback__ = None
        del y, caught
    gc.collect()
    assert not module._blocks


def test_what_a_block_catches_itself_does_not_come_out():
    weight, _ = parameters()

    def forgiving(h):
        with pytest.raises(KeyError):
            ga.checkpoint(FailsLater(KeyError(), lambda h: {}["x"]), h)
        return ga.linear(h, ga.zeros((2, 4)))

    with pytest.raises(ga.GAShapeError, match="linear"):
        ga.checkpoint(forgiving, weight)


def test_an_exception_of_a_call_of_c_is_not_taken_for_that_of_a_later_call():
    weight, _ = parameters()
    y = ga.sum(ga.checkpoint(FailsLater(KeyError("of the call of C")), ga.multiply(weight, weight)))
    out = (ctypes.c_void_p * 1)()
    assert raw.ga_gradients(out, y.handle, handles_of("x", [weight]), 1) != OK
    with pytest.raises(ga.GAStateError, match="used up"):
        ga.gradients(y, [weight])
    assert not _ffi._kept


def test_a_block_that_returns_no_tensor_is_refused():
    weight, _ = parameters()
    with pytest.raises(ga.GADTypeError, match="block returned None"):
        ga.checkpoint(lambda h: None, weight)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("classes", [9, 16384, 16391])
def test_linear_cross_entropy_is_the_two_in_one(classes, compute):
    """There is room between long rows of its logits, in which nothing is ever written."""
    rng = np.random.default_rng(1)
    x, weights = rng.standard_normal((3, 20, 9)), rng.standard_normal((classes, 9))
    labels = np.arange(60).reshape(3, 20) % classes
    found = []
    for fused in (False, True):
        weight = ga.tensor(weights, requires_grad=True)
        hidden = ga.tensor(x, requires_grad=True)
        targets = ga.tensor(labels)
        # What logits then find in their memory.
        poison = ga.tensor(np.full((60, classes + 32), np.nan))
        del poison
        with ga.compute_dtype(compute):
            loss = (
                ga.linear_cross_entropy(hidden, weight, targets, ignore_index=4)
                if fused
                else ga.cross_entropy(ga.linear(hidden, weight), targets, ignore_index=4)
            )
            gradients = ga.gradients(loss, [hidden, weight])
        assert np.isfinite(loss.item())
        found.append((loss.item(), *(gradient.numpy().tobytes() for gradient in gradients)))
    assert found[0] == found[1]


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
