"""The student while it writes: a copy of its weights for the engine, and answers to many prompts at once.

The engine is the one that serves models: prompts and answers share steps, and a token's bits depend on
nothing but its own text and seed. So an answer is the same in any company, at one go or continued after a
kill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fourfold.engine.answer import Answer
from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.model.transformer import Transformer
from fourfold.tokenizer import Tokenizer
from fourfold.train.rollout_log import Finish, RolloutLog

STEP_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A prompt [n] that one answer is wanted for, drawn with this seed."""

    prompt: tuple[int, ...]
    seed: int


def policy_of(model: Transformer, formats: Mapping[str, str]) -> Transformer:
    """A copy that generates with fast numerics: the parameters that `formats` names in bf16, others as they
    are.

    bf16 holds what the rounded weights of quantisation-aware training hold; before that it is what the
    products of training make of the masters.
    """
    with torch.device("meta"):
        policy = Transformer(model.config, "fast")
    for name, tensor in model.state_dict().items():
        policy.assign(
            name, tensor.detach().to(torch.bfloat16) if name in formats else tensor.detach().clone()
        )
    return policy.eval()


def fingerprint(model: Transformer) -> str:
    """Tells weights from others, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def write_answers(
    policy: Transformer,
    tokenizer: Tokenizer,
    asks: Sequence[Ask],
    log: RolloutLog,
    *,
    max_tokens: int,
    temperature: float,
    at_once: int,
) -> None:
    """Answer what `log` has no whole answer to, from where it stops."""
    config = EngineConfig(max_running=at_once, step_tokens=max(STEP_TOKENS, 2 * at_once))
    with Engine(policy, config, tokenizer=tokenizer) as engine:
        open_answers: dict[int, Answer] = {}
        for number, ask in enumerate(asks):
            known = log.tokens.get(number, [])
            if number not in log.ended and len(known) < max_tokens:
                request = Request(
                    prompt=[*ask.prompt, *known],
                    max_tokens=max_tokens - len(known),
                    sampling=Sampling(temperature=temperature, seed=ask.seed),
                )
                open_answers[number] = engine.submit(request)
            elif number not in log.ended:  # killed between its last token and its end
                log.end(number, "length", tokenizer.decode(known))
        noted = dict.fromkeys(open_answers, 0)
        for answer in list(open_answers.values()):
            for _ in engine.chunks(answer):  # each step of it serves all of them
                _note(log, open_answers, noted, tokenizer)
        _note(log, open_answers, noted, tokenizer)


def _note(log: RolloutLog, answers: dict[int, Answer], noted: dict[int, int], tokenizer: Tokenizer) -> None:
    """What all open answers have got since the last time; those that have ended are open no more."""
    # Asked first, as the engine may be a step ahead: an answer's last token comes before its end.
    ended = [number for number, answer in answers.items() if answer.ended and answer.error is None]
    news = {number: ids for number, answer in answers.items() if (ids := answer.ids[noted[number] :])}
    if news:
        log.add(news)
    for number, ids in news.items():
        noted[number] += len(ids)
    for number in ended:
        reason: Finish = "stop" if answers.pop(number).finish_reason == "stop" else "length"
        log.end(number, reason, tokenizer.decode(log.tokens.get(number, [])))
