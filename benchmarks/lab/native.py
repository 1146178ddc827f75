"""Builds the C programs of native/ for this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .child import BENCHMARKS, Build, ChildFailed

FLAGS = ["-std=gnu11", "-O3", "-march=native", "-Wall", "-Wextra"]


def build_program(name: str, directory: Path, build: Build | None = None) -> Path:
    """Builds native/<name>.c into the directory; with build, linked against the library."""
    program = directory / name
    command = [os.environ.get("CC", "cc"), *FLAGS, str(BENCHMARKS / "native" / f"{name}.c"), "-o", str(program)]
    if build is not None:
        command += ["-I", str(build.header.parent), str(build.library), f"-Wl,-rpath,{build.library.parent}"]
    done = subprocess.run([*command, "-lpthread", "-lm"], capture_output=True, text=True)
    if done.returncode != 0:
        raise ChildFailed(f"{name}.c: {done.stderr.strip()}")
    return program
