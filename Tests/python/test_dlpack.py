"""Tensors to and from other libraries by DLPack: one memory, freed once, and structs that lie do no harm."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_void_p
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _ffi, _python

from calls import elements, made, ok, out
from dlpack import (
    BFLOAT,
    COMPLEX,
    CUDA,
    FLOAT,
    INT,
    IS_COPIED,
    READ_ONLY,
    UINT,
    Produced,
    Unversioned,
    Versioned,
)
from support import (
    DTYPE,
    INVALID_ARGUMENT,
    OVERFLOW,
    UNSUPPORTED,
    environment,
    error_of_importing,
    expect,
    in_child,
    in_new_process,
    raw,
)

F32 = np.float32
DTYPES = [F32, np.float16, np.int32, np.int64]
KINDS = [True, False]  # with a version, and without


def takes(function: Callable[..., object], *arguments: object, **options: object) -> bool:
    """Whether a function of numpy has these keywords."""
    try:
        function(*arguments, **options)
    except TypeError:
        return False
    return True


# numpy has these keywords from 2.1 on, and CPython 3.9 no numpy beyond 2.0.
needs_versions = pytest.mark.skipif(
    not takes(np.zeros(1).__dlpack__, max_version=(1, 0)),
    reason="ndarray.__dlpack__ of this numpy takes no max_version, so that it cannot say what is read-only",
)
needs_copy_and_device = pytest.mark.skipif(
    not takes(np.from_dlpack, np.zeros(1), copy=True, device="cpu"),
    reason="np.from_dlpack of this numpy takes neither copy nor device",
)
NUMPY_TAKES_WRITABLE = np.from_dlpack(np.zeros(1)).flags.writeable
needs_writable = pytest.mark.skipif(
    not NUMPY_TAKES_WRITABLE, reason="np.from_dlpack of this numpy makes arrays that are always read-only"
)


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype=F32).reshape(shape)


def live_bytes() -> int:
    return ga.memory_usage().live_bytes


def writable_array(x: ga.Tensor, y: np.ndarray) -> np.ndarray:
    """y, which np.from_dlpack has made of x; or another array on x, where it makes all read-only."""
    assert y.flags.writeable == NUMPY_TAKES_WRITABLE
    return y if NUMPY_TAKES_WRITABLE else np.asarray(x)


class Producer:
    """An object with __dlpack__ as an older or newer library has it, whose struct is made by hand."""

    def __init__(self, produced: Produced, *, keywords: bool = True) -> None:
        self.produced = produced
        self._keywords = keywords
        self.asked: list[dict[str, Any]] = []

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self._keywords:
            raise TypeError("__dlpack__() takes no keyword arguments")
        self.asked.append(options)
        name = _python.VERSIONED if self.produced.versioned else _python.UNVERSIONED
        return _python.capsule(self.produced.address, name)


# ====== In ======


@pytest.mark.parametrize("versioned", KINDS)
def test_struct_is_taken_over_without_a_copy_and_given_back_once(versioned):
    source = array(3, 4)
    produced = Produced(source, versioned=versioned)
    before = live_bytes()
    x = made(getattr(raw, produced.function), produced.address)
    data = c_void_p()
    ok(raw.ga_tensor_data(x, data))
    assert data.value == source.ctypes.data and live_bytes() == before
    view = made(raw.ga_slice, x, 0, 1, 3)
    ok(raw.ga_tensor_fill(view, 7.0))
    assert (source[1:] == 7).all() and source[0, 3] == 3
    raw.ga_tensor_free(x)
    assert produced.deleted == [], "a view needs the memory"
    raw.ga_tensor_free(view)
    assert produced.deleted == [produced.address]


def test_struct_without_deleter_and_with_byte_offset_and_strides():
    source = array(4, 6)
    part = source[1:, ::2]
    produced = Produced(part, data=source.ctypes.data, byte_offset=24)
    produced.struct.deleter = type(produced.struct.deleter)()
    x = made(raw.ga_tensor_from_dlpack, produced.address)
    assert (elements(x).reshape(part.shape) == part).all()
    raw.ga_tensor_free(x)
    assert produced.deleted == []


def test_absent_strides_are_contiguous_and_those_of_single_elements_mean_nothing():
    source = array(2, 1, 3)
    for strides in (None, (3, -99, 1), (3, 2**62, 1)):
        x = made(raw.ga_tensor_from_dlpack, Produced(source, strides=strides).address)
        assert (elements(x) == source.ravel()).all()


@pytest.mark.parametrize("versioned", KINDS)
def test_struct_without_elements_may_have_no_data(versioned):
    for shape in ((0,), (3, 0, 2)):
        produced = Produced(
            array(*shape), versioned=versioned, data=None, byte_offset=2**64 - 1, strides=(-5,) * 3
        )
        x = made(getattr(raw, produced.function), produced.address)
        assert elements(x).size == 0
        raw.ga_tensor_free(x)
        assert len(produced.deleted) == 1


HOSTILE = {
    "major version 0": (dict(major=0), UNSUPPORTED, "DLPack 0.7"),
    "major version 2": (dict(major=2), UNSUPPORTED, "DLPack 2.7"),
    "on a GPU": (dict(device_type=CUDA), UNSUPPORTED, "device type 2"),
    "on no device": (dict(device_type=-1), UNSUPPORTED, "device type -1"),
    "float64": (dict(bits=64), DTYPE, "64 bits"),
    "complex": (dict(code=COMPLEX, bits=64), DTYPE, "code 5"),
    "uint32": (dict(code=UINT), DTYPE, "code 1"),
    "int8": (dict(code=INT, bits=8), DTYPE, "8 bits"),
    "bfloat of 32 bits": (dict(code=BFLOAT), DTYPE, "32 bits"),
    "lanes": (dict(lanes=4), DTYPE, "4 lanes"),
    "no lanes": (dict(lanes=0), DTYPE, "0 lanes"),
    "negative rank": (dict(ndim=-1), INVALID_ARGUMENT, "ndim is -1"),
    "rank beyond the most": (dict(ndim=9), INVALID_ARGUMENT, "ndim is 9"),
    "huge rank": (dict(ndim=2**31 - 1), INVALID_ARGUMENT, "ndim is 2147483647"),
    "no shape": (dict(shape=None), INVALID_ARGUMENT, "shape is NULL"),
    "negative size": (dict(shape=(2, -3)), INVALID_ARGUMENT, "shape[1] is -3"),
    "smallest size": (dict(shape=(-(2**63), 3)), INVALID_ARGUMENT, "shape[0]"),
    "sizes beyond memory": (dict(shape=(2**62, 2**62)), OVERFLOW, "more elements"),
    "negative stride": (dict(strides=(3, -1)), INVALID_ARGUMENT, "-1"),
    "strides beyond memory": (dict(strides=(2**62, 1)), OVERFLOW, "address space"),
    "no data": (dict(data=None), INVALID_ARGUMENT, "data is NULL"),
    "offset beyond memory": (dict(byte_offset=2**64 - 1), OVERFLOW, "byte_offset"),
    "unaligned": (dict(byte_offset=2), INVALID_ARGUMENT, "aligned"),
}


@pytest.mark.parametrize("versioned", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
@in_child
def test_struct_that_is_no_tensor_is_refused_and_left_to_the_caller(name, versioned):
    spoiled, status, words = HOSTILE[name]
    if "major" in spoiled and not versioned:
        return
    produced = Produced(array(2, 3), versioned=versioned, **spoiled)
    result = out()
    before = bytes(result), bytes(produced.struct)
    expect(getattr(raw, produced.function)(result, produced.address), status, words)
    assert (bytes(result), bytes(produced.struct)) == before and produced.deleted == []


@pytest.mark.parametrize("name", HOSTILE)
@in_child
def test_capsule_that_is_refused_is_given_back_once_by_whoever_has_it(name):
    spoiled, _, _ = HOSTILE[name]
    produced = Produced(array(2, 3), **spoiled)
    with pytest.raises(ga.GAError) as caught:
        ga.from_dlpack(Producer(produced))
    del caught
    gc.collect()
    assert produced.deleted == [produced.address]


def test_read_only_memory_is_never_written_to():
    source = array(2, 3)
    for x in (
        ga.from_dlpack(Producer(Produced(source, flags=READ_ONLY))),
        ga.from_dlpack(Producer(Produced(source, versioned=False))),  # which cannot say
        ga.from_dlpack(Producer(Produced(source)), read_only=True),
    ):
        assert x.read_only and x.detach().read_only and ga.reshape(x, (3, 2)).read_only
        for write in (
            lambda: x.fill_(1),
            lambda: x.normal_(seed=0),
            lambda: x.uniform_(seed=0),
            lambda: x.copy_(np.zeros((2, 3), F32)),
            lambda: ga.reshape(x, (6,)).fill_(1),
            lambda: ga.SGD([x]),
        ):
            with pytest.raises(ValueError, match="read-only"):
                write()
        assert (source == array(2, 3)).all() and (ga.add(x, x).numpy() == 2 * source).all()
    writable = ga.from_dlpack(Producer(Produced(source, versioned=False)), read_only=False)
    assert not writable.read_only
    with pytest.raises(ValueError, match="must not be written"):
        ga.from_dlpack(Producer(Produced(source, flags=READ_ONLY)), read_only=False)


def test_parameter_cannot_become_read_only_nor_a_read_only_tensor_writable():
    parameter = ga.zeros((2,))
    optimizer = ga.SGD([parameter])
    with pytest.raises(ga.GAStateError, match="parameter"):
        parameter.read_only = True
    parameter.read_only = False
    other = ga.zeros((2,))
    other.read_only = True
    with pytest.raises(ValueError, match="read_only"):
        other.read_only = False
    assert len(optimizer.parameters) == 1


def test_producers_are_asked_for_version_1_and_for_no_copy_and_older_ones_plainly():
    new = Producer(Produced(array(2)))
    ga.from_dlpack(new)
    assert new.asked == [{"max_version": (1, 1), "copy": False}]
    old = Producer(Produced(array(2), versioned=False), keywords=False)
    ga.from_dlpack(old)
    assert old.asked == [{}]


def test_unwanted_copy_is_refused_rather_than_taken_for_the_original():
    produced = Produced(array(2), flags=IS_COPIED)
    with pytest.raises(ValueError, match="copy"):
        ga.from_dlpack(Producer(produced))
    gc.collect()
    assert len(produced.deleted) == 1
    capsule = Producer(
        Produced(array(2), flags=IS_COPIED)
    ).__dlpack__()  # one that was asked for by the caller
    assert ga.from_dlpack(capsule).shape == (2,)


def test_what_is_no_capsule_or_was_used_is_refused():
    capsule = ga.zeros((2,)).__dlpack__()
    ga.from_dlpack(capsule)
    for bad in (capsule, None, 5, "dltensor", np.float32, object()):
        with pytest.raises(ValueError, match="capsule"):
            ga.from_dlpack(bad)


def test_device_of_the_producer_is_looked_at_first():
    class OnGPU:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **options: Any) -> Any:
            raise AssertionError("asked for its memory")

    with pytest.raises(ga.GAUnsupportedError, match="CPU"):
        ga.from_dlpack(OnGPU())


# ====== Out ======


@pytest.mark.parametrize(
    ("struct", "function"),
    [(Versioned, "ga_tensor_to_dlpack"), (Unversioned, "ga_tensor_to_dlpack_unversioned")],
)
def test_struct_says_what_the_tensor_is_and_keeps_its_memory(struct, function):
    before = live_bytes()
    x = ga.tensor(array(4, 6))
    y = ga.transpose(ga.slice(x, 0, 1, 3), 0, 1)
    managed = c_void_p()
    ok(getattr(raw, function)(managed, y.handle, 0))
    address = c_void_p()
    ok(raw.ga_tensor_data(y.handle, address))
    x.close()
    y.close()
    assert live_bytes() > before, "the struct needs the memory"
    found = struct.from_address(managed.value)
    t = found.tensor
    assert (t.data, t.byte_offset, t.device_type, t.device_id) == (address.value, 0, 1, 0)
    assert (t.ndim, t.shape[:2], t.strides[:2]) == (2, [6, 2], [1, 6])
    assert (t.code, t.bits, t.lanes) == (FLOAT, 32, 1)
    if struct is Versioned:
        assert (found.major, found.flags) == (1, 0)
    found.deleter(managed.value)
    assert live_bytes() == before


def test_copy_is_contiguous_and_says_so_and_is_its_own_memory():
    x = ga.transpose(ga.tensor(array(2, 3)), 0, 1)
    x.read_only = True
    managed = c_void_p()
    ok(raw.ga_tensor_to_dlpack(managed, x.handle, 1))
    found = Versioned.from_address(managed.value)
    assert found.flags == IS_COPIED and found.tensor.strides[:2] == [2, 1]
    assert found.tensor.data != np.asarray(x).ctypes.data
    copied = np.ctypeslib.as_array(ctypes.cast(found.tensor.data, ctypes.POINTER(ctypes.c_float)), (3, 2))
    assert (copied == x.numpy()).all()
    found.deleter(managed.value)
    ok(raw.ga_tensor_to_dlpack(managed, x.handle, 0))
    found = Versioned.from_address(managed.value)
    assert found.flags == READ_ONLY
    found.deleter(managed.value)
    expect(raw.ga_tensor_to_dlpack_unversioned(out(), x.handle, 0), UNSUPPORTED, "read-only")
    expect(raw.ga_tensor_to_dlpack(out(), x.handle, 2), INVALID_ARGUMENT, "copy is 2")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 5), (1,) * 8])
def test_elements_go_to_numpy_and_back_on_one_memory(dtype, shape):
    x = ga.tensor(array(*shape).astype(dtype))
    before = live_bytes()
    y = np.from_dlpack(x)
    writable = writable_array(x, y)
    back = ga.from_dlpack(writable, read_only=False)
    assert y.dtype == dtype and y.shape == shape == back.shape and x.dtype == back.dtype
    assert live_bytes() == before
    writable[...] = 5
    assert (x.numpy() == 5).all() and (back.numpy() == 5).all() and (y == 5).all()
    if y.size:
        assert y.ctypes.data == np.asarray(x).ctypes.data == np.asarray(back).ctypes.data


def test_array_of_numpy_outlives_the_tensor_and_frees_its_memory():
    before = live_bytes()
    with ga.Scope():
        y = np.from_dlpack(ga.tensor(array(50, 50)))
    assert (y == array(50, 50)).all() and live_bytes() > before
    del y
    assert live_bytes() == before


def test_tensor_outlives_the_array_of_numpy_and_frees_it():
    source = array(3)
    gone = weakref.ref(source)
    x = ga.from_dlpack(source)
    del source
    gc.collect()
    assert gone() is not None and x.numpy()[2] == 2
    x.close()
    gc.collect()
    assert gone() is None


@needs_versions
def test_read_only_goes_both_ways():
    source = array(3)
    source.flags.writeable = False
    x = ga.from_dlpack(source)
    assert x.read_only and not np.from_dlpack(x).flags.writeable and not np.asarray(x).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        x.__dlpack__()


@needs_writable
def test_array_of_numpy_on_writable_memory_is_writable():
    assert np.from_dlpack(ga.zeros((2,))).flags.writeable


def test_read_only_memory_leaves_only_where_that_can_be_said():
    source = array(3)
    source.flags.writeable = False
    x = ga.from_numpy(source)
    assert x.read_only and not np.asarray(x).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        x.__dlpack__()
    assert ga.from_dlpack(x.__dlpack__(max_version=(1, 0))).read_only


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 9), (2, 0)])
def test_capsule_that_nobody_uses_gives_the_memory_back(max_version):
    before = live_bytes()
    capsule = ga.tensor(array(40, 40)).__dlpack__(max_version=max_version)
    assert f'"{"dltensor" if max_version in (None, (0, 8)) else "dltensor_versioned"}"' in repr(capsule)
    assert live_bytes() > before
    del capsule
    assert live_bytes() == before


def test_capsule_dies_quietly_while_an_exception_is_on_its_way():
    """numpy has no bfloat16 by DLPack: it raises with the capsule in its hands."""
    before = live_bytes()
    with pytest.raises((RuntimeError, BufferError), match="[Uu]nsupported"):
        np.from_dlpack(ga.zeros((64, 64), dtype=ga.bfloat16))
    gc.collect()
    assert live_bytes() == before


def test_functions_for_an_interpreter_take_nothing_for_nothing():
    raw.ga_python_release(None, None)
    raw.ga_python_capsule_destroy(None)
    assert raw.ga_python_array_addresses(None, None, 1, None, None, None, 0) == 0


def test_options_of_a_consumer_that_cannot_be_met_are_refused():
    x = ga.zeros((2,))
    for options in ({"stream": 1}, {"dl_device": (2, 0)}, {"stream": -1}):
        with pytest.raises(BufferError, match=next(iter(options))):
            x.__dlpack__(**options)
    assert x.__dlpack_device__() == (1, 0)


def test_capsule_is_on_the_same_memory_unless_a_copy_is_asked_for():
    x = ga.tensor(array(2))
    for copy, is_same in ((True, False), (False, True), (None, True)):
        y = ga.from_dlpack(x.__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=copy))
        assert (y.numpy() == array(2)).all()
        assert (np.asarray(y).ctypes.data == np.asarray(x).ctypes.data) == is_same


@needs_copy_and_device
def test_numpy_gets_a_copy_exactly_if_it_asks_for_one():
    x = ga.zeros((2,))
    copy = np.from_dlpack(x, copy=True, device="cpu")
    assert copy.ctypes.data != np.asarray(x).ctypes.data
    same = np.from_dlpack(x, copy=False, device="cpu")
    assert same.ctypes.data == np.asarray(x).ctypes.data


def test_many_threads_take_and_give_back():
    x = ga.tensor(array(256))
    before = live_bytes()

    def run(_: int) -> None:
        for _ in range(200):
            y = ga.from_dlpack(writable_array(x, np.from_dlpack(x)))
            np.asarray(y)
            x.__dlpack__()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))  # unlike a Thread, it raises here what was raised there
    assert live_bytes() == before


def test_exchange_keeps_no_reference():
    """Counted on both sides, over exchanges that succeed and that fail."""
    source = array(8)
    x = ga.tensor(source)
    count, before = sys.getrefcount(source), live_bytes()
    for _ in range(100):
        ga.from_dlpack(source).close()
        ga.from_numpy(source).close()
        np.from_dlpack(x)
        np.asarray(x)
        with pytest.raises(ga.GAError):
            ga.from_dlpack(source.astype(np.float64))
        with pytest.raises(ga.GAError):
            ga.from_numpy(source[::-1])
    gc.collect()
    assert sys.getrefcount(source) == count and live_bytes() == before


def test_interpreter_ends_cleanly_with_exchanged_memory_alive():
    program = (
        "import numpy as np, gradaccum as ga\n"
        "x = ga.from_dlpack(np.ones(9, np.float32), read_only=False); y = np.from_dlpack(ga.zeros((9,)))\n"
        "z = np.asarray(x); capsule = x.__dlpack__(); w = ga.from_numpy(z); import sys; sys.kept = [x, y, z, w, capsule]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ====== Versions ======


def error_of_an_old_version() -> str:
    """In a process of its own, with a numpy that says that it is older."""
    np.__version__ = "1.23.5"
    return error_of_importing("gradaccum._python")


def test_numpy_that_takes_arrays_back_without_the_lock_is_named():
    said = in_new_process(error_of_an_old_version)
    assert said == "gradaccum needs numpy 1.24 or later, and this is 1.23.5: pip install 'numpy>=1.24'"
