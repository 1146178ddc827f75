"""Builds the C programs of native/ for this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .child import BENCHMARKS, REPOSITORY, ChildFailed

FLAGS = ["-std=gnu11", "-O3", "-march=native", "-Wall", "-Wextra"]


def build_program(name: str, directory: Path, library: Path | None = None) -> Path:
    """Builds native/<name>.c into the directory; with library, linked against it."""
    program = directory / name
    command = [os.environ.get("CC", "cc"), *FLAGS, str(BENCHMARKS / "native" / f"{name}.c"), "-o", str(program)]
    if library is not None:
        command += ["-I", str(REPOSITORY / "include"), str(library), f"-Wl,-rpath,{library.parent}"]
    done = subprocess.run([*command, "-lpthread", "-lm"], capture_output=True, text=True)
    if done.returncode != 0:
        raise ChildFailed(f"{name}.c: {done.stderr.strip()}")
    return program
