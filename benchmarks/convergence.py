#!/usr/bin/env python3
"""Trains a small GPT on the King James Bible in every precision that the library has, and says how far apart they end.

500 updates, three seeds, by examples/c/train_gpt.c: what is computed in float32, bfloat16 and float16 with a dynamic loss
scale, and sums of gradients in bfloat16, each of 1024 additions to a window. Besides the losses, it compares the sum of a
window's gradients with that in float64. Figures do not depend on the machine but for its instruction set, nor on threads.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

REPOSITORY = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)
# What to compute in and what to keep sums in, by the names of train_gpt, and how the figures call them.
VARIANTS = {
    ("f32", "f32"): "float32",
    ("bf16", "f32"): "bfloat16",
    ("f16", "f32"): "float16, dynamic loss scale",
    ("f32", "bf16-stochastic"): "sums in bfloat16, stochastic",
    ("f32", "bf16-kahan"): "sums in bfloat16, Kahan",
    ("f32", "bf16"): "sums in bfloat16, to the nearest",
}
MODEL = "--layers 2 --channels 64 --heads 2 --context 8 --batch 1024 --micro-batch 128 --learning-rate 3e-3 --sample 0"
FULL = {"updates": 500, "warmup": 50, "every": 25}
QUICK = {"updates": 30, "warmup": 10, "every": 10}
Losses = dict[int, float]


def train(text: Path, compute: str, sums: str, seed: int, length: dict[str, int]) -> Losses:
    """Training losses by update, each of 8192 bytes before the update that learns from them."""
    command = [str(REPOSITORY / "build" / "examples" / "train_gpt"), "--text", str(text), *MODEL.split()]
    command += ["--updates", str(length["updates"]), "--warmup", str(length["warmup"])]
    command += ["--eval-every", str(length["every"]), "--threads", "1", "--seed", str(seed)]
    done = subprocess.run([*command, "--compute", compute, "--sums", sums], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"convergence.py: {done.stderr.strip()}")
    found = re.findall(r"^update +(\d+)/\d+ +loss ([0-9.]+) ", done.stdout, re.MULTILINE)
    losses = {int(update): float(loss) for update, loss in found}
    assert length["updates"] in losses
    print(f"  {VARIANTS[compute, sums]}, seed {seed}: {end(losses):.4f}", file=sys.stderr, flush=True)
    return losses


def end(losses: Losses) -> float:
    """The mean over the last four."""
    return mean(losses[update] for update in sorted(losses)[-4:])


def train_all(text: Path, length: dict[str, int]) -> dict[tuple[str, str], list[Losses]]:
    """As many at a time as there are CPUs, each on a thread of its own."""
    runs = [(variant, seed) for seed in SEEDS for variant in VARIANTS]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda run: train(text, *run[0], run[1], length), runs))
    found: dict[tuple[str, str], list[Losses]] = {variant: [] for variant in VARIANTS}
    for (variant, _), losses in zip(runs, results):
        found[variant].append(losses)
    return found


def gradient_errors(text: Path) -> list[dict[str, float | str | int]]:
    """How far the sum of a window's gradients is from that in float64, for windows of some numbers of samples."""
    sys.path[:0] = [str(REPOSITORY / "bindings" / "python"), str(REPOSITORY / "examples" / "python")]
    import numpy as np

    import gradaccum as ga
    from gpt import GPT
    from text import Random, read_text

    train_text, _ = read_text(str(text), 8)
    rows: list[dict[str, float | str | int]] = []
    for samples in (64, 1024, 8192):
        starts = np.random.default_rng(0).integers(0, len(train_text) - 9, samples)
        windows = np.stack([train_text[start : start + 9] for start in starts]).astype(np.int32)
        exact: list[np.ndarray] = []
        for sum_format in ("float32", "bfloat16_stochastic", "bfloat16_kahan", "bfloat16"):
            gpt = GPT(2, 64, 2, 8, False, Random(1, Random.WEIGHTS))
            window = ga.Accumulator(ga.SGD(gpt.parameters, lr=0.0), sum_format=sum_format)
            sums = [np.zeros(parameter.shape) for parameter in gpt.parameters]
            for part in (windows[first : first + 64] for first in range(0, samples, 64)):
                window.accumulate(gpt.loss(ga.tensor(part[:, :-1]), ga.tensor(part[:, 1:])), weight=64)
                if sum_format == "float32":
                    # Micro-batches are added up in float64, so that only the rounding within each is left.
                    for index, sum_ in enumerate(sums):
                        sum_ += window.accumulated_gradient(index).numpy()
                    window.zero()
            if sum_format == "float32":
                exact = sums
                continue
            found = [window.accumulated_gradient(index).numpy() for index in range(len(exact))]
            error = sum(np.square(a - b).sum() for a, b in zip(found, exact))
            size = sum(np.square(b).sum() for b in exact)
            window.step()
            additions, unchanged = window.stagnation()
            rows.append(
                {
                    "samples": samples,
                    "sums": sum_format,
                    "error": float(np.sqrt(error / size)),
                    "unchanged": float(unchanged.sum() / additions.sum()),
                }
            )
    return rows


def table(losses: dict[tuple[str, str], list[Losses]], errors: list[dict[str, float | str | int]]) -> str:
    early = sorted(losses["f32", "f32"][0])[1]

    def away(variant: tuple[str, str], of: Callable[[Losses], float]) -> str:
        return ", ".join(f"{of(run) - of(base):+.4f}" for run, base in zip(losses[variant], losses["f32", "f32"]))

    lines = [
        f"| precision | loss at the end | minus float32 of the same seed, at the end | at update {early} |",
        "|---|---|---|---|",
    ]
    for variant, name in VARIANTS.items():
        ends = ", ".join(f"{end(run):.4f}" for run in losses[variant])
        lines.append(f"| {name} | {ends} | {away(variant, end)} | {away(variant, lambda run: run[early])} |")
    reference = [end(run) for run in losses["f32", "f32"]]
    lines += ["", f"Seeds of float32 are {max(reference) - min(reference):.4f} apart at the end.", ""]
    lines += ["| sums | samples of the window | relative error of the sum | additions that changed nothing |", "|---|---|---|---|"]
    lines += [
        f"| {row['sums']} | {row['samples']} | {row['error']:.2g} | {100 * float(row['unchanged']):.1f} % |" for row in errors
    ]
    return "\n".join(lines)


def draw(losses: dict[tuple[str, str], list[Losses]], path: Path) -> None:
    """Losses, the mean and the range of the seeds, and beside them the distance from float32."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    reference = losses["f32", "f32"]
    for variant, name in VARIANTS.items():
        updates = sorted(losses[variant][0])
        runs = [[run[update] for update in updates] for run in losses[variant]]
        line = left.plot(updates, [mean(values) for values in zip(*runs)], label=name)[0]
        left.fill_between(
            updates, [min(v) for v in zip(*runs)], [max(v) for v in zip(*runs)], alpha=0.15, color=line.get_color()
        )
        if variant != ("f32", "f32"):
            away = [mean(run[update] - of[update] for run, of in zip(losses[variant], reference)) for update in updates]
            right.plot(updates, away, label=name, color=line.get_color())
    spread = [max(values) - min(values) for values in ([run[update] for run in reference] for update in updates)]
    right.fill_between(updates, [-s for s in spread], spread, alpha=0.12, color="gray", label="between seeds of float32")
    left.set_ylabel("loss, nats per byte")
    right.set_ylabel("loss minus that of float32 with the same seed, mean")
    right.set_ylim(-0.05, 0.1)
    for axis in (left, right):
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "convergence", help="where to write")
    parser.add_argument("--quick", action="store_true", help="30 updates, to see that it works")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = arguments.out / "text.txt"
    subprocess.run([str(REPOSITORY / "examples" / "text.sh"), str(text)], check=True)
    losses = train_all(text, QUICK if arguments.quick else FULL)
    errors = gradient_errors(text)
    with open(arguments.out / "losses.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["compute", "sums", "seed", "update", "loss"])
        for (compute, sums), runs in losses.items():
            for seed, run in zip(SEEDS, runs):
                writer.writerows([compute, sums, seed, update, loss] for update, loss in run.items())
    (arguments.out / "gradients.json").write_text(json.dumps(errors, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(losses, errors) + "\n")
    draw(losses, arguments.out / "convergence.png")
    text.unlink()
    print(table(losses, errors))


if __name__ == "__main__":
    main()
