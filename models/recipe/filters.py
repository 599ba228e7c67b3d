"""What of the teacher's raw text is kept: repair of small slips, and named reasons to drop."""
# ruff: noqa: E501

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

MIN_WORDS, MAX_TOKENS = 3, 220
REPEAT_LIMIT = 0.10
WORST_SHARE = 0.10
SAME_ANSWER, SAME_PROMPT = 3, 8
PERMUTATIONS, BANDS = 64, 16

TYPOGRAPHY = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\u00a0": " "}
)
REFUSAL = re.compile(
    r"\bI(?:'m| am) (?:really |very )?sorry,? (?:but|I can)|\bas an? (?:AI|language|assistant)"
    r"|\bI (?:can't|cannot|can not) (?:assist|help|answer|provide|write|do that)|\bI(?:'m| am) unable"
    r"|\bI don't have (?:feelings|personal|a body|emotions)",
    re.IGNORECASE,
)
IDENTITY = re.compile(
    r"\b(?:Anthropic|OpenAI|Alibaba|Qwen|ChatGPT|GPT|Claude|Gemini|Google|Microsoft|DeepSeek|AI|"
    r"artificial intelligence|chatbot|virtual assistant|computer program|programming|Python|"
    r"JavaScript|language model)\b"
)
MARKUP = re.compile(r"```|\*\*|^#|^\s*[-*•] |^\s*\d+[.)] |[<>{}|\\`=_\[\]]|https?:|www\.", re.MULTILINE)
PREAMBLE = re.compile(r"^(?:sure|of course|certainly|okay|here(?:'s| is| are))\b[^\n]*:\s*\n+", re.IGNORECASE)
TITLE = re.compile(r"^(?:title:[^\n]*\n+|[^\n.!?:\"]{3,60}\n\n+)(?=\S)", re.IGNORECASE)
ECHO = re.compile(r"exactly (?:three|five) sentences|80 to 120 words|simple words|short sentences|\bthe story (?:has|is)\b", re.IGNORECASE)  # fmt: skip
BROKEN = re.compile(r"[a-z][A-Z]|[.!?,][A-Za-z]|[.!?] [a-z]|^[a-z]")
SENTENCE = re.compile(r"[.!?]+[\"']?(?=\s|$)")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def repair(text: str, kind: str) -> str:
    """Plain quotes, no preamble or title, tidy spaces; stories of many short lines are joined."""
    text = PREAMBLE.sub("", text.translate(TYPOGRAPHY).strip())
    if kind == "story":
        text = TITLE.sub("", text)
        paragraphs = [" ".join(part.split()) for part in text.split("\n") if part.strip()]
        long = 1 < len(paragraphs) <= 3 and sentences(text) >= 2 * len(paragraphs)
        text = ("\n\n" if long else " ").join(paragraphs)
    pieces = text.split('"')
    if len(pieces) % 2:  # balanced: what is inside quotes loses its outer spaces
        text = '"'.join(p.strip() if i % 2 else p for i, p in enumerate(pieces))
    return re.sub(r"[ \t]+", " ", text).strip()


def sentences(text: str) -> int:
    """How many sentences, counted outside quotes as a reader would."""
    return len(SENTENCE.findall(re.sub(r'"[^"]*[.!?]"(?= [a-z])', "quote", text)))


def repeated_share(text: str, n: int = 4) -> float:
    """Share of the word n-grams that occur more than once."""
    words = re.findall(r"[a-z']+", text.lower())
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(grams.values())
    return sum(c for c in grams.values() if c > 1) / total if total else 0.0


def has_word(text: str, word: str) -> bool:
    """Whether a word or a form of it (same beginning) occurs."""
    stem = word.lower()[: max(3, len(word) - 2)]
    return re.search(rf"\b{re.escape(stem)}", text.lower()) is not None


def reason_to_drop(record: dict[str, Any], text: str) -> str | None:
    """The first reason against a repaired answer, or None to keep it."""
    words = len(text.split())
    if words < MIN_WORDS or record["tokens"] > MAX_TOKENS:
        return "length"
    if not text.isascii():
        return "not plain ASCII"
    if REFUSAL.search(text):
        return "refusal"
    if IDENTITY.search(text):
        return "identity"
    if MARKUP.search(text):
        return "code or markup"
    if ECHO.search(text):
        return "prompt echo"
    if not text.rstrip("\"'").endswith((".", "!", "?")):
        return "no sentence end"
    if BROKEN.search(text):
        return "broken words or sentences"
    if text.count('"') % 2:
        return "unbalanced quotes"
    if words >= 20 and repeated_share(text) > REPEAT_LIMIT:
        return "repetition"
    if not all(has_word(text, word) for word in record["required"]):
        return "required word missing"
    if record["kind"] == "story" and sentences(text) < 3:
        return "story too short"
    return None


def relabel(ask: str, text: str) -> str:
    """Make the number of sentences that the prompt asks for the true one."""
    n = sentences(text)
    count = f"{NUMBERS[n]} sentences" if n < len(NUMBERS) else ""
    asked = re.compile(r"a story in (?:three|five) sentences")
    if asked.search(ask):
        return asked.sub(f"a story in {count}" if count else "a story", ask)
    if n in (3, 4, 5, 6) and bucket(ask + text, 2) == 0:
        return re.sub(r"\ba (?:short )?story\b", f"a story in {count}", ask, count=1)
    return ask


def bucket(text: str, n: int) -> int:
    """A stable number below n for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") % n


def shingles(text: str, n: int = 3) -> np.ndarray:
    """Hashes of the word n-grams, uint64 [count]."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    grams = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
    raw = [hashlib.blake2b(g.encode(), digest_size=8).digest() for g in sorted(grams)]
    return np.frombuffer(b"".join(raw), dtype=np.uint64)


def near_duplicates(texts: Iterable[str]) -> set[int]:
    """Indices that share a MinHash band with an earlier text (likely over half equal)."""
    rng = np.random.default_rng(0)
    factor = rng.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    shift = rng.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    seen: set[tuple[int, bytes]] = set()
    found: set[int] = set()
    for index, text in enumerate(texts):
        hashes = (shingles(text)[:, None] * factor + shift).min(axis=0)  # wraps: that is the hash
        rows = hashes.reshape(BANDS, -1)
        keys = [(band, rows[band].tobytes()) for band in range(BANDS)]
        if any(key in seen for key in keys):
            found.add(index)
        else:
            seen.update(keys)
    return found
