"""Random lives of a window, call by call beside the plain model of reference_window.py."""

from __future__ import annotations

from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference_window as reference
from programs import (
    Accumulate,
    BadLoss,
    BeginData,
    Call,
    EndData,
    GiveWeights,
    Library,
    MicroBatch,
    SetLearningRate,
    SetSteps,
    Step,
    Zero,
    clipping,
    initial,
    late_lives,
    late_lives_of_means,
    lives,
)
from tally import NO_TRACE, ONE_CLOCK, TRUE_WEIGHTS, examples

RULES: dict[str, tuple[type[ga.Optimizer], type, dict[str, Any]]] = {
    "sgd": (ga.SGD, reference.SGD, {"lr": 0.05}),
    "sgd_decay": (ga.SGD, reference.SGD, {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1}),
    "sgd_nesterov": (ga.SGD, reference.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "adam": (ga.Adam, reference.Adam, {"lr": 0.05, "betas": (0.8, 0.9)}),
    "adamw": (ga.AdamW, reference.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
}


def agree(found: ga.Report, expected: reference.Report) -> None:
    """Every field. Sums of these gradients are exact, so norms differ by rounding in double alone; what is left after
    clipping by value or by unit was rounded to float32."""
    for name in (
        "outcome",
        "micro_batches",
        "update_count",
        "learning_rate",
        "weight",
        "aborted_micro_batches",
        "accumulation_steps",
        "consecutive_skips",
        "non_finite_parameter",
        "non_finite_micro_batch",
    ):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-300)
    if np.isfinite(expected.gradient_norm):
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-12, abs=1e-300)
    else:
        assert not np.isfinite(found.gradient_norm)
    assert found.clip_factor == pytest.approx(expected.clip_factor, rel=1e-5)
    assert (found.loss_z_score, found.gradient_norm_z_score, found.loss_scale) == (0, 0, 1)
    assert found.accumulator_bytes >= 0 and found.tensor_bytes > 0
    assert found.forward_backward_seconds >= 0 and found.step_seconds >= 0


def make(model: reference.Window, call: Call) -> reference.Report | None:
    """Makes the call on the model. Raises reference.Refused where the library must refuse it."""

    def loss(of: Accumulate) -> reference.Loss:
        return reference.Loss(of.gradients(), of.loss, of.weight)

    match call:
        case Accumulate():
            model.accumulate(loss(call))
        case MicroBatch():
            model.accumulate(*map(loss, call.losses), abort=call.abort, given=call.given)
        case BadLoss():
            if model.isolated:
                model.accumulate(reference.Loss(Accumulate(call.seed, 1.0).gradients(), call.loss, 1.0))
        case SetLearningRate():
            model.rule.lr = call.value
        case SetSteps():
            model.set_steps(call.value)
        case GiveWeights():
            model.give_weights(call.value)
        case Zero():
            model.zero()
        case BeginData():
            model.begin_data()
        case EndData():
            return model.end_data(call.tail)
        case Step():
            return model.step()
    return None


def compare(name: str, calls: list[Call], window: dict[str, Any]) -> None:
    optimizer, rule, options = RULES[name]
    library = Library(optimizer, options, window)
    model = reference.Window(initial(), rule(**options), **window)
    for call in calls:
        try:
            expected = make(model, call)
        except reference.Refused as refusal:
            with pytest.raises(ga.GAStateError, match=str(refusal)):
                library.make(call)
            continue
        found = library.make(call)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            agree(found, expected)
            if expected.outcome in (reference.APPLIED, reference.SKIPPED_NON_FINITE):
                norms = library.accumulator.gradient_norms()
                finite = np.isfinite(expected.norms)
                assert (np.isfinite(norms) == finite).all()
                assert np.allclose(norms[finite], np.array(expected.norms)[finite], rtol=1e-12, atol=0)
        assert library.accumulator.step_due == model.step_due
        for sums, exact in zip(library.sums(), model.sums()):
            assert np.array_equal(sums, np.zeros_like(sums) if exact is None else exact, equal_nan=True)
        for parameter, exact, bound in zip(library.parameters, model.parameters, model.bounds):
            error = np.max(np.abs(parameter.numpy() - exact))
            assert error <= bound.parameter, f"{error} and not {bound.parameter} after {model.update_count}"
    library.accumulator.zero()


isolated = st.booleans()
normalization = st.sampled_from(["weight", "weight", "sum"])


@pytest.mark.law(TRUE_WEIGHTS, NO_TRACE, ONE_CLOCK)
@pytest.mark.parametrize("name", RULES)
@examples(60)
@given(
    calls=lives,
    clipped=clipping,
    steps=st.integers(1, 4),
    reduction=st.sampled_from(["sum", "mean"]),
    isolated=isolated,
    normalization=normalization,
)
def test_every_call_does_what_the_model_does(name, calls, clipped, steps, reduction, isolated, normalization):
    window = {"isolated": isolated, "normalization": normalization, "loss_reduction": reduction}
    compare(name, calls, {**clipped, **window, "accumulation_steps": steps})


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize("name", RULES)
@examples(40)
@given(calls=late_lives, clipped=clipping, isolated=isolated, normalization=normalization)
def test_weights_that_come_later_do_what_the_model_does(name, calls, clipped, isolated, normalization):
    compare(name, calls, {**clipped, "isolated": isolated, "normalization": normalization})


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize("name", RULES)
@examples(25)
@given(calls=late_lives_of_means, clipped=clipping, normalization=normalization)
def test_weights_of_means_that_come_later_do_what_the_model_does(name, calls, clipped, normalization):
    window = {"isolated": True, "loss_reduction": "mean", "normalization": normalization}
    compare(name, calls, {**clipped, **window})


def test_the_bound_would_catch_a_small_mistake():
    """One update of sixteen with a divisor that is off by a thousandth."""
    for optimizer, rule, options in RULES.values():
        library = Library(optimizer, options, {})
        model = reference.Window(initial(), rule(**options))
        for update in range(16):
            call = Accumulate(update, 4.0)
            library.make(call)
            library.make(Step())
            weight = 4.0 if update != 9 or optimizer is not ga.SGD else 4.004
            model.accumulate(reference.Loss(call.gradients(), 0.0, weight))
            if update == 9 and optimizer is not ga.SGD:
                model.rule.lr *= 1.001
            model.step()
            model.rule.lr = options["lr"]
        errors = [np.max(np.abs(x.numpy() - y)) for x, y in zip(library.parameters, model.parameters)]
        assert any(error > bound.parameter for error, bound in zip(errors, model.bounds)), optimizer
