"""Runs a program as a child process that prints one line of JSON at its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
REPOSITORY = BENCHMARKS.parent
VENV_PYTHON = REPOSITORY / "build" / "bench-venv" / "bin" / "python"


class ChildFailed(Exception):
    """A child that did not end well; the sentence is the end of what it wrote."""


def python() -> str:
    """The interpreter with the peers, whichever one run.py was started with."""
    return str(VENV_PYTHON) if VENV_PYTHON.exists() else sys.executable


@dataclass(frozen=True)
class Build:
    """The library, and the header and binding that fit it: copies, so that a build in the meantime does not mix
    two of them in one table."""

    library: Path
    header: Path
    bindings: Path

    @classmethod
    def copied(cls, library: Path, directory: Path) -> Build:
        shutil.copytree(REPOSITORY / "bindings" / "python" / "gradaccum", directory / "python" / "gradaccum")
        return cls(
            Path(shutil.copy(library, directory / "libgradaccum.so.1")),
            Path(shutil.copy(REPOSITORY / "include" / "gradaccum.h", directory)),
            directory / "python",
        )


def run_program(command: list[str], threads: int, build: Build) -> Any:
    """The value of the last line that the command prints."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GRADACCUM_NUM_THREADS": str(threads),
        "GRADACCUM_LIBRARY": str(build.library),
        "PYTHONPATH": str(build.bindings),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        why = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ChildFailed(f"{Path(command[-1] if len(command) < 3 else command[1]).name}: {why[:300]}")
    return json.loads(lines[-1])


def run_child(script: str, settings: dict[str, Any], threads: int, build: Build) -> dict[str, Any]:
    """Runs children/<script>.py with the settings; it prints an object."""
    command = [python(), str(BENCHMARKS / "children" / f"{script}.py"), json.dumps(settings)]
    answer: dict[str, Any] = run_program(command, threads, build)
    return answer
