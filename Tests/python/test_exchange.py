"""Arrays of libraries that have DLPack's functions in C, as PyTorch has."""

from __future__ import annotations

import ctypes
import gc
from ctypes import POINTER, PYFUNCTYPE, c_int, c_uint32, c_void_p, py_object
from typing import Any

import gradaccum as ga
import numpy as np
import pytest
from gradaccum import _python

from dlpack import CUDA, Produced

FromPyObject = PYFUNCTYPE(c_int, py_object, POINTER(c_void_p))


class ExchangeAPI(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("prev_api", c_void_p),
        ("allocator", c_void_p),
        ("from_py_object", FromPyObject),
        ("rest", c_void_p * 4),
    ]


_kept: list[Any] = []


def array_type(give: Any, *, major: int = 1, name: bytes = b"dlpack_exchange_api") -> Any:
    """A type whose arrays are given by a function, and else by __dlpack__."""
    api = ExchangeAPI(major=major, minor=3, from_py_object=FromPyObject(give))
    holder = _python._capsule_new(ctypes.addressof(api), name, None)
    _kept.append((api, name))

    class Array:
        __dlpack_c_exchange_api__ = holder
        requires_grad = False

        def __init__(self) -> None:
            self.memory = np.arange(6, dtype=np.float32).reshape(2, 3)
            self.produced = Produced(self.memory)
            self.asked = 0

        def __dlpack__(self, **options: Any) -> Any:
            self.asked += 1
            return _python.capsule(self.produced.address, _python.VERSIONED)

    return Array


def give(x: Any, out: Any) -> int:
    out[0] = x.produced.address
    return 0


def fail(x: Any, out: Any) -> int:
    return -1


def test_array_is_taken_by_the_functions_in_c_and_given_back_once():
    x = array_type(give)()
    shared = ga.from_dlpack(x)
    assert x.asked == 0 and np.asarray(shared).ctypes.data == x.memory.ctypes.data
    shared.fill_(5)
    assert (x.memory == 5).all() and x.produced.deleted == []
    shared.close()
    assert x.produced.deleted == [x.produced.address]


@pytest.mark.parametrize(
    "kind",
    [array_type(give, major=2), array_type(give, name=b"something_else"), array_type(fail)],
    ids=["newer version", "other capsule", "failure"],
)
def test_array_is_asked_where_the_functions_are_not_known_or_fail(kind):
    x = kind()
    shared = ga.from_dlpack(x)
    assert x.asked == 1 and np.asarray(shared).ctypes.data == x.memory.ctypes.data


def test_array_is_asked_where_it_may_refuse():
    x = array_type(give)()
    x.requires_grad = True
    ga.from_dlpack(x)
    assert x.asked == 1


def test_struct_that_is_refused_is_given_back_once():
    x = array_type(give)()
    x.produced = Produced(x.memory, device_type=CUDA)
    with pytest.raises(ga.GAUnsupportedError) as caught:
        ga.from_dlpack(x)
    del caught
    gc.collect()
    assert x.produced.deleted == [x.produced.address]


# ====== PyTorch ======


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")


def test_tensors_of_pytorch_are_taken_so(torch, monkeypatch):
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("__dlpack__ was asked")

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no functions in C for DLPack")
    monkeypatch.setattr(torch.Tensor, "__dlpack__", asked)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64):
        x = torch.arange(12).reshape(3, 4).to(dtype)
        for part in (x, x[1:, ::2], x.t()):
            shared = ga.from_dlpack(part)
            assert np.asarray(shared).ctypes.data == part.data_ptr()
            assert shared.shape == tuple(part.shape) and shared.strides == part.stride()
    before = ga.memory_usage().live_bytes
    x = torch.zeros(1000)
    shared = ga.from_dlpack(x)
    assert ga.memory_usage().live_bytes == before
    shared.fill_(2)
    assert (x == 2).all()
    del x
    assert (shared.numpy() == 2).all(), "it keeps the memory"


def test_what_pytorch_does_not_give_away_is_refused_by_its_own_sentence(torch):
    with pytest.raises(BufferError, match="(?i)can't export"):
        ga.from_dlpack(torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises((ga.GAUnsupportedError, BufferError, RuntimeError, ValueError)):
        ga.from_dlpack(torch.zeros(3, device="meta"))
    assert ga.from_dlpack(torch.nn.Parameter(torch.zeros(3)).detach()).shape == (3,)


def test_elements_that_are_negated_when_they_are_read_are_not_taken_for_others(torch):
    """DLPack has no word for them, and PyTorch does not say that it drops the sign."""
    negated = torch.imag(torch.tensor([1 + 2j, 3 + 4j]).conj())
    assert negated.is_neg() and negated.tolist() == [-2, -4]
    with pytest.raises(ga.GAInvalidArgumentError, match="resolve_neg"):
        ga.from_dlpack(negated)
    assert ga.from_dlpack(negated.resolve_neg()).numpy().tolist() == [-2, -4]
