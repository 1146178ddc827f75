"""A batch is split into what was asked for, without copies, and every split of it gives the same weights."""

from __future__ import annotations

import hashlib
from ctypes import c_int64
from typing import NamedTuple

import gradaccum as ga
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import raw
from tally import SPLIT_INVARIANCE


def sizes_of(ranges: list[range]) -> list[int]:
    """The sizes of ranges that follow each other from 0 on."""
    assert [part.start for part in ranges] == [0, *(part.stop for part in ranges[:-1])]
    return [len(part) for part in ranges]


@given(st.data(), st.integers(1, 500))
def test_by_count_the_sizes_are_those_of_numpy(data, samples):
    count = data.draw(st.integers(1, samples))
    found = sizes_of(ga.split_ranges(samples, micro_batches=count))
    assert found == [len(part) for part in np.array_split(np.arange(samples), count)]


@given(st.integers(1, 500), st.integers(1, 600))
def test_by_size_only_the_last_is_smaller(samples, size):
    found = sizes_of(ga.split_ranges(samples, size=size))
    assert sum(found) == samples and set(found[:-1]) <= {size} and 1 <= found[-1] <= size


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(0, 40), st.booleans())
def test_by_tokens_each_holds_as_many_as_fit(lengths, spare, padded):
    budget = max([1, *lengths]) + spare

    def tokens(start: int, stop: int) -> int:
        part = lengths[start:stop]
        return max(part) * len(part) if padded else sum(part)

    ranges = ga.split_ranges(len(lengths), token_budget=budget, lengths=lengths, padded=padded)
    assert sum(sizes_of(ranges)) == len(lengths)
    for part in ranges:
        assert len(part) >= 1 and tokens(part.start, part.stop) <= budget
        if part.stop < len(lengths):
            assert tokens(part.start, part.stop + 1) > budget


def test_budgets_and_lengths_at_the_end_of_the_numbers_do_not_overflow():
    huge = 2**63 - 1
    assert sizes_of(ga.split_ranges(3, token_budget=huge, lengths=[huge, huge, 0])) == [1, 2]
    assert sizes_of(ga.split_ranges(3, token_budget=huge, lengths=[huge, huge, 0], padded=True)) == [1, 1, 1]
    assert ga.split_ranges(huge, micro_batches=2) == [range(2**62), range(2**62, huge)]
    assert ga.split_ranges(huge, size=huge) == [range(huge)]
    count = c_int64()
    assert raw.ga_split_by_count(None, 0, count, huge, huge) == 0 and count.value == huge


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def test_parts_are_views_with_the_shape_of_the_batch():
    x, y = np.arange(35.0).reshape(7, 5), np.arange(7)
    batches = [
        (x, lambda part: [part]),
        ((x, y), list),
        ([x, (y, x)], lambda part: [part[0], *part[1]]),
        ({"x": x, "y": {"label": y}}, lambda part: [part["x"], part["y"]["label"]]),
        (Pair(x, y), lambda part: [part.x, part.y]),
    ]
    for batch, flat in batches:
        start = 0
        for part, weight in ga.split(batch, size=3):
            assert type(part) is type(batch)
            for array, whole in zip(flat(part), flat(batch)):
                assert np.shares_memory(array, whole)
                np.testing.assert_array_equal(array, whole[start : start + weight])
            start += weight
        assert start == 7


def test_parts_of_a_tensor_are_views_of_it():
    x = ga.zeros((5, 2))
    parts = [part for part, _ in ga.split(x, micro_batches=2)]
    x.fill_(3)
    assert [part.shape for part in parts] == [(3, 2), (2, 2)] and all((p.numpy() == 3).all() for p in parts)


def test_weights_are_samples_or_tokens():
    x, lengths = np.zeros((5, 9)), np.array([4, 9, 1, 1, 7])
    assert [weight for _, weight in ga.split(x, size=2)] == [2, 2, 1]
    assert [weight for _, weight in ga.split(x, size=2, lengths=lengths)] == [13, 2, 7]
    assert [weight for _, weight in ga.split(x, token_budget=10, lengths=lengths)] == [4, 10, 8]
    assert [w for _, w in ga.split(x, token_budget=10, lengths=lengths, padded=True)] == [4, 9, 2, 7]


@pytest.mark.parametrize(
    ("batch", "options", "error", "words"),
    [
        (np.zeros((0, 3)), {"size": 1}, ValueError, "samples is 0"),
        (np.float32(1), {"size": 1}, ValueError, "leading axis"),
        ("text", {"size": 1}, ValueError, "str"),
        ({}, {"size": 1}, ValueError, "empty"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, {"size": 1}, ga.GAShapeError, "batch['y'] has 4 samples"),
        (np.zeros(3), {}, ValueError, "give one of"),
        (np.zeros(3), {"size": 1, "micro_batches": 2}, ValueError, "micro_batches and size"),
        (np.zeros(3), {"token_budget": 2}, ValueError, "lengths"),
        (np.zeros(3), {"token_budget": 2, "lengths": [1, 1]}, ga.GAShapeError, "lengths has 2"),
        (np.zeros(3), {"token_budget": 2, "lengths": [1, 3, 1]}, ValueError, "lengths[1] is 3"),
        (np.zeros(3), {"size": 2, "padded": True}, ValueError, "padded"),
        (np.zeros(3), {"size": 2.0}, TypeError, "float"),
        (np.zeros(3), {"micro_batches": 4}, ValueError, "1 ... 3"),
    ],
)
def test_mistakes_are_named_before_the_first_part(batch, options, error, words):
    with pytest.raises(error) as caught:
        ga.split(batch, **options)
    assert words in str(caught.value)


def hash_of_training(threads: int, **how: object) -> str:
    """Three updates of a small model on sentences of uneven lengths, padded with the ignored class."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 9, 13)
    tokens = rng.integers(0, 11, (13, 8))
    targets = np.where(np.arange(8) < lengths[:, None], rng.integers(0, 11, (13, 8)), -1)
    embedding = ga.zeros((11, 6), requires_grad=True).normal_(std=0.5, seed=1)
    gain, shift = ga.tensor(np.ones(6), requires_grad=True), ga.zeros((6,), requires_grad=True)
    head = ga.zeros((11, 6), requires_grad=True).normal_(std=0.5, seed=2)
    parameters = [embedding, gain, shift, head]
    accumulator = ga.Accumulator(ga.AdamW(parameters, lr=1e-2), max_grad_norm=1.0)
    before = ga.get_num_threads()
    ga.set_num_threads(threads)
    try:
        for _ in range(3):
            for part, weight in ga.split({"x": tokens, "y": targets}, lengths=lengths, **how):
                hidden = ga.layer_norm(ga.embedding(embedding, ga.tensor(part["x"])), gain, shift)
                loss = ga.cross_entropy(ga.linear(hidden, head), ga.tensor(part["y"]), ignore_index=-1)
                accumulator.accumulate(loss, weight)
            assert accumulator.step().weight == lengths.sum()
    finally:
        ga.set_num_threads(before)
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in parameters)).hexdigest()


@pytest.mark.law(SPLIT_INVARIANCE)
def test_every_split_of_a_batch_gives_the_same_weights():
    hashes = {
        hash_of_training(threads, **how)
        for threads, how in [
            (1, {"micro_batches": 1}),
            (2, {"micro_batches": 4}),
            (3, {"micro_batches": 13}),
            (2, {"size": 5}),
            (1, {"size": 2}),
            (2, {"token_budget": 8}),
            (2, {"token_budget": 21}),
            (4, {"token_budget": 30, "padded": True}),
        ]
    }
    assert len(hashes) == 1
