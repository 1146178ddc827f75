"""AdamW with moments of 8 bits trains as AdamW does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import gradaccum as ga
import numpy as np

from support import ROOT

CONTEXT = 32
UPDATES = 200
SAMPLES = 16


def losses(text: Path, seed: int, optimizer: type[ga.Optimizer], **options: int) -> np.ndarray:
    """Means over 20 updates each."""
    from gpt import GPT
    from text import Random, read_text

    train_text, _ = read_text(str(text), CONTEXT)
    gpt = GPT(2, 64, 2, CONTEXT, False, Random(seed, Random.WEIGHTS))
    rule = optimizer(gpt.parameters, lr=3e-3, betas=(0.9, 0.999), weight_decay=0.1, **options)
    accumulator = ga.Accumulator(rule, max_grad_norm=1.0)
    rng = np.random.default_rng(seed)
    found = []
    for update in range(UPDATES):
        rule.lr = 3e-3 * min(1, (update + 1) / 20)
        starts = rng.integers(0, len(train_text) - CONTEXT - 1, SAMPLES)
        window = np.stack([train_text[start : start + CONTEXT + 1] for start in starts]).astype(np.int32)
        accumulator.accumulate(gpt.loss(ga.tensor(window[:, :-1]), ga.tensor(window[:, 1:])), weight=SAMPLES * CONTEXT)
        found.append(accumulator.step().loss)
    return np.reshape(found, (-1, 20)).mean(axis=1)


def test_it_learns_as_adamw_does(tmp_path, monkeypatch):
    """On the King James Bible, all along the way: from AdamW with the same seed it is never further than AdamW with
    different seeds is from itself."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "python")
    text = tmp_path / "text.txt"
    subprocess.run([str(ROOT / "examples" / "text.sh"), str(text)], check=True)
    wide = np.array([losses(text, seed, ga.AdamW) for seed in (1, 2, 3, 4)])
    noise = np.ptp(wide, axis=0)
    assert (noise < 0.5).all() and (wide[:, -1] < wide[:, 0] - 0.5).all()
    narrow = np.array([losses(text, seed, ga.AdamW8bit, min_8bit_size=0) for seed in (1, 2)])
    assert (np.abs(narrow - wide[:2]) <= noise).all()
    assert (narrow != wide[:2]).any()
