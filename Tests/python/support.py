"""What the tests share: the library without exceptions, and processes of their own for what may go wrong."""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from gradaccum import _ffi

ROOT = Path(__file__).resolve().parents[2]

# The same library, whose functions return their status instead of raising.
raw = _ffi.declare(ctypes.CDLL(_ffi.lib._name), is_checked=False)

OK = 0
INVALID_ARGUMENT, SHAPE, DTYPE, STATE, OUT_OF_MEMORY = -1, -2, -3, -4, -5
OVERFLOW, INDEX, NON_FINITE, UNSUPPORTED, INTERNAL = -6, -7, -8, -9, -10

TIME_LIMIT = 120  # seconds; a child that needs more hangs

Test = TypeVar("Test", bound=Callable[..., None])


def sentence() -> str:
    """The thread's last error; one non-empty line of text."""
    text = raw.ga_last_error().decode("utf-8")
    assert text.strip() and "\n" not in text, f"the error is no line of text: {text!r}"
    return text


def status_name(status: int) -> str:
    return raw.ga_status_name(status).decode()


def expect(status: int, expected: int, *words: str) -> None:
    """A call ended with the expected status and, if that is an error, a sentence with these words."""
    said = f": {sentence()}" if status != OK else ""
    assert status == expected, f"{status_name(status)} and not {status_name(expected)}{said}"
    for word in words:
        assert word in sentence(), f"{word!r} is not in the sentence{said}"


def in_child(test: Test) -> Test:
    """Runs a test in a forked child. A test that must not end the process then fails alone if it does, with
    the signal's name, and leaves no trace in the others."""

    @functools.wraps(test)
    def wrapper(*arguments: Any, **named: Any) -> None:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(read)
                signal.alarm(TIME_LIMIT)
                test(*arguments, **named)
                code = 0
            except BaseException:
                os.write(write, traceback.format_exc().encode()[-60000:])
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode("utf-8", "replace")
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            pytest.fail(
                f"the process was ended by {name}{' (it hung)' if name == 'SIGALRM' else ''}", pytrace=False
            )
        if os.WEXITSTATUS(status) != 0:
            pytest.fail(said, pytrace=False)

    return wrapper  # type: ignore[return-value]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment for a new interpreter, without the library's own settings but these."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("GRADACCUM_ISA", "GRADACCUM_NUM_THREADS")}
    return {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def in_new_process(function: Callable[..., Any], *arguments: Any, **variables: str) -> Any:
    """Calls a function of a test module in a new interpreter, where the library was not used yet, and returns
    what it returns. Arguments and result go as JSON; variables are added to the environment."""
    program = (
        "import importlib, json, sys\n"
        "module, name, arguments = json.loads(sys.argv[1])\n"
        "print('\\n' + json.dumps(getattr(importlib.import_module(module), name)(*arguments)))\n"
    )
    call = json.dumps([function.__module__, function.__name__, arguments])
    done = subprocess.run(
        [sys.executable, "-c", program, call],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=4 * TIME_LIMIT,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"something was printed: {done.stderr}"
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def error_of_importing(name: str) -> str:
    """Of a module that is imported anew: in a process of its own."""
    for loaded in [loaded for loaded in sys.modules if loaded.startswith(name)]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        return str(error)
    return "none"


def isas() -> list[str]:
    """The instruction sets of this machine, the lowest first."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    levels = {
        "baseline": set(),
        "avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"},
        "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        "avx512_bf16": {"avx512_bf16"},
    }
    have: list[str] = []
    for name, needed in levels.items():
        if not needed <= set(flags):
            break
        have.append(name)
    return have
