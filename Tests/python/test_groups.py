"""Parameter groups and frozen parameters, through the C ABI."""

from __future__ import annotations

import gradaccum as ga
import numpy as np
import pytest

OPTIMIZERS = {
    "sgd": lambda p, **o: ga.SGD(p, 0.1, momentum=0.9, **o),
    "adam": lambda p, **o: ga.Adam(p, 0.1, **o),
    "adamw": lambda p, **o: ga.AdamW(p, 0.1, **o),
    "radam": lambda p, **o: ga.RAdam(p, 0.1, **o),
    "nadam": lambda p, **o: ga.NAdam(p, 0.1, **o),
    "lion": lambda p, **o: ga.Lion(p, 0.1, **o),
    "lamb": lambda p, **o: ga.LAMB(p, 0.1, **o),
    "lars": lambda p, **o: ga.LARS(p, 0.1, **o),
    "adafactor": lambda p, **o: ga.Adafactor(p, 0.1, **o),
    "muon": lambda p, **o: ga.Muon(
        p, 0.1, **{"weight_decay": 0.1, **o}, adamw_weight_decay=o.get("weight_decay", 0.01)
    ),
    "adamw8bit": lambda p, **o: ga.AdamW8bit(p, 0.1, min_8bit_size=0, **o),
    "custom": lambda p, **o: ga.CustomOptimizer(p, descend, 0.1, **o),
}
SHAPES = ((7, 5), (11,), (3, 300))


def descend(parameter, gradient, slots, update):
    parameter *= 1 - update.lr * update.weight_decay
    parameter -= update.lr * update.gradient_scale * gradient


def leaves() -> list[ga.Tensor]:
    rng = np.random.default_rng(1)
    return [ga.tensor(rng.standard_normal(shape), requires_grad=True) for shape in SHAPES]


def gradients(update: int) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + update)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def train(optimizer: ga.Optimizer, updates: int = 3) -> list[bytes]:
    accumulator = ga.Accumulator(optimizer)
    for update in range(updates):
        accumulator.accumulate_gradients(gradients(update), 0.0, 1)
        accumulator.step()
    return [x.numpy().tobytes() for x in optimizer.parameters]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_is_an_optimizer_with_another_rate_and_decay(name):
    """Given as torch.optim takes groups."""
    make = OPTIMIZERS[name]
    plain = train(make(leaves()))
    optimizer = make(leaves(), weight_decay=0.3)
    optimizer.lr = 0.05
    other = train(optimizer)
    x = leaves()
    mixed = train(make([{"params": x[:2], "lr_scale": 0.5, "weight_decay": 0.3}, x[2]]))
    assert mixed == other[:2] + plain[2:]
    assert all(a != b for a, b in zip(other, plain))


def test_a_group_can_be_read_and_changed():
    x = leaves()
    optimizer = ga.AdamW(x)
    group = optimizer.add_group(x[1:], lr_scale=0.1, max_grad_norm=2.0)
    assert optimizer.groups == (group,) and group.parameters == tuple(x[1:])
    assert (group.lr_scale, group.weight_decay, group.max_grad_norm) == (0.1, None, 2.0)
    group.weight_decay = 0.0
    group.lr_scale, group.max_grad_norm = 3.0, 0.0
    assert (group.lr_scale, group.weight_decay, group.max_grad_norm) == (3.0, 0.0, 0.0)
    group.weight_decay = None
    assert group.weight_decay is None
    with pytest.raises(ga.GAInvalidArgumentError, match="weight_decay is -1"):
        group.weight_decay = -1.0
    with pytest.raises(ga.GAStateError, match="group 0"):
        optimizer.add_group([x[0], x[2]])
    with pytest.raises(ga.GAInvalidArgumentError, match=r"parameters\[1\]"):
        optimizer.add_group([x[0], ga.zeros((2,))])


def test_a_group_is_clipped_by_its_own_norm():
    x = leaves()
    start = [value.numpy() for value in x]
    optimizer = ga.SGD([*x[:2], {"params": [x[2]], "max_grad_norm": 0.5}], lr=1.0)
    accumulator = ga.Accumulator(optimizer, max_grad_norm=1.0)
    arrays = gradients(0)
    accumulator.accumulate_gradients([4 * g for g in arrays], 0.0, 4)
    report = accumulator.step()
    norms = np.array([np.linalg.norm(g.astype(np.float64)) for g in arrays])
    rest = np.hypot(*norms[:2])
    assert report.gradient_norm == pytest.approx(np.hypot(rest, norms[2]), rel=1e-6)
    assert report.clip_factor == pytest.approx(np.hypot(1.0, 0.5) / report.gradient_norm, rel=1e-5)
    for i, limit in enumerate((1.0 / rest, 1.0 / rest, 0.5 / norms[2])):
        assert np.allclose(x[i].numpy(), start[i] - limit * arrays[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_parameter_is_left_alone_and_goes_on_where_it_was(name):
    """As if the windows in which it was frozen had not been."""
    x, y = leaves(), leaves()
    a, b = ga.Accumulator(OPTIMIZERS[name](x)), ga.Accumulator(OPTIMIZERS[name](y))
    for update in range(6):
        frozen = update in (2, 3)
        x[0].requires_grad = not frozen
        a.accumulate_gradients(gradients(update), 0.0, 1)
        a.step()
        if not frozen:
            b.accumulate_gradients([gradients(update)[0], None, None], 0.0, 1)
            b.step()
        assert x[0].numpy().tobytes() == y[0].numpy().tobytes(), update
    assert [value.numpy().tobytes() for value in y[1:]] == [value.numpy().tobytes() for value in leaves()[1:]]


def test_no_gradient_flows_to_a_frozen_parameter():
    w, v = ga.tensor([[1.0, 2.0]], requires_grad=True), ga.tensor([[3.0], [4.0]], requires_grad=True)
    accumulator = ga.Accumulator(ga.SGD([w, v], lr=1.0))
    v.requires_grad = False
    loss = ga.sum(ga.matmul(w, v))
    accumulator.accumulate(loss, 1)
    accumulator.step()
    assert w.numpy().tolist() == [[-2.0, -2.0]] and v.numpy().tolist() == [[3.0], [4.0]]
    w.requires_grad = False
    with pytest.raises(ga.GAInvalidArgumentError, match="depends on no parameter"):
        accumulator.accumulate(ga.sum(ga.matmul(w, v)), 1)
