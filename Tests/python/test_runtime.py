"""Threads, instruction sets, and what the library does to the program around it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from calls import elements, leaf, made, ok, out, sizes, tensor
from models import (
    Model,
    mlp_arrays,
    mlp_data,
    mlp_loss,
    train,
)
from support import (
    ROOT,
    TIME_LIMIT,
    UNSUPPORTED,
    environment,
    in_child,
    in_new_process,
    isas,
    raw,
)

# ====== Threads ======


@in_child
def test_number_of_threads_is_what_was_set():
    for count in (1, 2, 5, 64, 1):
        ga.set_num_threads(count)
        assert ga.get_num_threads() == count
        assert train() == train()


def threads_in_use() -> int:
    train()
    return ga.get_num_threads()


def test_threads_come_from_the_environment_or_the_affinity_mask():
    assert in_new_process(threads_in_use, GRADACCUM_NUM_THREADS="3") == 3
    assert in_new_process(threads_in_use) == len(os.sched_getaffinity(0))


def threads_on_one_cpu() -> int:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return threads_in_use()


def test_affinity_mask_limits_the_default():
    assert in_new_process(threads_on_one_cpu) == 1


def train_or_say() -> list[str]:
    """The fingerprint, or the status and sentence of the call that could not be."""
    try:
        return ["trained", train()]
    except ga.GAError as error:
        return [str(error.status), str(error)]


@pytest.mark.parametrize("value", ["0", "-3", "two", "99999999999999999999", "4 threads"])
def test_nonsense_in_the_number_of_threads_is_refused(value):
    result, said = in_new_process(train_or_say, GRADACCUM_NUM_THREADS=value)
    assert result != "trained" and "GRADACCUM_NUM_THREADS" in said


def instruction_set() -> str:
    return ga.instruction_set()


def test_best_instruction_set_is_the_default():
    assert in_new_process(instruction_set) == isas()[-1]


def refusals() -> list[list[Any]]:
    """Status and sentence of calls of every kind."""
    found: list[list[Any]] = []
    for call in (
        lambda: raw.ga_tensor_create(out(), 0, 1, 1, sizes(2)),
        lambda: raw.ga_set_num_threads(2),
        lambda: raw.ga_scope_open(out()),
        lambda: raw.ga_instruction_set(ctypes.c_char_p()),
    ):
        found.append([call(), raw.ga_last_error().decode()])
    return found


@pytest.mark.parametrize(
    "name", ["avx1024", "AVX2 ", "", "sse"] + [x for x in ("avx2", "avx512", "avx512_bf16") if x not in isas()]
)
def test_instruction_set_that_there_is_not_is_an_error_in_every_call(name):
    if name == "":
        assert in_new_process(instruction_set, GRADACCUM_ISA="") == isas()[-1]
        return
    for status, said in in_new_process(refusals, GRADACCUM_ISA=name):
        assert status == UNSUPPORTED and "GRADACCUM_ISA" in said and name in said


def test_unrelated_handles_are_used_by_threads_at_once():
    """Eight threads train their own models, twice, while others read numbers; each gets the bits that it gets
    alone. A different seed each, so that no result can come from another's memory."""

    def job(seed: int) -> str:
        model = Model(mlp_arrays(33, 47, 9, seed=seed), mlp_loss, max_grad_norm=0.3)
        return model.fingerprint(mlp_data(21, 33, 9, seed=seed), [[21], [5, 16]] * 4)

    expected = [job(seed) for seed in range(8)]
    assert len(set(expected)) == 8
    for threads in (1, 3):
        ga.set_num_threads(threads)
        found: dict[int, str] = {}
        workers = [threading.Thread(target=lambda s: found.update({s: job(s)}), args=(s,)) for s in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                ga.memory_usage()
                worker.join(0.01)
        assert [found.get(seed) for seed in range(8)] == expected
    ga.set_num_threads(len(os.sched_getaffinity(0)))


@in_child
def test_recording_and_scopes_are_per_thread():
    x = leaf(np.ones(2))
    ok(raw.ga_set_recording(0))
    scope = made(raw.ga_scope_open)
    found: list[Any] = []

    def other() -> None:
        y = made(raw.ga_relu, x)
        needs = ctypes.c_int32()
        ok(raw.ga_tensor_requires_grad(y, needs))
        found.extend([needs.value, y])

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    ok(raw.ga_scope_close(scope, None, 0))
    assert found[0] == 1 and elements(found[1]).tolist() == [1, 1]


@in_child
def test_threads_may_end_with_open_scopes_and_come_and_go():
    expected = train()

    def leave_open() -> None:
        made(raw.ga_scope_open)
        tensor(np.ones(1000))

    for _ in range(200):
        thread = threading.Thread(target=leave_open)
        thread.start()
        thread.join()
    assert train() == expected


# ====== The program around ======


def compiled(name: str, tmp_path: Path, *options: str) -> str:
    """Builds a C program of this folder and returns its path."""
    program = tmp_path / name
    source = Path(__file__).with_name(f"{name}.c")
    flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "include")]
    subprocess.run(["gcc", *flags, str(source), *options, "-o", str(program)], check=True)
    return str(program)


def test_floating_point_mode_of_the_caller(tmp_path):
    """Is neither used nor changed: see mxcsr.c."""
    library = Path(_ffi.lib._name).resolve()
    program = compiled("mxcsr", tmp_path, "-frounding-math", str(library), f"-Wl,-rpath,{library.parent}")
    for threads in ("1", "2"):
        done = subprocess.run(
            [program],
            env=environment(GRADACCUM_NUM_THREADS=threads),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stdout.count(": ok") == 6


def used_and_signals() -> list[list[str]]:
    def signals() -> list[str]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return [line for line in lines if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]

    before = signals()
    train()
    return [before, signals()]


def test_use_installs_no_signal_handler():
    before, after = in_new_process(used_and_signals)
    assert before == after


def test_workers_take_no_signals_from_the_program():
    """A signal to the process is handled by the program's own threads, and interrupts its own calls."""
    program = (
        "import os, signal, sys, time, test_runtime as t\n"
        "import gradaccum as ga\n"
        "before = set(os.listdir('/proc/self/task'))\n"
        "ga.set_num_threads(4); t.train()\n"
        "for task in os.listdir('/proc/self/task'):\n"
        "    if task not in before:\n"
        "        line = [x for x in open(f'/proc/self/task/{task}/status') if x.startswith('SigBlk')][0]\n"
        "        assert int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)), line\n"
        "        print('worker')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    workers = done.stdout.count("worker")
    assert workers == 3, f"4 threads are the caller and 3 workers, and there are {workers}"


def test_nothing_is_printed():
    """Neither in a training run nor by errors of every kind."""
    program = (
        "import gradaccum as ga, test_runtime as t\n"
        "t.train()\n"
        "x, y = ga.zeros((2,)), ga.zeros((3,))\n"
        "for call in (lambda: ga.zeros((-1,)), lambda: x + y, lambda: ga.set_num_threads(0)):\n"
        "    try: call()\n"
        "    except ga.GAError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_library_can_be_opened_and_closed_again(tmp_path):
    """See reload.c."""
    program = compiled("reload", tmp_path, "-ldl")
    done = subprocess.run([program, _ffi.lib._name], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
