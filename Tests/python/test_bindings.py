"""The prototype table of the bindings is the header, and the library is found as documented."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
import weakref
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

import gradaccum as ga
import numpy as np
import prototypes
import pytest
from gradaccum import _ffi, errors

from support import ROOT, environment

HEADER = prototypes.parse()

STRUCTS = {
    "ga_memory": _ffi.Memory,
    "ga_sgd_options": _ffi.SGDOptions,
    "ga_adam_options": _ffi.AdamOptions,
    "ga_adamw_options": _ffi.AdamWOptions,
    "ga_radam_options": _ffi.RAdamOptions,
    "ga_nadam_options": _ffi.NAdamOptions,
    "ga_lion_options": _ffi.LionOptions,
    "ga_lamb_options": _ffi.LAMBOptions,
    "ga_lars_options": _ffi.LARSOptions,
    "ga_adafactor_options": _ffi.AdafactorOptions,
    "ga_muon_options": _ffi.MuonOptions,
    "ga_adamw8bit_options": _ffi.AdamW8bitOptions,
    "ga_update": _ffi.Update,
    "ga_custom_options": _ffi.CustomOptions,
    "ga_group_options": _ffi.GroupOptions,
    "ga_schedule_options": _ffi.ScheduleOptions,
    "ga_scaling_options": _ffi.ScalingOptions,
    "ga_average_options": _ffi.AverageOptions,
    "ga_loss_scaler_options": _ffi.LossScalerOptions,
    "ga_loss_scaler_state": _ffi.LossScalerState,
    "ga_accumulator_options": _ffi.AccumulatorOptions,
    "ga_report": _ffi.Report,
}
SCALARS = {
    "int32_t": c_int32,
    "int64_t": c_int64,
    "uint32_t": c_uint32,
    "uint64_t": c_uint64,
    "size_t": c_size_t,
    "double": c_double,
    "ga_status": c_int32,
    "ga_allocate_fn": _ffi.AllocateFn,
    "ga_release_fn": _ffi.ReleaseFn,
    "ga_block_fn": _ffi.BlockFn,
    "ga_update_fn": _ffi.UpdateFn,
    "ga_skip_fn": _ffi.SkipFn,
    "ga_retry_fn": _ffi.RetryFn,
}
CALLBACKS = {
    "void (*)(void * data, void * user)": _ffi.WrapReleaseFn,
    "void (*)(void * user)": _ffi.UserReleaseFn,
}
OPAQUE = (
    "void",
    "ga_tensor",
    "ga_scope",
    "ga_optimizer",
    "ga_average",
    "ga_accumulator",
    "ga_loss_scaler",
    "DLManagedTensor",
    "DLManagedTensorVersioned",
)


def ctype_of(text: str) -> object:
    """The ctypes type that stands for a type of the header."""
    if text in CALLBACKS:
        return CALLBACKS[text]
    words = text.replace("const", "").replace("struct", "").split()
    base, stars = words[0], "".join(words[1:]).count("*")
    if base == "char":
        base, stars, kind = "char", stars - 1, c_char_p
    elif base in OPAQUE:
        stars, kind = stars - 1, c_void_p
    else:
        kind = SCALARS.get(base) or STRUCTS[base]
    for _ in range(stars):
        kind = POINTER(kind)
    return kind


def test_table_has_the_functions_of_the_header_in_its_order():
    assert list(_ffi.PROTOTYPES) == list(HEADER.functions)


@pytest.mark.parametrize("name", HEADER.functions)
def test_prototype_is_that_of_the_header(name):
    function = HEADER.functions[name]
    restype, argtypes, names = _ffi.PROTOTYPES[name]
    assert [_ffi.ctype(kind) for kind in argtypes] == [ctype_of(x.type) for x in function.parameters]
    tensors = [x.type.replace("const ", "") == "ga_tensor *" for x in function.parameters]
    assert [kind is _ffi.TENSOR for kind in argtypes] == tensors
    assert names.split() == [x.name for x in function.parameters]
    expected = {"void": None, "const char *": c_char_p, "int32_t": c_int32, "int64_t": c_int64}
    expected["ga_status"] = _ffi._Status
    assert restype is expected[function.returns]


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_is_that_of_the_header(name):
    fields = [(x.name, ctype_of(x.type)) for x in HEADER.structs[name]]
    assert [tuple(field) for field in STRUCTS[name]._fields_] == fields


def test_every_struct_of_the_header_is_there():
    assert set(STRUCTS) == set(HEADER.structs)


def test_struct_defaults_are_those_of_the_init_macros():
    for name, struct in STRUCTS.items():
        text = HEADER.constants[f"{name.upper()}_INIT"].strip("{} ").split(",")
        words = [word.strip() for word in text]
        assert words[0] == f"sizeof({name})"
        expected = [0.0 if word == "NULL" else float(HEADER.constants.get(word, word)) for word in words[1:]]
        made = struct()
        assert made.struct_size == ctypes.sizeof(struct)
        values = [getattr(made, field[0]) for field in struct._fields_[1:]]
        assert [float(bool(x) if isinstance(x, ctypes._Pointer) else x) for x in values] == expected


def test_constants_are_those_of_the_header():
    """Each GA_NAME that the bindings have as NAME, and those have all but versions, statuses and macros."""
    for name, text in HEADER.constants.items():
        if name.startswith(("GA_VERSION", "GA_ERROR")) or name.endswith("_INIT") or name == "GA_OK":
            continue
        value = eval(text, {})  # a number, or "(-9223372036854775807 - 1)"
        assert getattr(_ffi, name.removeprefix("GA_")) == value, name


def test_exceptions_are_those_of_the_statuses():
    statuses = {name: eval(text) for name, text in HEADER.constants.items() if name.startswith("GA_ERROR")}
    assert set(errors.BY_STATUS) == set(statuses.values())
    for name, status in statuses.items():
        words = name.removeprefix("GA_ERROR_").replace("DTYPE", "D_TYPE").split("_")
        expected = "GA" + "".join(word.capitalize() for word in words) + "Error"
        assert errors.BY_STATUS[status].__name__ == expected
        assert _ffi.lib.ga_status_name(status).decode() == name
    assert _ffi.lib.ga_status_name(0) == b"GA_OK"
    for unknown in (1, -12, -(2**31), 2**31 - 1):
        assert _ffi.lib.ga_status_name(unknown)  # never NULL


def test_versions_agree():
    parts = [HEADER.constants[f"GA_VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH")]
    assert ga.version() == ".".join(parts) == ga.__version__
    assert _ffi.lib.ga_abi_version() == _ffi.ABI_VERSION == int(HEADER.constants["GA_ABI_VERSION"])


def test_errors_are_raised_as_the_builtin_ones_too():
    x = ga.zeros((2, 3))
    with pytest.raises(ValueError, match="b") as caught:
        ga.add(x, ga.zeros((4,)))
    assert isinstance(caught.value, ga.GAShapeError) and caught.value.status == -2
    with pytest.raises(IndexError):
        ga.embedding(x, ga.tensor([5]))
    with pytest.raises(TypeError):
        ga.relu(ga.tensor([1]))
    with pytest.raises(OverflowError):
        ga.zeros((2**40, 2**40))


# ====== Finding the library ======


def import_with(tmp_path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Imports the package in a new process, from a copy without a checkout around it if tmp_path is given."""
    full = environment(**variables)
    if tmp_path is not None:
        target = tmp_path / "site" / "gradaccum"
        if not target.exists():
            shutil.copytree(
                Path(_ffi.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__", "_lib")
            )
        full["PYTHONPATH"] = str(target.parent)
    program = "import gradaccum._ffi as f; print(f.lib._name)"
    return subprocess.run([sys.executable, "-c", program], env=full, cwd="/", capture_output=True, text=True)


def without_override(**variables: str) -> dict[str, str]:
    return {"GRADACCUM_LIBRARY": "", **variables}


def test_explicit_library_is_loaded(tmp_path):
    library = tmp_path / "other.so"
    shutil.copy(_ffi.lib._name, library)
    assert import_with(GRADACCUM_LIBRARY=str(library)).stdout.strip() == str(library)


def test_explicit_library_that_is_missing_is_not_replaced_by_another():
    done = import_with(GRADACCUM_LIBRARY="/nowhere/libgradaccum.so.1")
    assert done.returncode != 0
    assert "GALibraryError" in done.stderr and "/nowhere/libgradaccum.so.1" in done.stderr


def test_bundled_library_comes_before_others(tmp_path):
    import_with(tmp_path, **without_override())
    bundled = tmp_path / "site" / "gradaccum" / "_lib" / "libgradaccum.so.1"
    bundled.parent.mkdir()
    shutil.copy(_ffi.lib._name, bundled)
    assert import_with(tmp_path, **without_override()).stdout.strip() == str(bundled)


def test_library_of_the_checkout_is_found():
    built = ROOT / "build" / "lib" / "libgradaccum.so.1"
    if not built.exists():
        pytest.skip("the library under test is not the checkout's")
    assert import_with(**without_override()).stdout.strip() == str(built)


def test_message_lists_every_place_and_what_to_do(tmp_path):
    done = import_with(tmp_path, **without_override())
    if done.returncode == 0:
        pytest.skip("the library is installed in the system")
    assert "GALibraryError" in done.stderr and "GRADACCUM_LIBRARY" in done.stderr
    for place in ("_lib/libgradaccum.so.1", "build/lib/libgradaccum.so.1"):
        assert str(place) in done.stderr


def test_library_of_another_abi_is_refused(tmp_path):
    source = tmp_path / "other.c"
    source.write_text("int ga_abi_version(void) { return 99; }\n")
    library = tmp_path / "libgradaccum.so.99"
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    done = import_with(GRADACCUM_LIBRARY=str(library))
    assert done.returncode != 0 and "ABI version is 99" in done.stderr


# ====== Tensors of the bindings ======

DTYPES = [np.float32, np.float16, np.uint16, np.int32, np.int64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 5), (1,) * 8])
def test_elements_come_back_as_they_went_in(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    x = ga.tensor(array)
    back = x.numpy()
    assert back.dtype == array.dtype and back.shape == array.shape == x.shape
    assert back.tobytes() == array.tobytes()
    assert x.size == array.size


def test_copied_arrays_are_independent():
    array = np.ones((2, 2), np.float32)
    x = ga.tensor(array)
    array[:] = 2
    assert (x.numpy() == 1).all()


def test_shared_arrays_are_one_memory_in_both_directions():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = ga.from_numpy(array)
    array[1, 2] = 50
    assert x.numpy()[1, 2] == 50
    x.fill_(3)
    assert (array == 3).all()


def test_shared_arrays_may_have_strides():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    part = array[1::2, ::3]
    x = ga.from_numpy(part)
    assert x.shape == (2, 2) and x.strides == (12, 3)
    assert (x.numpy() == part).all()
    assert (ga.add(x, ga.zeros((2, 2))).numpy() == part).all()


def test_shared_array_lives_as_long_as_anything_made_from_it():
    array = np.arange(6, dtype=np.float32)
    gone = weakref.ref(array)
    x = ga.from_numpy(array)
    view = ga.reshape(x, (2, 3))
    del array, x
    gc.collect()
    assert gone() is not None and view.numpy()[1, 2] == 5
    del view
    gc.collect()
    assert gone() is None


def test_failed_share_keeps_no_array():
    array = np.arange(6, dtype=np.float32)
    gone = weakref.ref(array)
    with pytest.raises(ga.GAError):
        ga.from_numpy(array[::-1])
    del array
    gc.collect()
    assert gone() is None


def test_closed_tensor_is_refused_by_name_and_never_taken_for_a_missing_bias():
    x, weight, bias = ga.zeros((2, 3)), ga.zeros((4, 3)), ga.zeros((4,))
    bias.close()
    bias.close()
    with pytest.raises(ga.GAInvalidArgumentError, match="closed"):
        ga.linear(x, weight, bias)


def test_scope_closes_what_was_made_in_it_and_not_what_was_kept():
    before = ga.zeros((2,))
    with ga.Scope() as outer:
        a = ga.zeros((2,))
        with ga.Scope() as inner:
            b = before + 1.0
            c = inner.keep(b + 1.0)
        assert b.closed and not a.closed and (c.numpy() == 2).all()
        outer.keep(a)
    assert c.closed and not a.closed and (before.numpy() == 0).all()
    a.fill_(1)


def test_scope_ends_with_an_exception():
    with pytest.raises(KeyError):
        with ga.Scope():
            x = ga.zeros((2,))
            raise KeyError
    assert x.closed
    y = ga.zeros((2,))
    assert not y.closed


def test_tensors_dropped_in_a_scope_are_freed_at_once():
    live = ga.memory_usage().live_bytes
    with ga.Scope():
        for _ in range(10):
            x = ga.zeros((1 << 18,))
            assert ga.memory_usage().live_bytes < live + (4 << 20)
        del x
    assert ga.memory_usage().live_bytes == live


def test_operators_take_numbers_on_both_sides():
    x = ga.tensor([1.0, 2.0, 4.0])
    found = [x + 1, 1 + x, x - 1, 1 - x, x * 2, 2 * x, x / 2, 2 / x]
    expected = [[2, 3, 5], [2, 3, 5], [0, 1, 3], [0, -1, -3], [2, 4, 8], [2, 4, 8], [0.5, 1, 2], [2, 1, 0.5]]
    assert [y.numpy().tolist() for y in found] == expected
    assert (ga.tensor([[1.0, 2.0]]) @ ga.tensor([[3.0], [4.0]])).item() == 11


def test_no_grad_records_nothing_and_restores():
    x = ga.zeros((2,), requires_grad=True)
    with ga.no_grad():
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_gradients_of_another_shape_are_refused_before_their_memory_is_read():
    p = ga.zeros((3, 4), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([p], lr=1.0))
    with pytest.raises(ga.GAShapeError, match=r"arrays\[0\]"):
        accumulator.accumulate_gradients([np.ones((3, 3), np.float32)], 1.0, 1)
    with pytest.raises(ga.GADTypeError, match="float64"):
        accumulator.accumulate_gradients([np.ones((3, 4))], 1.0, 1)
    accumulator.accumulate_gradients([np.ones((4, 3), np.float32).T], 1.0, 2)
    report = accumulator.step()
    assert report.outcome == ga.Outcome.APPLIED and (p.numpy() == -0.5).all()


def test_learning_rate_is_that_of_the_next_update():
    p = ga.zeros((1,), requires_grad=True)
    optimizer = ga.SGD([p], lr=0.5)
    accumulator = ga.Accumulator(optimizer)
    assert optimizer.lr == 0.5
    optimizer.lr = 0.25
    accumulator.accumulate_gradients([np.ones(1, np.float32)], 0.0, 1)
    assert accumulator.step().learning_rate == 0.25 and p.item() == -0.25


def test_interpreter_ends_cleanly_with_objects_alive():
    program = (
        "import numpy as np, gradaccum as ga\n"
        "p = ga.from_numpy(np.ones((64, 64), np.float32), requires_grad=True)\n"
        "a = ga.Accumulator(ga.AdamW([p]))\n"
        "a.accumulate(ga.sum(ga.matmul(p, p)), 1)\n"
        "loss = ga.sum(p * 2); a.loss = loss; loss_again = a\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
