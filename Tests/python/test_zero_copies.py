"""What is shared is not copied: by the address of the elements, by the bytes that the library has in tensors, and by the
resident set of the process, whose peak a copy by anybody would raise, a temporary one too."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

ROWS, COLUMNS = 4096, 2048
SIZE = ROWS * COLUMNS * 4  # bytes of an array of float32: 32 MiB
NOISE = SIZE // 8  # what else may come to the resident set meanwhile, and far less than a copy of either type


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


class Growth:
    peak = 0  # of the resident set, in bytes
    tensors = 0  # of the library, at their peak


@contextmanager
def growth() -> Iterator[Growth]:
    """By how much what runs inside raises the peaks."""
    gc.collect()
    clear = Path("/proc/self/clear_refs")
    try:
        clear.write_text("5", encoding="ascii")  # the peak begins anew
    except OSError:
        pytest.skip("this kernel does not let a process reset the peak of its resident set")
    ga.memory_reset_peak()
    measured, before, tensors = Growth(), resident("VmRSS"), ga.memory_usage().live_bytes
    yield measured
    measured.peak = resident("VmHWM") - before
    measured.tensors = ga.memory_usage().peak_bytes - tensors


@contextmanager
def no_copy() -> Iterator[None]:
    with growth() as grown:
        yield
    assert grown.tensors == 0, f"{grown.tensors} bytes in tensors"
    assert grown.peak < NOISE, f"{grown.peak} bytes in the resident set"


def module(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: make foreign runs this")


def numbers() -> np.ndarray:
    return np.ones((ROWS, COLUMNS), np.float32)


def address(x: ga.Tensor) -> int:
    data = ctypes.c_void_p()
    ga._ffi.lib.ga_tensor_data(x.handle, ctypes.byref(data))
    assert data.value is not None
    return data.value


def test_a_copy_would_be_seen():
    x = numbers()
    with growth() as grown:
        del_me = x + 1
        del del_me
    assert grown.peak > SIZE - NOISE and grown.tensors == 0
    with growth() as grown:
        ga.tensor(x).close()
    assert grown.tensors == SIZE


# ====== Arrays in ======


def of_numpy() -> tuple[Any, int, Callable[[Any], ga.Tensor]]:
    x = numbers()
    return x, x.ctypes.data, ga.from_numpy


def of_ml_dtypes() -> tuple[Any, int, Callable[[Any], ga.Tensor]]:
    x = numbers().astype(module("ml_dtypes").bfloat16)
    return x, x.ctypes.data, ga.from_numpy


def of_numpy_by_dlpack() -> tuple[Any, int, Callable[[Any], ga.Tensor]]:
    x = numbers()
    return x, x.ctypes.data, ga.from_dlpack


def of_torch() -> tuple[Any, int, Callable[[Any], ga.Tensor]]:
    x = module("torch").ones(ROWS, COLUMNS)
    return x, x.data_ptr(), ga.from_dlpack


def of_torch_bfloat16() -> tuple[Any, int, Callable[[Any], ga.Tensor]]:
    torch = module("torch")
    x = torch.ones(ROWS, COLUMNS, dtype=torch.bfloat16)
    return x, x.data_ptr(), ga.from_dlpack


def of_jax() -> tuple[Any, int, Callable[[Any], ga.Tensor]]:
    x = module("jax").numpy.ones((ROWS, COLUMNS))
    return x, x.unsafe_buffer_pointer(), ga.from_dlpack


SOURCES = [of_numpy, of_ml_dtypes, of_numpy_by_dlpack, of_torch, of_torch_bfloat16, of_jax]


@pytest.mark.parametrize("source", SOURCES)
def test_array_comes_in_where_it_is(source):
    x, wanted, share = source()
    with no_copy():
        shared = share(x)
        assert address(shared) == wanted and shared.shape == (ROWS, COLUMNS)
        view = ga.slice(ga.transpose(shared, 0, 1), 0, 1, 5)
        assert address(view) == wanted + x.dtype.itemsize
        shared.close(), view.close()


@pytest.mark.parametrize("source", [of_numpy, of_ml_dtypes, of_torch])
def test_strided_array_comes_in_where_it_is(source):
    x, wanted, share = source()
    with no_copy():
        shared = share(x[1:, ::2])
        assert address(shared) == wanted + COLUMNS * x.dtype.itemsize and shared.strides == (COLUMNS, 2)


@pytest.mark.parametrize("source", [of_numpy, of_torch])
def test_strided_parameter_is_refused_and_not_copied(source):
    x, _, share = source()
    part = share(x[:, ::2])
    with no_copy(), pytest.raises(ga.GAShapeError, match="contiguous"):
        ga.SGD([part])


def test_strided_gradient_is_put_in_order():
    x = ga.zeros((2, 3))
    accumulator = ga.Accumulator(ga.SGD([x], lr=1.0))
    accumulator.accumulate_gradients([np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]], 0.0, 1)
    with accumulator.micro_batch():
        accumulator.accumulate_gradient(0, np.arange(6, dtype=np.float32).reshape(3, 2).T)
        accumulator.accumulate_gradients([None], 0.0, 1)
    accumulator.step()
    assert (x.numpy() * -2 == np.array([[0, 2, 4], [6, 8, 10]]) + np.array([[0, 2, 4], [1, 3, 5]])).all()


# ====== Tensors out ======


def test_tensor_goes_out_where_it_is():
    x = ga.zeros((ROWS, COLUMNS))
    x.fill_(1)
    with no_copy():
        assert np.asarray(x).ctypes.data == np.from_dlpack(x).ctypes.data == address(x)


def test_tensor_goes_out_to_pytorch_and_jax_where_it_is():
    x = ga.zeros((ROWS, COLUMNS))
    x.fill_(1)
    torch = module("torch")
    torch.from_dlpack(ga.zeros((2,)))
    with no_copy():
        assert torch.from_dlpack(x).data_ptr() == address(x)
    jax = module("jax")
    jax.dlpack.from_dlpack(ga.zeros((2,)))
    with no_copy():
        assert jax.dlpack.from_dlpack(x).unsafe_buffer_pointer() == address(x)


# ====== Gradients and parameters ======


def accumulator_on(parameters: list[Any]) -> ga.Accumulator:
    accumulator = ga.Accumulator(ga.SGD(parameters, lr=0.5))
    accumulator.accumulate_gradients([np.ones((ROWS, COLUMNS), np.float32)], 0.0, 1)
    accumulator.step()  # has made the sums
    return accumulator


@pytest.mark.parametrize("source", [of_numpy, of_ml_dtypes])
def test_gradients_are_read_and_parameters_updated_where_they_are(source):
    weights, (gradient, _, _) = numbers(), source()
    accumulator = accumulator_on([ga.from_numpy(weights)])
    with no_copy():
        accumulator.accumulate_gradients([gradient], 0.0, 1)
        with accumulator.micro_batch():
            accumulator.accumulate_gradient(0, gradient)
            accumulator.accumulate_gradients([None], 0.0, 1)
        accumulator.step()
    assert (weights == 0).all()


@pytest.mark.parametrize("fold_in_backward", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_model_of_pytorch_is_trained_where_it_is(fold_in_backward, half):
    """Sums are made in the first window; the master weights of a half model are the one copy."""
    torch = module("torch")
    import gradaccum.torch as gat

    dtype = torch.bfloat16 if half else torch.float32
    weight = torch.nn.Parameter(torch.ones(ROWS, COLUMNS, dtype=dtype))
    gradient, where = torch.ones(ROWS, COLUMNS, dtype=dtype), weight.data_ptr()
    with growth() as grown:
        parameters = gat.parameters([weight])
    assert grown.tensors == 0 and abs(grown.peak - (SIZE if half else 0)) < NOISE
    accumulator = gat.Accumulator(
        ga.SGD(parameters, lr=0.25), loss_reduction="sum", fold_in_backward=fold_in_backward
    )

    def window() -> None:
        weight.grad = None
        with accumulator.micro_batch(weight=1):
            weight.grad = gradient
            for hook in weight._post_accumulate_grad_hooks.values() if fold_in_backward else ():
                hook(weight)
            assert (weight.grad is None) == fold_in_backward
        assert weight.grad is None

    window()
    with no_copy():
        window()
    assert weight.data_ptr() == where and (weight == 0.5).all()


def test_gradients_of_jax_are_read_where_they_are_and_parameters_copied_once():
    jax = module("jax")
    import gradaccum.jax as gaj

    params, gradients = ({"w": jax.numpy.full((ROWS, COLUMNS), value)} for value in (1.0, 1.0))
    accumulator = gaj.Accumulator(params, lambda leaves: ga.SGD(leaves, lr=0.25), loss_reduction="sum")
    accumulator.accumulate(gradients, weight=1)
    accumulator.params["w"].block_until_ready()
    with no_copy():
        accumulator.accumulate(gradients, weight=1)
    before = accumulator._leaves[0]
    with growth() as grown:
        updated = accumulator.params["w"].block_until_ready()
    assert grown.tensors == 0 and grown.peak < SIZE + NOISE
    assert updated.unsafe_buffer_pointer() != address(before) and (np.asarray(updated) == 0.5).all()
