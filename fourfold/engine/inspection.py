"""What the layers of a model choose at one token: their experts, and the context that their indexers pick."""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.config import ModelConfig
from fourfold.model.batch import Choices


@dataclass(frozen=True)
class LayerChoice:
    """What one layer chose.

    kind: "swa", "csa" or "hca"; ratio: tokens of a compressed entry, 0 in SWA.
    experts: their numbers, the one of most weight first; weights: theirs; hashed: they follow from the
    token's id alone.
    visible: compressed entries that are complete there, of which entry j ends with token (j + 1) · ratio - 1;
    entries: those that the indexer chose, ascending; None: all of them are seen.
    """

    kind: str
    ratio: int
    experts: tuple[int, ...]
    weights: tuple[float, ...]
    hashed: bool
    visible: int
    entries: tuple[int, ...] | None


def layer_choices(config: ModelConfig, choices: Choices, row: int, position: int) -> tuple[LayerChoice, ...]:
    """Those of token `row` of the noted ones, which is at `position` of its sequence."""
    indexed = iter(choices.entries)
    layers = []
    for i, (indices, weights) in enumerate(choices.experts):
        kind, ratio = config.layer_kinds[i], config.layer_ratios[i]
        visible = (position + 1) // ratio if ratio else 0
        entries = next(indexed) if kind == "csa" else None
        ranked = sorted(zip(weights[row].tolist(), indices[row].tolist(), strict=True), reverse=True)
        layers.append(
            LayerChoice(
                kind=kind,
                ratio=ratio,
                experts=tuple(expert for _, expert in ranked),
                weights=tuple(weight for weight, _ in ranked),
                hashed=config.hash_layers[i],
                visible=visible,
                entries=None if entries is None else _all_but(entries[row].tolist(), visible),
            )
        )
    return tuple(layers)


def _all_but(chosen: list[int], visible: int) -> tuple[int, ...] | None:
    """The chosen entries; None where none was left out."""
    found = tuple(sorted(entry for entry in chosen if entry >= 0))
    return None if len(found) == visible else found
