"""Scaling curves: speed and peak memory over the window, over the context and over threads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from families.gpt_runs import MODELS
from lab.child import BENCHMARKS, python, run_program
from lab.lab import Lab
from lab.load import TOLERATED

# Small enough that the longest window and context take seconds.
MODEL = {**MODELS["gpt-char"], "layers": 4, "channels": 256, "heads": 4, "batch": 2, "window": 2}
# For a look at the curves, in minutes.
QUICK_MODEL = {**MODEL, "layers": 1, "channels": 64, "heads": 2, "batch": 1}
WINDOWS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 128, 256, 512, 1024)
SCRIPTS = {"ours": "gpt_ours", "PyTorch": "gpt_pytorch"}
# The last: the most CPUs that other work kept busy meanwhile.
COLUMNS = ("curve", "x", "who", "tokens_per_s", "peak_mib", "other_cpus")


def thread_counts(most: int) -> list[int]:
    """Powers of two, and the most."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts + [most] * (most > 1)


def points(lab: Lab) -> list[tuple[str, int, dict[str, int], int]]:
    """Curve, x, model and threads."""
    model = QUICK_MODEL if lab.quick else MODEL
    listed = [("micro-batches of a window", n, {**model, "window": n}, lab.threads) for n in WINDOWS]
    listed += [("context", t, {**model, "context": t}, lab.threads) for t in CONTEXTS]
    listed += [("threads", n, model, n) for n in thread_counts(lab.threads)]
    return listed


def measure_curves(lab: Lab) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for curve, x, config, threads in points(lab):
        tokens = config["window"] * config["batch"] * config["context"]
        updates = max(lab.rounds(3, 1), lab.rounds(32, 16) // config["window"])
        # Two micro-batches warm up: the second adds to gradients that there are.
        settings = {"config": config, "dtype": "f32", "warm_up": 2, "updates": updates}
        for who, script in SCRIPTS.items():
            lab.other_cpus = 0.0
            answer = lab.training(script, settings, threads)
            seconds = sorted(answer["seconds"])[updates // 2]
            speed, memory = round(tokens / seconds), round(answer["peak_mib"], 1)
            rows.append(dict(zip(COLUMNS, (curve, x, who, speed, memory, round(lab.other_cpus, 2)))))
            lab.progress(f"{curve} {x}, {who}: {speed:,} tokens/s, {memory:,} MiB")
    return rows


def draw_curves(lab: Lab, directory: Path) -> None:
    """Writes curves.csv and curves.png."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = measure_curves(lab)
    with open(directory / "curves.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    command = [python(), str(BENCHMARKS / "children" / "plot.py"), json.dumps(rows), str(directory / "curves.png")]
    run_program(command, lab.threads, lab.build)
    disturbed = sum(row["other_cpus"] > TOLERATED for row in rows)
    if disturbed:
        print(f"disturbed: other work kept more than {TOLERATED} CPUs busy in {disturbed} of {len(rows)} measurements")
    print(f"wrote {directory / 'curves.csv'} and {directory / 'curves.png'}")
