"""320 grammar minimal pairs: two sentences that differ in one point, one of them wrong.

usage: python minimal_pairs.py --out models/eval/minimal_pairs.jsonl
"""
# ruff: noqa: E501

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import records
from prompts import articles

PER_PHENOMENON = 32
Pair = tuple[str, str]
NOUNS = [
    "dog",
    "cat",
    "boy",
    "girl",
    "bird",
    "teacher",
    "farmer",
    "rabbit",
    "horse",
    "friend",
    "brother",
    "duck",
]
STATES = ["tired", "happy", "hungry", "cold", "sad", "sleepy", "quiet", "strong", "small", "angry"]
PLACES = ["in the garden", "at the door", "near the river", "on the hill", "in the park", "behind the house"]
# base, third person, past
VERBS = [
    ("run", "runs", "ran"), ("sing", "sings", "sang"), ("eat", "eats", "ate"), ("sleep", "sleeps", "slept"),
    ("swim", "swims", "swam"), ("jump", "jumps", "jumped"), ("play", "plays", "played"), ("sit", "sits", "sat"),
    ("walk", "walks", "walked"), ("drink", "drinks", "drank"), ("write", "writes", "wrote"), ("stand", "stands", "stood"),
]  # fmt: skip
OBJECTS = ["the ball", "the book", "a cake", "the song", "a letter", "the box", "a new coat", "the red car"]
LIKES = [
    ("like", "likes"),
    ("want", "wants"),
    ("see", "sees"),
    ("need", "needs"),
    ("love", "loves"),
    ("find", "finds"),
]
GOES = [("went", "go", "to the shop"), ("saw", "see", "a big bear"), ("ate", "eat", "two apples"), ("made", "make", "a cake"),
        ("found", "find", "a key"), ("came", "come", "home late"), ("took", "take", "the bus"), ("bought", "buy", "a hat")]  # fmt: skip
CASES = [("I", "me"), ("he", "him"), ("she", "her"), ("we", "us"), ("they", "them")]
SELVES = [("boy", "himself", "herself"), ("girl", "herself", "himself"), ("boys", "themselves", "himself"),
          ("mother", "herself", "themselves"), ("father", "himself", "herself"), ("girls", "themselves", "herself")]  # fmt: skip
HURT = ["hurt", "washed", "saw", "helped", "dressed", "dried"]
VOWEL = ["apple", "egg", "owl", "orange", "umbrella", "ant", "old man", "elephant", "island", "open door"]
CONSONANT = ["banana", "cat", "house", "tree", "garden", "young man", "lion", "window", "table", "dog"]
ADJECTIVES = ["red", "big", "old", "small", "new", "black", "round", "heavy"]
THINGS = ["ball", "box", "car", "hat", "book", "door", "cup", "chair"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "many", "ten"]


def agreement(r: random.Random) -> Pair:
    noun, state = r.choice(NOUNS), r.choice(STATES)
    right, wrong = r.choice([("is", "are"), ("was", "were")])
    if r.random() < 0.5:
        return f"The {noun} {right} {state}.", f"The {noun} {wrong} {state}."
    return f"The {noun}s {wrong} {state}.", f"The {noun}s {right} {state}."


def distant_agreement(r: random.Random) -> Pair:
    noun, state, place = r.choice(NOUNS), r.choice(STATES), r.choice(PLACES)
    if r.random() < 0.5:
        return f"The {noun} {place} is {state}.", f"The {noun} {place} are {state}."
    return f"The {noun}s {place} are {state}.", f"The {noun}s {place} is {state}."


def question(r: random.Random) -> Pair:
    noun, (base, third), thing = r.choice(NOUNS), r.choice(LIKES), r.choice(OBJECTS)
    if r.random() < 0.5:
        return f"Does the {noun} {base} {thing}?", f"Do the {noun} {base} {thing}?"
    return f"Does the {noun} {base} {thing}?", f"Does the {noun} {third} {thing}?"


def negation(r: random.Random) -> Pair:
    noun, (base, third), thing = r.choice(NOUNS), r.choice(LIKES), r.choice(OBJECTS)
    good = f"The {noun} does not {base} {thing}."
    bad = r.choice(
        [
            f"The {noun} not {third} {thing}.",
            f"The {noun} does not {third} {thing}.",
            f"The {noun} do not {base} {thing}.",
        ]
    )
    return good, bad


def pronoun(r: random.Random) -> Pair:
    if r.random() < 0.5:
        noun, right, wrong = r.choice(SELVES)
        verb, place = r.choice(HURT), r.choice(PLACES)
        return f"The {noun} {verb} {right} {place}.", f"The {noun} {verb} {wrong} {place}."
    subject, other = r.choice(CASES)
    noun, thing = r.choice(NOUNS), r.choice(OBJECTS)
    if r.random() < 0.5:
        return f"The {noun} gave {thing} to {other}.", f"The {noun} gave {thing} to {subject}."
    past = r.choice(VERBS)[2]
    place = r.choice(PLACES)
    return f"{subject} {past} {place}.".capitalize(), f"{other} {past} {place}.".capitalize()


def tense(r: random.Random) -> Pair:
    noun, (past, base, rest) = r.choice(NOUNS), r.choice(GOES)
    if r.random() < 0.5:
        return f"Yesterday the {noun}s {past} {rest}.", f"Tomorrow the {noun}s {past} {rest}."
    return f"Yesterday the {noun} {past} {rest}.", f"Yesterday the {noun} {base} {rest}."


def verb_form(r: random.Random) -> Pair:
    noun, (base, third, past), place = r.choice(NOUNS), r.choice(VERBS), r.choice(PLACES)
    wrong = r.choice([third, past])
    frame = r.choice(
        [
            "The {n} can {v} {p}.",
            "The {n} will {v} {p}.",
            "The {n} wants to {v} {p}.",
            "The {n} did not {v} {p}.",
        ]
    )
    return frame.format(n=noun, v=base, p=place), frame.format(n=noun, v=wrong, p=place)


def article(r: random.Random) -> Pair:
    noun, frame = (
        r.choice([*VOWEL, *CONSONANT]),
        r.choice(["I see {} here.", "She found {} there.", "This is {}.", "He has {}."]),
    )
    right, wrong = ("an", "a") if noun in VOWEL else ("a", "an")
    return frame.format(f"{right} {noun}"), frame.format(f"{wrong} {noun}")


def plural(r: random.Random) -> Pair:
    noun, number, place = r.choice(NOUNS), r.choice(NUMBERS), r.choice(PLACES)
    if r.random() < 0.5:
        return f"There are {number} {noun}s {place}.", f"There are {number} {noun} {place}."
    return f"There is a {noun} {place}.", f"There is a {noun}s {place}."


def word_order(r: random.Random) -> Pair:
    adjective, thing, state = r.choice(ADJECTIVES), r.choice(THINGS), r.choice(OBJECTS)
    noun, third, place = r.choice(NOUNS), r.choice(VERBS)[1], r.choice(PLACES)
    return r.choice(
        [
            (f"The {adjective} {thing} is here.", f"The {thing} {adjective} is here."),
            (f"The {noun} {third} {place}.", f"{third.capitalize()} the {noun} {place}."),
            (f"Where is the {adjective} {thing}?", f"Where the {adjective} {thing} is?"),
            (f"The {noun} has {state}.", articles(f"The {noun} {state} has.")),
        ]
    )


PHENOMENA: list[Callable[[random.Random], Pair]] = [
    agreement, distant_agreement, question, negation, pronoun, tense, verb_form, article, plural, word_order,
]  # fmt: skip


def build(seed: int = 0) -> list[records.Record]:
    """PER_PHENOMENON different pairs of each kind, always the same for a seed."""
    made = []
    for make in PHENOMENA:
        rng, pairs = random.Random(f"{seed} {make.__name__}"), dict[Pair, None]()
        while len(pairs) < PER_PHENOMENON:
            pairs[make(rng)] = None
        made += [{"good": g, "bad": b, "phenomenon": make.__name__} for g, b in pairs]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    records.write(parser.parse_args().out, build())


if __name__ == "__main__":
    main()
