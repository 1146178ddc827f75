"""Arrays of numpy on the library's memory, and tensors on numpy's: the array interface, read-only arrays, and the
bfloat16 of ml_dtypes."""

from __future__ import annotations

import gc
from array import array

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _python


def live_bytes() -> int:
    gc.collect()  # what other tests have left
    return ga.memory_usage().live_bytes


@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [ga.float32, ga.float16, ga.bfloat16, ga.int32, ga.int64])
def test_array_of_a_tensor_is_its_memory(dtype, shape):
    x = ga.zeros(shape, dtype=dtype)
    before = live_bytes()
    a = np.asarray(x)
    assert live_bytes() == before and a.shape == shape and a.flags.writeable
    a[...] = 3
    assert (x.numpy() == 3).all() and np.asarray(x, copy=False).ctypes.data == a.ctypes.data
    copy = np.array(x)
    assert copy.ctypes.data != a.ctypes.data or a.size == 0


def test_array_of_a_view_has_its_strides():
    x = ga.tensor(np.arange(24, dtype=np.float32).reshape(4, 6))
    a = np.asarray(ga.transpose(ga.slice(x, 1, 2, 5), 0, 1))
    assert a.strides == (4, 24) and (a == np.asarray(x)[:, 2:5].T).all()


def test_array_keeps_the_memory_of_a_tensor_that_is_closed():
    before = live_bytes()
    with ga.Scope():
        a = np.asarray(ga.zeros((100, 100)))
    a += 1
    assert a.sum() == 10000 and live_bytes() > before
    view = a[3:]
    del a
    assert live_bytes() > before and view.sum() == 9700
    del view
    assert live_bytes() == before


def test_array_of_another_type_is_a_copy_or_refused():
    x = ga.tensor([1.5, 2.5])
    assert np.asarray(x, np.float64).tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, np.float64, copy=False)


def test_operators_with_arrays_keep_the_gradient():
    """numpy would compute them itself, out of sight of autograd."""
    x = ga.tensor([1.0, 2.0], requires_grad=True)
    for y in (np.float32(2) * x, np.array([2.0, 2.0], np.float32) * x, x * np.float32(2)):
        assert isinstance(y, ga.tensor(0.0).__class__) and y.requires_grad
        assert y.numpy().tolist() == [2.0, 4.0]
    with pytest.raises(TypeError):
        np.exp(x)


def test_read_only_array_makes_a_read_only_tensor_on_its_memory():
    a = np.arange(3, dtype=np.float32)
    a.flags.writeable = False
    before = live_bytes()
    x = ga.from_numpy(a)
    assert x.read_only and live_bytes() == before and np.asarray(x).ctypes.data == a.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        x.fill_(1)
    assert not np.asarray(x).flags.writeable


def test_file_in_memory_is_read_where_it_is(tmp_path):
    path = tmp_path / "tokens"
    np.arange(1000, dtype=np.int32).tofile(path)
    tokens = np.memmap(path, np.int32, mode="r")
    table = ga.tensor(np.arange(1000, dtype=np.float32)[:, None])
    before = live_bytes()
    x = ga.from_numpy(tokens[100:103])
    assert live_bytes() == before and x.read_only
    assert ga.embedding(table, x).numpy().ravel().tolist() == [100, 101, 102]
    del tokens, x
    gc.collect()


def test_object_with_an_array_interface_is_shared():
    class Owner:
        def __init__(self) -> None:
            self.array = np.zeros(4, np.float32)
            self.__array_interface__ = self.array.__array_interface__

    owner = Owner()
    ga.from_numpy(owner).fill_(3)
    assert (owner.array == 3).all()


# ====== bfloat16 of ml_dtypes ======


@pytest.fixture
def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16)


def test_bfloat16_arrays_are_shared_both_ways(bfloat16):
    a = np.arange(6, dtype=np.float32).astype(bfloat16).reshape(2, 3)
    before = live_bytes()
    x = ga.from_numpy(a)
    assert x.dtype == ga.bfloat16 and live_bytes() == before
    x.fill_(2.5)
    assert (a.astype(np.float32) == 2.5).all()
    back = np.asarray(x, bfloat16)
    assert back.dtype == bfloat16 and back.ctypes.data == a.ctypes.data
    assert np.asarray(x).dtype == np.uint16
    part = ga.from_numpy(a[:, ::2])
    assert part.strides == (3, 2) and (ga.cast(part, ga.float32).numpy() == 2.5).all()


def test_bfloat16_arrays_are_copied_in(bfloat16):
    a = np.array([1.5, -2.0], np.float32).astype(bfloat16)
    for x in (ga.tensor(a), ga.tensor(a, dtype=ga.bfloat16), ga.zeros((2,), dtype=ga.bfloat16).copy_(a)):
        assert x.dtype == ga.bfloat16 and ga.cast(x, ga.float32).numpy().tolist() == [1.5, -2.0]
    assert ga.tensor(a, dtype=ga.float32).numpy().tolist() == [1.5, -2.0]


def test_bfloat16_gradients_are_accumulated(bfloat16):
    p = ga.zeros((2,))
    accumulator = ga.Accumulator(ga.SGD([p], lr=1.0))
    accumulator.accumulate_gradients([np.array([1.5, -2.0], np.float32).astype(bfloat16)], 0.0, 1)
    accumulator.step()
    assert p.numpy().tolist() == [-1.5, 2.0]


# ====== Addresses of arrays, read by the library ======


def is_read(arrays, shapes, dtype=np.float32) -> bool:
    """Whether the library takes the addresses itself; they are then those that numpy says."""
    found = _python.Arrays(shapes).addresses(tuple(arrays), np.dtype(dtype))
    if found is not None:
        assert list(found) == [None if x is None else x.ctypes.data for x in arrays]
    return found is not None


def test_addresses_of_arrays_are_those_of_numpy(bfloat16):
    assert _python.CAN_READ_ARRAYS
    arrays = [np.zeros((2, 3), np.float32), None, np.ones((), np.float32), np.ones(5, np.float32)[2:]]
    assert is_read(arrays, [(2, 3), (4,), (), (3,)])
    assert is_read([], []) and is_read([None], [(2, 2)])
    assert is_read([np.zeros(3, bfloat16)], [(3,)], bfloat16)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.zeros((2, 3), np.float32), (3, 2)),
        (np.zeros((2, 3), np.float32), (6,)),
        (np.zeros((2, 3), np.float64), (2, 3)),
        (np.zeros((2, 3), ">f4"), (2, 3)),
        (np.zeros((3, 2), np.float32).T, (2, 3)),
        (np.zeros(6, np.float32)[::2], (3,)),
        (np.frombuffer(bytes(9), np.float32, 2, 1), (2,)),
        (np.zeros(2, np.float32).view(np.recarray), (2,)),
        ([0.0, 1.0], (2,)),
        (0.5, ()),
    ],
)
def test_addresses_of_what_is_no_plain_array_of_its_shape_are_not_read(array, shape):
    assert not is_read([array], [shape])
    assert not is_read([np.zeros(4, np.float32), array], [(4,), shape])


def test_gradients_that_are_read_and_those_that_are_copied_give_the_same():
    first, second = ga.zeros((2, 3)), ga.zeros((4,))
    accumulator = ga.Accumulator(ga.SGD([first, second], lr=1.0))
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float32)
    accumulator.accumulate_gradients([a, b], 0.0, 1)
    read = [accumulator.accumulated_gradient(i).numpy() for i in (0, 1)]
    accumulator.zero()
    accumulator.accumulate_gradients([np.asfortranarray(a), np.repeat(b, 2)[::2]], 0.0, 1)
    copied = [accumulator.accumulated_gradient(i).numpy() for i in (0, 1)]
    accumulator.zero()
    assert all(map(np.array_equal, read, copied)) and (read[0] == a).all() and (read[1] == b).all()
    for arrays, error, words in (
        ([a, a], ga.GAShapeError, r"arrays\[1\] has shape \(2, 3\)"),
        ([a, b.astype(np.float16)], ga.GADTypeError, r"arrays\[1\] is float16"),
        ([a, b.astype(np.float64)], ga.GADTypeError, "float64"),
        ([a], ga.GAShapeError, "1 entries"),
    ):
        with pytest.raises(error, match=words):
            accumulator.accumulate_gradients(arrays, 0.0, 1)
    with pytest.raises(ga.GADTypeError, match="float32 and others bfloat16"):
        accumulator.accumulate_gradients([a, b], 0.0, 1, dtype=ga.bfloat16)
    assert accumulator.window().micro_batches == 0
    accumulator.accumulate_gradients([None, None], 0.0, 1)
    accumulator.zero()


class Subclass(np.ndarray):
    pass


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


VALUES = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
KINDS = {
    "plain": VALUES,
    "none": None,
    "read-only": read_only(VALUES.copy()),
    "transposed": np.asfortranarray(VALUES),
    "every second": np.repeat(VALUES, 2, axis=1)[:, ::2],
    "backwards": VALUES[::-1, ::-1].copy()[::-1, ::-1],
    "broadcast": np.broadcast_to(np.float32(2), (2, 3)),
    "subclass": VALUES.copy().view(Subclass),
    "unaligned": np.frombuffer(b"." + VALUES.tobytes(), np.float32, 6, 1).reshape(2, 3),
    "interface": np.asarray(ga.tensor(VALUES)),
    "dlpack": np.from_dlpack(ga.tensor(VALUES)),
}


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_any_kind_at_any_place_adds_its_elements(kind, position):
    parameters = [ga.zeros((2, 3)) for _ in range(4)] + [ga.zeros((0, 2)), ga.zeros(())]
    accumulator = ga.Accumulator(ga.SGD(parameters, lr=1.0))
    arrays = [VALUES * 10, VALUES, None, VALUES, np.zeros((0, 2), np.float32), np.array(5, np.float32)]
    arrays[position] = KINDS[kind]
    for calls in (1, 2):
        accumulator.accumulate_gradients(arrays, 0.0, 1)
        for index, (array, parameter) in enumerate(zip(arrays, parameters)):
            expected = np.zeros(parameter.shape) if array is None else calls * np.asarray(array)
            assert np.array_equal(accumulator.accumulated_gradient(index).numpy(), expected)
    accumulator.zero()


def foreign_arrays():
    values = VALUES.tolist()
    arrays = {"list": values, "bytes": VALUES.tobytes(), "number": 1.0}
    try:
        import torch
    except ImportError:
        return arrays
    return {**arrays, "torch": torch.tensor(values)}


WRONG = {
    "shape": (VALUES.T, ga.GAShapeError, r"arrays\[{0}\] has shape \(3, 2\)"),
    "axes": (VALUES.ravel(), ga.GAShapeError, r"arrays\[{0}\] has shape \(6,\)"),
    "float64": (VALUES.astype(np.float64), ga.GADTypeError, "float64 are not supported"),
    "byte order": (VALUES.astype(">f4"), ga.GADTypeError, "not supported"),
    "float16": (VALUES.astype(np.float16), ga.GADTypeError, "float16"),
    "int32": (VALUES.astype(np.int32), ga.GADTypeError, "int32"),
    **{kind: (array, ga.GADTypeError, "is no array of numpy") for kind, array in foreign_arrays().items()},
}


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("kind", WRONG)
def test_gradient_that_does_not_fit_at_any_place_is_refused_and_nothing_is_added(kind, position):
    array, error, words = WRONG[kind]
    accumulator = ga.Accumulator(ga.SGD([ga.zeros((2, 3)) for _ in range(4)], lr=1.0))
    arrays = [VALUES, None, VALUES, VALUES]
    arrays[position] = array
    with pytest.raises(error, match=words.format(position)):
        accumulator.accumulate_gradients(arrays, 0.0, 1)
    assert accumulator.window().micro_batches == 0
    accumulator.accumulate_gradients([VALUES] * 4, 0.0, 1)
    assert (accumulator.accumulated_gradient(position).numpy() == VALUES).all()
    accumulator.zero()


def test_arrays_of_one_call_are_those_of_none_before():
    """Each call reads its own arrays, also where these lie where those of an earlier call were."""
    accumulator = ga.Accumulator(ga.SGD([ga.zeros((4,)) for _ in range(3)], lr=1.0))
    for number in range(1, 200):
        accumulator.accumulate_gradients([np.full(4, number + i, np.float32) for i in range(3)], 0.0, 1)
        for i in range(3):
            assert (accumulator.accumulated_gradient(i).numpy() == number + i).all()
        accumulator.zero()


# ====== What is no array's own memory ======


class WithArray:
    """Makes an array whenever it is asked."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(2, np.float32)


class WithInterface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize(
    "x", [[np.float32(1.0)], (1.0, 2.0), np.float32(1.0), 1.0, None, "3", WithArray(), ga.zeros((2,))], ids=repr
)
def test_what_numpy_would_copy_is_not_shared(x):
    with pytest.raises(ga.GADTypeError, match=r"use tensor\(\)"):
        ga.from_numpy(x)


def test_what_has_an_array_interface_or_a_buffer_is_shared():
    source = np.zeros(3, np.float32)
    buffer = array("f", [0, 0, 0])
    for x, seen in ((WithInterface(source), source), (memoryview(source), source), (buffer, buffer)):
        ga.from_numpy(x).fill_(7)
        assert list(seen) == [7, 7, 7]
        ga.from_numpy(x).fill_(0)
    assert ga.from_numpy(memoryview(b"12345678").cast("f")).read_only


def test_masked_arrays_are_refused():
    x = np.ma.masked_array(np.ones(3, np.float32), [False, True, False])
    weights = ga.zeros((3,), requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([weights]))
    micro_batch = accumulator.micro_batch()
    for call in (
        lambda: ga.from_numpy(x),
        lambda: ga.tensor(x),
        lambda: weights.copy_(x),
        lambda: accumulator.accumulate_gradients([x], 0.0, 1.0),
        lambda: accumulator.accumulate_gradient(0, x),
        lambda: ga.LossScaler().unscale([x], 2.0),
    ):
        with pytest.raises(ga.GADTypeError, match=r"mask.*filled\(\)"):
            call()
    micro_batch.abort()


def test_strides_below_0_are_refused_with_what_to_do():
    with pytest.raises(ga.GAInvalidArgumentError, match=r"-4.*ascontiguousarray.*tensor\(\)"):
        ga.from_numpy(np.zeros(3, np.float32)[::-1])


# ====== bfloat16 in other types ======


def test_bfloat16_in_another_byte_order_is_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.ones(3, np.dtype(ml_dtypes.bfloat16).newbyteorder(">"))
    accumulator = ga.Accumulator(ga.SGD([ga.zeros((3,), requires_grad=True)]))
    micro_batch = accumulator.micro_batch()
    for call in (
        lambda: ga.from_numpy(x),
        lambda: ga.tensor(x),
        lambda: accumulator.accumulate_gradients([x], 0.0, 1.0),
        lambda: accumulator.accumulate_gradient(0, x),
        lambda: ga.LossScaler().unscale([x], 2.0),
    ):
        with pytest.raises(ga.GADTypeError, match="bfloat16 in the byte order of another machine.*astype"):
            call()
    micro_batch.abort()
    assert ga.tensor(x, dtype=ga.float32).numpy().tolist() == [1, 1, 1]
    assert np.asarray(ga.tensor(x, dtype=ga.bfloat16), ml_dtypes.bfloat16).tolist() == [1, 1, 1]
    assert ga.zeros((3,), dtype=ga.bfloat16).copy_(x).numpy().tolist() == [0x3F80] * 3
    back = np.asarray(ga.tensor([1.0, 2.0], dtype=ga.bfloat16), x.dtype)
    assert back.dtype == x.dtype and back.tobytes() == bytes([0x3F, 0x80, 0x40, 0x00])


def test_numbers_are_rounded_to_bfloat16_and_read_as_what_they_are():
    values = [1.5, -2.0, 1 + 2**-9]
    for made in (
        ga.tensor(values, dtype=ga.bfloat16),
        ga.zeros((3,), dtype=ga.bfloat16).copy_(values),
        ga.tensor(np.array(values, np.float16), dtype=ga.bfloat16),
    ):
        assert made.numpy().tolist() == [0x3FC0, 0xC000, 0x3F80]
        for dtype in (np.float64, np.float32, np.float16):
            read = np.asarray(made, dtype)
            assert read.tolist() == [1.5, -2.0, 1.0] and read.dtype == dtype
    assert ga.tensor([0x3FC0], dtype=ga.bfloat16).numpy().tolist() == [0x3FC0]
    assert np.asarray(ga.tensor(1.5, dtype=ga.bfloat16), np.float32).shape == ()
