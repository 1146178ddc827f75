"""Optimizers with a rule of the caller."""

from __future__ import annotations

import ctypes
import gc
import weakref
from ctypes import c_void_p

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi, custom

from calls import World, descend, elements, handles, leaf, made, ok
from support import INVALID_ARGUMENT, STATE, expect, in_child, raw


def momentum(parameter, gradient, slots, update):
    slots[0][:] = np.float32(0.9) * slots[0] + np.float32(update.gradient_scale) * gradient
    parameter -= np.float32(update.lr) * slots[0]


def gradients(update, *shapes):
    rng = np.random.default_rng(update)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("elementwise", [False, True])
def test_rule_does_what_the_same_rule_of_the_library_does(elementwise):
    shapes = [(3, 5), (70_000,), (0, 4), ()]
    own, theirs = ([ga.zeros(shape) for shape in shapes] for _ in range(2))
    a = ga.Accumulator(ga.CustomOptimizer(own, momentum, lr=0.1, slots=1, elementwise=elementwise))
    b = ga.Accumulator(ga.SGD(theirs, lr=0.1, momentum=0.9))
    for update in range(1, 6):
        arrays = gradients(update, *shapes)
        for accumulator in (a, b):
            accumulator.accumulate_gradients(arrays, 0.0, 3)
            assert accumulator.step().update_count == update
    for x, y in zip(own, theirs):
        # Three roundings per update, of numbers below 1.
        np.testing.assert_allclose(x.numpy(), y.numpy(), atol=5 * 3 * 2**-24)


def test_rule_is_told_what_it_is_called_for():
    told = []

    def rule(parameter, gradient, slots, update):
        told.append((update, len(parameter), len(slots)))
        assert not gradient.flags.writeable

    parameters = [ga.zeros((2, 3)), ga.zeros((4,))]
    optimizer = ga.CustomOptimizer(parameters, rule, lr=0.5, weight_decay=0.1)
    accumulator = ga.Accumulator(optimizer)
    accumulator.accumulate_gradients([None, np.ones(4, np.float32)], 0.0, 4)
    accumulator.step()
    optimizer.lr = 0.25
    accumulator.accumulate_gradients([np.ones((2, 3), np.float32), np.ones(4, np.float32)], 0.0, 1)
    accumulator.step()
    assert told == [
        (ga.Update(update=1, parameter=1, start=0, lr=0.5, gradient_scale=0.25, weight_decay=0.1), 4, 0),
        (ga.Update(update=1, parameter=0, start=0, lr=0.25, gradient_scale=1.0, weight_decay=0.1), 6, 0),
        (ga.Update(update=2, parameter=1, start=0, lr=0.25, gradient_scale=1.0, weight_decay=0.1), 4, 0),
    ]


def test_pieces_of_an_elementwise_rule_are_the_whole():
    pieces = []

    def rule(parameter, gradient, slots, update):
        pieces.append((update.parameter, update.start, len(parameter)))
        slots[2][:] = 1

    accumulator = ga.Accumulator(
        ga.CustomOptimizer([ga.zeros((100_000,)), ga.zeros((7,))], rule, slots=3, elementwise=True)
    )
    accumulator.accumulate_gradients([np.ones(100_000, np.float32), np.ones(7, np.float32)], 0.0, 1)
    accumulator.step()
    assert sorted(pieces) == [(0, 0, 32768), (0, 32768, 32768), (0, 65536, 32768), (0, 98304, 1696), (1, 0, 7)]


@pytest.mark.parametrize("elementwise", [False, True])
def test_exception_of_a_rule_is_raised_by_the_step(elementwise):
    class Mine(Exception):
        pass

    fail = True

    def rule(parameter, gradient, slots, update):
        parameter += 1
        if fail and update.parameter == 1:
            raise Mine("not today")

    parameters = [ga.zeros((2,)) for _ in range(3)]
    accumulator = ga.Accumulator(ga.CustomOptimizer(parameters, rule, elementwise=elementwise))
    ones = [np.ones(2, np.float32)] * 3
    accumulator.accumulate_gradients(ones, 0.0, 1)
    with ga_threads(1), pytest.raises(Mine, match="not today"):
        accumulator.step()
    # What the rule has written stays; the window is gone, and the update does not count.
    assert [x.numpy().tolist() for x in parameters] == [[1, 1], [1, 1], [0, 0]]
    with pytest.raises(ga.GAStateError, match="empty"):
        accumulator.step()
    fail = False
    accumulator.accumulate_gradients(ones, 0.0, 1)
    assert accumulator.step().update_count == 1
    assert [x.numpy().tolist() for x in parameters] == [[2, 2], [2, 2], [1, 1]]


class ga_threads:
    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = ga.get_num_threads()
        ga.set_num_threads(self.count)

    def __exit__(self, *exception: object) -> None:
        ga.set_num_threads(self.before)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), KeyError(1), ga.GAShapeError("mine")], ids=repr)
@pytest.mark.parametrize("function", ["rule", "skip", "retry"])
def test_what_functions_of_the_caller_raise_comes_out_as_it_is(function, error):
    """With its cause, and without a word about how it got here."""
    error.__cause__ = cause = OSError("why")

    def fails(*arguments):
        raise error

    weights = [ga.zeros((2,), requires_grad=True)]
    optimizer = ga.CustomOptimizer(weights, fails) if function == "rule" else ga.SGD(weights)
    accumulator = ga.Accumulator(
        optimizer,
        loss_scaler=ga.LossScaler(4.0) if function == "retry" else None,
        skip_handler=fails if function == "skip" else None,
        retry_handler=fails if function == "retry" else None,
    )
    accumulator.accumulate_gradients([np.full(2, 1 if function == "rule" else np.nan, np.float32)], 0.0, 1.0)
    with pytest.raises(type(error)) as caught:
        accumulator.step()
    assert caught.value is error and error.__cause__ is cause and error.__context__ is None
    assert not _ffi._kept and accumulator.window().micro_batches == 0
    error.__traceback__ = None


def test_rule_lives_as_long_as_its_optimizer():
    gc.collect()
    before = len(custom._rules)
    x = ga.zeros((2,))
    accumulator = ga.Accumulator(ga.CustomOptimizer([x], lambda *arguments: None))
    assert len(custom._rules) == before + 1
    with pytest.raises(ga.GAStateError):
        ga.CustomOptimizer([x], lambda *arguments: None)
    assert len(custom._rules) == before + 1, "the rule of an optimizer that was refused is forgotten"
    accumulator.accumulate_gradients([np.ones(2, np.float32)], 0.0, 1)
    accumulator.step()
    accumulator.close()
    accumulator.optimizer.close()
    del accumulator
    gc.collect()
    assert len(custom._rules) == before


def test_what_a_rule_has_captured_goes_with_it():
    """And waits for no garbage collection."""
    gc.collect()
    gc.disable()
    try:
        captured = ga.zeros((2,))
        gone = weakref.ref(captured)
        optimizer = ga.CustomOptimizer([ga.zeros((2,))], lambda *arguments, captured=captured: None)
        optimizer.close()
        del captured, optimizer
        assert gone() is None
    finally:
        gc.enable()


# ====== Through C ======


def window(w: World, update: object, **options: float) -> tuple[int, int, int]:
    """A parameter, an accumulator of a rule, with a micro-batch in its window, and the optimizer."""
    parameter = leaf(np.ones(2))
    optimizer = made(
        raw.ga_custom_create,
        handles(parameter),
        1,
        update,
        None,
        _ffi.UserReleaseFn(),
        _ffi.CustomOptions(**options),
    )
    accumulator = made(raw.ga_accumulator_create, optimizer, None)
    gradient = np.full(2, 3, np.float32)
    ok(raw.ga_accumulate_gradients(accumulator, handles(gradient.ctypes.data), 1, _ffi.FLOAT32, 0.0, 2.0))
    return parameter, accumulator, optimizer


@in_child
def test_function_of_c_is_called():
    parameter, accumulator, _ = window(World(), descend, learning_rate=0.5)
    report = _ffi.Report()
    ok(raw.ga_step(accumulator, report))
    assert elements(parameter).tolist() == [0.25, 0.25] and report.update_count == 1


@pytest.mark.parametrize(("returned", "status"), [(-4, STATE), (7, INVALID_ARGUMENT), (-77, INVALID_ARGUMENT)])
@pytest.mark.parametrize("elementwise", [0, 1])
@in_child
def test_status_of_the_function_is_that_of_the_step(returned, status, elementwise):
    w = World()
    update = _ffi.UpdateFn(lambda *arguments: returned)
    parameter, accumulator, _ = window(w, update, elementwise=elementwise)
    expect(raw.ga_step(accumulator, None), status, "custom", "update")
    assert elements(parameter).tolist() == [1, 1]
    expect(raw.ga_step(accumulator, None), STATE, "empty")
    w.check()


@in_child
def test_function_cannot_step_its_own_accumulator():
    found = []

    def update(*arguments):
        found.append(raw.ga_step(accumulator, None))
        ok(raw.ga_optimizer_set_learning_rate(optimizer, 0.125))
        raw.ga_optimizer_free(optimizer)
        raw.ga_accumulator_free(accumulator)
        return 0

    w = World()
    function = _ffi.UpdateFn(update)
    _, accumulator, optimizer = window(w, function)
    ok(raw.ga_step(accumulator, None))
    assert found == [STATE]
    w.check()


@in_child
def test_user_is_released_once_and_only_after_success():
    released = []
    release = _ffi.UserReleaseFn(released.append)
    parameter = leaf(np.ones(2))

    def create(count: int) -> tuple[int, int | None]:
        out = c_void_p()
        status = raw.ga_custom_create(
            ctypes.byref(out), handles(parameter), count, descend, 42, release, None
        )
        return status, out.value

    assert create(0)[0] == INVALID_ARGUMENT and not released
    status, optimizer = create(1)
    ok(status)
    assert create(1)[0] == STATE and not released
    accumulator = made(raw.ga_accumulator_create, optimizer, None)
    raw.ga_optimizer_free(optimizer)
    assert not released, "the accumulator needs it"
    raw.ga_accumulator_free(accumulator)
    assert released == [42]
