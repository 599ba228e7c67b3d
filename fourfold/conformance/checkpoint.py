"""A checkpoint on this machine: finite answers, one path the same as another, deployed numerics near the
exact ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import fourfold
from fourfold.conformance.report import Check, difference
from fourfold.model.transformer import Output, Transformer

TEXT = """Once upon a time there was a small lighthouse on a rock in the sea. Every evening its keeper, an
old woman with a grey coat, climbed the 112 steps, wiped the glass and lit the lamp. "Good night, ships," she
said. One winter the wind blew so hard that no boat could bring her bread. She had flour, water and salt, and
nobody to talk to but a seagull with a broken wing. She baked small loaves, shared them with the bird, and
told it what she knew: that the moon pulls the water up and lets it fall; that sailors count in knots; that a
light is worth nothing if it is not seen. When spring came the gull could fly again. It went away, and she
was sad for a week. Then a hundred gulls came back with it. What would you have said to them? She said:
"There is only one loaf, but the rock is large. Stay." """
_LONGEST = 320  # tokens: two windows and a half of the published models
_ONE_BY_ONE = 12
_CHUNK = 50

SAME_PATH = 1e-3  # of the logits' standard deviation: float32 sums in another order, once through every layer
KL = 0.1  # nats a token, mean
AGREEMENT = (
    0.5  # share of positions with the same first choice; random weights leave no margin between choices
)


def check_checkpoint(folder: Path, device: str) -> Iterator[Check]:
    """Checks of one checkpoint. It is loaded twice, once for each numerics, never both at once."""
    model = fourfold.load(folder, device=device, numerics="exact")
    ids = text_ids(model).to(model.device)
    with torch.no_grad():
        exact = model(ids, hidden_states=True)
        yield _measure("finite", f"logits of {ids.shape[1]} tokens", _not_finite(exact.logits), 0.0)
        yield from _check_paths(model, ids, exact.logits)
        exact = _on_cpu(exact)
        del model
        model = fourfold.load(folder, device=device, numerics="deployed")
        deployed = _on_cpu(model(ids, hidden_states=True))
    yield from _check_deployed(exact, deployed, model.config.layer_kinds)


def text_ids(model: Transformer) -> Tensor:
    """The built-in text as ids [1, T]; where there is no tokenizer, pseudo-random ids instead."""
    room = min(_LONGEST, model.config.max_position_embeddings)
    if model.tokenizer is not None:
        ids = [model.config.bos_token_id, *model.tokenizer.encode(TEXT)][:room]
        return torch.tensor([[i for i in ids if i < model.config.vocab_size]])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (1, room), generator=generator)


def _check_paths(model: Transformer, ids: Tensor, whole: Tensor) -> Iterator[Check]:
    """Chunks, and the last tokens one by one, against the whole text at once."""
    unit = float(whole.std())
    split = max(ids.shape[1] - _ONE_BY_ONE, 1)
    cache = model.new_cache()
    chunks = [model(ids[:, a : min(a + _CHUNK, split)], cache=cache).logits for a in range(0, split, _CHUNK)]
    found = difference(torch.cat(chunks, dim=1), whole[:, :split], unit)
    yield _measure(
        "one path", f"chunks of {_CHUNK}", found.relative, SAME_PATH, found.max_abs, found.mean_abs
    )
    steps = [model(ids[:, t : t + 1], cache=cache).logits for t in range(split, ids.shape[1])]
    if steps:
        found = difference(torch.cat(steps, dim=1), whole[:, split:], unit)
        detail = f"{len(steps)} tokens one by one"
        yield _measure("one path", detail, found.relative, SAME_PATH, found.max_abs, found.mean_abs)


def _check_deployed(exact: Output, deployed: Output, kinds: tuple[str, ...]) -> Iterator[Check]:
    found = difference(deployed.logits, exact.logits, float(exact.logits.std()))
    kl = kl_divergence(exact.logits, deployed.logits)
    detail = f"mean KL, nats (largest {float(kl.max()):.2g})"
    yield _measure("deployed", detail, float(kl.mean()), KL, found.max_abs, found.mean_abs)
    agree = (exact.logits.argmax(-1) == deployed.logits.argmax(-1)).double().mean()
    yield Check(
        group="checkpoint",
        name="deployed",
        detail="same first choice",
        value=float(agree),
        bound=AGREEMENT,
        at_least=True,
    )
    yield from _check_kinds(exact, deployed, kinds)


def _check_kinds(exact: Output, deployed: Output, kinds: tuple[str, ...]) -> Iterator[Check]:
    """How far the streams drift inside the blocks of each kind: rms error over rms, the kind's largest."""
    worst: dict[str, float] = defaultdict(float)
    for kind, a, b in zip(kinds, exact.hidden_states or (), deployed.hidden_states or (), strict=True):
        error = float((a - b.float()).square().mean().sqrt() / a.square().mean().sqrt())
        worst[kind] = max(worst[kind], error if error == error else float("inf"))
    for kind, value in worst.items():
        yield _measure("deployed", f"streams, {kind} blocks", value, 0.5)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats for each position, from logits.  [B, T, V] twice -> [B, T] f64."""
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _not_finite(logits: Tensor) -> float:
    return float((~torch.isfinite(logits)).double().mean())


def _on_cpu(output: Output) -> Output:
    states = tuple(state.float().cpu() for state in output.hidden_states or ())
    return Output(output.logits.cpu(), None, states)


def _measure(
    name: str,
    detail: str,
    value: float,
    bound: float,
    max_abs: float | None = None,
    mean_abs: float | None = None,
) -> Check:
    return Check(
        group="checkpoint",
        name=name,
        detail=detail,
        value=value,
        bound=bound,
        max_abs=max_abs,
        mean_abs=mean_abs,
    )
