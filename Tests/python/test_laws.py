"""The laws of the accumulation window, through the C ABI: split invariance to the last bit, true weights,
no trace of a skip, flat memory, one clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from models import (
    Arrays,
    Model,
    gpt_arrays,
    gpt_data,
    gpt_loss,
    gpt_weight,
    micro_batches,
    mlp_arrays,
    mlp_data,
    mlp_loss,
    part,
    random_split,
    samples,
)
from support import in_new_process, isas
from tally import FACTOR, FLAT_MEMORY, NO_TRACE, ONE_CLOCK, SPLIT_INVARIANCE, TRUE_WEIGHTS, case

THREADS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def _threads():
    before = ga.get_num_threads()
    yield
    ga.set_num_threads(before)


# ====== Split invariance ======

# Sizes: odd ones, where the tails of every loop are, and ones that are large enough for many tiles.
MODELS: dict[str, Callable[[], tuple[Model, Arrays]]] = {
    "gpt": lambda: (
        Model(gpt_arrays(61, 36, 13, 2), gpt_loss(3), weight=gpt_weight, max_grad_norm=0.5),
        gpt_data(7, 13, 61),
    ),
    "gpt_wide": lambda: (
        Model(gpt_arrays(131, 160, 67, 1), gpt_loss(5), weight=gpt_weight, max_grad_norm=0.5),
        gpt_data(5, 67, 131),
    ),
    "gpt_one_token": lambda: (
        Model(gpt_arrays(17, 12, 1, 1), gpt_loss(2), weight=gpt_weight),
        gpt_data(9, 1, 17),
    ),
    "mlp": lambda: (Model(mlp_arrays(13, 29, 31, 7), mlp_loss, max_grad_norm=0.1), mlp_data(37, 13, 7)),
    "mlp_clipped_by_value": lambda: (
        Model(mlp_arrays(13, 29, 31, 7), mlp_loss, max_grad_value=1e-3),
        mlp_data(37, 13, 7),
    ),
    "mlp_clipped_adaptively": lambda: (
        Model(mlp_arrays(13, 29, 31, 7), mlp_loss, agc_clipping=0.02),
        mlp_data(37, 13, 7),
    ),
    "mlp_wide": lambda: (Model(mlp_arrays(301, 517, 10), mlp_loss), mlp_data(23, 301, 10)),
    "mlp_scalar": lambda: (
        Model(mlp_arrays(1, 1, 2), mlp_loss, optimizer=ga.SGD, options={"momentum": 0.9}),
        mlp_data(11, 1, 2),
    ),
}


def splits_of(count: int, random: int = 4 * FACTOR) -> list[list[int]]:
    """Whole, one by one, a ragged last one, and random compositions."""
    rng = np.random.default_rng(count)
    ragged = [3] * (count // 3) + ([count % 3] if count % 3 else [])
    return [[count], [1] * count, ragged, *(random_split(rng, count) for _ in range(random))]


@pytest.mark.law(SPLIT_INVARIANCE)
@pytest.mark.parametrize("name", MODELS)
def test_any_split_and_any_number_of_threads_give_the_same_bits(name):
    """Three windows, each split in another way: all gradients, the norms and the weights."""
    expected = None
    count = samples(MODELS[name]()[1])
    splits = splits_of(count)
    for i in range(len(splits)):
        for threads in THREADS:
            ga.set_num_threads(threads)
            case()
            model, data = MODELS[name]()
            found = model.fingerprint(data, [splits[i], splits[(i + threads) % len(splits)], splits[i - 1]])
            expected = expected or found
            assert found == expected, f"split {splits[i]}, {threads} threads"


@pytest.mark.law(SPLIT_INVARIANCE)
def test_the_fingerprint_sees_a_single_bit():
    model, data = MODELS["mlp"]()
    expected = model.fingerprint(data, [[37]])
    model, data = MODELS["mlp"]()
    data["x"][5, 3] = np.nextafter(data["x"][5, 3], np.float32(9))
    assert model.fingerprint(data, [[37]]) != expected
    model, data = MODELS["mlp"]()
    order = np.r_[1, 0, 2:37]
    reordered = {name: array[order] for name, array in data.items()}
    assert model.fingerprint(reordered, [[37]]) != expected, "the order of the samples is part of the promise"


def fingerprints(name: str) -> dict[str, Any]:
    """In a process of its own, whose environment names the instruction set."""
    found = []
    for i, threads in enumerate((1, 2, 3)):
        ga.set_num_threads(threads)
        model, data = MODELS[name]()
        splits = splits_of(samples(data))
        found.append(model.fingerprint(data, [splits[i], splits[i + 1]]))
    return {"isa": ga.instruction_set(), "found": found}


@pytest.mark.law(SPLIT_INVARIANCE)
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", ["gpt", "mlp", "mlp_wide"])
def test_each_instruction_set_gives_the_same_bits_for_any_split(isa, name):
    result = in_new_process(fingerprints, name, GRADACCUM_ISA=isa)
    assert result["isa"] == isa
    assert len(set(result["found"])) == 1


def losses(name: str) -> list[float]:
    model, data = MODELS[name]()
    return [model.window(data, [samples(data)]).loss for _ in range(3)]


@pytest.mark.law(SPLIT_INVARIANCE)
def test_instruction_sets_agree_to_rounding():
    """Law 1 is per instruction set; across them only rounding differs: a few hundred operations deep, so a
    few hundred units in the last place at the very most."""
    found = [in_new_process(losses, "gpt", GRADACCUM_ISA=isa) for isa in isas()]
    for other in found[1:]:
        assert np.allclose(other, found[0], rtol=300 * 2.0**-24, atol=0)


# Every way in which a parameter can meet samples. Name to shapes of the parameters, shapes of the data
# without the sample axis, and the loss.
P = dict[str, ga.Tensor]
PLACES: dict[
    str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], Callable[[P, P], ga.Tensor]]
] = {
    "linear_rows": ({"w": (7, 13), "b": (7,)}, {"x": (13,)}, lambda p, x: ga.linear(x["x"], p["w"], p["b"])),
    "linear_sequence": (
        {"w": (7, 13), "b": (7,)},
        {"x": (5, 13)},
        lambda p, x: ga.linear(x["x"], p["w"], p["b"]),
    ),
    "linear_rank_4": ({"w": (7, 13)}, {"x": (2, 3, 13)}, lambda p, x: ga.linear(x["x"], p["w"])),
    "linear_wide": (
        {"w": (200, 170), "b": (200,)},
        {"x": (170,)},
        lambda p, x: ga.linear(x["x"], p["w"], p["b"]),
    ),
    "linear_wide_sequence": (
        {"w": (200, 170), "b": (200,)},
        {"x": (65, 170)},
        lambda p, x: ga.linear(x["x"], p["w"], p["b"]),
    ),
    "linear_of_a_parameter": (
        {"w": (7, 13), "v": (13, 5)},
        {"x": (5,)},
        lambda p, x: ga.linear(ga.linear(x["x"], p["v"]), p["w"]),
    ),
    "matmul_right": ({"w": (13, 7)}, {"x": (5, 13)}, lambda p, x: ga.matmul(x["x"], p["w"])),
    "matmul_rows": ({"w": (13, 7)}, {"x": (13,)}, lambda p, x: ga.matmul(x["x"], p["w"])),
    "matmul_left": ({"w": (7, 5)}, {"x": (5, 13)}, lambda p, x: ga.matmul(p["w"], x["x"])),
    "matmul_broadcast": ({"w": (4, 13, 7)}, {"x": (4, 5, 13)}, lambda p, x: ga.matmul(x["x"], p["w"])),
    "matmul_of_a_view": (
        {"w": (9, 13)},
        {"x": (5, 13)},
        lambda p, x: ga.matmul(x["x"], ga.transpose(ga.slice(p["w"], 0, 2, 9), 0, 1)),
    ),
    "add": ({"b": (13,)}, {"x": (5, 13)}, lambda p, x: ga.add(x["x"], p["b"])),
    "add_position": ({"b": (5, 13)}, {"x": (5, 13)}, lambda p, x: ga.add(x["x"], p["b"])),
    "add_kept_axis": ({"b": (1, 5, 1)}, {"x": (5, 13)}, lambda p, x: ga.add(p["b"], x["x"])),
    "add_scalar": ({"b": ()}, {"x": (5, 13)}, lambda p, x: ga.add(x["x"], p["b"])),
    "subtract": ({"b": (13,)}, {"x": (5, 13)}, lambda p, x: ga.subtract(p["b"], x["x"])),
    "multiply": ({"b": (13,)}, {"x": (5, 13)}, lambda p, x: ga.multiply(x["x"], p["b"])),
    "multiply_rows": ({"b": (13,)}, {"x": (13,)}, lambda p, x: ga.multiply(x["x"], p["b"])),
    "divide": ({"b": (13,)}, {"x": (5, 13)}, lambda p, x: ga.divide(x["x"], p["b"])),
    "divide_a_parameter": (
        {"b": (13,)},
        {"x": (5, 13)},
        lambda p, x: ga.divide(p["b"], x["x"] * x["x"] + 1.0),
    ),
    "layer_norm": (
        {"g": (13,), "b": (13,)},
        {"x": (5, 13)},
        lambda p, x: ga.layer_norm(x["x"], p["g"], p["b"]),
    ),
    "layer_norm_rows": (
        {"g": (13,), "b": (13,)},
        {"x": (13,)},
        lambda p, x: ga.layer_norm(x["x"], p["g"], p["b"]),
    ),
    "embedding": ({"w": (9, 6)}, {"i": (5,)}, lambda p, x: ga.embedding(p["w"], x["i"])),
    "embedding_of_one": ({"w": (3, 6)}, {"i": ()}, lambda p, x: ga.embedding(p["w"], x["i"])),
    "embedding_of_a_view": (
        {"w": (9, 6)},
        {"i": (5,)},
        lambda p, x: ga.embedding(ga.slice(p["w"], 1, 1, 4), x["i"]),
    ),
    "attention": (
        {"w": (12, 12)},
        {"x": (7, 12)},
        lambda p, x: ga.causal_attention(ga.linear(x["x"], p["w"]), x["x"], ga.linear(x["x"], p["w"]), 3),
    ),
    "the_same_weight_twice": (
        {"w": (13, 13)},
        {"x": (5, 13)},
        lambda p, x: ga.linear(ga.gelu(ga.linear(x["x"], p["w"])), p["w"]),
    ),
    "row_and_sequence_of_one_weight": (
        {"w": (13, 13)},
        {"x": (5, 13)},
        lambda p, x: ga.add(
            ga.linear(x["x"], p["w"]), ga.reshape(ga.linear(ga.mean(x["x"], 1), p["w"]), (-1, 1, 13))
        ),
    ),
    "softmax_of_scaled": ({"b": (13,)}, {"x": (5, 13)}, lambda p, x: ga.softmax(x["x"] * p["b"], -1)),
    "mean_over_time": ({"w": (7, 13)}, {"x": (5, 13)}, lambda p, x: ga.mean(ga.linear(x["x"], p["w"]), 1)),
    "reshaped_samples": (
        {"w": (7, 13)},
        {"x": (5, 13)},
        lambda p, x: ga.linear(ga.reshape(x["x"], (-1, 5, 13)), p["w"]),
    ),
    "transposed_inside": (
        {"w": (7, 5)},
        {"x": (5, 13)},
        lambda p, x: ga.linear(ga.transpose(x["x"], 1, 2), p["w"]),
    ),
}


def place_gradients(name: str, split: list[int], threads: int) -> list[bytes]:
    parameters, inputs, operation = PLACES[name]
    rng = np.random.default_rng(5)
    arrays = {
        key: (1 + 0.3 * rng.standard_normal(shape)).astype(np.float32) for key, shape in parameters.items()
    }
    count = sum(split)
    data: Arrays = {
        key: rng.integers(0, 3, (count, *shape))
        if key == "i"
        else rng.standard_normal((count, *shape)).astype(np.float32)
        for key, shape in inputs.items()
    }

    def loss(p: P, batch: Arrays) -> ga.Tensor:
        result = operation(p, {key: ga.tensor(array) for key, array in batch.items()})
        return ga.sum(result * result)

    ga.set_num_threads(threads)
    model = Model(arrays, loss)
    for micro_batch in micro_batches(data, split):
        model.accumulate(micro_batch)
    assert all(np.isfinite(np.frombuffer(x, np.float32)).all() for x in model.gradients())
    assert any(np.frombuffer(x, np.float32).any() for x in model.gradients())
    return model.gradients()


@pytest.mark.law(SPLIT_INVARIANCE)
@pytest.mark.parametrize("name", PLACES)
def test_gradient_of_every_kind_of_place_is_one_chain(name):
    expected = place_gradients(name, [11], 1)
    for i, split in enumerate(splits_of(11)):
        for threads in (1 + i % 4, 4 - i % 4):
            case()
            assert place_gradients(name, split, threads) == expected, f"split {split}, {threads} threads"


@pytest.mark.law(SPLIT_INVARIANCE)
def test_no_grad_evaluations_between_micro_batches_change_nothing():
    model, data = MODELS["gpt"]()
    expected = model.fingerprint(data, [[3, 4]])
    model, data = MODELS["gpt"]()
    model.accumulate(part(data, 0, 3))
    with ga.no_grad():
        model.loss(model.parameters, part(data, 2, 6)).item()
    model.accumulate(part(data, 3, 7))
    before = model.gradients()
    with ga.no_grad():
        model.loss(model.parameters, data).item()
    assert model.gradients() == before
    other, data = MODELS["gpt"]()
    assert other.fingerprint(data, [[7]]) == expected


@pytest.mark.law(SPLIT_INVARIANCE)
def test_caller_gradients_add_up_in_the_order_of_the_calls():
    """float32 and the narrower types, which convert exactly, against numpy's own float32 sums."""
    rng = np.random.default_rng(3)
    shapes = [(5, 7), (), (129,)]
    for numpy_type in (np.float32, np.float16):
        windows = [[rng.standard_normal(shape).astype(numpy_type) for shape in shapes] for _ in range(6)]
        parameters = [ga.zeros(shape, requires_grad=True) for shape in shapes]
        accumulator = ga.Accumulator(ga.SGD(parameters, lr=1.0))
        expected = [np.zeros(shape, np.float32) for shape in shapes]
        for arrays in windows:
            accumulator.accumulate_gradients(arrays, 0.0, 1)
            expected = [total + array.astype(np.float32) for total, array in zip(expected, arrays)]
        for i, total in enumerate(expected):
            assert accumulator.accumulated_gradient(i).numpy().tobytes() == total.tobytes()
    bits = rng.integers(0x3F00, 0x4000, (5, 7)).astype(np.uint16)
    parameter = ga.zeros((5, 7), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([parameter], lr=1.0))
    accumulator.accumulate_gradients([bits], 0.0, 1)
    expected_bits = (bits.astype(np.uint32) << 16).view(np.float32)
    assert accumulator.accumulated_gradient(0).numpy().tobytes() == expected_bits.tobytes()


@pytest.mark.law(SPLIT_INVARIANCE)
def test_missing_gradients_add_nothing():
    parameters = [ga.zeros((3,), requires_grad=True), ga.zeros((2,), requires_grad=True)]
    accumulator = ga.Accumulator(ga.SGD(parameters, lr=1.0))
    ones = np.ones(3, np.float32)
    accumulator.accumulate_gradients([ones, None], 1.0, 1)
    accumulator.accumulate_gradients([ones, None], 2.0, 1)
    report = accumulator.step()
    assert (report.loss, report.weight, report.micro_batches) == (1.5, 2.0, 2)
    assert (parameters[0].numpy() == -1).all() and (parameters[1].numpy() == 0).all()


# ====== True weights ======


def mean_mlp_loss(p: P, data: Arrays) -> ga.Tensor:
    logits = ga.linear(
        ga.relu(ga.linear(ga.tensor(data["x"]), p["weight0"], p["bias0"])), p["weight1"], p["bias1"]
    )
    return ga.cross_entropy(logits, ga.tensor(data["y"]), reduction="mean")


@pytest.mark.law(TRUE_WEIGHTS)
def test_means_of_uneven_micro_batches_give_the_mean_of_the_batch():
    """Each micro-batch's mean times its weight is its sum, up to the rounding of one division and one product
    on the way down, on each of n samples: the sums differ by at most about 4 x 2^-24 of the sum of their
    terms' magnitudes, which is bounded here with the same sum over absolute gradients of single samples."""
    data = mlp_data(29, 13, 7)
    arrays = mlp_arrays(13, 31, 7)

    def run(split: list[int], loss: Any, reduction: str) -> list[np.ndarray]:
        model = Model(arrays, loss, loss_reduction=reduction)
        for micro_batch in micro_batches(data, split):
            model.accumulate(micro_batch)
        return [model.accumulator.accumulated_gradient(i).numpy() for i in range(4)]

    whole = run([29], mlp_loss, "sum")
    magnitude = [np.zeros_like(x, np.float64) for x in whole]
    for i in range(29):
        model = Model(arrays, mlp_loss)
        model.accumulate(part(data, i, i + 1))
        magnitude = [
            m + np.abs(model.accumulator.accumulated_gradient(k).numpy()) for k, m in enumerate(magnitude)
        ]
    for split in ([29], [28, 1], [3, 17, 9]):
        for ours, exact, scale in zip(run(split, mean_mlp_loss, "mean"), whole, magnitude):
            assert (np.abs(ours.astype(np.float64) - exact) <= 8 * 2.0**-24 * scale + 1e-30).all()


@pytest.mark.law(TRUE_WEIGHTS)
def test_the_divisor_is_the_weight_that_went_in():
    """One of four planned micro-batches is missing and the others are uneven: the update is that of the mean
    over what came."""
    data = mlp_data(19, 13, 7)
    arrays = mlp_arrays(13, 31, 7)
    model = Model(arrays, mlp_loss, optimizer=ga.SGD, options={"lr": 1.0}, accumulation_steps=4)
    report = model.window(data, [11, 7, 1])
    whole = Model(arrays, mlp_loss, optimizer=ga.SGD, options={"lr": 1.0})
    expected = whole.window(data, [19])
    assert (report.weight, report.micro_batches) == (19.0, 3)
    assert model.weights() == whole.weights()
    assert report.loss == pytest.approx(expected.loss, rel=1e-7)
    assert report.gradient_norm == expected.gradient_norm


@pytest.mark.law(TRUE_WEIGHTS)
def test_zero_weight_changes_nothing():
    """A window without tokens is skipped, and leaves nothing behind for the next."""
    model, data = MODELS["gpt"]()
    expected = model.fingerprint(data, [[7]])
    model, data = MODELS["gpt"]()
    empty = part(data, 0, 2)
    empty["targets"] = np.full_like(empty["targets"], -1)
    model.accumulate(empty)
    assert model.accumulator.step().outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT
    assert model.fingerprint(data, [[7]]) == expected


@pytest.mark.law(TRUE_WEIGHTS)
def test_step_is_due_after_accumulation_steps_and_may_come_earlier():
    model, data = MODELS["mlp"]()
    model = Model(mlp_arrays(13, 29, 31, 7), mlp_loss, accumulation_steps=3)
    due = []
    for micro_batch in micro_batches(data, [1, 2, 30, 4]):
        model.accumulate(micro_batch)
        due.append(model.accumulator.step_due)
    assert due == [False, False, True, True]
    assert model.accumulator.step().micro_batches == 4
    assert not model.accumulator.step_due
    model.accumulate(data)
    assert model.accumulator.step().micro_batches == 1


@pytest.mark.law(TRUE_WEIGHTS)
def test_clipping_is_by_the_norm_of_the_mean_gradient():
    gradient = np.array([30.0, 40.0], np.float32)
    for limit, factor in ((0.0, 1.0), (6.0, 1.0), (5.0, 1.0), (2.5, 0.5)):
        x = ga.zeros((2,), requires_grad=True)
        accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), max_grad_norm=limit)
        accumulator.accumulate_gradients([gradient], 0.0, 10)
        report = accumulator.step()
        assert report.gradient_norm == pytest.approx(5.0, rel=1e-7)
        assert report.clip_factor == pytest.approx(factor, rel=1e-6)
        assert np.allclose(x.numpy(), -gradient / 10 * factor, rtol=1e-6)


# ====== A skip leaves no trace ======


@pytest.mark.law(NO_TRACE)
def test_skipped_and_dropped_windows_leave_no_trace():
    """Windows that are not finite, weigh nothing, or are dropped by zero(), between two others."""
    expected = None
    for between in ("nothing", "infinity", "nan", "zero weight", "dropped"):
        model = Model(mlp_arrays(5, 4), mlp_loss, max_grad_norm=0.1)
        data = mlp_data(6, 5, 4)
        counts = [model.window(data, [6]).update_count]
        weights = model.weights()
        bad = [np.ones((4, 5), np.float32), np.ones(4, np.float32)]
        if between == "infinity":
            bad[0][3, 4] = np.inf
        elif between == "nan":
            bad[1][0] = np.nan
        if between != "nothing":
            model.accumulator.accumulate_gradients(bad, 1.0, 0.0 if between == "zero weight" else 2.0)
        if between == "dropped":
            model.accumulator.zero()
        elif between != "nothing":
            report = model.accumulator.step()
            assert report.skipped and report.update_count == 1
            assert report.outcome == (
                ga.Outcome.SKIPPED_ZERO_WEIGHT if between == "zero weight" else ga.Outcome.SKIPPED_NON_FINITE
            )
        assert model.weights() == weights
        with pytest.raises(ga.GAStateError):
            model.accumulator.step()
        counts.append(model.window(data, [2, 4]).update_count)
        assert counts == [1, 2]
        expected = expected or model.weights()
        assert model.weights() == expected, between


# ====== Flat memory ======


@pytest.mark.law(FLAT_MEMORY)
def test_peak_memory_does_not_depend_on_the_number_of_micro_batches():
    model, data = MODELS["gpt_wide"]()
    one = part(data, 0, 1)

    def peak(count: int) -> int:
        ga.memory_reset_peak()
        for _ in range(count):
            model.accumulate(one)
        model.accumulator.step()
        return ga.memory_usage().peak_bytes

    peak(2)
    assert peak(2) == peak(64) == peak(1)


@pytest.mark.law(FLAT_MEMORY)
def test_embedding_tied_to_the_head_needs_no_second_accumulator():
    """Only memory for the rows that the window meets; the bits are those of two accumulators added up."""
    rows, channels = 30_000, 64
    table = (0.1 * np.random.default_rng(0).standard_normal((rows, channels))).astype(np.float32)

    def loss(p: dict[str, ga.Tensor], data: Arrays) -> ga.Tensor:
        x = ga.gelu(ga.embedding(p["table"], ga.tensor(data["tokens"])))
        return ga.linear_cross_entropy(x, p.get("head", p["table"]), ga.tensor(data["targets"]))

    data = gpt_data(6, 40, rows)
    data["targets"] = data["tokens"][:, ::-1].copy()

    def gradients(arrays: Arrays) -> tuple[list[np.ndarray], int]:
        model = Model(arrays, loss, optimizer=ga.SGD)
        before = ga.memory_usage().live_bytes
        for micro_batch in micro_batches(data, [1, 3, 2]):
            model.accumulate(micro_batch)
        found = [np.frombuffer(x, np.float32) for x in model.gradients()]
        return found, ga.memory_usage().live_bytes - before

    (tied,), memory = gradients({"table": table})
    (first, second), of_two = gradients({"table": table, "head": table})
    assert tied.tobytes() == (first + second).tobytes()
    assert of_two >= 2 * table.nbytes and memory < 1.3 * table.nbytes


@pytest.mark.law(FLAT_MEMORY)
def test_steady_state_calls_no_allocator_and_keeps_live_bytes():
    model, data = MODELS["gpt"]()
    for _ in range(3):
        model.window(data, [3, 4])
    before = ga.memory_usage()
    for _ in range(10):
        model.window(data, [3, 4])
    after = ga.memory_usage()
    assert after.allocator_calls == before.allocator_calls
    assert after.live_bytes == before.live_bytes and after.arena_bytes == before.arena_bytes


@pytest.mark.law(FLAT_MEMORY)
def test_memory_comes_back():
    import gc

    gc.collect()
    before = ga.memory_usage().live_bytes
    model, data = MODELS["gpt_wide"]()
    model.window(data, [2, 3])
    assert ga.memory_usage().live_bytes > before
    del model
    gc.collect()
    assert ga.memory_usage().live_bytes == before
    ga.memory_trim()
    assert ga.memory_usage().live_bytes == before


# ====== One clock ======


@pytest.mark.law(ONE_CLOCK)
def test_updates_are_counted_and_not_calls():
    model, data = MODELS["mlp"]()
    for update in range(1, 5):
        report = model.window(data, random_split(np.random.default_rng(update), 37))
        assert report.update_count == update


@pytest.mark.law(ONE_CLOCK)
def test_bias_correction_and_decay_follow_updates_and_not_micro_batches():
    """Of a gradient of 1, every AdamW step is lr (1 + decay x), whatever the micro-batches are."""
    for splits in ([1], [1, 1, 1, 1], [0.5, 2.5]):
        x = ga.tensor([1.0], requires_grad=True)
        accumulator = ga.Accumulator(ga.AdamW([x], lr=0.125, eps=0.0, weight_decay=0.5))
        expected = 1.0
        for _ in range(4):
            for weight in splits:
                accumulator.accumulate_gradients([np.full(1, weight, np.float32)], 0.0, weight)
            accumulator.step()
            expected = expected * (1 - 0.125 * 0.5) - 0.125
        assert x.item() == pytest.approx(expected, abs=1e-6)
