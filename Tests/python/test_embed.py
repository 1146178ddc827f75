"""A C program and a script in its interpreter share a library and its objects."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from ctypes import byref, c_int64, c_void_p
from pathlib import Path

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi

from support import ROOT, environment, raw
from test_programs import BUILT, TEXT

PROGRAM = BUILT / "embed_python"
EMBED = ROOT / "examples" / "embed"


def embedded(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program with the package and numpy of this interpreter, if they fit the one that it embeds."""
    if not PROGRAM.exists():
        pytest.skip("libpython3-dev is not installed: apt-get install libpython3-dev, and make examples")
    linked = subprocess.run(["ldd", str(PROGRAM)], capture_output=True, text=True).stdout
    version = re.search(r"libpython(\d+\.\d+)\.so", linked)
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version and version[1] != ours:
        pytest.skip(f"the program embeds Python {version[1]}, and numpy is here for {ours}")
    site = Path(np.__file__).resolve().parents[1]
    variables = environment(GRADACCUM_LIBRARY="")
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT / "bindings" / "python"), str(site)])
    return subprocess.run([str(PROGRAM), *arguments], env=variables, capture_output=True, text=True, timeout=300)


def test_c_and_python_train_one_model_to_the_bits_of_c_alone():
    done = embedded(str(TEXT), str(EMBED))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = [re.fullmatch(r"(.+?) {2,}loss ([0-9.]+)  weights_fnv1a ([0-9a-f]{16})", x) for x in done.stdout.splitlines()]
    assert all(lines) and [line[1] for line in lines] == ["C", "C and Python", "Python"]
    assert len({line.groups()[1:] for line in lines}) == 1 and 1 < float(lines[0][2]) < 4


@pytest.mark.parametrize(
    ("text", "script", "words"),
    [
        (TEXT, "import gradaccum\n", ["Guest"]),
        (TEXT, "raise KeyError('from the script')\n", ["from the script", "the script failed"]),
        (Path("/nowhere"), "", ["/nowhere"]),
    ],
)
def test_script_that_fails_is_a_traceback_and_a_status(tmp_path, text, script, words):
    (tmp_path / "guest.py").write_text(script, encoding="ascii")
    done = embedded(str(text), str(tmp_path))
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr


def test_weights_that_differ_are_an_exit_status(tmp_path):
    """The script's half must be the same computation: the program looks, and says so."""
    changed = (EMBED / "guest.py").read_text(encoding="ascii").replace('"tanh"', '"none"')
    (tmp_path / "guest.py").write_text(changed, encoding="ascii")
    done = embedded(str(TEXT), str(tmp_path))
    assert done.returncode == 1 and "not the same" in done.stderr


def import_beside(loaded: Path, **variables: str) -> list[str]:
    """The libraries that a process has mapped which loads one itself and then imports the package."""
    program = (
        "import ctypes, json, sys\n"
        "ctypes.CDLL(sys.argv[1])\n"
        "import gradaccum as ga\n"
        "ga.zeros((2,))\n"
        "maps = open('/proc/self/maps').read().split('\\n')\n"
        "print(json.dumps(sorted({x.split()[-1] for x in maps if 'libgradaccum' in x})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(loaded)],
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_library_of_the_process_comes_before_others(tmp_path):
    built = Path(_ffi.lib._name).resolve()
    own = tmp_path / "libgradaccum.so.1"
    shutil.copy(built, own)
    assert import_beside(own, GRADACCUM_LIBRARY="") == [str(own)]
    assert import_beside(own, GRADACCUM_LIBRARY=str(built)) == sorted([str(own), str(built)])


# ====== Borrowed handles ======


def handle_of(create, *arguments) -> int:
    """A handle as a C program has it."""
    out = c_void_p()
    assert create(byref(out), *arguments) == 0
    assert out.value is not None
    return out.value


def new_tensor(size: int) -> int:
    return handle_of(raw.ga_tensor_create, _ffi.DEVICE_CPU, ga.float32, 1, (c_int64 * 1)(size))


def test_borrowed_objects_are_used_in_place_and_not_freed():
    handle = new_tensor(3)
    optimizer = handle_of(raw.ga_sgd_create, (c_void_p * 1)(handle), 1, byref(_ffi.SGDOptions(learning_rate=1.0)))
    accumulator = handle_of(raw.ga_accumulator_create, optimizer, byref(_ffi.AccumulatorOptions(accumulation_steps=2)))
    weight = ga.Tensor.borrow(handle)
    borrowed = ga.Accumulator.borrow(accumulator, ga.Optimizer.borrow(optimizer, [weight]))
    assert weight.handle == handle and weight.shape == (3,) and borrowed.optimizer.lr == 1.0
    borrowed.accumulate(ga.sum(weight * ga.tensor([1.0, 2.0, 3.0])), weight=1)
    borrowed.accumulate_gradients([np.ones(3, np.float32)], 0.0, 1)
    assert borrowed.step_due and borrowed.step().outcome == ga.Outcome.APPLIED
    assert weight.numpy().tolist() == [-1.0, -1.5, -2.0] and borrowed.gradient_norms().size == 1
    with pytest.raises(ga.GAStateError, match="borrowed"):
        borrowed.set_skip_handler(lambda report: ga.Decision.SKIP)
    with pytest.raises(ga.GAStateError, match="borrowed"):
        borrowed.set_retry_handler(lambda report: False)

    again = ga.Tensor.borrow(handle)
    again.close()
    borrowed.close()
    del weight, borrowed, again
    gc.collect()
    count = c_int64()
    assert raw.ga_tensor_element_count(handle, byref(count)) == 0 and count.value == 3
    assert raw.ga_accumulator_accumulation_steps(accumulator, byref(count)) == 0
    raw.ga_accumulator_free(accumulator)
    raw.ga_optimizer_free(optimizer)
    raw.ga_tensor_free(handle)


def test_scope_does_not_close_what_is_borrowed_in_it():
    handle = new_tensor(2)
    with ga.Scope():
        borrowed = ga.Tensor.borrow(handle)
    assert not borrowed.closed and borrowed.fill_(2).numpy().tolist() == [2, 2]
    raw.ga_tensor_free(handle)
    with pytest.raises(ga.GAInvalidArgumentError, match="live"):
        borrowed.numpy()


def test_handle_of_another_kind_is_refused():
    handle = new_tensor(2)
    stranger = ga.Accumulator.borrow(handle, ga.Optimizer.borrow(handle, []))
    with pytest.raises(ga.GAInvalidArgumentError, match="ga_accumulator"):
        stranger.step()
    with pytest.raises(ga.GAInvalidArgumentError, match="ga_optimizer"):
        stranger.optimizer.lr = 1.0
    raw.ga_tensor_free(handle)
