"""Draws scaling curves: plot.py ROWS FILE, with the rows as JSON."""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUANTITIES = {"tokens_per_s": "tokens/s", "peak_mib": "peak memory, MiB"}
STYLES = {"ours": dict(color="tab:blue", marker="o"), "PyTorch": dict(color="tab:orange", marker="s")}


def main() -> None:
    rows = json.loads(sys.argv[1])
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    figure, axes = plt.subplots(len(QUANTITIES), len(curves), figsize=(4 * len(curves), 6), squeeze=False)
    for column, curve in enumerate(curves):
        for axis, (quantity, label) in zip(axes[:, column], QUANTITIES.items()):
            for who, style in STYLES.items():
                points = [(row["x"], row[quantity]) for row in rows if (row["curve"], row["who"]) == (curve, who)]
                axis.plot(*zip(*points), label="gradaccum" if who == "ours" else who, **style)
            ticks = sorted({row["x"] for row in rows if row["curve"] == curve})
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.set_ylim(bottom=0)
            axis.set_xlabel(curve)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=120)
    print("{}")


if __name__ == "__main__":
    main()
