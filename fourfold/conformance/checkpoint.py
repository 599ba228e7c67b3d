"""A checkpoint on this machine: one path as another, kernels as the reference, rounding near exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fourfold
from fourfold import kernels
from fourfold.conformance import passage as passages
from fourfold.conformance.logits import distance, drift
from fourfold.conformance.passage import Passage
from fourfold.conformance.report import Check, Finding, NotExercised
from fourfold.model.cache import Cache
from fourfold.model.transformer import Output, Transformer
from fourfold.weights.inspect import inspect_checkpoint

_PIECE = 256  # tokens of context a call: bounds the memory
_CHUNK = 50
_ONE_BY_ONE = 12
_SMALL = 2e9  # parameters; of a larger model the reference, which decodes each weight, computes few tokens


@dataclass(frozen=True)
class Bounds:
    """How near two runs must come, for one block; see `Distance` and `drift`.

    Blocks err independently: errors grow with the square root of their number, KL with the number.
    """

    typical: float
    kl: float
    streams: float
    same_choice: float


# The same mathematics, float32 sums in another order: 1e-6 at most positions. Where two experts or entries
# score alike to the last bit, either may be chosen, and that position differs visibly: therefore the median
# position is judged, and means that a few such positions of a large model do not reach.
SAME = Bounds(typical=3e-4, kl=1e-4, streams=3e-4, same_choice=0.9)
# A trained model has margins between what it chooses and what it does not. FP8 inputs have a relative rms
# error of 2.6 %, and so, about, has what a block adds to the streams; bf16 inputs have 0.17 %. The shipped
# model, six blocks: deployed 0.05 typical, 0.0023 nats and 0.02 of the streams a block, 91 to 96 % the same
# choice; fast 0.006, 0.0005, 0.002 and 98 %. Fast may be no worse than deployed was measured.
TRAINED = {
    "deployed": Bounds(typical=0.1, kl=0.005, streams=0.05, same_choice=0.8),
    "fast": Bounds(typical=0.05, kl=0.0023, streams=0.02, same_choice=0.9),
}
# Random weights have no margins: every rounding sends some tokens to other experts. The golden checkpoint:
# deployed 0.30 typical, 0.009 nats and 0.10 of the streams a block, 59 % the same choice; fast 0.017, 0.0004,
# 0.005 and 91 %.
RANDOM = {
    "deployed": Bounds(typical=1.0, kl=0.02, streams=0.2, same_choice=0.3),
    "fast": Bounds(typical=0.3, kl=0.009, streams=0.1, same_choice=0.59),
}
# Nats a token by which a trained model says the text better than chance does; random weights say it worse.
_KNOWS = 1.0


def check_checkpoint(folder: Path, device: str) -> Iterator[Finding]:
    """Checks of one checkpoint. It is loaded once for each numerics, never two at once."""
    facts = inspect_checkpoint(folder)
    model = fourfold.load(folder, device=device, numerics="exact")
    passage, left_out = passages.choose(model, facts.parameters_active)
    yield from left_out
    with torch.no_grad():
        cache, exact = _run(model, passage)
        yield _measure("finite", f"logits of {passage.measured} tokens", _not_finite(exact.logits), 0.0)
        if queries := passages.choosing_queries(model.config, passage):
            yield _measure("indexer", "queries that leave entries out", queries, 1, at_least=True)
        few = passage.measured if facts.parameters_total <= _SMALL else _ONE_BY_ONE
        yield from _check_reference(model, passage, cache, exact, few)
        yield from _check_paths(model, passage, cache, exact.logits)
        exact, kinds = _on_cpu(exact), model.config.layer_kinds
        trained = _is_trained(exact.logits, passage)
        label, bounds = ("trained model", TRAINED) if trained else ("random weights", RANDOM)
        kl = {}
        for numerics in ("deployed", "fast"):
            del model, cache
            model = fourfold.load(folder, device=device, numerics=numerics)
            cache, own = _run(model, passage)
            yield from _check_bits(model, passage, cache, own.logits)
            own = _on_cpu(own)
            yield from _compare(numerics, label, own, exact, kinds, bounds[numerics])
            kl[numerics] = distance(own.logits, exact.logits).kl
    share = kl["fast"] / kl["deployed"] if kl["deployed"] else kl["fast"]
    yield _measure("fast", f"{label}, mean KL over that of deployed", share, 1.0)


def _run(model: Transformer, passage: Passage) -> tuple[Cache, Output]:
    """The measured tokens' logits and streams, from a cache that can forget them again."""
    cache = model.new_cache(max_rollback=passage.measured)
    for begin in range(0, passage.context, _PIECE):
        end = min(begin + _PIECE, passage.context)
        model(passage.ids[:, begin:end], cache=cache, logits="last")
    return cache, _forward(model, passage.ids[:, passage.context :], cache)


def _forward(model: Transformer, ids: Tensor, cache: Cache) -> Output:
    return model(ids, cache=cache, mtp=model.config.num_nextn_predict_layers > 0, hidden_states=True)


def _check_paths(model: Transformer, passage: Passage, cache: Cache, whole: Tensor) -> Iterator[Check]:
    """Chunks, and the last tokens one by one, against the measured tokens at once."""
    blocks, split = len(model.layers), max(passage.measured - _ONE_BY_ONE, 1)
    chunks = _again(model, passage, cache, range(0, split, _CHUNK), split)
    label = f"chunks of {_CHUNK}"
    yield from near("one path", label, chunks, whole[:, :split], SAME, blocks)
    yield _same_bits(model, label, chunks, whole[:, :split])
    steps = _again(model, passage, cache, range(split, passage.measured), passage.measured)
    if steps.shape[1]:
        label = f"{steps.shape[1]} tokens one by one"
        yield from near("one path", label, steps, whole[:, split:], SAME, blocks)
        yield _same_bits(model, label, steps, whole[:, split:])


def _check_bits(model: Transformer, passage: Passage, cache: Cache, whole: Tensor) -> Iterator[Check]:
    """The last tokens one by one against the measured tokens at once, bit for bit."""
    split = max(passage.measured - _ONE_BY_ONE, 1)
    steps = _again(model, passage, cache, range(split, passage.measured), passage.measured)
    if steps.shape[1]:
        yield _same_bits(model, f"{steps.shape[1]} tokens one by one", steps, whole[:, split:])


def _again(model: Transformer, passage: Passage, cache: Cache, begins: range, end: int) -> Tensor:
    """Logits of measured tokens that the cache takes back and sees anew, in pieces from `begins` to `end`."""
    ids = passage.ids[:, passage.context :]
    cache.rollback(cache.length - passage.context - begins.start)
    ends = [*begins, end][1:]
    pieces = [model(ids[:, a:b], cache=cache).logits for a, b in zip(begins, ends, strict=True)]
    return torch.cat(pieces, dim=1) if pieces else torch.empty(1, 0, 0)


def _same_bits(model: Transformer, label: str, got: Tensor, expected: Tensor) -> Check:
    """Share of positions with any other bit. None may have, where our own kernels run every operation."""
    device = model.device.type
    required = device == "cpu" and "reference" not in kernels.table(device).values()
    detail = f"{model.numerics.name}, {label}, positions that differ{'' if required else ' (not required)'}"
    share = float((got != expected).any(-1).cpu().double().mean())
    return _measure("same bits", detail, share, 0.0 if required else 1.0)


def _check_reference(
    model: Transformer, passage: Passage, cache: Cache, own: Output, tokens: int
) -> Iterator[Finding]:
    """This device's kernels against the reference in their place, over the last tokens, from one cache."""
    device = model.device.type
    if set(kernels.table(device).values()) == {"reference"}:
        yield NotExercised("kernels against the reference", f"{device} has no kernels of its own here")
        return
    cache.rollback(tokens)
    with kernels.replaced(device, {}):
        expected = _forward(model, passage.ids[:, -tokens:], cache)
    label = f"{tokens} tokens"
    yield from _compare("reference", label, own, expected, model.config.layer_kinds, SAME)
    if expected.mtp_logits is not None and own.mtp_logits is not None:
        got = own.mtp_logits[:, -expected.mtp_logits.shape[1] :]
        yield from near("reference", "MTP block", got, expected.mtp_logits, SAME, len(model.layers) + 1)


def _compare(
    name: str, label: str, got: Output, expected: Output, kinds: Sequence[str], bounds: Bounds
) -> Iterator[Check]:
    """Logits, and the streams by layer kind, over the tokens that both have."""
    tokens = expected.logits.shape[1]
    yield from near(name, label, got.logits[:, -tokens:], expected.logits, bounds, len(kinds))
    states = [state[:, -tokens:] for state in got.hidden_states or ()]
    for kind, value in drift(states, expected.hidden_states or (), kinds).items():
        depth = max(i for i, other in enumerate(kinds, start=1) if other == kind)
        yield _measure(name, f"streams, {kind} blocks", value, bounds.streams * math.sqrt(depth))


def near(
    name: str, label: str, got: Tensor, expected: Tensor, bounds: Bounds, blocks: int
) -> Iterator[Check]:
    """Three ways to read how far logits are from the expected ones, after so many blocks."""
    found = distance(got, expected)
    errors = (found.max_abs, found.mean_abs)
    typical = bounds.typical * math.sqrt(blocks)
    yield _measure(name, f"{label}, typical position", found.typical, typical, errors)
    kl = f"{label}, mean KL, nats (largest {found.kl_max:.1g})"
    yield _measure(name, kl, found.kl, bounds.kl * blocks)
    yield _measure(name, f"{label}, same first choice", found.same_choice, bounds.same_choice, at_least=True)


def _is_trained(logits: Tensor, passage: Passage) -> bool:
    """Whether the model says the measured text clearly better than chance does."""
    ids = passage.ids[0, passage.context + 1 :].cpu()
    if ids.numel() == 0:
        return False
    loss = torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids)
    return float(loss) < math.log(logits.shape[-1]) - _KNOWS


def _not_finite(logits: Tensor) -> float:
    return float((~torch.isfinite(logits.cpu())).double().mean())


def _on_cpu(output: Output) -> Output:
    states = tuple(state.float().cpu() for state in output.hidden_states or ())
    return Output(output.logits.cpu(), None, states)


def _measure(
    name: str,
    detail: str,
    value: float,
    bound: float,
    errors: tuple[float, float] | tuple[None, None] = (None, None),
    *,
    at_least: bool = False,
) -> Check:
    return Check(
        group="checkpoint",
        name=name,
        detail=detail,
        value=value,
        bound=bound,
        at_least=at_least,
        max_abs=errors[0],
        mean_abs=errors[1],
    )
