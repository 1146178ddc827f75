"""When the weight of windows changes, the learning rate follows its rule and beta2 keeps its half-life in samples."""

from __future__ import annotations

import math

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import schedules
from hypothesis import given, settings
from hypothesis import strategies as st

from tally import NO_TRACE

BASE = 8.0
ADAMS = {
    "adam": ga.Adam,
    "adamw": ga.AdamW,
    "nadam": ga.NAdam,
    "lamb": ga.LAMB,
    "adamw8bit": ga.AdamW8bit,
    "muon": ga.Muon,
}
OTHERS = {
    "sgd": ga.SGD,
    "radam": ga.RAdam,
    "lion": ga.Lion,
    "lars": ga.LARS,
    "adafactor": ga.Adafactor,
}


class Training:
    def __init__(self, make=ga.SGD, scaling: ga.BatchScaling | None = None, **options: object) -> None:
        self.weight = ga.tensor(np.linspace(-1, 1, 7), requires_grad=True)
        self.optimizer = make([self.weight], **options)
        self.optimizer.scaling = scaling
        self.accumulator = ga.Accumulator(self.optimizer)

    def window(self, weight: float, gradient: np.ndarray | float = 1.0) -> ga.Report:
        """gradient: the mean. What is accumulated is exact for weights that are powers of two."""
        total = np.broadcast_to(np.float32(gradient) * np.float32(weight), 7).astype(np.float32)
        self.accumulator.accumulate_gradients([total], 0.0, weight)
        return self.accumulator.step()


@pytest.mark.parametrize(
    ("rule", "factor"), [("none", lambda x: 1), ("linear", lambda x: x), ("sqrt", math.sqrt)]
)
def test_rates_follow_the_weight_of_their_window(rule, factor):
    training = Training(scaling=ga.BatchScaling(rule, base_weight=BASE), lr=0.5)
    training.optimizer.schedule = schedules.Linear(5)
    for update, weight in enumerate((8, 2, 32, 0.5, 24)):
        expected = 0.5 * (1 - update / 5)
        assert training.optimizer.next_lr == expected and training.optimizer.lr == 0.5
        assert training.window(weight).learning_rate == pytest.approx(expected * factor(weight / BASE), rel=1e-15)


def test_linear_scaling_adds_up_the_steps_of_the_base_batches():
    """Of a gradient that does not change: 4 times the batch makes the way of 4 updates."""
    small, large = (Training(scaling=ga.BatchScaling("linear", base_weight=BASE), lr=0.25) for _ in range(2))
    for _ in range(4):
        small.window(BASE)
    large.window(4 * BASE)
    assert small.weight.numpy().tobytes() == large.weight.numpy().tobytes()


class Reference:
    """Adam, AdamW and NAdam with a beta2 of their own for each update, whose product corrects the bias."""

    def __init__(self, kind: str, lr: float, beta1: float, beta2: float, eps: float, decay: float) -> None:
        self.kind, self.lr, self.beta1, self.beta2, self.eps, self.decay = kind, lr, beta1, beta2, eps, decay
        self.p = np.linspace(-1, 1, 7).astype(np.float32).astype(np.float64)
        self.m, self.v = np.zeros(7), np.zeros(7)
        self.product1 = self.product2 = self.product_mu = 1.0
        self.t = 0

    def update(self, gradient: np.ndarray, weight: float, scale: float) -> None:
        self.t += 1
        beta2 = self.beta2 ** (weight / BASE)
        lr = self.lr * scale
        self.product1 *= self.beta1
        self.product2 *= beta2
        g = gradient
        if self.kind == "adamw":
            self.p *= 1 - lr * self.decay
        else:
            g = g + self.decay * self.p
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        root = np.sqrt(self.v / (1 - self.product2)) + self.eps
        if self.kind == "nadam":
            mu, following = (self.beta1 * (1 - 0.5 * 0.96 ** (t * 4e-3)) for t in (self.t, self.t + 1))
            self.product_mu *= mu
            along_gradient = (1 - mu) / (1 - self.product_mu) * g
            along_mean = following / (1 - self.product_mu * following) * self.m
            self.p -= lr * (along_gradient + along_mean) / root
        else:
            self.p -= lr / (1 - self.product1) * self.m / root


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([0.25, 1.0, 2.0, 8.0, 32.0, 512.0]), min_size=1, max_size=25),
    st.sampled_from(["adam", "adamw", "nadam"]),
    st.sampled_from(["none", "linear", "sqrt"]),
    st.integers(0, 1000),
)
def test_varying_beta2_is_corrected_by_the_product_of_the_betas(weights, kind, rule, seed):
    hyper = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    scaling = ga.BatchScaling(rule, base_weight=BASE, beta2_half_life=True)
    training = Training(ADAMS[kind], scaling, **hyper)
    reference = Reference(kind, 1e-3, 0.9, 0.99, 1e-8, 0.1)
    rng = np.random.default_rng(seed)
    moved = 0.0
    for weight in weights:
        gradient = rng.standard_normal(7).astype(np.float32)
        scale = {"none": 1, "linear": weight / BASE, "sqrt": math.sqrt(weight / BASE)}[rule]
        training.window(weight, gradient)
        reference.update(gradient.astype(np.float64), weight, scale)
        moved += 1e-3 * scale
    # An update of Adam's moves a weight by a few learning rates, and rounds the moments that it is made of.
    tolerance = 1e-6 + 40 * 2**-24 * (moved * 10 + len(weights))
    np.testing.assert_allclose(training.weight.numpy(), reference.p, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ADAMS)
def test_windows_of_the_base_weight_are_as_without_scaling(name):
    plain = Training(ADAMS[name], lr=0.1)
    scaled = Training(ADAMS[name], ga.BatchScaling("sqrt", base_weight=BASE, beta2_half_life=True), lr=0.1)
    for update in range(20):
        gradient = np.sin(np.arange(7) + update).astype(np.float32)
        for training in (plain, scaled):
            training.window(BASE, gradient)
    assert plain.weight.numpy().tobytes() == scaled.weight.numpy().tobytes()


@pytest.mark.law(NO_TRACE)
@pytest.mark.parametrize("name", ADAMS)
def test_a_skipped_window_leaves_no_trace_in_the_moments(name):
    scaling = ga.BatchScaling("linear", base_weight=BASE, beta2_half_life=True)
    plain, disturbed = (Training(ADAMS[name], scaling, lr=0.1) for _ in range(2))
    for weight in (1, 32, 2, 16):
        assert disturbed.window(64 * weight, math.nan).skipped
        for training in (plain, disturbed):
            training.window(weight, np.linspace(1, 2, 7) * weight)
    assert plain.weight.numpy().tobytes() == disturbed.weight.numpy().tobytes()


@pytest.mark.parametrize("name", OTHERS)
def test_rules_without_such_a_beta2_say_so(name):
    training = Training(OTHERS[name], lr=0.1)
    with pytest.raises(ga.GAInvalidArgumentError, match=f"{name}.*beta2_half_life|beta2_half_life.*{name}"):
        training.optimizer.scaling = ga.BatchScaling("none", base_weight=BASE, beta2_half_life=True)
    training.optimizer.scaling = ga.BatchScaling("linear", base_weight=BASE)
    assert training.window(2 * BASE).learning_rate == 0.2
    training.optimizer.scaling = None
    assert training.window(2 * BASE).learning_rate == 0.1


def test_accumulating_into_moments_excludes_a_half_life_of_beta2():
    """The moments move on before the weight of the window is known."""
    weight = ga.zeros((7,), requires_grad=True)
    optimizer = ga.AdamW([weight], lr=0.5)
    optimizer.scaling = ga.BatchScaling("linear", base_weight=2)
    accumulator = ga.Accumulator(optimizer, accumulate_into="moments", normalization="sum")
    accumulator.accumulate_gradients([np.ones(7, np.float32)], 0.0, 8)
    assert accumulator.step().learning_rate == 2
    optimizer.scaling = ga.BatchScaling("linear", base_weight=2, beta2_half_life=True)
    with pytest.raises(ga.GAStateError, match="beta2_half_life"):
        accumulator.accumulate_gradients([np.ones(7, np.float32)], 0.0, 8)
    accumulator.close()
    with pytest.raises(ga.GAStateError, match="beta2_half_life"):
        ga.Accumulator(optimizer, accumulate_into="moments", normalization="sum")


def test_a_rate_that_scaling_makes_too_large_refuses_the_step():
    training = Training(scaling=ga.BatchScaling("linear", base_weight=1e-30), lr=1.0)
    training.optimizer.lr = 1e20
    with pytest.raises(ga.GAOverflowError, match="scaling"):
        training.window(1.0)
    training.optimizer.scaling = None
    training.optimizer.lr = 1.0
    assert training.accumulator.step().weight == 1


def test_words_that_are_none_are_named():
    with pytest.raises(ga.GAInvalidArgumentError, match="rule is 'root'"):
        Training(scaling=ga.BatchScaling("root", base_weight=1))
