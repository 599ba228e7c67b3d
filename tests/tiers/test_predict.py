"""What the gate says before attention has run is mostly what it says afterwards."""

from __future__ import annotations

import torch

import fourfold
from fourfold.model.block import Block
from fourfold.tiers.predict import predicted, predicted_early


def test_most_of_the_shipped_models_choices_are_guessed():
    model = fourfold.load(fourfold.shipped_model()).train()  # so that it notes how it routes
    hits = total = 0
    streams, inputs = [], []
    for block in model.layers[1:]:
        assert isinstance(block, Block)
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
        block.ffn.experts.register_forward_pre_hook(lambda _, args: inputs.append(args[0].x))
    assert model.tokenizer is not None
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer.encode("Once upon a time there was a little dog. " * 3)])
        routing = model(ids).routing
    for block, before, chosen in zip(model.layers[1:], streams, routing, strict=True):
        choice = chosen.indices
        guess = predicted(block, before)
        hits += int((guess[:, :, None] == choice[:, None, :]).any(1).sum())
        total += choice.numel()
    assert hits / total > 0.6  # by chance: 0.25

    early = total = 0
    for block, x, chosen in zip(model.layers[2:], inputs, routing[1:], strict=False):
        guess = predicted_early(block, x)
        early += int((guess[:, :, None] == chosen.indices[:, None, :]).any(2).sum())
        total += guess.numel()
    assert early / total > 0.75  # the first of two choices, by chance: 0.25
