#!/usr/bin/env python3
"""Measures gradaccum beside PyTorch and JAX, and prints a table of rows with their bars."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

from families import (
    fold,
    gpt_memory,
    gpt_speed,
    optimizers,
    steady_state,
    threads,
    update_memory,
    weight_gradient,
    window_end,
    window_memory,
)
from lab.child import REPOSITORY, Build, ChildFailed, python, run_program
from lab.lab import Lab
from lab.load import TOLERATED
from lab.report import machine, table, write_json
from lab.rows import Measured, Result, Row, Unsupported

FAMILIES = (
    gpt_speed,
    gpt_memory,
    update_memory,
    window_end,
    fold,
    optimizers,
    weight_gradient,
    window_memory,
    steady_state,
    threads,
)
ROWS: list[Row] = [row for family in FAMILIES for row in family.ROWS]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Rows: " + ", ".join(row.name for row in ROWS))
    parser.add_argument("--only", metavar="ROW,ROW", default="", help="these rows, or those that begin so")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, and curves of a smaller model")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of ours and the peers")
    parser.add_argument(
        "--curves", metavar="DIR", type=Path, help="write scaling curves as PNG and CSV instead of the table"
    )
    arguments = parser.parse_args()
    arguments.only = [name for name in arguments.only.split(",") if name]
    for name in arguments.only:
        if not any(row.is_selected_by([name]) for row in ROWS):
            parser.error(f"there is no row {name}; there are: {', '.join(row.name for row in ROWS)}")
    if arguments.threads < 1:
        parser.error("--threads must be at least 1")
    return arguments


def measure(lab: Lab, row: Row) -> Result:
    """A row that cannot be measured is in the table, as missed, with the reason."""
    lab.progress(f"{row.name}: {row.what}")
    lab.other_cpus = 0.0
    try:
        measured = row.measure(lab)
    except (Unsupported, ChildFailed) as reason:
        measured = Measured(None, None, "-", None, notes=[str(reason)])
    if lab.other_cpus > TOLERATED:
        measured.notes.append(f"disturbed: other work kept up to {lab.other_cpus:.1f} CPUs busy meanwhile")
    return Result(row, measured)


def copy_build(directory: Path) -> Build:
    source = Path(os.environ.get("GRADACCUM_LIBRARY") or REPOSITORY / "build" / "lib" / "libgradaccum.so.1")
    if not source.exists():
        sys.exit(f"run.py: there is no {source}: build it with `make`")
    return Build.copied(source, directory)


def run(arguments: argparse.Namespace, lab: Lab) -> None:
    if arguments.curves is not None:
        from curves import draw_curves

        draw_curves(lab, arguments.curves)
        return
    began = time.monotonic()
    results = [measure(lab, row) for row in ROWS if row.is_selected_by(arguments.only)]
    minutes = (time.monotonic() - began) / 60
    repeats = "--quick: fewer repeats than the full table" if lab.quick else "full repeats"
    print(f"{datetime.date.today()}, {machine()}, {lab.threads} threads; {repeats}; {minutes:.0f} min\n")
    print(table(results), flush=True)
    if arguments.json is not None:
        write_json(arguments.json, results)


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="gradaccum-bench-") as name:
        directory = Path(name)
        patience = 60.0 if arguments.quick else 240.0
        lab = Lab(directory, copy_build(directory), arguments.threads, arguments.quick, patience)
        try:
            run_program([python(), "-c", "import torch; print(0)"], 1, lab.build)
        except ChildFailed:
            sys.exit("run.py: the peers are not installed: run `make bench`, which sets up an environment for them")
        run(arguments, lab)


if __name__ == "__main__":
    main()
