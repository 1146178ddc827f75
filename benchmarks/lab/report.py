"""The table, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from .rows import Result

HEADINGS = ("row", "ours", "peer", "unit", "ratio", "share of peak (ours / peer)", "bar", "")


def machine() -> str:
    model = platform.machine()
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def cells(result: Result) -> tuple[str, ...]:
    measured = result.measured
    shares = "-"
    if measured.peak_share is not None:
        shares = f"{percent(measured.peak_share)} / {percent(measured.peer_peak_share)}"
    ratio = "-" if measured.ratio is None else f"{measured.ratio:.3f}"
    return (
        result.row.name,
        number(measured.ours),
        number(measured.peer),
        measured.unit,
        ratio,
        shares,
        str(result.row.bar),
        "met" if result.met else "missed",
    )


def table(results: Sequence[Result]) -> str:
    """In Markdown, aligned to be read as it is, with the notes below."""
    lines = [HEADINGS, *(cells(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"- {result.row.name}: {note}" for result in results for note in result.measured.notes]
    return "\n".join(texts + ([""] + notes if notes else []))


def write_json(path: Path, results: Sequence[Result]) -> None:
    rows = [
        {
            "row": result.row.name,
            "ours": result.measured.ours,
            "peer": result.measured.peer,
            "unit": result.measured.unit,
            "ratio": result.measured.ratio,
            "bar": result.row.bar.value,
            "met": result.met,
        }
        for result in results
    ]
    path.write_text(json.dumps(rows, indent=2) + "\n")
