"""Peak bytes of a long window against a window of one micro-batch."""

from __future__ import annotations

from lab.lab import Lab
from lab.rows import Measured, Row, at_most

from .gpt_runs import MODELS, Answer

LONG = 64


def run(lab: Lab, window: int) -> Answer:
    config = {**MODELS["gpt-char"], "batch": 1, "window": window}
    return lab.training("gpt_ours", {"config": config, "dtype": "f32", "warm_up": 1, "updates": 1})


def measure(lab: Lab) -> Measured:
    short, long = run(lab, 1), run(lab, LONG)
    ours, peer = (answer["tensor_peak_bytes"] / 2**20 for answer in (long, short))
    notes = [
        f"the peer is ours with a window of 1; resident sets {long['peak_mib']:.1f} and {short['peak_mib']:.1f} MiB"
    ]
    return Measured(ours, peer, "MiB", ours / peer, notes=notes)


ROWS = [Row("window-memory", f"window of {LONG} against a window of 1", at_most(1.01), measure)]
