"""The library in the children of a process that has used it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import gradaccum as ga
import pytest

from models import (
    gpt,
    train,
)
from support import (
    TIME_LIMIT,
    in_child,
)


@in_child
def test_library_works_in_the_child_of_a_fork_and_still_in_the_parent():
    """The pool has run before the fork, so its threads are missing in the child; twice, and nested."""
    ga.set_num_threads(3)
    expected = train()

    def fork(depth: int) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(TIME_LIMIT // 2)
                assert train() == expected and ga.get_num_threads() == 3
                if depth:
                    fork(depth - 1)
                code = 0
            finally:
                os._exit(code)
        assert train() == expected  # at the same time as the child
        assert os.waitpid(child, 0)[1] == 0

    for depth in (0, 1):
        fork(depth)


@in_child
def test_fork_while_other_threads_compute():
    """A lock that another thread holds at the fork is nobody's in the child."""
    expected = train()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            train()

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(15):
            time.sleep(0.01)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(TIME_LIMIT // 2)
                    code = 0 if train() == expected else 2
                finally:
                    os._exit(code)
            status = os.waitpid(child, 0)[1]
            assert status == 0, f"the child ended with {status}"
    finally:
        stop.set()
        for worker in workers:
            worker.join()


@in_child
def test_window_that_is_open_at_a_fork_goes_on_in_both():
    model, data = gpt()
    expected = model.fingerprint(data, [[2, 4]])
    model, data = gpt()
    model.accumulate({name: array[:2] for name, array in data.items()})
    read, write = os.pipe()
    child = os.fork()
    model.accumulate({name: array[2:] for name, array in data.items()})
    gradients = b"".join(model.gradients())
    if child == 0:
        os.write(write, bytes([sum(gradients) % 256]))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 1) == bytes([sum(gradients) % 256])
    other, data = gpt()
    other.accumulate(data)
    assert b"".join(other.gradients()) == gradients and expected


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method):
    expected = train()
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = [pool.apply_async(train) for _ in range(4)]
        assert [result.get(timeout=TIME_LIMIT) for result in results] == [expected] * 4
