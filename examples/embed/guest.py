"""The Python half of embed_python.c: it gets handles of tensors and of an accumulator, and works with them in place."""

from __future__ import annotations

import gradaccum as ga


class Guest:
    def __init__(self, tensors: list[int], optimizer: int, accumulator: int) -> None:
        """tensors: the parameters in the optimizer's order, and then the inputs and targets of a batch."""
        *self.parameters, self.before, self.next = map(ga.Tensor.borrow, tensors)
        self.accumulator = ga.Accumulator.borrow(accumulator, ga.Optimizer.borrow(optimizer, self.parameters))

    def accumulate(self, begin: int, end: int) -> None:
        """Adds the samples begin ... end - 1 of the batch to the window, as embed_python.c does it."""
        embedding, weight1, bias1, weight2, bias2 = self.parameters
        with ga.Scope():
            before = ga.slice(self.before, 0, begin, end)
            x = ga.reshape(ga.embedding(embedding, before), (end - begin, weight1.shape[1]))
            logits = ga.linear(ga.gelu(ga.linear(x, weight1, bias1), "tanh"), weight2, bias2)
            loss = ga.cross_entropy(logits, ga.slice(self.next, 0, begin, end))
            self.accumulator.accumulate(loss, weight=end - begin)

    def step(self) -> float:
        """Ends the window; returns its mean loss."""
        return self.accumulator.step().loss
