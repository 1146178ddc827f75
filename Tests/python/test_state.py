"""State of optimizers that is saved and loaded: training goes on to the bit."""

from __future__ import annotations

import copy
import ctypes
import pickle
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from support import INVALID_ARGUMENT, raw
from test_law_properties import OPTIMIZERS

SHAPES = ((7, 5), (11,), (3, 300), (5,))
STATE_NAMES = {
    "sgd": {"momentum_buffer"},
    "lion": {"exp_avg"},
    "lars": {"momentum_buffer"},
    "muon": {"momentum_buffer"},
    "adafactor": {"row_var", "col_var"},
    "adamw8bit": {"exp_avg_code", "exp_avg_scale", "exp_avg_sq_root_code", "exp_avg_sq_root_scale"},
    "custom": {"slot0"},
}


class Training:
    def __init__(self, name: str, arrays: list[np.ndarray] | None = None) -> None:
        rng = np.random.default_rng(1)
        arrays = arrays or [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
        self.parameters = [ga.tensor(x, requires_grad=True) for x in arrays]
        cls, options = OPTIMIZERS[name]
        self.optimizer = cls(self.parameters, **options)
        self.optimizer.schedule = ga.schedules.Plateau(gamma=0.5, patience=1, warmup=2)
        self.accumulator = ga.Accumulator(self.optimizer)

    def train(self, updates: range) -> None:
        """The last parameter is never touched, and the second one is frozen now and then."""
        for update in updates:
            rng = np.random.default_rng(100 + update)
            self.parameters[1].requires_grad = update % 3 != 1
            gradients = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES[:-1]]
            self.accumulator.accumulate_gradients([*gradients, None], 1.0, 1 + update % 4)
            assert not self.accumulator.step().skipped

    def weights(self) -> list[np.ndarray]:
        return [x.numpy().copy() for x in self.parameters]

    def bytes(self) -> list[bytes]:
        return [x.tobytes() for x in self.weights()]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("updates", [0, 4])
def test_training_goes_on_to_the_bit(name, updates):
    whole = Training(name)
    whole.train(range(updates))
    state = pickle.loads(pickle.dumps(whole.optimizer.state_dict()))
    resumed = Training(name, whole.weights())
    resumed.train(range(20, 23))  # it has come to something else
    for parameter, weights in zip(resumed.parameters, whole.weights()):
        parameter.copy_(weights)
    resumed.optimizer.load_state_dict(state)
    assert resumed.optimizer.clock() == updates
    assert resumed.optimizer.next_lr == whole.optimizer.next_lr
    for training in (whole, resumed):
        training.train(range(updates, updates + 4))
    assert resumed.bytes() == whole.bytes()
    assert pickle.dumps(resumed.optimizer.state_dict()) == pickle.dumps(whole.optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_arrays_have_their_names_types_and_shapes(name):
    training = Training(name)
    training.train(range(4))
    state = training.optimizer.state_dict()
    assert state["updates"] == 4
    assert state["weight"] == 1 + 2 + 3 + 4
    # The first two windows are the warm-up, and the mean loss of the next two is 1/3 and 1/4.
    assert state["plateau"] == {"factor": 1.0, "best": 0.25, "bad_count": 0, "cooldown_count": 0}
    assert [state["state"][i]["step"] for i in range(4)] == [4, 3, 4, 0]
    first = state["state"][0]
    assert first["shape"] == SHAPES[0]
    arrays = {key: value for key, value in first.items() if isinstance(value, np.ndarray)}
    assert set(arrays) == STATE_NAMES.get(name, {"exp_avg", "exp_avg_sq"})
    for array in arrays.values():
        assert array.any()
    untouched = [x for x in state["state"][3].values() if isinstance(x, np.ndarray)]
    assert not any(x.any() for x in untouched)


def test_a_state_dict_is_a_copy():
    training = Training("adamw")
    training.train(range(2))
    state = training.optimizer.state_dict()
    before = copy.deepcopy(state)
    training.train(range(2, 4))
    np.testing.assert_array_equal(state["state"][0]["exp_avg"], before["state"][0]["exp_avg"])
    training.optimizer.load_state_dict(state)
    training.train(range(4, 5))
    np.testing.assert_array_equal(state["state"][0]["exp_avg"], before["state"][0]["exp_avg"])


def changed(state: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    place = state
    for key in path[:-1]:
        place = place[key]
    if to is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return state


INVALID, SHAPE = ga.GAInvalidArgumentError, ga.GAShapeError


@pytest.mark.parametrize(
    ("path", "value", "error", "words"),
    [
        (("rule",), "adam", INVALID, '"adam" as the rule, and the optimizer "adamw"'),
        (("rule",), 3, INVALID, "another kind"),
        (("updates",), -1, INVALID, "-1 as the updates"),
        (("updates",), 2**64, INVALID, "another kind"),
        (("updates",), 2**63 - 1, INVALID, "as the updates"),
        (("weight",), float("nan"), INVALID, "their weight"),
        (("weight",), KeyError, INVALID, "lacks 'weight'"),
        (("plateau", "factor"), 1.5, INVALID, "factor"),
        (("plateau", "bad_count"), -1, INVALID, "without an improvement"),
        (("state", 3), KeyError, INVALID, "3 as the number of parameters, and the optimizer 4"),
        (("state", 0), KeyError, INVALID, "lacks 0"),
        (("state", 2, "shape"), (300, 3), SHAPE, "[300, 3] for parameters[2], and the optimizer [3, 300]"),
        (("state", 2, "step"), -5, INVALID, "-5 as the updates of parameters[2]"),
        (("state", 2, "step"), "x", INVALID, "another kind"),
        (("state", 2, "moment_time"), float("inf"), INVALID, "the time of parameters[2]"),
        (("state", 2, "in_moments"), 2, INVALID, "0 or 1"),
        (("state", 2, "exp_avg"), KeyError, INVALID, "1 as the number of slots of parameters[2]"),
        (("state", 2, "extra"), np.zeros(3), INVALID, "3 as the number of slots of parameters[2]"),
        (("state", 2, "exp_avg"), np.zeros((3, 299), np.float32), SHAPE, "[3, 299] for exp_avg of parameters[2]"),
        (("state", 2, "exp_avg"), np.zeros((3, 300)), INVALID, '"float64" as the type of exp_avg'),
        (("state", 2, "exp_avg"), np.array([None] * 900), INVALID, "another kind"),
    ],
)
def test_a_dict_that_is_no_state_is_refused_and_changes_nothing(path, value, error, words):
    training = Training("adamw")
    training.train(range(3))
    state = training.optimizer.state_dict()
    training.train(range(3, 5))
    before = pickle.dumps(training.optimizer.state_dict())
    with pytest.raises(error) as raised:
        training.optimizer.load_state_dict(changed(state, *path, to=value))
    assert words in str(raised.value)
    assert pickle.dumps(training.optimizer.state_dict()) == before


def test_arrays_of_another_layout_are_taken():
    training = Training("adamw")
    training.train(range(3))
    state = training.optimizer.state_dict()
    other = copy.deepcopy(state)
    for own in other["state"].values():
        own["exp_avg"] = np.asfortranarray(own["exp_avg"])
        own["exp_avg_sq"] = own["exp_avg_sq"].astype(">f4")
    training.train(range(3, 5))
    training.optimizer.load_state_dict(other)
    assert pickle.dumps(training.optimizer.state_dict()) == pickle.dumps(state)


def saved(optimizer: ga.Optimizer) -> bytes:
    size = ctypes.c_int64()
    assert raw.ga_optimizer_state_bytes(optimizer.handle, size) == 0
    data = ctypes.create_string_buffer(size.value)
    assert raw.ga_optimizer_save_state(optimizer.handle, data, size.value) == 0
    return data.raw


def test_bytes_in_c():
    """Any address will do; one byte too few or too many is refused, and writes nothing."""
    training = Training("adamw8bit")
    training.train(range(3))
    state = saved(training.optimizer)
    training.train(range(3, 5))
    handle = training.optimizer.handle
    buffer = ctypes.create_string_buffer(len(state) + 9)
    for address in range(ctypes.addressof(buffer), ctypes.addressof(buffer) + 9):
        ctypes.memmove(address, state, len(state))
        assert raw.ga_optimizer_load_state(handle, address, len(state)) == 0
        ctypes.memset(address, 0x5A, len(state))
        assert raw.ga_optimizer_save_state(handle, address, len(state)) == 0
        assert ctypes.string_at(address, len(state)) == state
    buffer = ctypes.create_string_buffer(len(state) + 1)
    for size in (len(state) - 1, len(state) + 1):
        assert raw.ga_optimizer_save_state(handle, buffer, size) == INVALID_ARGUMENT
    assert not any(buffer.raw)


def test_a_rule_cannot_save_or_load_within_its_update():
    found = []

    def rule(parameter, gradient, slots, update):
        for call in (optimizer.state_dict, lambda: optimizer.load_state_dict(state)):
            with pytest.raises(ga.GAStateError) as raised:
                call()
            found.append(str(raised.value))
        parameter -= gradient

    optimizer = ga.CustomOptimizer([ga.tensor([1.0], requires_grad=True)], rule, 0.1)
    state = optimizer.state_dict()
    accumulator = ga.Accumulator(optimizer)
    accumulator.accumulate_gradients([np.ones(1, np.float32)], 0.0, 1)
    assert not accumulator.step().skipped
    assert [x.partition(":")[0] for x in found] == ["save_state", "load_state"]
