"""Arguments that are not of their types: integers that are too large for C, what is no number, no tensor or no sequence,
and copies of what cannot be copied."""

from __future__ import annotations

import copy
import ctypes
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from ctypes import c_double, c_int32, c_int64, c_uint64
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _arguments, _ffi

HUGE = 2**64 + 2


def window(**options: Any) -> ga.Accumulator:
    return ga.Accumulator(ga.SGD([ga.zeros((2,), requires_grad=True)]), **options)


def spoiled() -> ga.Accumulator:
    """Whose step asks the skip handler."""
    accumulator = window()
    accumulator.accumulate_gradients([np.full(2, np.nan, np.float32)], 0.0, 1.0)
    return accumulator


def asked(answer: object) -> None:
    accumulator = spoiled()
    accumulator.set_skip_handler(lambda report: answer)  # type: ignore[arg-type, return-value]
    accumulator.step()


def matrix() -> ga.Tensor:
    return ga.zeros((2, 3))


Call = Callable[[Any], object]

# What takes an integer, the name that sentences have for it, and a value that is right.
INTEGERS: list[tuple[Call, str, int]] = [
    (lambda n: ga.zeros((n,)), r"shape\[0\]", 2),
    (lambda n: ga.zeros((2,), dtype=n), "dtype", ga.float32),
    (lambda n: ga.reshape(matrix(), (3, n)), r"shape\[1\]", 2),
    (lambda n: ga.softmax(matrix(), n), "axis", 1),
    (lambda n: ga.sum(matrix(), n), r"axis\[0\]", 1),
    (lambda n: ga.mean(matrix(), (0, n)), r"axis\[1\]", 1),
    (lambda n: ga.transpose(matrix(), 0, n), "axis_b", 1),
    (lambda n: ga.slice(matrix(), 1, 0, n), "stop", 2),
    (lambda n: ga.cast(matrix(), n), "dtype", ga.float16),
    (lambda n: ga.causal_attention(*[ga.zeros((1, 2, 4))] * 3, n), "heads", 2),
    (lambda n: ga.cross_entropy(matrix(), ga.tensor([0, 1]), ignore_index=n), "ignore_index", 7),
    (lambda n: matrix().normal_(seed=n), "seed", 2**64 - 1),
    (lambda n: matrix().uniform_(seed=n), "seed", 0),
    (lambda n: ga.set_num_threads(n), "count", 1),
    (lambda n: window(accumulation_steps=n), "accumulation_steps", 3),
    (lambda n: window(max_consecutive_skips=n), "max_consecutive_skips", 3),
    (lambda n: setattr(window(), "accumulation_steps", n), "accumulation_steps", 3),
    (lambda n: window().set_ramp([0.0, 5.0], [1, n]), r"accumulation_steps\[1\]", 3),
    (lambda n: window().accumulated_gradient(n), "index", 0),
    (lambda n: window().set_weight(n, 1.0), "micro_batch", 0),
    (lambda n: ga.LossScaler(growth_interval=n), "growth_interval", 3),
    (lambda n: ga.AdamW8bit([ga.zeros((2,), requires_grad=True)], min_8bit_size=n), "min_8bit_size", 3),
    (lambda n: ga.Muon([ga.zeros((2, 2), requires_grad=True)], ns_steps=n), "ns_steps", 3),
    (lambda n: ga.CustomOptimizer([ga.zeros((2,), requires_grad=True)], print, slots=n), "slot_count", 0),
    (lambda n: ga.schedules.Plateau(patience=n).factor(1.0), "patience", 3),
    (lambda n: ga.split_ranges(n, size=10**18), "samples", 7),
    (lambda n: ga.split_ranges(7, size=n), "size", 7),
    (lambda n: ga.split_ranges(7, micro_batches=n), "micro_batches", 7),
    (lambda n: ga.split_ranges(2, token_budget=n, lengths=[1, 2]), "token_budget", 7),
    (lambda n: ga.split_ranges(2, token_budget=9, lengths=[1, n]), r"lengths\[1\]", 7),
    (lambda n: asked(n), "the skip handler's answer", ga.Decision.SKIP),
]


# Values of other types that have a meaning.
MEANT: dict[str, tuple[object, ...]] = {
    "ignore_index": (None,),
    "micro_batches": (None,),
    "size": (None,),
    "token_budget": (None,),
    r"axis\[0\]": (None, [1]),
}


def right(call: Call, value: object) -> None:
    """The call is of use, whatever becomes of it later."""
    try:
        call(value)
    except (ga.GAIndexError, ga.GAStateError, ga.GAInvalidArgumentError) as error:
        assert "it must be a whole number" not in str(error)


@pytest.mark.parametrize(("call", "name", "value"), INTEGERS, ids=lambda x: x if isinstance(x, str) else "")
def test_integers_that_do_not_fit_are_refused(call, name, value):
    before = ga.get_num_threads()
    for number in (HUGE, -HUGE, 2**64, 10**5000):
        with pytest.raises(ga.GAOverflowError, match=f"{name} is .* of type int: it must be a whole number in") as caught:
            call(number)
        assert isinstance(caught.value, OverflowError) and (number != HUGE or str(HUGE) in str(caught.value))
    for other in ("2", 1.0, None, [1], 1j):
        if other in MEANT.get(name, ()):
            continue
        with pytest.raises(ga.GADTypeError, match=f"{name} is .* of type \\w+: it must be a whole number") as caught:
            call(other)
        assert isinstance(caught.value, TypeError)
    right(call, value)
    right(call, np.int64(value) if value < 2**63 else np.uint64(value))
    ga.set_num_threads(before)


@pytest.mark.parametrize("ctype", [c_int32, c_int64, c_uint64])
def test_bounds_of_integers_are_those_of_c(ctype):
    bits = 8 * ctypes.sizeof(ctype)
    low, high = (0, 2**bits - 1) if ctype is c_uint64 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    kind = _arguments.KINDS[ctype]
    for value in (low, high):
        assert kind.checked("x", value) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ga.GAOverflowError, match=rf"x is {value} of type int: .*in {low} \.\.\. {high}"):
            kind.checked("x", value)


def test_32_bits_of_a_python_integer_are_not_taken_for_it():
    for call in (
        lambda: ga.set_num_threads(2**32 + 1),
        lambda: ga.softmax(matrix(), 2**32),
        lambda: ga.sum(matrix(), 2**32),
        lambda: asked(2**40),
    ):
        with pytest.raises(ga.GAOverflowError, match=r"is \d+ of type int"):
            call()


def test_all_integers_and_numbers_of_the_table_are_checked():
    """Of the functions that return a status, and of structs."""
    for name, (restype, argtypes, _) in _ffi.PROTOTYPES.items():
        if restype is _ffi._Status:
            assert not any(kind in (ctypes.c_int16, ctypes.c_uint32, ctypes.c_float) for kind in argtypes), name
    structs = [x for x in vars(_ffi).values() if isinstance(x, type) and issubclass(x, _ffi._Sized) and x is not _ffi._Sized]
    for struct in structs:
        for field in struct._fields_:
            if field[1] in (c_int32, c_int64):
                with pytest.raises(ga.GAOverflowError, match=f"{field[0]} is"):
                    struct(**{field[0]: HUGE})
            if field[1] is c_double:
                with pytest.raises(ga.GADTypeError, match=f"{field[0]} is 'a' of type str: it must be a number"):
                    struct(**{field[0]: "a"})


# ====== Numbers ======

NUMBERS: list[tuple[Call, str]] = [
    (lambda x: window().accumulate(ga.sum(ga.zeros((2,), requires_grad=True)), x), "weight"),
    (lambda x: window().accumulate_gradients([None], x, 1.0), "loss"),
    (lambda x: window().accumulate_gradients([None], 0.0, x), "weight"),
    (lambda x: window().accumulate_gradients([None], 0.0, 1.0, scale=x), "scale"),
    (lambda x: window().accumulate_gradient(0, np.ones(2, np.float32), scale=x), "scale"),
    (lambda x: window().set_weight(0, x), "weight"),
    (lambda x: window(max_grad_norm=x), "max_grad_norm"),
    (lambda x: window().set_ramp([0.0, x], [1, 2]), r"times\[1\]"),
    (lambda x: matrix().fill_(x), "value"),
    (lambda x: matrix().normal_(x, seed=1), "mean"),
    (lambda x: ga.layer_norm(matrix(), eps=x), "eps"),
    (lambda x: ga.SGD([ga.zeros((2,))], lr=x), "learning_rate"),
    (lambda x: setattr(window().optimizer, "lr", x), "learning_rate"),
    (lambda x: setattr(window().optimizer, "scaling", ga.BatchScaling("sqrt", x)), "base_weight"),
    (lambda x: window().optimizer.report_metric(x), "metric"),
    (lambda x: ga.Adam([ga.zeros((2,))], betas=(0.9, x)), r"betas\[1\]"),
    (lambda x: ga.Muon([ga.zeros((2, 2))], ns_coefficients=(1.0, x, 1.0)), r"ns_coefficients\[1\]"),
    (lambda x: ga.Adafactor([ga.zeros((2, 2))], eps=(None, x)), r"eps\[1\]"),
    (lambda x: ga.SGD([{"params": [ga.zeros((2,), requires_grad=True)], "lr_scale": x}]), "learning_rate_scale"),
    (lambda x: ga.WeightAverage(window().optimizer, x), "decay"),
    (lambda x: ga.schedules.Cosine(x).factor(1.0), "duration"),
    (lambda x: ga.schedules.Cosine(1.0).factor(x), "clock"),
    (lambda x: ga.schedules.Table([0.0], [x]).factor(1.0), r"factors\[0\]"),
    (lambda x: ga.LossScaler(x), "init_scale"),
    (lambda x: ga.LossScaler().unscale([None], x), "scale"),
]


@pytest.mark.parametrize(("call", "name"), NUMBERS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_no_number_is_refused(call, name):
    for value in ("a", [1.0], np.array([2.0, 3.0]), 1j, ga.zeros(())):
        with pytest.raises(ga.GADTypeError, match=f"{name} is .* of type \\w+: it must be a number") as caught:
            call(value)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(ga.GAOverflowError, match=f"{name} is 10+ ... of type int: it must be a number that fits a float"):
        call(10**400)


def test_betas_of_another_length_are_refused():
    weights = [ga.zeros((2,), requires_grad=True)]
    for betas, error in ((0.9, ga.GADTypeError), ((0.9,), ga.GAInvalidArgumentError), ("ab", ga.GADTypeError)):
        with pytest.raises(error, match="betas"):
            ga.AdamW(weights, betas=betas)


@pytest.mark.parametrize(
    "other", [None, "3", b"3", [1.0], {}, 1j, np.complex64(1), np.array("3"), np.array([None]), object()], ids=repr
)
def test_operators_take_numbers_alone(other):
    x = matrix()
    for call in (
        lambda: x + other,
        lambda: other + x,
        lambda: x - other,
        lambda: other - x,
        lambda: x * other,
        lambda: other * x,
        lambda: x / other,
        lambda: other / x,
    ):
        with pytest.raises(TypeError):
            call()


def test_operators_take_all_real_numbers_and_arrays_of_them():
    x = ga.zeros((2,)) + 1
    ones = (True, 1, 1.0, np.float64(1), np.int8(1), np.bool_(True), np.array(1), np.ones(2), np.ones((), np.float16))
    for one in ones:
        assert (x + one).numpy().tolist() == (one + x).numpy().tolist() == [2, 2]
    with pytest.raises(ga.GAOverflowError, match="operand"):
        x + 10**400


def test_operators_leave_what_they_do_not_know_to_its_own():
    class Other:
        def __radd__(self, other: object) -> str:
            return "mine"

    assert matrix() + Other() == "mine"  # type: ignore[operator]


# ====== Tensors, optimizers and sequences ======

TENSORS: list[tuple[Call, str]] = [
    (lambda x: ga.relu(x), "x"),
    (lambda x: ga.add(matrix(), x), "b"),
    (lambda x: ga.linear(matrix(), x), "weight"),
    (lambda x: ga.linear(matrix(), ga.zeros((4, 3)), x), "bias"),
    (lambda x: ga.sum(x), "x"),
    (lambda x: ga.reshape(x, (2,)), "x"),
    (lambda x: ga.cast(x, ga.float16), "x"),
    (lambda x: ga.gradients(x, [matrix()]), "loss"),
    (lambda x: ga.gradients(matrix(), [x]), r"inputs\[0\]"),
    (lambda x: ga.checkpoint(lambda h: h, x), r"inputs\[0\]"),
    (lambda x: window().accumulate(x, 1), "loss"),
    (lambda x: ga.AdamW([matrix(), x]), r"parameters\[1\]"),
    (lambda x: ga.AdamW([{"params": [x]}]), r"parameters\[0\]"),
    (lambda x: ga.Muon([matrix()], adamw_parameters=[x]), r"adamw_parameters\[0\]"),
]


@pytest.mark.parametrize(("call", "name"), TENSORS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_no_tensor_is_refused(call, name):
    for value in (1.0, 3, "text", b"text", np.zeros((2, 3), np.float32), object()):
        with pytest.raises(ga.GADTypeError, match=f"{name} is .* of type \\w+: it must be a Tensor") as caught:
            call(value)
        assert isinstance(caught.value, TypeError)
    closed = matrix()
    closed.close()
    with pytest.raises(ga.GAInvalidArgumentError, match="closed"):
        call(closed)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: ga.Accumulator(x), "optimizer"),
        (lambda x: ga.WeightAverage(x), "optimizer"),
        (lambda x: ga.AdamW(x), "parameters"),
        (lambda x: ga.Muon(x), "parameters"),
        (lambda x: ga.AdamW([{"params": x}]), "parameters"),
        (lambda x: ga.zeros(x), "shape"),
        (lambda x: ga.reshape(matrix(), x), "shape"),
        (lambda x: window().set_ramp(x, [1]), "times"),
        (lambda x: window().set_ramp([1.0], x), "accumulation_steps"),
        (lambda x: matrix().set_name(x), "name"),
        (lambda x: ga.gelu(matrix(), x), "approximate"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_other_kinds_are_refused_by_name(call, name):
    for value in (5, matrix(), object()):
        with pytest.raises(ga.GAError, match=f"{name}.* is .*: it must be") as caught:
            call(value)
        assert isinstance(caught.value, (TypeError, ValueError))


def opened() -> ga.Accumulator:
    accumulator = window()
    accumulator.micro_batch()
    return accumulator


def load_with(accumulator: ga.Accumulator, **parts: object) -> None:
    accumulator.load_state_dict({**accumulator.state_dict(), **parts})


def assigned(name: str, to: Callable[[], object]) -> Call:
    return lambda x: setattr(to(), name, x)


@pytest.mark.parametrize(
    ("call", "name", "needed"),
    [
        (lambda x: window(isolated=x), "isolated", "True or False"),
        (lambda x: window(count_underflow=x), "count_underflow", "True or False"),
        (lambda x: ga.sum(matrix(), keepdims=x), "keepdims", "True or False"),
        (lambda x: ga.LossScaler(dynamic=x), "dynamic", "True or False"),
        (assigned("requires_grad", matrix), "requires_grad", "True or False"),
        (lambda x: ga.zeros((2,), requires_grad=x), "requires_grad", "True or False"),
        (lambda x: ga.tensor([1.0], requires_grad=x), "requires_grad", "True or False"),
        (lambda x: ga.from_numpy(np.ones(2, np.float32), requires_grad=x), "requires_grad", "True or False"),
        (lambda x: ga.from_dlpack(np.ones(2, np.float32), requires_grad=x), "requires_grad", "True or False"),
        (lambda x: ga.from_dlpack(np.ones(2, np.float32), read_only=x), "read_only", "True or False"),
        (lambda x: window(step_when_due=x), "step_when_due", "True or False"),
        (assigned("step_when_due", window), "step_when_due", "True or False"),
        (lambda x: window(normalization=x), "normalization", "'weight' or 'sum'"),
        (lambda x: window(loss_reduction=x), "loss_reduction", "'sum' or 'mean'"),
        (lambda x: window().end_data(x), "tail", "'step' or"),
        (lambda x: window().optimizer.clock(x), "clock", "'updates' or 'weight'"),
        (lambda x: window(skip_handler=x), "skip_handler", "a function"),
        (lambda x: window(retry_handler=x), "retry_handler", "a function"),
        (lambda x: ga.checkpoint(x, matrix()), "function", "a function"),
        (lambda x: ga.CustomOptimizer([matrix()], x), "rule", "a function"),
        (lambda x: window(loss_scaler=x), "loss_scaler", "a LossScaler"),
        (assigned("schedule", lambda: window().optimizer), "schedule", "one of gradaccum.schedules"),
        (assigned("scaling", lambda: window().optimizer), "scaling", "a BatchScaling"),
        (lambda x: window().load_state_dict(x), "state_dict", "what state_dict"),
        (lambda x: ga.WeightAverage(window().optimizer).load_state_dict(x), "state_dict", "what state_dict"),
        (lambda x: ga.LossScaler().load_state_dict(x), "state", "what state_dict"),
        (lambda x: load_with(window(loss_scaler=ga.LossScaler()), loss_scaler=x), r"state_dict\['loss_scaler'\]", "what state_dict"),
        (lambda x: ga.tensor([1.0], dtype=x), "dtype", "a DType"),
        (lambda x: window().accumulate_gradients([np.ones(2, np.float32)], 0.0, 1.0, dtype=x), "dtype", "a DType"),
        (lambda x: opened().accumulate_gradient(x, np.ones(2, np.float32)), "index", "a whole number"),
        (lambda x: ga.Tensor.borrow(x), "handle", "the address"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_flags_words_functions_and_objects_are_of_their_kinds(call, name, needed):
    for value in ("no", [], object()):
        with pytest.raises(ga.GAError, match=f"{name} is .*: it must be .*{needed}") as caught:
            call(value)
        assert isinstance(caught.value, (TypeError, ValueError))


def test_what_is_no_array_is_refused():
    for arrays in (5, None, matrix()):
        for call in (
            lambda: window().accumulate_gradients(arrays, 0.0, 1.0),
            lambda: ga.LossScaler().unscale(arrays, 1.0),
        ):
            with pytest.raises(ga.GADTypeError, match="arrays is .*: it must be a sequence"):
                call()
    for data in ("abc", None, [[1], [1, 2]], 2**70, [1j], [object()]):
        for call in (
            lambda: ga.tensor(data),
            lambda: ga.tensor(data, dtype=ga.float32),
            lambda: ga.zeros((2,)).copy_(data),
        ):
            with pytest.raises(ga.GAError, match="are not supported|no array of numbers") as caught:
                call()
            assert isinstance(caught.value, (TypeError, ValueError))
    with pytest.raises(ga.GADTypeError, match="list is no array of numpy"):
        opened().accumulate_gradient(0, [1.0, 2.0])


def test_what_is_refused_leaves_no_trace():
    accumulator = window()
    for weight in ("a", 10**400, -1.0):
        with pytest.raises(ga.GAError):
            accumulator.accumulate_gradients([np.ones(2, np.float32)], 0.0, weight)
    assert accumulator.window().micro_batches == 0
    accumulator.accumulate_gradients([np.ones(2, np.float32)], 0.0, True)
    assert math.isfinite(accumulator.step().gradient_norm)


def failing_rule(*arguments: object) -> None:
    raise KeyError


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ga.relu(3),
        lambda x: ga.softmax(x, HUGE),
        lambda x: ga.softmax(x, 7),
        lambda x: ga.zeros((HUGE,)),
        lambda x: ga.checkpoint(failing_rule, x),
        lambda x: ga.Accumulator(ga.CustomOptimizer([x], failing_rule)).accumulate(3, 1),
        lambda x: stepped(ga.Accumulator(ga.CustomOptimizer([x], failing_rule))),
        lambda x: copy.copy(x),
    ],
)
def test_an_exception_keeps_nothing_once_it_is_handled(call):
    """A cycle through its traceback would keep what its frames hold, which are large, until a garbage collection."""
    gc.collect()
    gc.disable()
    try:
        x = ga.zeros((2,), requires_grad=True)
        gone = weakref.ref(x)
        try:
            call(x)
        except (ga.GAError, KeyError):
            pass
        else:
            pytest.fail("no exception")
        del x
        assert gone() is None
    finally:
        gc.enable()


def stepped(accumulator: ga.Accumulator) -> None:
    accumulator.accumulate_gradients([np.ones(2, np.float32)], 0.0, 1.0)
    accumulator.step()


# ====== Copies ======


def uncopied() -> list[Any]:
    accumulator = window()
    group = ga.SGD([{"params": [ga.zeros((2,), requires_grad=True)]}]).groups[0]
    scaler, average = ga.LossScaler(), ga.WeightAverage(accumulator.optimizer)
    return [
        matrix(), accumulator, accumulator.optimizer, group, scaler, average, accumulator.micro_batch(), ga.Scope()
    ]  # fmt: skip


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_refers_to_the_library_is_not_copied(how):
    for x in uncopied():
        for whole in (x, [x], {"x": x}):
            if how is copy.copy and whole is not x:
                continue
            with pytest.raises(ga.GAUnsupportedError, match=f"{type(x).__name__} is an object of the library"):
                how(whole)
    with pytest.raises(ga.GAUnsupportedError, match=r"numpy\(\)"):
        how(matrix())
    with pytest.raises(ga.GAUnsupportedError, match=r"state_dict\(\)"):
        how(ga.LossScaler())


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_values_are_copied(how):
    accumulator = window()
    for x in (
        ga.schedules.Cosine(10, warmup=3.0), ga.BatchScaling("sqrt", 4.0), accumulator.window(), ga.float16, ga.Decision.RAISE
    ):  # fmt: skip
        assert how(x) == x
    state = how(accumulator.state_dict())
    accumulator.load_state_dict(state)
