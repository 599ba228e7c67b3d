"""Short exchanges out of the chitchat-dataset package (MIT): cleaned, plain, harmless.

Only the first turns of a conversation are used: later ones need what was said before.
"""
# ruff: noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

FIRST_TURNS, MIN_WORDS, MAX_WORDS = 8, 2, 24
UNWANTED = re.compile(
    r"\b(?:byu\w*|provo|utah|lds|mormon\w*|church|god|jesus|christ\w*|lord|bible|pray\w*|mission\w*|temple|"
    r"sex\w*|porn\w*|nude|naked|kiss\w*|dat(?:e|es|ing)|boyfriend|girlfriend|marr\w*|wife|husband|gay|lesbian|"
    r"drugs?|weed|beer|wine|drunk|alcohol|vodka|smok\w*|kill\w*|murder\w*|die[ds]?|dying|dead|death|suicid\w*|"
    r"gun\w*|shoot\w*|war|bomb\w*|terror\w*|hate\w*|stupid|idiot|dumb|ugly|fat|suck\w*|crap\w*|damn\w*|hell|"
    r"shit\w*|fuck\w*|ass|bitch\w*|butt|poop\w*|pee|fart\w*|racis\w*|black people|white people|trump|obama|"
    r"clinton|president|politic\w*|republican\w*|democrat\w*|abortion|rape\w*|blood\w*|cancer|depress\w*|"
    r"bot|bots|robot|chatbot|lol|haha\w*|hehe\w*|lmao|omg|wtf|idk|tbh|dude|bro|facebook|snapchat|instagram|"
    r"twitter|tinder|chat|chitchat|stranger|anonymous|prompt|survey|rating)\b",
    re.IGNORECASE,
)
CONTRACTIONS = {
    "im": "I'm", "ive": "I've", "ill": "I'll", "id": "I'd", "dont": "don't", "didnt": "didn't", "cant": "can't",
    "wont": "won't", "isnt": "isn't", "wasnt": "wasn't", "doesnt": "doesn't", "thats": "that's", "whats": "what's",
    "youre": "you're", "theyre": "they're", "couldnt": "couldn't", "wouldnt": "wouldn't", "havent": "haven't",
    "hows": "how's", "theres": "there's", "lets": "let's", "u": "you", "r": "are", "ur": "your", "i": "I",
    "i'm": "I'm", "i've": "I've", "i'll": "I'll", "i'd": "I'd", "gonna": "going to", "wanna": "want to",
    "yeah": "yes", "yea": "yes", "yep": "yes", "yup": "yes", "nope": "no", "nah": "no", "ya": "you",
    "thx": "thanks", "cuz": "because", "cause": "because", "kinda": "kind of", "english": "English",
}  # fmt: skip
QUESTION = re.compile(r"^(?:what|who|where|when|why|how|which|do|does|did|are|is|can|could|would|will|have|has)\b", re.IGNORECASE)  # fmt: skip


def tidy(text: str) -> str | None:
    """One utterance in plain, punctuated English, or None if it is unfit."""
    text = text.replace("’", "'").strip()
    if not text.isascii() or UNWANTED.search(text) or re.search(r"[^A-Za-z0-9 ,.!?'\-]", text):
        return None
    if re.search(r"[!?.,]{2,}|(.)\1\1|\d{3,}", text):
        return None
    words = [CONTRACTIONS.get(w.lower(), w) for w in re.findall(r"[A-Za-z0-9'\-]+|[,.!?]", text)]
    text = re.sub(r" ([,.!?])", r"\1", " ".join(words))
    parts = [part[0].upper() + part[1:] for part in re.split(r"(?<=[.!?]) ", text) if part]
    if not parts:
        return None
    if parts[-1][-1] not in ".!?":
        parts[-1] = parts[-1].rstrip(",") + ("?" if QUESTION.match(parts[-1]) else ".")
    return " ".join(parts)


def turn(utterances: list[dict[str, str]]) -> str | None:
    """A speaker's turn: its one or two utterances, joined."""
    tidied = [tidy(u["text"]) for u in utterances]
    if len(tidied) > 2 or any(t is None for t in tidied):
        return None
    text = " ".join(t for t in tidied if t)
    return text if MIN_WORDS <= len(text.split()) <= MAX_WORDS else None


def pairs() -> Iterator[tuple[str, str]]:
    """(what one says, what the other answers), from the package as installed."""
    from chitchat_dataset import Dataset

    for conversation in Dataset().values():
        turns = [turn(messages) for messages in conversation["messages"][:FIRST_TURNS]]
        for said, answered in pairwise(turns):
            if said and answered and ("?" in said or len(said.split()) >= 4):
                yield said, answered
