"""An adapter to lm-eval (EleutherAI's evaluation harness), in process.

`lm_eval.simple_evaluate(model=FourfoldLM(fourfold.load(...)), tasks=[...])`; its user installs lm-eval.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.evaluation.scoring import Scored, score
from fourfold.model.transformer import Transformer

MAX_TOKENS = 256
"""Of an answer for which a task sets no limit, as lm-eval's own models."""


class FourfoldLM(LM):  # type: ignore[misc]
    """A loaded model as lm-eval sees one.  Texts begin with the beginning-of-sentence token."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise RequestError("this model has no tokenizer; put its tokenizer.json into its folder")
        self.model = model
        self.tokens = model.tokenizer

    def _text(self, text: str) -> list[int]:
        return [self.model.config.bos_token_id, *self.tokens.encode(text)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(sum over the continuation's tokens in nats, whether each is the likeliest) of (context, text)."""
        texts = []
        for request in requests:
            context, continuation = request.args
            start, whole = len(self._text(context)), self._text(context + continuation)
            texts.append(Scored(ids=whole, start=min(start, len(whole) - 1)))
        return [(s.logprob, s.greedy) for s in score(self.model, texts)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log probability of whole texts, in nats."""
        texts = [Scored(ids=self._text(request.args[0]), start=1) for request in requests]
        return [s.logprob for s in score(self.model, texts)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations of (context, settings), up to a stop string that is no part of them."""
        with Engine(self.model, EngineConfig()) as engine:
            answers = [engine.submit(self._request(*request.args)) for request in requests]
            return ["".join(chunk.text for chunk in engine.chunks(answer)) for answer in answers]

    def _request(self, context: str, settings: dict[str, Any]) -> Request:
        known = {"until", "max_gen_toks", "temperature", "top_p", "do_sample"}
        if unknown := sorted(settings.keys() - known):
            raise RequestError(f"a task sets {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
        until = settings.get("until") or ()
        stop = [until] if isinstance(until, str) else list(until)
        sampled = settings.get("do_sample", False)
        sampling = Sampling(
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            seed=0,
        )
        longest = settings.get("max_gen_toks", MAX_TOKENS)
        return Request(prompt=context, max_tokens=longest, sampling=sampling, stop=[s for s in stop if s])
