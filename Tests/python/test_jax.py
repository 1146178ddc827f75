"""Training loops of JAX through gradaccum.jax: pytrees in and out, and arrays that never change."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from support import environment

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

import gradaccum.jax as gaj  # noqa: E402

from support import error_of_importing, in_new_process  # noqa: E402

LR, CUTS = 1e-2, (5, 1, 2)


def parameters() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "hidden": {"weight": jnp.asarray(rng.standard_normal((6, 8)) / 3, jnp.float32), "bias": jnp.zeros(8)},
        "head": [jnp.asarray(rng.standard_normal((8, 3)) / 3, jnp.float32), jnp.zeros(3)],
    }


def mean_loss(params: dict[str, Any], x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
    logits = hidden @ params["head"][0] + params["head"][1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()


loss_and_gradients = jax.value_and_grad(mean_loss)


def batch(update: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(update)
    samples = sum(CUTS)
    return jnp.asarray(rng.standard_normal((samples, 6)), jnp.float32), jnp.asarray(
        rng.integers(0, 3, samples)
    )


def sgd(leaves: list[ga.Tensor]) -> ga.SGD:
    return ga.SGD(leaves, lr=LR, momentum=0.9)


def test_uneven_micro_batches_give_the_update_of_the_whole_batch():
    split = gaj.Accumulator(parameters(), sgd, accumulation_steps=len(CUTS))
    expected, momentum = parameters(), jax.tree.map(jnp.zeros_like, parameters())
    for update in range(10):
        x, y = batch(update)
        start = 0
        for size in CUTS:
            loss, gradients = loss_and_gradients(
                split.params, x[start : start + size], y[start : start + size]
            )
            split.accumulate(gradients, weight=size, loss=loss)
            start += size
            assert split.sync_gradients == (start == len(y))
        loss, gradients = loss_and_gradients(expected, x, y)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
        expected = jax.tree.map(lambda p, m: p - LR * m, expected, momentum)
        assert split.last_report.loss == pytest.approx(float(loss), rel=1e-5)
    assert jax.tree.structure(split.params) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(split.params), jax.tree.leaves(expected)):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_arrays_of_before_an_update_stay_as_they_were():
    given = parameters()
    copies = jax.tree.map(lambda leaf: np.array(leaf), given)
    accumulator = gaj.Accumulator(given, sgd)
    held = []
    for update in range(3):
        before = accumulator.params
        assert accumulator.params is before, "made once for each update"
        held.append((before, jax.tree.map(lambda leaf: np.array(leaf), before)))
        accumulator.accumulate(loss_and_gradients(before, *batch(update))[1], weight=8)
        assert accumulator.params is not before
    for arrays, values in [*held, (given, copies)]:
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(arrays), jax.tree.leaves(values)))


def test_gradients_are_read_where_they_are():
    accumulator = gaj.Accumulator(parameters(), sgd, step_when_due=False)
    gradients = loss_and_gradients(accumulator.params, *batch(0))[1]
    for leaf in jax.tree.leaves(gradients):
        assert gaj.Accumulator._array("a", leaf).ctypes.data == leaf.unsafe_buffer_pointer()
    accumulator.accumulate(gradients, weight=8)
    before = ga.memory_usage()
    for _ in range(5):
        accumulator.accumulate(gradients, weight=8)
    after = ga.memory_usage()
    assert (after.live_bytes, after.allocator_calls) == (before.live_bytes, before.allocator_calls)


def test_bfloat16_parameters_are_updated_in_float32():
    accumulator = gaj.Accumulator(
        {"w": jnp.ones(3, jnp.bfloat16)}, lambda p: ga.SGD(p, lr=1e-4), loss_reduction="sum"
    )
    for _ in range(100):
        accumulator.accumulate({"w": jnp.ones(3, jnp.bfloat16)}, weight=1)
    assert accumulator.params["w"].dtype == jnp.bfloat16
    assert np.allclose(accumulator.optimizer.parameters[0].numpy(), 0.99, atol=1e-5)
    assert np.allclose(np.asarray(accumulator.params["w"], np.float32), 0.99, atol=4e-3)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("loss", [math.nan, None])
def test_means_over_nothing_add_nothing(isolated, loss):
    """Of a micro-batch that is all padding, such as one of the last: they are NaN, and the window would be lost."""
    x, y = batch(0)
    accumulator, expected = (gaj.Accumulator(parameters(), sgd, accumulation_steps=n, isolated=isolated) for n in (2, 1))
    value, gradients = loss_and_gradients(accumulator.params, x, y)
    accumulator.accumulate(jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), gradients), weight=0, loss=loss)
    for each in (accumulator, expected):
        each.accumulate(gradients, weight=len(y), loss=value)
    report = accumulator.last_report
    assert (report.outcome, report.micro_batches) == (ga.Outcome.APPLIED, 2)
    assert report.loss == expected.last_report.loss
    for ours, theirs in zip(jax.tree.leaves(accumulator.params), jax.tree.leaves(expected.params)):
        assert np.array_equal(ours, theirs)


def test_losses_and_weights_of_other_kinds_are_named():
    accumulator = gaj.Accumulator({"w": jnp.ones(3)}, sgd)
    for loss in ((jnp.ones(()), {}), jnp.ones(3), "1"):
        with pytest.raises(ga.GADTypeError, match=r"loss is .*: it must be a number"):
            accumulator.accumulate({"w": jnp.ones(3)}, weight=1, loss=loss)
    with pytest.raises(ga.GADTypeError, match=r"weight is .*: it must be a number"):
        accumulator.accumulate({"w": jnp.ones(3)}, weight=jnp.ones(3))
    with pytest.raises(ga.GADTypeError, match=r"state_dict\['masters'\] is None .*: it must be what state_dict"):
        accumulator.load_state_dict({**accumulator.state_dict(), "masters": None})


def test_training_goes_on_to_the_bit():
    """Of bfloat16 parameters too, of which params has not all that is known."""

    def train(accumulator: gaj.Accumulator, updates: range) -> None:
        for update in updates:
            x, y = batch(update)
            for part in (slice(0, 5), slice(5, 8)):
                loss, gradients = loss_and_gradients(accumulator.params, x[part], y[part])
                accumulator.accumulate(gradients, weight=len(y[part]), loss=loss)

    def accumulator_of(params: Any) -> gaj.Accumulator:
        scaler = ga.LossScaler(16.0, growth_interval=2)
        return gaj.Accumulator(params, sgd, accumulation_steps=2, loss_scaler=scaler)

    start = parameters()
    start["head"][0] = start["head"][0].astype(jnp.bfloat16)
    whole, first = accumulator_of(start), accumulator_of(start)
    train(whole, range(9))
    train(first, range(4))
    state = first.state_dict()
    assert list(state["masters"]) == [0]
    second = accumulator_of(first.params)
    train(first, range(4, 6))
    second.load_state_dict(state)
    train(second, range(4, 9))
    for a, b in zip(second._leaves, whole._leaves):
        assert np.array(a).tobytes() == np.array(b).tobytes()
    assert second.last_report.update_count == 9 and second.loss_scaler.scale == 16 * 2**4
    state["masters"] = {}
    with pytest.raises(ga.GAInvalidArgumentError, match="masters have the shapes"):
        first.load_state_dict(state)


def test_loss_scale_of_the_scaler_changes_no_bit():
    results = []
    for scaler in (None, ga.LossScaler(2.0**10)):
        accumulator = gaj.Accumulator(parameters(), sgd, accumulation_steps=2, loss_scaler=scaler)
        for update in range(3):
            for part in (slice(0, 5), slice(5, 8)):
                x, y = (array[part] for array in batch(update))
                scale = accumulator.window().loss_scale
                scaled = jax.grad(lambda *arguments: mean_loss(*arguments) * scale)(accumulator.params, x, y)
                accumulator.accumulate(scaled, weight=len(y), loss_scale=scale)
        results.append([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(accumulator.params)])
    assert results[0] == results[1] and accumulator.last_report.loss_scale == 2.0**10


def test_optimizer_may_have_groups_and_take_leaves_in_its_own_order():
    def optimizer(leaves: list[ga.Tensor]) -> ga.SGD:
        return ga.SGD([{"params": leaves[1:], "lr_scale": 0.0}, {"params": leaves[:1]}], lr=1.0)

    accumulator = gaj.Accumulator([jnp.zeros(2), jnp.zeros(3)], optimizer)
    accumulator.accumulate([jnp.ones(2), jnp.ones(3)], weight=1)
    assert [leaf.tolist() for leaf in accumulator.params] == [[-1, -1], [0, 0, 0]]


def test_mistakes_are_named():
    accumulator = gaj.Accumulator({"a": jnp.zeros(2), "b": jnp.zeros(3)}, sgd)
    with pytest.raises(ga.GAShapeError, match="structure"):
        accumulator.accumulate([jnp.zeros(2)], weight=1)
    with pytest.raises(ga.GADTypeError, match=r"\['b'\] is int32"):
        accumulator.accumulate({"a": jnp.zeros(2), "b": jnp.zeros(3, jnp.int32)}, weight=1)
    with pytest.raises(ga.GAShapeError, match="shape"):
        accumulator.accumulate({"a": jnp.zeros(3), "b": jnp.zeros(3)}, weight=1)
    for dtype in (np.int32, np.float64, np.uint16, np.complex64):
        bad = np.zeros(2, dtype)
        for path, params in (("['a'][1]", {"a": [np.zeros(2, np.float32), bad]}), ("", bad)):
            with pytest.raises(ga.GADTypeError, match=re.escape(f"params{path} is {np.dtype(dtype)}: convert it")):
                gaj.Accumulator(params, sgd)
    with pytest.raises(ga.GADTypeError, match=r"gradients\['b'\] is float64"):
        accumulator.accumulate({"a": jnp.zeros(2), "b": np.zeros(3)}, weight=1)
    for optimizer, words in (
        (lambda leaves: ga.SGD([leaves[0], ga.zeros((3,))]), r"parameters\[1\] of the optimizer is a tensor of else"),
        (lambda leaves: None, "optimizer is a function that returns NoneType"),
        (ga.SGD([ga.zeros((2,))]), "optimizer is a SGD: give a function"),
    ):
        with pytest.raises(ga.GAInvalidArgumentError, match=words):
            gaj.Accumulator({"a": jnp.zeros(2)}, optimizer)
    accumulator.accumulate({"a": jnp.zeros(2), "b": jnp.zeros(3)}, weight=1)
    with pytest.raises(ga.GAStateError, match="has taken the step, see last_report"):
        accumulator.step()


def test_loss_that_nobody_gave_is_none_in_the_report():
    accumulator = gaj.Accumulator(parameters(), sgd, accumulation_steps=2)
    for losses in ((1.0, None), (None, None), (1.0, 3.0), (None, 1.0), (2.0, 2.0)):
        for loss in losses:
            gradients = loss_and_gradients(accumulator.params, *batch(0))[1]
            accumulator.accumulate(gradients, weight=8, loss=loss)
        assert accumulator.last_report.loss == (None if None in losses else 2.0)
    limited = gaj.Accumulator(parameters(), sgd, max_loss_z_score=3)
    with pytest.raises(ga.GAStateError, match="loss is None, and max_loss_z_score 3"):
        limited.accumulate(gradients, weight=8)
    limited.accumulate(gradients, weight=8, loss=1.0)
    assert limited.last_report.loss == 1


def sharding_after_an_update() -> list[list[Any]]:
    """In a process with several devices: of parameters before and after, and whether they are committed."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = jax.devices()
    spread = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    params = [
        jax.device_put(jnp.zeros((4, 3)), spread),
        jax.device_put(jnp.zeros(3, jnp.bfloat16), devices[2]),
        jnp.zeros(3),
        np.zeros(3, np.float32),
    ]
    accumulator = gaj.Accumulator(params, lambda leaves: ga.SGD(leaves, lr=1.0))
    accumulator.accumulate(jax.tree.map(jnp.ones_like, params), weight=1)
    assert all((leaf == -1).all() for leaf in accumulator.params)
    return [
        [str(getattr(before, "sharding", after.sharding)), str(after.sharding), str(after.dtype)]
        for before, after in zip(params, accumulator.params)
    ]


def test_parameters_stay_on_their_devices():
    found = in_new_process(sharding_after_an_update, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert all(before == after for before, after, _ in found)
    assert "NamedSharding" in found[0][0] and [dtype for _, _, dtype in found] == [
        "float32", "bfloat16", "float32", "float32"
    ]


def error_of_an_old_version() -> str:
    """In a process of its own, whose JAX has lost what 0.4.25 has."""
    del jax.tree
    jax.__version__ = "0.4.1"
    return error_of_importing("gradaccum.jax")


def test_jax_that_is_too_old_is_named():
    said = in_new_process(error_of_an_old_version)
    assert said == "gradaccum.jax needs JAX 0.4.25 or later, and this is 0.4.1: pip install 'jax>=0.4.25'"


def test_jax_arrays_are_read_only_tensors():
    x = jnp.arange(5.0)
    for shared in (ga.from_dlpack(x), ga.from_numpy(x)):
        assert shared.read_only and np.asarray(shared).ctypes.data == x.unsafe_buffer_pointer()
        with pytest.raises(ValueError, match="read-only"):
            shared.fill_(1)
    assert (jax.dlpack.from_dlpack(ga.tensor([1.0, 2.0])) == jnp.array([1.0, 2.0])).all()


def test_an_array_that_is_spread_over_devices_is_not_shared():
    """numpy would make a copy of it, which is of no use to anybody."""
    program = """
import gradaccum as ga, jax, numpy as np
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
spread = jax.device_put(jax.numpy.ones(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
try:
    ga.from_numpy(spread)
except ga.GADTypeError as error:
    print(error, ga.tensor(spread).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(XLA_FLAGS="--xla_force_host_platform_device_count=2"),
        capture_output=True,
        text=True,
    )
    assert "cannot share: use tensor()" in done.stdout and "(4,)" in done.stdout, done.stdout + done.stderr


def test_params_are_the_averages_while_these_are_swapped_in():
    accumulator = gaj.Accumulator(parameters(), sgd)
    average = ga.WeightAverage(accumulator.optimizer, 0.9)
    for update in range(2):
        x, y = batch(update)
        accumulator.accumulate(jax.grad(mean_loss)(accumulator.params, x, y), 8.0)

    def leaves() -> list[bytes]:
        return [np.asarray(leaf).tobytes() for leaf in jax.tree_util.tree_leaves(accumulator.params)]

    own = leaves()
    with average.swapped():
        assert leaves() != own
    assert leaves() == own


def test_last_micro_batch_may_have_its_weight_later():
    accumulator = gaj.Accumulator(parameters(), sgd, accumulation_steps=1, loss_reduction="sum")
    accumulator.accumulate(jax.grad(mean_loss)(accumulator.params, *batch(0)), None)
    accumulator.set_weight(0, 8.0)
    assert accumulator.step().weight == 8
