"""What the gate says before attention has run is mostly what it says afterwards."""

from __future__ import annotations

import torch

import fourfold
from fourfold.tiers.predict import predicted


def test_most_of_the_shipped_models_choices_are_guessed():
    model = fourfold.load(fourfold.shipped_model()).train()  # so that it notes how it routes
    hits = total = 0
    streams = []
    for block in model.layers[1:]:
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
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
