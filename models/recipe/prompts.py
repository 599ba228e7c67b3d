"""Prompts for the teacher, each with the shorter question that the student is trained on.

The teacher is told in detail how to write (simple words, how long); the student only sees what a
person would ask. Prompts of a kind share their first words, so that the teacher's cache of that
prefix is filled once. Version the templates when they change: the corpus manifest records it.
"""
# ruff: noqa: E501

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from wordlists import (
    ACTIVITIES,
    ADJECTIVES,
    ANIMALS,
    CREATURE_ADJECTIVES,
    FEELINGS,
    JOBS,
    NAMES,
    PEOPLE,
    PETS,
    PLACES,
    THINGS,
    TOPICS,
    VERBS,
)

TEMPLATES_VERSION = 3
STORY_SHARE, QA_SHARE = 0.55, 0.25
PLOT_SHARE = 0.6  # of the stories: with a plot in the prompt the teacher stays coherent

STORY_PREFIX = (
    "Write a story for small children. Use very simple words and short sentences. "
    "Write only the story, without a title. "
)
QA_PREFIX = "Talk to a small child. Use very simple words, short sentences and true facts. "
CHAT_PREFIX = "You are a kind friend. Reply in one or two short, simple sentences. "

# (share, what the teacher is told, what the student is asked for, sentences)
LENGTHS = [
    (0.35, "The story has exactly five sentences.", "a story in five sentences", 5),
    (0.10, "The story has exactly three sentences.", "a story in three sentences", 3),
    (0.20, "The story has six to eight short sentences.", "a short story", 0),
    (0.35, "The story has 80 to 120 words.", "a story", 0),
]
FEATURES = [
    "Somebody speaks in it.",
    "It has a happy ending.",
    "It has a small surprise.",
    "Somebody learns a lesson.",
    "Somebody makes a mistake and says sorry.",
    "There is a problem, and they solve it.",
    "Two friends work together.",
    "Somebody helps somebody.",
    "Somebody finds something.",
    "It ends at bedtime.",
    "",
    "",
    "",
]
# (what the teacher is told, what the student is asked)
SUBJECTS = [
    ("It is about {name} and a {adj} {noun}. Somebody must {verb}.", "about {name} and a {adj} {noun}"),
    ("It is about a {trait} {animal} and a {noun}.", "about a {trait} {animal} and a {noun}"),
    ("It is about {name}, who wants to {verb}. Use the words {noun} and {adj}.", "about {name}, who wants to {verb}"),
    ("It is about a {animal} named {name}. Use the words {verb}, {noun} and {adj}.", "about a {animal} named {name}"),
    ("It is about {name} and {other} at the {place}. Use the words {noun} and {adj}.", "about {name} and {other} at the {place}"),
    ("It is about a {trait} {person} and a {animal}. Use the word {verb}.", "about a {trait} {person} and a {animal}"),
    ("It is about {name}, who feels {feeling}. Use the words {noun} and {verb}.", "about {name}, who feels {feeling}"),
    ("Use the words {noun}, {verb} and {adj}. The main character is {name}.", "with the words {noun}, {verb} and {adj}"),
]  # fmt: skip
PLOTS = [
    ("{name} loses a {thing}, looks for it with {other}, and finds it at the {place}.", "about a lost {thing}"),
    ("{name} has a new {pet}. It is {trait}. They go to the {place} together.", "about {name} and a new {pet}"),
    ("{name} is scared of a {animal}, but the {animal} is kind.", "about {name} and a kind {animal}"),
    ("{name} and {other} both want the {thing}. They learn to share.", "about {name} and {other}, who learn to share"),
    ("{name} wants to {activity} but cannot do it yet. {name} tries again and again.", "about {name}, who learns to {activity}"),
    ("A small {animal} is lost in the {place}. {name} helps it to find its mother.", "about a lost {animal}"),
    ("{name} breaks a {thing}, tells the truth to mom, and says sorry.", "about {name}, who breaks a {thing}"),
    ("{name} makes a gift for grandma: a {thing}.", "about a gift for grandma"),
    ("It rains. {name} and a {pet} find something fun to do at home.", "about a rainy day"),
    ("{name} finds a {adj} {thing} and gives it back to its owner, a {person}.", "about {name}, who finds a {thing}"),
    ("A {animal} and a {other_animal} become friends.", "about a {animal} and a {other_animal}"),
    ("A {animal} is hungry. A {other_animal} shares its food.", "about a hungry {animal}"),
    ("{name} plants a seed and waits. Something grows.", "about {name} and a seed"),
    ("{name} goes to the {place} with dad and sees a {animal}.", "about a day at the {place}"),
    ("{name} does not want to sleep. Mom tells about a {animal}, and {name} falls asleep.", "about bedtime"),
    ("{name} feels {feeling}. A friend named {other} helps.", "about {name}, who feels {feeling}"),
    ("It is the birthday of {name}. {other} brings a {thing}.", "about the birthday of {name}"),
    ("{name} and {other} build a house for a {pet}.", "about {name} and {other}, who build a house for a {pet}"),
    ("A {trait} {animal} does not listen to its mother, gets into trouble, and learns a lesson.", "about a {trait} {animal} that learns a lesson"),
    ("{name} cooks soup with grandpa. It is too salty at first.", "about {name}, who cooks with grandpa"),
    ("A {animal} wants to be like a {other_animal}, and learns that being a {animal} is good.", "about a {animal} that wants to be a {other_animal}"),
    ("{name} and {other} play hide and seek at the {place}.", "about {name} and {other} at the {place}"),
    ("{name} cleans the room and finds an old {thing}.", "about {name} and an old {thing}"),
    ("The {thing} of a {person} is stuck in a tree. {name} has an idea.", "about {name}, who has an idea"),
    ("{name} helps a {person} at the {place} for one day.", "about {name} and a {person}"),
    ("On a cold night {name} sees a {trait} {animal} outside and lets it in.", "about {name} and a {animal}"),
]  # fmt: skip
ASKS = ["Tell me {what} {about}.", "Write {what} {about}.", "Please tell me {what} {about}.", "Can you tell {what} {about}?"]  # fmt: skip

QA = [
    (3, "In one or two sentences: what do you know about {topic}?", "What do you know about {topic}?"),
    (3, "In two short sentences, tell about {topic}.", "Tell me about {topic}."),
    (2, "Give three simple facts about {topic}, one sentence each, no list marks.", "Tell me three facts about {topic}."),
    (2, "In one or two sentences: why do people like {topic}?", "Why do people like {topic}?"),
    (2, "In three sentences, explain {topic}.", "Explain {topic} to a child."),
    (2, "In one or two sentences: why do we need {topic}?", "Why do we need {topic}?"),
    (1, "In one sentence: where do we find {topic}?", "Where do we find {topic}?"),
    (1, "Tell one funny thing about {topic} in two sentences.", "Tell me something funny about {topic}."),
    (1, "Write a poem of four short lines about {topic}.", "Write a short poem about {topic}."),
    (2, "In one sentence: what does a {job} do?", "What does a {job} do?"),
    (2, "In one or two sentences: what is a {thing}, and what is it for?", "What is a {thing}?"),
    (2, "In one or two sentences: what does a {animal} look like, and what does it eat?", "What is a {animal} like?"),
    (2, "In one or two sentences: where does a {animal} live?", "Where does a {animal} live?"),
    (2, "In one or two sentences: what can you do at the {place}?", "What can I do at the {place}?"),
    (1, 'In one sentence, explain the word "{verb}".', 'What does "{verb}" mean?'),
    (1, 'In one sentence, explain the word "{adj}".', 'What does "{adj}" mean?'),
    (2, "In one or two sentences: why do people {activity}?", "Why do people {activity}?"),
    (1, "In one sentence: how are a {animal} and a {other_animal} different?", "How are a {animal} and a {other_animal} different?"),
]  # fmt: skip
CHAT = [
    (3, "Your friend says: I feel {feeling} today.", "I feel {feeling} today."),
    (2, "Your friend says: I am {feeling}. What should I do?", "I am {feeling}. What should I do?"),
    (3, "Your friend says: I lost my {thing}.", "I lost my {thing}. Can you help me?"),
    (2, "Your friend says: my {thing} is broken.", "My {thing} is broken."),
    (2, "Your friend says: I have a new {thing}!", "I have a new {thing}!"),
    (2, "Your friend says: I saw a {trait} {animal} today.", "I saw a {trait} {animal} today!"),
    (2, "Your friend says: I want to {activity}.", "I want to {activity}."),
    (2, "Your friend asks: what can I do with a {thing} and a {noun}?", "What can I do with a {thing} and a {noun}?"),
    (2, "Your friend asks for a good name for a {pet}.", "Can you give me a good name for my {pet}?"),
    (2, "Your friend asks: how can I learn to {activity}?", "How can I learn to {activity}?"),
    (2, "Your friend says: my friend {name} is {feeling}. What can I say?", "My friend {name} is {feeling}. What can I say?"),
    (2, "Your friend asks for a short joke about a {animal}.", "Tell me a joke about a {animal}."),
    (2, "Your friend asks: use the word {verb} in a sentence.", "Use the word {verb} in a sentence."),
    (2, "Your friend asks: use the words {noun} and {adj} in a sentence.", "Make a sentence with {noun} and {adj}."),
    (1, "Your friend asks: what should I eat for dinner?", "What should I eat for dinner?"),
    (1, "Your friend asks: what game can we play at the {place}?", "What game can we play at the {place}?"),
    (1, "Your friend asks: is a {noun} bigger than a {thing}?", "Is a {noun} bigger than a {thing}?"),
    (1, "Say something kind to {name}, who is {feeling}.", "Say something kind to {name}."),
    (1, "Write a short message to invite {name} to the {place}.", "Write a message to invite {name} to the {place}."),
    (1, "Your friend says: I am going to the {place} with my {person}.", "I am going to the {place} with my {person}."),
    (1, "Your friend says: thank you for the {thing}!", "Thank you for the {thing}!"),
    (1, "Your friend says: tomorrow is my birthday.", "Tomorrow is my birthday."),
    (1, "Your friend says: good night, I am going to bed.", "Good night! I am going to bed."),
    (1, "Your friend asks: what is your favorite {thing}, and why?", "What do you think of a {adj} {thing}?"),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request: the teacher reads prefix + text, the student reads ask."""

    kind: str
    prefix: str
    text: str
    ask: str
    required: tuple[str, ...] = ()
    sentences: int = 0

    def record(self) -> dict[str, Any]:
        return asdict(self)


def draw_words(rng: random.Random) -> dict[str, str]:
    """One draw of every placeholder, without repeating a name, animal or thing."""
    name, other = rng.sample(NAMES, 2)
    animal, other_animal = rng.sample(ANIMALS, 2)
    thing, noun = rng.sample(THINGS, 2)
    return {
        "name": name,
        "other": other,
        "animal": animal,
        "other_animal": other_animal,
        "thing": thing,
        "noun": rng.choice(ANIMALS) if rng.random() < 0.3 else noun,
        "verb": rng.choice(VERBS),
        "activity": rng.choice(ACTIVITIES),
        "pet": rng.choice(PETS),
        "adj": rng.choice(ADJECTIVES),
        "trait": rng.choice(CREATURE_ADJECTIVES),
        "job": rng.choice(JOBS),
        "person": rng.choice(PEOPLE),
        "place": rng.choice(PLACES),
        "feeling": rng.choice(FEELINGS),
        "topic": rng.choice(TOPICS),
    }


def articles(text: str) -> str:
    """'a apple' -> 'an apple', in a template that has been filled."""
    return re.sub(r"\b([Aa]) (?=[aei]|o(?!ne)|umbrella|uncle|ugly|unusual|upset)", r"\1n ", text)


def story(rng: random.Random) -> Prompt:
    words = draw_words(rng)
    _, told, what, sentences = rng.choices(LENGTHS, [row[0] for row in LENGTHS])[0]
    planned = rng.random() < PLOT_SHARE
    subject, about = rng.choice(PLOTS if planned else SUBJECTS)
    feature = "" if planned else rng.choice(FEATURES)
    text = " ".join(part for part in (subject.format(**words), feature) if part)
    ask = rng.choice(ASKS).format(what=what, about=about.format(**words))
    required = tuple(v for k, v in words.items() if "{" + k + "}" in about)
    return Prompt(
        kind="story",
        prefix=STORY_PREFIX + told + " ",
        text=articles(text),
        ask=articles(ask),
        required=required,
        sentences=sentences,
    )


def short(rng: random.Random, kind: str) -> Prompt:
    """A question (kind 'qa') or a line of small talk (kind 'chat')."""
    table, prefix = (QA, QA_PREFIX) if kind == "qa" else (CHAT, CHAT_PREFIX)
    words = draw_words(rng)
    _, text, ask = rng.choices(table, [row[0] for row in table])[0]
    return Prompt(
        kind=kind,
        prefix=prefix,
        text=articles(text.format(**words)),
        ask=articles(ask.format(**words)),
    )


def stream(seed: int) -> Iterator[Prompt]:
    """Prompts without end, the same for the same seed and templates version."""
    rng = random.Random(seed)
    while True:
        share = rng.random()
        if share < STORY_SHARE:
            yield story(rng)
        else:
            yield short(rng, "qa" if share < STORY_SHARE + QA_SHARE else "chat")
