"""What the tests of the window share: two sources of gradients, ways to spoil them, and the trace that is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

SIZES = (7, 5)
INF, NAN = float("inf"), float("nan")


def gradients(number: int) -> list[np.ndarray]:
    """Those of micro-batch `number`, different for each."""
    rng = np.random.default_rng(number)
    return [rng.standard_normal(size).astype(np.float32) for size in SIZES]


class Window:
    """Two parameters, an optimizer with state, and micro-batches from autograd or from the caller."""

    def __init__(self, source: str = "autograd", optimizer: Callable[..., Any] = ga.AdamW, **options: Any) -> None:
        self.source = source
        self.parameters = [
            ga.tensor(np.linspace(-1, 1, size).astype(np.float32), requires_grad=True) for size in SIZES
        ]
        for parameter, name in zip(self.parameters, ("gain", "shift")):
            parameter.set_name(name)
        self.mean = options.get("loss_reduction") == "mean"
        self.optimizer = optimizer(self.parameters, lr=0.1)
        self.accumulator = ga.Accumulator(self.optimizer, **options)

    def add(self, number: int, weight: float | None = 2.0, spoil: float | None = None, loss: float = 1.0) -> None:
        """Accumulates micro-batch `number`, whose loss has the value `loss`. spoil: the last gradient of the second
        parameter, in place of its own."""
        wanted = gradients(number)
        if spoil is not None:
            wanted[1][-1] = spoil
        if self.source == "own":
            self.accumulator.accumulate_gradients(wanted, loss, weight)
            return
        with ga.Scope():
            self.accumulator.accumulate(self.loss(wanted, loss), weight)

    def loss(self, wanted: list[np.ndarray], value: float) -> ga.Tensor:
        """A loss of this value and with these gradients, infinite ones as products that overflow on the way down."""
        total = ga.tensor(np.float32(value))
        for parameter, gradient in zip(self.parameters, wanted):
            finite = np.where(np.isfinite(gradient), gradient, np.sign(gradient) * np.float32(1e30))
            further = np.where(np.isfinite(gradient), 1, np.float32(1e30)).astype(np.float32)
            away = parameter - parameter.detach()  # zeros, with a gradient
            total = total + ga.sum(away * ga.tensor(further) * ga.tensor(finite.astype(np.float32)))
        return ga.sum(ga.reshape(total, (1,))) if not self.mean else ga.mean(ga.reshape(total, (1,)))

    def weights(self) -> list[bytes]:
        return [x.numpy().tobytes() for x in self.parameters]

    def sums(self) -> list[bytes]:
        return [self.accumulator.accumulated_gradient(i).numpy().tobytes() for i in range(len(SIZES))]

    def step(self) -> ga.Report:
        return self.accumulator.step()

    def good(self, number: int = 100) -> ga.Report:
        """A window of two micro-batches that is applied."""
        self.add(number)
        self.add(number + 1)
        report = self.step()
        assert report.outcome == ga.Outcome.APPLIED
        return report


def facts(report: ga.Report) -> dict[str, Any]:
    """What of a report must be the same for two windows that are: what reports are compared by."""
    return {field.name: getattr(report, field.name) for field in dataclasses.fields(report) if field.compare}


def afterwards(window: Window) -> tuple[list[dict[str, Any]], list[bytes]]:
    """What three more windows report and come to: they show parameters, optimizer state, counters and denominators, of
    which a trace could be left."""
    reports = [facts(window.good(200 + 10 * i)) for i in range(3)]
    return reports, window.weights()


both_sources = pytest.mark.parametrize("source", ["autograd", "own"])
