"""Training loops of PyTorch through gradaccum.torch: its own parameters, backward and autocast, and our window."""

from __future__ import annotations

import copy
import gc
import io
import math
import weakref
from collections.abc import Callable
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)  # the models are too small to share

import gradaccum.torch as gat  # noqa: E402

from tally import FLAT_MEMORY, NO_TRACE, TRUE_WEIGHTS  # noqa: E402

CLASSES, LR, DECAY = 7, 1e-2, 0.1


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, CLASSES))


def cnn() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def data(model: Callable[[], Any], samples: int, update: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(update)
    shape = (samples, 12) if model is mlp else (samples, 1, 8, 8)
    x = torch.randn(shape, generator=generator)
    return x, torch.randint(0, CLASSES, (samples,), generator=generator)


def adamw(model: Any, *, dtype: Any = None, **options: Any) -> gat.Accumulator:
    return gat.Accumulator(ga.AdamW(gat.parameters(model), lr=LR, weight_decay=DECAY), **options)


def reference(model: Any, batches: list[tuple[Any, Any]], max_norm: float = 0.0) -> list[float]:
    """torch.optim.AdamW on whole batches; the losses before each update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    losses = []
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def difference(a: Any, b: Any) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters()))


def train(
    model: Any, accumulator: gat.Accumulator, batches: list[tuple[Any, Any]], cuts: tuple[int, ...]
) -> list[float]:
    """Each batch in micro-batches of these sizes; the losses of the windows."""
    losses = []
    for x, y in batches:
        for part_x, part_y in zip(x.split(cuts), y.split(cuts)):
            with accumulator.micro_batch(weight=len(part_y)) as micro_batch:
                micro_batch.backward(functional.cross_entropy(model(part_x), part_y))
        losses.append(accumulator.last_report.loss)
    return losses


# ====== Against torch.optim on the whole batch ======


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("fold_in_backward", [True, False])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_uneven_micro_batches_give_the_update_of_the_whole_batch(build, fold_in_backward, max_norm):
    ours, theirs = build(), build()
    cuts = (5, 8, 1, 2)
    batches = [data(build, sum(cuts), update) for update in range(20)]
    accumulator = adamw(
        ours, accumulation_steps=len(cuts), fold_in_backward=fold_in_backward, max_grad_norm=max_norm
    )
    expected = reference(theirs, batches, max_norm)
    assert np.allclose(train(ours, accumulator, batches, cuts), expected, rtol=1e-4, atol=1e-5)
    assert difference(ours, theirs) < 2e-4
    assert accumulator.last_report.update_count == 20


@pytest.mark.law(TRUE_WEIGHTS)
def test_padded_tokens_count_nothing_where_the_plain_recipe_is_wrong():
    """Micro-batches of few and of many tokens: the mean of their means is not the mean of the batch."""

    def batch(update: int) -> tuple[Any, Any]:
        x, y = data(mlp, 24, update)
        y[3:11] = -100  # padding, most of the first micro-batch
        return x, y

    batches = [batch(update) for update in range(10)]
    ours, theirs, plain = mlp(), mlp(), mlp()
    accumulator = adamw(ours, accumulation_steps=2)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LR, weight_decay=DECAY)
    reference(theirs, batches)
    for x, y in batches:
        for part_x, part_y in zip(x.split(12), y.split(12)):
            with accumulator.micro_batch(weight=int((part_y != -100).sum())):
                functional.cross_entropy(ours(part_x), part_y).backward()
            (functional.cross_entropy(plain(part_x), part_y) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert difference(ours, theirs) < 1e-4 < 100 * 1e-4 < difference(plain, theirs)


def test_sums_are_divided_by_their_weight():
    ours, theirs = mlp(), mlp()
    batches = [data(mlp, 12, update) for update in range(5)]
    accumulator = adamw(ours, accumulation_steps=3, loss_reduction="sum")
    reference(theirs, batches)
    for x, y in batches:
        for part_x, part_y in zip(x.split((7, 4, 1)), y.split((7, 4, 1))):
            with accumulator.micro_batch(weight=len(part_y)):
                functional.cross_entropy(ours(part_x), part_y, reduction="sum").backward()
    assert difference(ours, theirs) < 1e-4


def test_collected_gradients_are_those_of_hooks():
    a, b, c = mlp(), mlp(), mlp()
    hooks, late, outside = adamw(a), adamw(b, fold_in_backward=False), adamw(c)
    for update in range(4):
        x, y = data(mlp, 8, update)
        for model, accumulator in ((a, hooks), (b, late)):
            with accumulator.micro_batch(weight=8):
                functional.cross_entropy(model(x), y).backward()
        functional.cross_entropy(c(x), y).backward()
        assert c[0].weight.grad is not None
        outside.collect(8, loss=1.5)
        assert c[0].weight.grad is None and outside.last_report.loss == 1.5
    assert difference(a, b) == difference(a, c) == 0


def test_model_of_a_mixed_dtype_is_collected():
    torch.manual_seed(0)
    models = [nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4).bfloat16()]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(6, 4)
    for model, fold in zip(models, (True, False)):
        accumulator = adamw(model, fold_in_backward=fold, max_grad_norm=1.0)
        for _ in range(3):
            with accumulator.micro_batch(weight=6):
                model[1](model[0](x).bfloat16()).float().square().mean().backward()
    assert difference(*models) == 0


# ====== Memory ======


def test_parameters_are_updated_where_they_are_and_gradients_freed_at_once():
    model = mlp()
    addresses = [x.data_ptr() for x in model.parameters()]
    before = ga.memory_usage().live_bytes
    parameters = gat.parameters(model)
    assert ga.memory_usage().live_bytes == before, "the library has no copy"
    assert [np.asarray(x).ctypes.data for x in parameters] == addresses
    accumulator = gat.Accumulator(ga.AdamW(parameters, lr=LR), accumulation_steps=2)
    old = [x.detach().clone() for x in model.parameters()]
    seen = []
    model[3].weight.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad))
    x, y = data(mlp, 8, 0)
    for part in range(2):
        with accumulator.micro_batch(weight=4):
            functional.cross_entropy(model(x[4 * part :][:4]), y[4 * part :][:4]).backward()
            assert all(x.grad is None for x in model.parameters())
    assert seen == [None, None], "a hook that came later finds the gradient gone"
    assert [x.data_ptr() for x in model.parameters()] == addresses
    assert all((a != b).any() for a, b in zip(old, model.parameters()))


@pytest.mark.law(FLAT_MEMORY)
def test_memory_of_the_library_is_flat():
    model = mlp()
    accumulator = adamw(model, accumulation_steps=3)
    x, y = data(mlp, 3, 0)

    def window() -> None:
        for part in range(3):
            with accumulator.micro_batch(weight=1):
                functional.cross_entropy(model(x[part : part + 1]), y[part : part + 1]).backward()

    window()
    usage = ga.memory_usage()
    for _ in range(10):
        window()
    now = ga.memory_usage()
    assert (now.live_bytes, now.allocator_calls) == (usage.live_bytes, usage.allocator_calls)


def test_everything_is_freed_with_the_model_and_hooks_go_at_close():
    before = ga.memory_usage().live_bytes
    model = mlp()
    accumulator = adamw(model)
    weight = weakref.ref(model[0].weight)
    accumulator.close()
    functional.cross_entropy(model(data(mlp, 2, 0)[0]), data(mlp, 2, 0)[1]).backward()
    assert model[0].weight.grad is not None
    del accumulator, model
    gc.collect()
    assert weight() is None and ga.memory_usage().live_bytes == before


def test_model_outlives_the_accumulator_and_the_parameters_the_model():
    model = mlp()
    parameters = gat.parameters(model)
    accumulator = gat.Accumulator(ga.SGD(parameters, lr=LR))
    del accumulator
    gc.collect()
    functional.cross_entropy(model(data(mlp, 2, 0)[0]), data(mlp, 2, 0)[1]).backward()
    expected = model[0].weight.detach().numpy().copy()
    del model
    gc.collect()
    assert (parameters[0].numpy() == expected).all()


# ====== Element types and layouts ======


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parameters_have_master_weights(dtype):
    """Updates far below the steps of the type add up, and the model is the rounded master."""
    model = nn.Linear(4, 3).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    addresses = [x.data_ptr() for x in model.parameters()]
    accumulator = gat.Accumulator(ga.SGD(gat.parameters(model), lr=1e-4), loss_reduction="sum")
    for _ in range(100):
        with accumulator.micro_batch(weight=1):
            model.weight.sum().backward()
    master = accumulator.optimizer.parameters[0].numpy()
    assert np.allclose(master, 0.99, atol=1e-5)
    assert (model.weight.detach().float().numpy() == torch.tensor(master).to(dtype).float().numpy()).all()
    assert (model.bias == 1).all() and [x.data_ptr() for x in model.parameters()] == addresses


def test_half_parameters_that_were_written_to_are_not_overwritten_unasked():
    model = nn.Linear(4, 3).bfloat16()
    accumulator = gat.Accumulator(ga.SGD(gat.parameters(model), lr=0.0))
    state = {name: torch.full_like(x, 5.0) for name, x in model.state_dict().items()}
    with accumulator.micro_batch(weight=1):
        model(torch.ones(2, 4).bfloat16()).float().mean().backward()
        model.load_state_dict(state)
        accumulator.step_when_due = False
    with pytest.raises(ga.GAStateError, match="reload_masters"):
        accumulator.step()
    accumulator.reload_masters()
    accumulator.step()
    assert (model.weight == 5).all()


def test_parameters_in_another_order_in_memory_are_taken_as_they_lie():
    ours, theirs = cnn().to(memory_format=torch.channels_last), cnn()
    assert not ours[3].weight.is_contiguous()
    batches = [data(cnn, 8, update) for update in range(5)]
    reference(theirs, batches)
    train(ours, adamw(ours, accumulation_steps=2), batches, (3, 5))
    assert difference(ours, theirs) < 2e-4


def test_gradient_in_another_order_than_its_parameter_is_put_in_order():
    p, q = (nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    for x, fold in ((p, True), (q, False)):
        accumulator = gat.Accumulator(
            ga.SGD(gat.parameters([x]), lr=1.0), fold_in_backward=fold, loss_reduction="sum"
        )
        with accumulator.micro_batch(weight=1):
            x.grad = torch.arange(6.0).reshape(3, 2).t() if not fold else None
            if fold:
                (x.t() * torch.arange(6.0).reshape(3, 2)).sum().backward()
    expected = torch.arange(6.0).reshape(2, 3) - torch.arange(6.0).reshape(3, 2).t()
    assert (p == expected).all() and (q == expected).all()


def test_works_in_autocast():
    ours, theirs = mlp(), mlp()
    accumulator = adamw(ours, accumulation_steps=2)
    batches = [data(mlp, 12, update) for update in range(5)]
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=DECAY)
    for x, y in batches:
        for part in (slice(0, 7), slice(7, 12)):
            with accumulator.micro_batch(weight=len(y[part])), torch.amp.autocast("cpu", torch.bfloat16):
                logits = ours(x[part])
                assert logits.dtype in (torch.bfloat16, torch.float32)
                functional.cross_entropy(logits, y[part]).backward()
        with torch.amp.autocast("cpu", torch.bfloat16):
            functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert difference(ours, theirs) < 2e-2


def test_loss_scale_is_taken_out_again():
    plain, scaled = mlp(), mlp()
    x, y = data(mlp, 8, 0)
    for model, scale in ((plain, 1.0), (scaled, 1024.0)):
        accumulator = adamw(model)
        with accumulator.micro_batch(weight=8, loss_scale=scale) as micro_batch:
            micro_batch.backward(functional.cross_entropy(model(x), y))
        with accumulator.micro_batch(weight=8, loss_scale=scale):
            (functional.cross_entropy(model(x), y) * scale).backward()
    assert difference(plain, scaled) == 0


# ====== The window ======


def test_sync_gradients_and_last_report_follow_the_window():
    model = mlp()
    accumulator = adamw(model, accumulation_steps=3)
    x, y = data(mlp, 2, 0)
    inside, after = [], []
    for _ in range(7):
        with accumulator.micro_batch(weight=2):
            inside.append(accumulator.sync_gradients)
            functional.cross_entropy(model(x), y).backward()
        after.append(accumulator.sync_gradients)
    assert inside == after == [False, False, True, False, False, True, False]
    assert accumulator.last_report.update_count == 2
    report = accumulator.end_data()
    assert report.micro_batches == 1 and report.outcome == ga.Outcome.APPLIED
    assert accumulator.last_report is report


def test_step_may_be_the_callers():
    model = mlp()
    accumulator = adamw(model, accumulation_steps=2, step_when_due=False)
    x, y = data(mlp, 2, 0)
    for _ in range(3):
        accumulator.accumulate(functional.cross_entropy(model(x), y), weight=2)
    assert accumulator.sync_gradients and accumulator.last_report is None
    report = accumulator.step()
    assert report.micro_batches == 3 and accumulator.last_report is report


def test_weight_may_come_later_where_losses_are_sums():
    ours, theirs = mlp(), mlp()
    x, y = data(mlp, 9, 0)
    accumulator = adamw(ours, accumulation_steps=2, loss_reduction="sum", step_when_due=False)
    reference(theirs, [(x, y)])
    for part, weight in ((slice(0, 4), 4), (slice(4, 9), 5)):
        with accumulator.micro_batch() as micro_batch:
            functional.cross_entropy(ours(x[part]), y[part], reduction="sum").backward()
        micro_batch.set_weight(weight)
    accumulator.step()
    assert difference(ours, theirs) < 1e-4


@pytest.mark.law(NO_TRACE)
def test_exception_aborts_and_leaves_no_trace_in_isolated_mode():
    ours, clean = mlp(), mlp()
    x, y = data(mlp, 4, 0)
    for model in (ours, clean):
        accumulator = adamw(model, accumulation_steps=2, isolated=True)
        for number in range(2):
            if model is ours:
                with pytest.raises(KeyError):
                    with accumulator.micro_batch(weight=9):
                        functional.cross_entropy(model(x * 3), y).backward()
                        raise KeyError
                assert all(p.grad is None for p in model.parameters())
            with accumulator.micro_batch(weight=4):
                functional.cross_entropy(model(x + number), y).backward()
        assert accumulator.last_report.weight == 8
    assert difference(ours, clean) == 0


def test_exception_before_backward_aborts_in_exact_mode_too_and_after_it_needs_zero():
    model = mlp()
    x, y = data(mlp, 4, 0)
    accumulator = adamw(model, accumulation_steps=2)
    with pytest.raises(KeyError):
        with accumulator.micro_batch(weight=4):
            raise KeyError
    with pytest.raises(KeyError):
        with accumulator.micro_batch(weight=4):
            functional.cross_entropy(model(x), y).backward()
            raise KeyError
    with pytest.raises(ga.GAStateError, match="open"):
        accumulator.step()
    accumulator.zero()
    for _ in range(2):
        accumulator.accumulate(functional.cross_entropy(model(x), y), weight=4)
    assert accumulator.last_report.micro_batches == 2


def test_micro_batch_without_a_token_adds_nothing():
    """Its mean is 0 / 0."""
    ours, theirs = mlp(), mlp()
    x, y = data(mlp, 6, 0)
    reference(theirs, [(x, y)])
    for fold in (True, False):
        model = copy.deepcopy(ours)
        accumulator = adamw(model, accumulation_steps=2, fold_in_backward=fold)
        with accumulator.micro_batch(weight=0) as micro_batch:
            micro_batch.backward(functional.cross_entropy(model(x), torch.full_like(y, -100)))
        accumulator.accumulate(functional.cross_entropy(model(x), y), weight=6)
        assert accumulator.last_report.outcome == ga.Outcome.APPLIED
        assert difference(model, theirs) < 1e-5


@pytest.mark.law(NO_TRACE)
def test_overflow_skips_the_window_without_a_trace():
    model = mlp()
    old = [p.detach().clone() for p in model.parameters()]
    accumulator = adamw(model, accumulation_steps=2)
    x, y = data(mlp, 4, 0)
    accumulator.accumulate(functional.cross_entropy(model(x), y), weight=4)
    accumulator.accumulate(functional.cross_entropy(model(x * float("inf")), y), weight=4)
    assert accumulator.last_report.outcome == ga.Outcome.SKIPPED_NON_FINITE
    assert all((a == b).all() for a, b in zip(old, model.parameters()))


def test_parameter_without_a_gradient_is_left_alone():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    accumulator = adamw(model)
    old = model[1].weight.detach().clone()
    with accumulator.micro_batch(weight=1):
        model[0](torch.ones(2, 3)).mean().backward()
    assert (model[1].weight == old).all()
    frozen = mlp()
    frozen[0].requires_grad_(False)
    assert len(gat.parameters(frozen)) == 4


def test_shared_weights_are_one_parameter():
    torch.manual_seed(0)
    ours = nn.ModuleList([nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)])
    ours[1].weight = ours[0].weight
    theirs = copy.deepcopy(ours)
    assert theirs[1].weight is theirs[0].weight
    x = torch.randn(6, 5)
    accumulator = gat.Accumulator(ga.SGD(gat.parameters(ours), lr=0.1), accumulation_steps=2)
    for part in (x[:2], x[2:]):
        with accumulator.micro_batch(weight=len(part)):
            ours[1](ours[0](part).relu()).square().sum(1).mean().backward()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    theirs[1](theirs[0](x).relu()).square().sum(1).mean().backward()
    optimizer.step()
    assert difference(ours, theirs) < 1e-6


# ====== Mistakes ======


def test_graph_of_before_the_update_is_refused_by_pytorch():
    model = mlp()
    accumulator = adamw(model)
    x, y = data(mlp, 4, 0)
    stale = functional.cross_entropy(model(x), y)
    accumulator.accumulate(functional.cross_entropy(model(x), y), weight=4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_gradients_of_outside_are_not_mixed_in_unasked():
    model = mlp()
    accumulator = adamw(model)
    x, y = data(mlp, 4, 0)
    functional.cross_entropy(model(x), y).backward()
    with pytest.raises(ga.GAStateError, match=r"0\.weight\.grad is left"):
        accumulator.micro_batch(weight=4)
    accumulator.zero_grad()
    accumulator.accumulate(functional.cross_entropy(model(x), y), weight=4)


def test_loss_of_the_other_reduction_is_refused():
    model = mlp()
    x, y = data(mlp, 4, 0)
    for wanted, given in (("mean", "sum"), ("sum", "mean")):
        accumulator = adamw(model, loss_reduction=wanted)
        with pytest.raises(ga.GAStateError, match=f"loss is a {given}"):
            accumulator.accumulate(functional.cross_entropy(model(x), y, reduction=given), weight=4)
        accumulator.close()
        accumulator.optimizer.close()
        del accumulator


def test_clipping_says_where_it_is_done():
    with pytest.raises(ga.GAInvalidArgumentError, match="max_grad_norm"):
        adamw(mlp()).clip_grad_norm_(1.0)


def test_parameters_are_not_copied():
    """A copy would lie on the memory of the first model, which a copied model has left."""
    model = mlp()
    accumulator = adamw(model)
    for what in (gat.parameters(model), accumulator, accumulator.optimizer):
        for how in (copy.deepcopy, lambda x: torch.save(x, io.BytesIO())):
            with pytest.raises(ga.GAUnsupportedError, match="is an object of the library"):
                how(what)


def test_arguments_of_other_types_are_refused_with_what_to_do():
    for what in (mlp(), mlp().parameters(), list(mlp().parameters())):
        with pytest.raises(ga.GADTypeError, match=r"parameters.*gradaccum\.torch\.parameters\(\)"):
            ga.AdamW(what)
    for wrong, error in (("a", ga.GADTypeError), (10**400, ga.GAOverflowError)):
        with pytest.raises(error, match="weight is"):
            adamw(mlp()).micro_batch(weight=wrong)
        with pytest.raises(error, match="loss_scale is"):
            adamw(mlp()).micro_batch(weight=1, loss_scale=wrong)
    with pytest.raises(ga.GADTypeError, match="optimizer is .*AdamW"):
        gat.Accumulator(torch.optim.AdamW(mlp().parameters()))


def test_model_that_moved_is_noticed():
    model = mlp()
    accumulator = adamw(model, step_when_due=False)
    accumulator.accumulate(functional.cross_entropy(model(data(mlp, 2, 0)[0]), data(mlp, 2, 0)[1]), weight=2)
    model[0].weight.data = model[0].weight.data.clone()
    with pytest.raises(ga.GAStateError, match=r"0\.weight has moved"):
        accumulator.step()


def test_what_cannot_be_shared_is_refused_by_name():
    for bad, error, words in (
        ([torch.zeros(3, dtype=torch.float64)], ga.GADTypeError, "float64"),
        ([torch.zeros(3, device="meta")], ga.GAUnsupportedError, "meta"),
        ([torch.zeros(3, 4)[:, ::2]], ga.GAInvalidArgumentError, "strides"),
        ([np.zeros(3, np.float32)], ga.GAInvalidArgumentError, "ndarray"),
        ([("head", torch.zeros(2).to_sparse())], ga.GAUnsupportedError, "head"),
    ):
        with pytest.raises(error, match=words):
            gat.parameters(bad)
    with pytest.raises(ga.GAInvalidArgumentError, match="gradaccum.torch.parameters"):
        gat.Accumulator(ga.SGD([ga.zeros((2,))]))
    with pytest.raises(ga.GAInvalidArgumentError, match="share memory"):
        weight = torch.zeros(4)
        ga.SGD(gat.parameters([weight, weight]))
    with pytest.raises(ga.GAInvalidArgumentError, match="loss_scale"):
        adamw(mlp()).micro_batch(weight=1, loss_scale=0.0)


@pytest.mark.parametrize("fold", [True, False])
def test_gradient_that_is_negated_when_it_is_read_keeps_its_sign(fold):
    weight = nn.Parameter(torch.zeros(2))
    accumulator = gat.Accumulator(
        ga.SGD(gat.parameters([weight]), lr=1.0), fold_in_backward=fold, loss_reduction="sum"
    )
    negated = torch._neg_view(torch.tensor([2.0, 4.0]))
    with accumulator.micro_batch(weight=1):
        if fold:
            weight.backward(negated)
        else:
            weight.grad = negated
    assert weight.tolist() == [2, 4]
    with pytest.raises(ga.GAInvalidArgumentError, match="negated"):
        gat.parameters([negated])


def test_sparse_gradient_is_refused():
    table = nn.Embedding(5, 2, sparse=True)
    accumulator = adamw(table)
    with pytest.raises(ga.GAUnsupportedError, match="weight.grad"):
        accumulator.accumulate(table(torch.tensor([1, 2])).mean(), weight=2)


def test_parameter_groups_keep_their_settings():
    ours, theirs = mlp(), mlp()
    head, body = gat.parameters(ours[3]), gat.parameters(ours[:3])
    optimizer = ga.AdamW([{"params": head, "lr_scale": 0.1}, {"params": body, "weight_decay": 0.0}], lr=LR)
    accumulator = gat.Accumulator(optimizer)
    reference_optimizer = torch.optim.AdamW(
        [
            {"params": theirs[3].parameters(), "lr": 0.1 * LR},
            {"params": theirs[:3].parameters(), "weight_decay": 0.0},
        ],
        lr=LR,
        weight_decay=1e-2,
    )
    for update in range(5):
        x, y = data(mlp, 6, update)
        accumulator.accumulate(functional.cross_entropy(ours(x), y), weight=6)
        functional.cross_entropy(theirs(x), y).backward()
        reference_optimizer.step()
        reference_optimizer.zero_grad()
    assert difference(ours, theirs) < 1e-5


def test_collect_that_is_refused_leaves_the_gradients():
    model = mlp()
    accumulator = gat.Accumulator(ga.SGD(gat.parameters(model), lr=LR))
    functional.cross_entropy(model(data(mlp, 2, 0)[0]), data(mlp, 2, 0)[1]).backward()
    gradient = model[0].weight.grad
    refused = [(-1, 1.0, "weight is -1"), (math.nan, 1.0, "weight is nan"), (2, 0.0, "loss_scale is 0")]
    for weight, loss_scale, words in refused:
        with pytest.raises(ga.GAInvalidArgumentError, match=words):
            accumulator.collect(weight, loss_scale=loss_scale)
        assert model[0].weight.grad is gradient
    accumulator.collect(2)
    assert accumulator.last_report.weight == 2
