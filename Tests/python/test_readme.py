"""The blocks of Python in the READMEs, as they are printed; those of PyTorch and JAX where these are installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from support import ROOT

CLASSES, FEATURES, SIZES = 3, 4, (3, 1, 2, 4) * 2 + (3, 1)  # a window of 8 micro-batches, and a short last one
BLOCKS = [
    pytest.param(block, id=f"{path}:{text[: match.start()].count(chr(10)) + 1}")
    for path in ("README.md", "bindings/python/README.md")
    for text in [(ROOT / path).read_text(encoding="utf-8")]
    for match in re.finditer("^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in [match[1]]
]


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal((size, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, size)) for size in SIZES
    ]


def names(block: str) -> dict[str, Any]:
    """What a block takes to be there."""
    weight, bias = (ga.zeros(shape, requires_grad=True) for shape in ((CLASSES, FEATURES), (CLASSES,)))
    found: dict[str, Any] = {
        "ga": ga,
        "np": np,
        "weight": weight,
        "bias": bias,
        "micro_batches": batches(),
        "data": batches(),
        "epochs": 2,
        "loss": lambda x, y: ga.cross_entropy(ga.linear(ga.tensor(x), weight, bias), ga.tensor(y)),
        "tokens": ga.zeros((5, FEATURES)),
        "body": lambda x: ga.linear(x, weight, bias),
        "head": ga.sum,
        "evaluate": lambda: None,
    }
    if "optimizer" in block:
        found["optimizer"] = ga.AdamW([weight, bias], lr=3e-4)
    return found


def names_of_torch() -> dict[str, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
    micro_batches = [tuple(map(torch.from_numpy, batch)) for batch in batches()]
    return {"torch": torch, "model": torch.nn.Linear(FEATURES, CLASSES), "micro_batches": micro_batches}


def names_of_jax() -> dict[str, Any]:
    jax = pytest.importorskip("jax", reason="JAX is not installed: make foreign runs this")

    def mean_loss(params: Any, x: Any, y: Any) -> Any:
        log_probabilities = jax.nn.log_softmax(x @ params["weight"])
        return -jax.numpy.take_along_axis(log_probabilities, y[:, None], axis=1).mean()

    params = {"weight": jax.numpy.zeros((FEATURES, CLASSES))}
    return {"jax": jax, "mean_loss": mean_loss, "params": params}


FOREIGN: dict[str, Callable[[], dict[str, Any]]] = {
    "import gradaccum.torch": names_of_torch,
    "import gradaccum.jax": names_of_jax,
}


def run(block: str) -> dict[str, Any]:
    found = names(block)
    for words, more in FOREIGN.items():
        if words in block:
            found.update(more())
    exec(block, found)
    return found


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_as_printed(block):
    found = run(block)
    if any(words in block for words in FOREIGN):
        report = found["accumulator"].last_report
        assert report.outcome == ga.Outcome.APPLIED and report.loss is not None and report.gradient_norm > 0


def test_there_are_blocks_of_all_three():
    blocks = [parameter.values[0] for parameter in BLOCKS]
    assert [sum(words in block for block in blocks) for words in FOREIGN] == [2, 1] and len(blocks) >= 8
