"""Loops of PyTorch that would train nothing, or something else than they say: each is an error that names the fix."""

from __future__ import annotations

import gc
from typing import Any

import gradaccum as ga
import numpy as np
import pytest

from support import error_of_importing, in_new_process

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)

import gradaccum.torch as gat  # noqa: E402

from tally import NO_TRACE  # noqa: E402

X = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (6,), generator=torch.Generator().manual_seed(2))


def model_of() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def sgd(model: Any, **options: Any) -> gat.Accumulator:
    return gat.Accumulator(ga.SGD(gat.parameters(model), lr=0.5), **options)


def loss_of(model: Any) -> Any:
    return functional.cross_entropy(model(X), Y)


def hooks(model: Any) -> list[int]:
    return [len(x._post_accumulate_grad_hooks or ()) for x in model.parameters()]


# ====== Micro-batches without a gradient ======


@pytest.mark.law(NO_TRACE)
@pytest.mark.parametrize("options", [{}, {"isolated": True}, {"fold_in_backward": False}], ids=str)
def test_micro_batch_without_a_gradient_is_an_error_and_aborted(options):
    model, clean = model_of(), model_of()
    accumulator = sgd(model, accumulation_steps=2, **options)

    def nothing() -> None:
        pass

    def gradients_that_are_returned() -> None:
        torch.autograd.grad(loss_of(model), list(model.parameters()))

    def another_model() -> None:
        loss_of(model_of()).backward()

    def inputs_alone() -> None:
        x = X.clone().requires_grad_()
        functional.cross_entropy(model(x), Y).backward(inputs=[x])

    accumulator.accumulate(loss_of(model), weight=6)
    for wrong in (nothing, gradients_that_are_returned, another_model, inputs_alone):
        with pytest.raises(ga.GAStateError, match="no parameter has got a gradient in micro-batch [1-4]"):
            with accumulator.micro_batch(weight=6):
                wrong()
    with pytest.raises(ga.GAStateError, match="no parameter has got a gradient"):
        accumulator.collect(6, loss=1.0)
    window = accumulator.window()
    assert (window.micro_batches, window.weight, window.update_count) == (1, 6, 0)
    with accumulator.micro_batch(weight=0):  # has nothing to add, and says so
        pass
    expected = sgd(clean)
    expected.accumulate(loss_of(clean), weight=6)
    assert accumulator.last_report.gradient_norm == expected.last_report.gradient_norm > 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), clean.parameters()))


def test_micro_batch_of_frozen_parameters_is_an_error():
    model = model_of()
    accumulator = sgd(model)
    model[0].requires_grad_(False)
    accumulator.accumulate(loss_of(model), weight=6)
    model[2].requires_grad_(False)
    with pytest.raises(ga.GAStateError, match="no parameter has got a gradient"):
        with accumulator.micro_batch(weight=6):
            pass
    assert accumulator.last_report.update_count == 1


def test_backward_of_a_micro_batch_that_is_over_is_refused():
    model = model_of()
    accumulator = sgd(model)
    with accumulator.micro_batch(weight=6) as over:
        over.backward(loss_of(model))
    with accumulator.micro_batch(weight=2) as current:
        with pytest.raises(ga.GAStateError, match="backward: micro-batch 0 is not open"):
            over.backward(loss_of(model))
        current.backward(loss_of(model))
    assert all(x.grad is None for x in model.parameters())


# ====== Parameters that were replaced ======


def test_model_that_was_loaded_with_assign_is_noticed():
    model = model_of()
    accumulator = sgd(model)
    model.load_state_dict(model_of().state_dict())
    accumulator.accumulate(loss_of(model), weight=6)
    model.load_state_dict(model_of().state_dict(), assign=True)
    with pytest.raises(ga.GAStateError, match=r"0\.weight of the model is another parameter.*without assign"):
        accumulator.accumulate(loss_of(model), weight=6)
    assert accumulator.window().micro_batches == 0
    accumulator.close()
    model.zero_grad()
    again = sgd(model)
    again.accumulate(loss_of(model), weight=6)
    assert again.last_report.gradient_norm > 0


def test_layer_that_was_replaced_is_noticed_at_the_step():
    model = model_of()
    accumulator = sgd(model)
    model[2] = nn.Linear(5, 3)
    with pytest.raises(ga.GAStateError, match=r"2\.weight of the model is another parameter"):
        accumulator.accumulate(loss_of(model), weight=6)
    assert accumulator.window().micro_batches == 1


def test_models_may_be_wrapped_and_go_away():
    model = model_of()
    body = gat.parameters(nn.Sequential(model[0], model[1]))  # nobody has this one any more
    accumulator = gat.Accumulator(ga.SGD([*body, *gat.parameters(model[2])], lr=0.5))
    accumulator.accumulate(loss_of(model), weight=6)
    nn.utils.parametrizations.weight_norm(model[2])
    accumulator.accumulate(loss_of(model), weight=6)
    model[2] = nn.Identity()  # a head that is no longer wanted
    accumulator.accumulate(functional.cross_entropy(model(X), Y), weight=6)
    assert accumulator.last_report.update_count == 3


# ====== Names of other loops ======


def test_norms_are_not_clipped_by_the_loop_where_the_micro_batch_steps():
    model = model_of()
    accumulator = sgd(model)
    with pytest.raises(ga.GAStateError, match="clip_grad_norm_: micro-batch 0 is open.* with statement.*max_grad_norm"):
        with accumulator.micro_batch(weight=6):
            loss_of(model).backward()
            if accumulator.sync_gradients:
                accumulator.clip_grad_norm_(1.0)
    accumulator.zero()
    with accumulator.micro_batch(weight=6):
        loss_of(model).backward()
    for call in (lambda: accumulator.clip_grad_norm_(1.0), accumulator.step):
        with pytest.raises(ga.GAStateError, match="has taken the step, see last_report: .*step_when_due=False"):
            call()
    accumulator.close()
    accumulator.optimizer.close()
    by_hand = sgd(model, step_when_due=False, max_grad_norm=1e-3)
    with by_hand.micro_batch(weight=6):
        loss_of(model).backward()
    if by_hand.sync_gradients:
        assert by_hand.clip_grad_norm_(1e-3) > 1e-3
    assert by_hand.step().clip_factor < 1


def test_micro_batch_that_is_begun_before_the_loop_serves_once():
    """The gradients of a second turn would stay in .grad, and no window would get them."""
    model = model_of()
    accumulator = sgd(model, accumulation_steps=2)
    micro_batch = accumulator.micro_batch(weight=6)
    with pytest.raises(ga.GAStateError, match="with: micro-batch 0 is not open: begin another"):
        for _ in range(2):
            with micro_batch:
                loss_of(model).backward()
    assert accumulator.window().micro_batches == 1 and model[0].weight.grad is None


# ====== Arguments of other kinds ======


class Output:
    """As what a model of Hugging Face returns."""

    loss = torch.ones(())


@pytest.mark.parametrize("loss", [Output(), (torch.ones(()), 1), 3.0, None, ga.zeros(())], ids=lambda x: type(x).__name__)
def test_loss_that_is_no_tensor_is_named(loss):
    accumulator = sgd(model_of())
    for call in (lambda x: x.backward(loss), lambda x: x.scale(loss)):
        with pytest.raises(ga.GADTypeError, match=r"loss is .*: it must be a tensor of PyTorch, such as the \.loss"):
            with accumulator.micro_batch(weight=6) as micro_batch:
                call(micro_batch)
    with pytest.raises(ga.GADTypeError, match="loss is "):
        accumulator.accumulate(loss, weight=6)
    assert accumulator.window().micro_batches == 0


@pytest.mark.parametrize("source", [None, 5, torch.ones(3), nn.Parameter(torch.ones((2, 3)))], ids=str)
def test_parameters_that_are_no_sequence_are_named(source):
    with pytest.raises(ga.GADTypeError, match=r"source is .*: it must be a module, or a sequence of tensors"):
        gat.parameters(source)


def test_parameters_of_other_kinds_are_named():
    weight = nn.Parameter(torch.ones((2, 3)))
    with pytest.raises(ga.GAInvalidArgumentError, match=r"parameters\[1\] is the result of an operation"):
        gat.parameters([weight, 2 * weight])
    with pytest.raises(ga.GAInvalidArgumentError, match=r"parameters\[0\] is tuple, and a tensor of PyTorch is needed"):
        gat.parameters([("weight", weight, 3)])
    with pytest.raises(ga.GADTypeError, match=r"parameters\[0\]'s name is 3 of type int: it must be text"):
        gat.parameters([(3, weight)])


def test_flags_weights_and_states_of_other_kinds_are_named():
    with pytest.raises(ga.GADTypeError, match="fold_in_backward is 'no' of type str: it must be True or False"):
        sgd(model_of(), fold_in_backward="no")
    accumulator = sgd(model_of().to(torch.bfloat16))
    with pytest.raises(ga.GADTypeError, match="weight is .* of type ndarray: it must be a number"):
        accumulator.collect(np.ones(3))
    state = accumulator.state_dict()
    for masters in (None, [1], {0: [1.0]}):
        with pytest.raises(ga.GADTypeError, match=r"state_dict\['masters'\].* is .*: it must be "):
            accumulator.load_state_dict({**state, "masters": masters})
    accumulator.load_state_dict(state)


# ====== Two accumulators ======


def test_accumulator_that_goes_away_takes_its_hooks_with_it():
    model = model_of()
    for _ in range(3):
        accumulator = sgd(model)
        accumulator.accumulate(loss_of(model), weight=6)
        assert hooks(model) == [1] * 4
        del accumulator
        assert hooks(model) == [0] * 4
    with pytest.raises(ga.GAError):
        sgd(model, accumulation_steps=-1)
    assert hooks(model) == [0] * 4
    with sgd(model):
        assert hooks(model) == [1] * 4
    assert hooks(model) == [0] * 4


@pytest.mark.parametrize("fold_in_backward", [True, False])
def test_two_open_micro_batches_over_one_parameter_are_refused(fold_in_backward):
    model = model_of()
    first, second = (sgd(model, fold_in_backward=fold_in_backward) for _ in range(2))
    head = sgd(model[2])
    micro_batch = first.micro_batch(weight=6)
    for other in (second, head):
        with pytest.raises(ga.GAStateError, match="micro-batch 0 of another accumulator"):
            other.micro_batch(weight=6)
    loss_of(model).backward()
    micro_batch.commit()
    for other in (second, head, first):
        other.accumulate(loss_of(model), weight=6)
        assert other.last_report.gradient_norm > 0
        model.zero_grad()  # of what is in no head
    first.micro_batch(weight=6)
    first.zero()
    second.micro_batch(weight=6)
    second.close()
    first.accumulate(loss_of(model), weight=6)


def test_open_micro_batch_that_nobody_has_is_no_hindrance():
    model = model_of()
    gc.disable()
    try:
        sgd(model).micro_batch(weight=6)
        sgd(model).accumulate(loss_of(model), weight=6)
    finally:
        gc.enable()


def test_accumulators_over_parts_of_a_model_may_be_open_together():
    model = model_of()
    parts = [sgd(model[0]), sgd(model[2])]
    with parts[0].micro_batch(weight=6), parts[1].micro_batch(weight=6):
        loss_of(model).backward()
    assert all(part.last_report.gradient_norm > 0 for part in parts)


@pytest.mark.parametrize("fold_in_backward", [True, False])
def test_micro_batch_that_was_dropped_with_its_window_takes_no_gradient(fold_in_backward):
    model = model_of()
    accumulator = sgd(model, fold_in_backward=fold_in_backward)
    accumulator.micro_batch(weight=6)
    assert accumulator.end_data("drop").outcome == ga.Outcome.DROPPED
    loss_of(model).backward()
    model.zero_grad()
    accumulator.accumulate(loss_of(model), weight=6)
    assert accumulator.last_report.outcome == ga.Outcome.APPLIED


# ====== Versions ======


def error_of_an_old_version() -> str:
    """In a process of its own, whose PyTorch has lost what 2.3 has."""
    import torch

    del torch.autograd.graph.increment_version
    torch.__version__ = "2.0.1"
    return error_of_importing("gradaccum.torch")


def test_pytorch_that_is_too_old_is_named():
    said = in_new_process(error_of_an_old_version)
    assert said == "gradaccum.torch needs PyTorch 2.3 or later, and this is 2.0.1: pip install 'torch>=2.3'"
