"""Log probabilities of tokens in the words of OpenAI's protocols."""

from __future__ import annotations

from typing import Any

from fourfold.engine.logprobs import TokenLogprob
from fourfold.tokenizer import Tokenizer

_LOWEST = -9999.0
"""For a token that was impossible: JSON has no infinity."""


def described(found: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """As in Chat Completions: the token, its bytes, and the most likely ones."""
    top = [_one(token, logprob, tokenizer) for token, logprob in found.top]
    return {**_one(found.token, found.logprob, tokenizer), "top_logprobs": top}


def finite(logprob: float) -> float:
    return max(logprob, _LOWEST)


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """Its characters; bytes that are no whole character become U+FFFD."""
    return tokenizer.bytes_of(token).decode("utf-8", "replace")


def _one(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.bytes_of(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(raw)}
