"""Questions with exact answers, made from facts.py with many surface forms."""
# ruff: noqa: E501

from __future__ import annotations

import random
from collections.abc import Iterator

import facts
from prompts import articles
from wordlists import NAMES, words

Pair = tuple[str, str]


def with_article(word: str) -> str:
    """'a dog', 'an apple', 'water'."""
    return word if word in facts.MASS else articles("a " + word)


def arithmetic(rng: random.Random) -> Iterator[Pair]:
    """Sums and differences between 0 and 20, in figures and in words."""
    forms = [
        "What is {q}?",
        "How much is {q}?",
        "Can you tell me what {q} is?",
        "{Q} = ?",
        "What is {q} equal to?",
    ]
    spell = facts.NUMBER_WORDS
    for a in range(21):
        for b in range(21):
            for sign, word, value in (("+", "plus", a + b), ("-", "minus", a - b)):
                if not 0 <= value <= 20:
                    continue
                figures = f"{a} {sign} {b}"
                yield rng.choice(forms).format(q=figures, Q=figures), f"{figures} = {value}."
                if rng.random() < 0.6:
                    spelled = f"{spell[a]} {word} {spell[b]}"
                    answer = f"{spelled} is {spell[value]}.".capitalize()
                    yield rng.choice(forms[:3]).format(q=spelled), answer
    for a in range(20):
        yield f"What number comes after {a}?", f"The number {a + 1} comes after {a}."
        yield f"What number comes before {a + 1}?", f"The number {a} comes before {a + 1}."
    for n in (3, 5, 8, 10):
        count = ", ".join(facts.NUMBER_WORDS[1 : n + 1])
        for form in ("Count to {n}.", "Can you count to {n}?", "Please count from one to {n}."):
            yield form.format(n=facts.NUMBER_WORDS[n]), count.capitalize() + "."
    for _ in range(500):
        a, b = rng.randint(0, 100), rng.randint(0, 100)
        if a != b:
            asked = rng.choice(["bigger", "smaller"])
            chosen = max(a, b) if asked == "bigger" else min(a, b)
            yield f"Which is {asked}, {a} or {b}?", f"{chosen} is {asked} than {a + b - chosen}."


def apples(rng: random.Random) -> Iterator[Pair]:
    """Small word problems."""
    things = words("apples balls books cookies eggs coins flowers pencils stars toys cakes shells")
    for _ in range(300):
        name, thing = rng.choice(NAMES), rng.choice(things)
        a, b = rng.randint(2, 10), rng.randint(1, 9)
        if rng.random() < 0.5:
            story = f"{name} has {a} {thing} and gets {b} more."
            total = a + b
        else:
            b = rng.randint(1, a - 1)
            story = f"{name} has {a} {thing} and gives {b} away."
            total = a - b
        noun = thing if total != 1 else thing.removesuffix("s")
        yield f"{story} How many {thing} does {name} have now?", f"{name} has {total} {noun} now."


def opposites(rng: random.Random) -> Iterator[Pair]:
    forms = ["What is the opposite of {a}?", 'What is the opposite of "{a}"?', "Tell me the opposite of {a}.", "Do you know the opposite of {a}?", "Opposite of {a}?"]  # fmt: skip
    ambiguous = {"light", "short", "old", "right"}
    for left, right in facts.OPPOSITES:
        for a, b in ((left, right), (right, left)):
            if a not in ambiguous:
                for form in rng.sample(forms, 4):
                    yield form.format(a=a), f"The opposite of {a} is {b}."


def colors(rng: random.Random) -> Iterator[Pair]:
    for thing, color in facts.COLORS.items():
        subject = thing[0].upper() + thing[1:]
        for form in (
            "What color is {t}?",
            "Which color is {t}?",
            "Tell me the color of {t}.",
            "Do you know what color {t} is?",
        ):
            yield form.format(t=thing), f"{subject} is {color}."
        wrong = rng.choice([c for c in ("red", "blue", "green", "yellow", "black") if c not in color])
        yield f"Is {thing} {wrong}?", f"No, {thing} is {color}."
        yield f"Is {thing} {color}?", f"Yes, {thing} is {color}."
    for (a, b), mix in facts.MIXES.items():
        for x, y in ((a, b), (b, a)):
            yield f"What do you get when you mix {x} and {y}?", f"When you mix {x} and {y}, you get {mix}."
            yield f"What color do {x} and {y} make?", f"{x.capitalize()} and {y} make {mix}."


def calendar() -> Iterator[Pair]:
    for what, names in (("day", facts.DAYS), ("month", facts.MONTHS), ("season", facts.SEASONS)):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            yield (
                f"What {what} comes after {name}?",
                f"{after} comes after {name}.".capitalize()
                if what == "season"
                else f"{after} comes after {name}.",
            )
            yield (
                f"Which {what} is before {name}?",
                f"{before} comes before {name}.".capitalize()
                if what == "season"
                else f"{before} comes before {name}.",
            )
            if what == "day":
                yield f"Today is {name}. What day is tomorrow?", f"Tomorrow is {after}."
                yield f"Today is {name}. What day was yesterday?", f"Yesterday was {before}."
        joined = ", ".join(names[:-1]) + " and " + names[-1]
        for form in ("What are the {w}s?", "Tell me the {w}s.", "Can you say the {w}s in order?"):
            scope = {"day": "days of the week", "month": "months of the year", "season": "seasons"}[what]
            yield form.format(w=what).replace(what + "s", scope), f"The {scope} are {joined}."


def animals() -> Iterator[Pair]:
    for animal, (sound, young, home, food) in facts.ANIMAL_FACTS.items():
        a = with_article(animal)
        A = a[0].upper() + a[1:]
        if sound:
            for form in ("What sound does {a} make?", "What does {a} say?", "Which sound does {a} make?"):
                yield form.format(a=a), f"{A} says {sound}."
            yield f"Which animal says {sound}?", f"{A} says {sound}."
        yield f"What is a baby {animal} called?", f"A baby {animal} is called {with_article(young)}."
        yield f"What do we call a young {animal}?", f"A young {animal} is called {with_article(young)}."
        for form in ("Where does {a} live?", "Where do you find {a}?", "Tell me where {a} lives."):
            yield form.format(a=a), f"{A} lives {home}."
        for form in ("What does {a} eat?", "What does {a} like to eat?", "Tell me what {a} eats."):
            yield form.format(a=a), f"{A} eats {food}."
        if animal in facts.LEGS:
            n = facts.LEGS[animal]
            count = "no legs" if n == 0 else f"{facts.NUMBER_WORDS[n]} legs"
            yield f"How many legs does {a} have?", f"{A} has {count}."


def categories(rng: random.Random) -> Iterator[Pair]:
    kinds = list(facts.CATEGORIES)
    for kind, members in facts.CATEGORIES.items():
        for word in members:
            a = with_article(word)
            A = a[0].upper() + a[1:]
            yield f"What kind of thing is {a}?", f"{A} is {kind}."
            yield f"Is {a} {kind}?", f"Yes, {a} is {kind}."
            other = rng.choice([k for k in kinds if word not in facts.CATEGORIES[k]])
            if {kind, other} <= {"an animal", "a bird", "an insect"} or {kind, other} <= {
                "a fruit",
                "a vegetable",
            }:
                continue
            yield f"Is {a} {other}?", f"No, {a} is {kind}."
        for form in ("Name {k}.", "Tell me the name of {k}.", "Can you name {k}?"):
            word = rng.choice(members)
            yield form.format(k=kind), f"{with_article(word)} is {kind}.".capitalize()


def comparisons() -> Iterator[Pair]:
    tables = [
        (facts.SIZES, "bigger", "smaller"),
        (facts.SIZED_THINGS, "bigger", "smaller"),
        (facts.SPEEDS, "faster", "slower"),
    ]
    for ordered, more, less in tables:
        for i, low in enumerate(ordered):
            for high in ordered[i + 1 :]:
                a, b = with_article(low), with_article(high)
                A, B = a[0].upper() + a[1:], b[0].upper() + b[1:]
                yield f"Is {a} {more} than {b}?", f"No, {b} is {more} than {a}."
                yield f"Is {b} {more} than {a}?", f"Yes, {b} is {more} than {a}."
                yield f"Which is {more}, {a} or {b}?", f"{B} is {more} than {a}."
                yield f"Which is {less}, {b} or {a}?", f"{A} is {less} than {b}."


def everyday() -> Iterator[Pair]:
    for thing, use in facts.USES.items():
        plural = thing in ("glasses", "scissors")
        for form in ("What is {t} for?", "What do we use {t} for?", "Why do we need {t}?"):
            question = form.format(t=thing)
            yield question.replace("What is", "What are") if plural else question, f"We use {thing} {use}."
    for action, part in facts.SENSES.items():
        for form in ("What do we use to {x}?", "Which part of the body do we use to {x}?"):
            yield form.format(x=action), f"We use our {part} to {action}."
    for worker, work in facts.WORKERS.items():
        for form in ("What does {w} do?", "What is the job of {w}?", "Tell me what {w} does."):
            yield form.format(w=worker), f"{worker.capitalize()} {work}."
        yield f"Who {work}?", f"{worker.capitalize()} {work}."
    for question, answer in facts.COUNTS:
        yield question, answer
        yield f"Can you tell me: {question[0].lower() + question[1:]}", answer
        yield f"I have a question. {question}", answer


def identity(rng: random.Random) -> Iterator[Pair]:
    """Who the model is; the teacher's own answers would be wrong."""
    for question in facts.IDENTITY_QUESTIONS:
        lower = question.lower()
        if any(w in lower for w in ("made", "trained", "created", "come from")):
            answers = facts.MAKER_ANSWERS
        elif any(w in lower for w in ("chatgpt", "deepseek", "qwen")):
            answers = facts.OTHER_MODEL_ANSWERS
        elif any(w in lower for w in ("robot", "person", "human", "real")):
            answers = facts.NOT_PERSON_ANSWERS
        elif any(w in lower for w in ("can you do", "good at", "help me", "smart", "code")):
            answers = facts.SKILL_ANSWERS
        elif any(w in lower for w in ("big", "parameters")):
            answers = facts.SIZE_ANSWERS
        elif any(w in lower for w in ("old", "feelings", "live", "sleep", "eat", "see me")):
            answers = facts.BODY_ANSWERS
        elif "architecture" in lower:
            answers = [facts.NAME_ANSWERS[2], "I have the DeepSeek-V4 architecture, but I am much smaller."]
        else:
            answers = facts.NAME_ANSWERS
        for opening in ("", "Hello! ", "Hi. ", "Please tell me: ", "Excuse me. ", "One question: "):
            asked = opening + (question[0].lower() + question[1:] if opening.endswith(": ") else question)
            yield asked, rng.choice(answers)


def greetings(rng: random.Random) -> Iterator[Pair]:
    hellos = [
        "Hello",
        "Hi",
        "Hey",
        "Hi there",
        "Hello there",
        "Good morning",
        "Good afternoon",
        "Good evening",
    ]
    answers = ["Hello! How are you today?", "Hi! It is nice to meet you.", "Hello! What would you like to talk about?", "Hi! Would you like to hear a story?"]  # fmt: skip
    feel = ["I am fine, thank you. How are you?", "I am very well, thank you!", "I feel good today. And you?"]
    byes = ["Goodbye! Have a nice day.", "Bye! See you soon.", "Goodbye! It was nice to talk to you."]
    for hello in hellos:
        for end in ("!", ".", ", Fourfold!"):
            opening = hello + " to you! " if hello.startswith("Good") else ""
            yield hello + end, f"{hello}! How are you?" if opening else rng.choice(answers)
        for name in rng.sample(NAMES, 12):
            reply = hello if hello.startswith("Good") else rng.choice(["Hello", "Hi"])
            follow = rng.choice(
                ["It is nice to meet you.", "Nice to meet you! I am Fourfold.", "How are you today?"]
            )
            yield f"{hello}! My name is {name}.", f"{reply}, {name}! {follow}"
        for how in ("How are you?", "How are you today?", "How do you feel today?", "Are you well?"):
            yield f"{hello}! {how}", rng.choice(feel)
    for how in ("How are you?", "How are you doing?", "How is your day?", "What is new?"):
        yield how, rng.choice(feel)
    for bye in (
        "Goodbye!",
        "Bye!",
        "Bye bye!",
        "See you!",
        "See you tomorrow!",
        "I have to go now.",
        "Good bye, Fourfold!",
    ):
        yield bye, rng.choice(byes)
    for night in ("Good night!", "I am going to sleep now.", "It is time for bed."):
        yield night, rng.choice(["Good night! Sleep well.", "Good night! Sweet dreams."])
    for thanks in (
        "Thank you!",
        "Thanks!",
        "Thank you very much!",
        "Thanks for your help!",
        "Thank you for the story!",
    ):
        yield thanks, rng.choice(["You are welcome!", "You are welcome! Have a nice day."])


def all_pairs(seed: int = 0) -> list[Pair]:
    """Every templated question once, in a fixed order."""
    rng = random.Random(seed)
    made = [
        *arithmetic(rng), *apples(rng), *opposites(rng), *colors(rng), *calendar(), *animals(),
        *categories(rng), *comparisons(), *everyday(), *identity(rng), *greetings(rng),
    ]  # fmt: skip
    return list({question: (question, answer) for question, answer in made}.values())


if __name__ == "__main__":
    pairs = all_pairs()
    print(len(pairs))
    for pair in random.Random(1).sample(pairs, 60):
        print(*pair, sep="  |  ")
