#!/usr/bin/env python3
"""A GPT2LMHeadModel of Hugging Face, unmodified, in padded micro-batches of uneven length.

Verses of a text are trained on four times, from the same weights: by torch.optim.AdamW in whole batches, and once more
with the samples of each batch in reverse; through gradaccum.torch in micro-batches; and in these by the plain recipe,
which divides the mean loss of each by their number. The exit status is 1 if ours does not follow the whole batches.
"""

from __future__ import annotations

import copy
import sys

import verses

try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(f"gpt2_torch.py: {error}: pip install torch transformers")

import gradaccum as ga
import gradaccum.torch as gat

transformers.logging.set_verbosity_error()


def make_model():
    """From a configuration, with nothing downloaded."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=verses.VOCABULARY,
        n_positions=verses.CONTEXT,
        n_embd=verses.CHANNELS,
        n_layer=verses.LAYERS,
        n_head=verses.HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def arguments(part):
    """Those of the model for some verses, and how many tokens it is to predict."""
    tokens, mask, weight = verses.padded(part)
    tokens, mask = torch.from_numpy(tokens), torch.from_numpy(mask)
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}, weight


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=verses.LR, weight_decay=verses.WEIGHT_DECAY)


def train_whole(model, data):
    optimizer, losses = adamw(model), []
    for batch in data:
        loss = model(**arguments(batch)[0]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_plain(model, data, micro_batches):
    optimizer, losses = adamw(model), []
    for batch in data:
        total, tokens = 0.0, 0
        parts = verses.cut(batch, micro_batches)
        for part in parts:
            inputs, weight = arguments(part)
            loss = model(**inputs).loss
            (loss / len(parts)).backward()
            total, tokens = total + loss.item() * weight, tokens + weight
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / tokens)
    return losses


def train_ours(model, data, micro_batches):
    optimizer = ga.AdamW(gat.parameters(model), lr=verses.LR, weight_decay=verses.WEIGHT_DECAY)
    accumulator = gat.Accumulator(optimizer, step_when_due=False)
    losses = []
    for batch in data:
        for part in verses.cut(batch, micro_batches):
            inputs, weight = arguments(part)
            with accumulator.micro_batch(weight) as micro_batch:
                micro_batch.backward(model(**inputs).loss)
        losses.append(accumulator.step().loss)
    return losses


def main():
    options = verses.parse_options(__doc__)
    data = list(verses.batches(verses.read(options.text), options.updates, options.batch))
    start = make_model()
    curves = verses.Curves(
        whole=train_whole(copy.deepcopy(start), data),
        in_reverse=train_whole(copy.deepcopy(start), [batch[::-1] for batch in data]),
        ours=train_ours(copy.deepcopy(start), data, options.micro_batches),
        plain=train_plain(copy.deepcopy(start), data, options.micro_batches),
        peer="mean of means",
        tokens=max(arguments(batch)[1] for batch in data),
    )
    if options.plot:
        curves.draw(options.plot, "GPT2LMHeadModel in padded, uneven micro-batches")
    return curves.print()


if __name__ == "__main__":
    sys.exit(main())
