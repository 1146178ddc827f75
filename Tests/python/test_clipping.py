"""Clipping: once per window, of the mean gradient, by global norm, by value or adaptively; the fixtures are those of
Tests/parity/make_clipping_fixtures.py."""

from __future__ import annotations

from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from parity import Fixtures

FIXTURES = Fixtures("clipping.npz")
NAMES = FIXTURES.names("initial/")

CLIPPING: dict[str, dict[str, float]] = {
    "none": {},
    "norm": {"max_grad_norm": 1.5},
    "norm_above": {"max_grad_norm": 1e3},
    "value": {"max_grad_value": 0.4},
    "value_above": {"max_grad_value": 1e3},
    "adaptive": {"agc_clipping": 0.01},
    "adaptive_some": {"agc_clipping": 0.9, "agc_eps": 0.5},
}


def fixture_window(**options: Any) -> tuple[list[ga.Tensor], ga.Accumulator]:
    """The gradients of the fixtures as the mean of two micro-batches; SGD takes them off the parameters."""
    parameters = [ga.tensor(FIXTURES[f"initial/{name}"], requires_grad=True) for name in NAMES]
    accumulator = ga.Accumulator(ga.SGD(parameters, lr=1.0), **options)
    for _ in range(2):
        gradients = [FIXTURES[f"gradient/{name}"] * np.float32(4) for name in NAMES]
        accumulator.accumulate_gradients(gradients, 0.0, 4)
    return parameters, accumulator


def test_every_kind_of_clipping_of_the_fixtures_is_tested():
    assert set(CLIPPING) == {name.partition("/")[0] for name in FIXTURES.names("clipped/")}


def test_the_bounds_would_catch_a_small_mistake():
    FIXTURES.check_bounds()


@pytest.mark.parametrize("kind", CLIPPING)
def test_clipping_is_that_of_pytorch(kind):
    parameters, accumulator = fixture_window(**CLIPPING[kind])
    report = accumulator.step()
    FIXTURES.check(f"clipped/{kind}/norm", np.array(report.gradient_norm))
    FIXTURES.check(f"clipped/{kind}/factor", np.array(report.clip_factor))
    assert (report.clip_factor == 1) == (kind in ("none", "norm_above", "value_above"))
    for name, parameter in zip(NAMES, parameters):
        FIXTURES.check(f"clipped/{kind}/{name}", parameter.numpy())


@pytest.mark.parametrize("kind", CLIPPING)
def test_norms_of_parameters_are_those_before_clipping(kind):
    _, accumulator = fixture_window(**CLIPPING[kind])
    with pytest.raises(ga.GAStateError, match="take a step first"):
        accumulator.gradient_norms()
    report = accumulator.step()
    norms = accumulator.gradient_norms()
    expected = [np.linalg.norm(FIXTURES[f"gradient/{name}"].astype(np.float64)) for name in NAMES]
    assert np.allclose(norms, expected, rtol=1e-12, atol=0)
    assert report.gradient_norm == pytest.approx(np.sqrt((norms**2).sum()), rel=1e-14)


def test_norms_tell_which_gradient_is_not_finite_and_which_is_missing():
    x = [ga.zeros((3,), requires_grad=True) for _ in range(3)]
    accumulator = ga.Accumulator(ga.SGD(x, lr=1.0))
    accumulator.accumulate_gradients([np.ones(3, np.float32), np.full(3, np.inf, np.float32), None], 0.0, 3)
    assert accumulator.step().outcome == ga.Outcome.SKIPPED_NON_FINITE
    norms = accumulator.gradient_norms()
    assert norms[0] == pytest.approx(3**0.5 / 3) and not np.isfinite(norms[1]) and norms[2] == 0
    accumulator.accumulate_gradients([np.ones(3, np.float32)] * 3, 0.0, 0)
    assert accumulator.step().outcome == ga.Outcome.SKIPPED_ZERO_WEIGHT
    assert (accumulator.gradient_norms() == 0).all()


def adaptive_reference(
    parameter: np.ndarray, gradient: np.ndarray, clipping: float, eps: float
) -> np.ndarray:
    axes = tuple(range(1, parameter.ndim)) if parameter.ndim > 1 else None

    def norms(x: np.ndarray) -> np.ndarray:
        return np.sqrt((x.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))

    limit = clipping * np.maximum(norms(parameter), eps)
    norm = np.maximum(norms(gradient), 1e-30)
    return gradient * np.where(norm > limit, limit / norm, 1.0)


def test_adaptive_clipping_of_units_of_any_length():
    """Units that fit into a tile of a parallel loop, many of which do, and one that needs several; all the same for
    every number of threads."""
    rng = np.random.default_rng(9)
    shapes = [(3, 70_000), (2, 32_768), (70_001,), (5_000, 7), (1, 1), (3, 0)]
    initial = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    before = ga.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        ga.set_num_threads(threads)
        x = [ga.tensor(array, requires_grad=True) for array in initial]
        accumulator = ga.Accumulator(ga.SGD(x, lr=1.0), agc_clipping=0.9)
        accumulator.accumulate_gradients(gradients, 0.0, 1)
        report = accumulator.step()
        found.append([report.clip_factor, *(tensor.numpy().tobytes() for tensor in x)])
    ga.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    clipped = [adaptive_reference(p, g, 0.9, 1e-3) for p, g in zip(initial, gradients)]
    for p, g, tensor in zip(initial, clipped, x):
        # One rounding of the factor, one of the product, and one of the difference.
        assert np.allclose(tensor.numpy(), p - g, rtol=0, atol=3 * 2.0**-24 * 8)
    norms = [np.sqrt(sum((array**2).sum(dtype=np.float64) for array in arrays)) for arrays in (clipped, gradients)]
    assert report.clip_factor == pytest.approx(norms[0] / norms[1], rel=1e-6)


@pytest.mark.parametrize("kind", CLIPPING)
def test_a_window_that_is_not_finite_is_skipped_and_not_clipped(kind):
    for bad in (np.nan, np.inf, -np.inf):
        x = ga.tensor(np.ones((2, 3), np.float32), requires_grad=True)
        accumulator = ga.Accumulator(ga.SGD([x], lr=1.0), **CLIPPING[kind])
        gradient = np.ones((2, 3), np.float32)
        gradient[1, 2] = bad
        accumulator.accumulate_gradients([gradient], 0.0, 1)
        report = accumulator.step()
        assert report.outcome == ga.Outcome.SKIPPED_NON_FINITE and report.clip_factor == 1
        assert (x.numpy() == 1).all()


def test_one_way_to_clip_at_a_time():
    optimizer = ga.SGD([ga.zeros((3,), requires_grad=True)])
    with pytest.raises(ga.GAInvalidArgumentError, match="choose one"):
        ga.Accumulator(optimizer, max_grad_norm=1.0, agc_clipping=0.01)


def test_clipping_allocates_nothing_in_steady_state():
    for options in CLIPPING.values():
        x = [ga.zeros((40, 1000), requires_grad=True), ga.zeros((70_000,), requires_grad=True)]
        accumulator = ga.Accumulator(ga.SGD(x, lr=0.1), **options)
        gradients = [np.ones(tensor.shape, np.float32) for tensor in x]

        def window() -> None:
            accumulator.accumulate_gradients(gradients, 0.0, 1)
            accumulator.step()
            accumulator.gradient_norms()

        window()
        before = ga.memory_usage()
        for _ in range(3):
            window()
        after = ga.memory_usage()
        assert (after.allocator_calls, after.live_bytes) == (before.allocator_calls, before.live_bytes)
