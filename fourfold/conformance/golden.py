"""The golden vectors: a tiny random checkpoint, and what the published reference computes on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

import fourfold
from fourfold.conformance.logits import distance
from fourfold.conformance.report import Check, difference
from fourfold.model.transformer import Transformer

FOLDER = Path(__file__).parent / "golden"
BOUND = 1e-4  # of the standard deviation of the logits, or of the rms of the streams
# Logits that are all within e nats of the expected ones are within e²/2 in KL; their deviation is 1.
KL = BOUND**2 / 2
_CHUNK = 7  # cuts inside every kind of open block


def check_golden(device: str) -> Iterator[Check]:
    """Prefill, every decode step, chunked prefill, MTP and hidden states by layer kind, in exact numerics."""
    expected, prefill = read_expected()
    model = fourfold.load(FOLDER, device=device, numerics="exact")
    ids = expected["input_ids"].to(device)
    unit = float(expected["logits"].std())
    cache = model.new_cache()
    whole = model(ids[:, :prefill], cache=cache, hidden_states=True)
    yield _check("prefill", f"{prefill} tokens", whole.logits[:, -1], expected["logits"][:, 0], unit)
    yield from _check_states(model, whole.hidden_states or (), expected)
    guess, got = None, [whole.logits[:, -1]]
    for step in range(expected["logits"].shape[1] - 1):
        out = model(ids[:, prefill + step : prefill + step + 1], cache=cache, mtp=step == 0)
        guess = out.mtp_logits if step == 0 else guess
        got.append(out.logits[:, -1])
        yield _check("decode", f"step {step + 1}", out.logits[:, -1], expected["logits"][:, step + 1], unit)
    yield from _check_distribution(torch.stack(got, dim=1), expected["logits"])
    assert guess is not None
    yield _check("mtp", "one step after a prefill", guess[:, -1], expected["mtp_logits"], unit)
    guess = model(ids[:, : prefill + 1], mtp=True).mtp_logits
    assert guess is not None
    yield _check("mtp", "whole sequence", guess[:, -1], expected["mtp_logits"], unit)
    cache = model.new_cache()
    for start in range(0, prefill, _CHUNK):
        part = model(ids[:, start : min(start + _CHUNK, prefill)], cache=cache)
    yield _check("prefill", f"in chunks of {_CHUNK}", part.logits[:, -1], expected["logits"][:, 0], unit)


def read_expected() -> tuple[dict[str, Tensor], int]:
    """The expected tensors by name, and the number of prefilled tokens."""
    with safe_open(FOLDER / "expected.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["prefill"])  # noqa: SIM118


def _check_states(
    model: Transformer, states: tuple[Tensor, ...], expected: dict[str, Tensor]
) -> Iterator[Check]:
    """Streams after each block at the last positions, blocks of a kind together."""
    by_kind: dict[str, list[int]] = defaultdict(list)
    for block, kind in enumerate(model.config.layer_kinds):
        by_kind[kind].append(block)
    for kind, blocks in by_kind.items():
        wanted = [expected[f"hidden.{block}"] for block in blocks]
        got = [states[block][:, -want.shape[1] :] for block, want in zip(blocks, wanted, strict=True)]
        unit = max(float(want.square().mean().sqrt()) for want in wanted)
        label = f"{kind}, after block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"
        yield _check("streams", label, torch.stack(got), torch.stack(wanted), unit)


def _check_distribution(got: Tensor, expected: Tensor) -> Iterator[Check]:
    """What the differences mean for sampling: the first token and each decode step."""
    found = distance(got, expected)
    kl = f"mean KL, nats (largest {found.kl_max:.1g})"
    yield Check(group="golden", name="distribution", detail=kl, value=found.kl, bound=KL)
    choice = f"same first choice, {expected.shape[1]} positions"
    yield Check(
        group="golden",
        name="distribution",
        detail=choice,
        value=found.same_choice,
        bound=1.0,
        at_least=True,
    )


def _check(name: str, detail: str, got: Tensor, expected: Tensor, unit: float) -> Check:
    found = difference(got, expected, unit)
    return Check(
        group="golden",
        name=name,
        detail=detail,
        value=found.relative,
        bound=BOUND,
        max_abs=found.max_abs,
        mean_abs=found.mean_abs,
    )
