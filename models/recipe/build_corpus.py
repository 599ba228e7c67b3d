"""Raw teacher text, templates and chitchat -> train.jsonl.xz, heldout.jsonl.xz, manifest.json.

Run it again whenever there is more raw text: a record's side of the split depends on its prompt
alone, so what was held out stays held out.

usage: python build_corpus.py --raw raw/*.jsonl --tokenizer tokenizer.json --out models/corpus
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import chitchat
import contamination
import filters
import records
import teacher
import templates
import wordlists
from records import Record

from fourfold.train.corpus import Encoder

HELD_OUT_PERCENT = 3
PLAIN_STORY_PERCENT = 30
CHITCHAT_SHARE = 0.07
TEACHER = {
    "name": "Qwen2.5-Coder-1.5B-Instruct",
    "file": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "sha256": "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    "licence": "Apache-2.0",
}
# Built by wordnet.py and smalltalk.py for a first stage of training; only counted here.
FIRST_STAGE = ("sentences.jsonl.xz", "smalltalk.jsonl.xz")
LICENCES = {
    "teacher": "Apache-2.0 (text written by the teacher)",
    "template": "MIT (ours)",
    "chitchat": "MIT (chitchat-dataset 0.9.0, BYU Perception, Control and Cognition lab)",
    "wordnet": "WordNet 3.0 licence (Princeton University; permissive, with notice)",
}


def from_teacher(
    paths: Iterable[Path], evaluated: set[contamination.Run], drops: Counter[str]
) -> list[Record]:
    """Filtered and deduplicated teacher records, in raw order, none with a run of the `evaluated` words."""
    kept: list[dict[str, Any]] = []
    for path in paths:
        for raw in records.read(path):
            drops["raw"] += 1
            drops[f"templates {raw['templates']}"] += 1
            text = filters.repair(raw["response"], raw["kind"])
            reason = filters.reason_to_drop(raw, text)
            if not reason and not evaluated.isdisjoint(contamination.runs(text)):
                reason = "words of the evaluation sets"
            if reason:
                drops[reason] += 1
            else:
                kept.append({**raw, "text": text, "ask": filters.relabel(raw["ask"], text)})
    kept = drop_unlikely(kept, drops)
    return [finished(raw) for raw in drop_duplicates(kept, drops)]


def drop_unlikely(kept: list[dict[str, Any]], drops: Counter[str]) -> list[dict[str, Any]]:
    """Without the worst share by the teacher's own mean log-probability, per kind."""
    chosen = []
    for kind in ("story", "qa", "chat"):
        scores = sorted(r["mean_logprob"] for r in kept if r["kind"] == kind)
        floor = scores[int(len(scores) * filters.WORST_SHARE)] if scores else 0.0
        chosen += [r for r in kept if r["kind"] == kind and r["mean_logprob"] >= floor]
    drops["unlikely for the teacher"] += len(kept) - len(chosen)
    return chosen


def drop_duplicates(kept: list[dict[str, Any]], drops: Counter[str]) -> list[dict[str, Any]]:
    """Without near duplicates, and with few records of one prompt or one answer."""
    near = filters.near_duplicates(
        r["text"] if r["kind"] == "story" else f"{r['ask']} {r['text']}" for r in kept
    )
    drops["near duplicate"] += len(near)
    asks: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    chosen = []
    for index, record in enumerate(kept):
        if index in near:
            continue
        asks[record["ask"]] += 1
        answers[record["text"].lower()] += 1
        if asks[record["ask"]] > filters.SAME_PROMPT:
            drops["same prompt"] += 1
        elif answers[record["text"].lower()] > filters.SAME_ANSWER:
            drops["same answer"] += 1
        else:
            chosen.append(record)
    return chosen


def finished(raw: dict[str, Any]) -> Record:
    """The corpus record of a raw one; a share of the stories loses its prompt."""
    base = {"kind": raw["kind"], "source": "teacher"}
    if raw["kind"] == "story" and filters.bucket(raw["ask"], 100) < PLAIN_STORY_PERCENT:
        return {**base, "text": raw["text"]}
    return {**base, "prompt": raw["ask"], "response": raw["text"]}


def from_templates() -> list[Record]:
    return [
        {"kind": "fact", "source": "template", "prompt": question, "response": answer}
        for question, answer in templates.all_pairs()
    ]


def known_words(kept: list[Record]) -> set[str]:
    """Words that the teacher used at least twice, and the listed ones."""
    counts: Counter[str] = Counter()
    for record in kept:
        counts.update(words_of(record.get("response") or record["text"]))
    listed = {w.lower() for n in dir(wordlists) if n.isupper() for w in getattr(wordlists, n)}
    return {word for word, count in counts.items() if count > 1} | listed


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def from_chitchat(known: set[str], tokens: int, encoder: Encoder) -> list[Record]:
    """Exchanges of known words only, up to about this many tokens, in a fixed shuffled order."""
    pairs = [p for p in dict.fromkeys(chitchat.pairs()) if known.issuperset(words_of(" ".join(p)))]
    pairs.sort(key=lambda pair: filters.bucket(" ".join(pair), 2**40))
    chosen: list[Record] = []
    for said, answered in pairs:
        record = {"kind": "smalltalk", "source": "chitchat", "prompt": said, "response": answered}
        tokens -= len(encoder.record(record)[0])
        if tokens < 0:
            break
        chosen.append(record)
    return chosen


def held_out(record: Record) -> bool:
    """Decided by the prompt alone. Never chitchat: smalltalk.jsonl.xz holds the same exchanges."""
    if record["source"] == "chitchat":
        return False
    return filters.bucket("split:" + records.key(record), 100) < HELD_OUT_PERCENT


def describe(split: dict[str, list[Record]], encoder: Encoder) -> list[dict[str, Any]]:
    """Documents and tokens per source and kind, for the manifest."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for side, members in split.items():
        for record in members:
            where = (record["source"], record["kind"])
            row = rows.setdefault(
                where, {"source": where[0], "kind": where[1], "licence": LICENCES[where[0]]}
            )
            ids, _ = encoder.record(record)
            row[f"{side}_documents"] = row.get(f"{side}_documents", 0) + 1
            row[f"{side}_tokens"] = row.get(f"{side}_tokens", 0) + len(ids)
    return [rows[where] for where in sorted(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raw", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--eval", type=Path, default=Path("models/eval"), help="sets to keep out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    encoder = Encoder(args.tokenizer)
    drops: Counter[str] = Counter()
    written = from_teacher(args.raw, contamination.evaluation_runs(args.eval), drops)
    tokens = sum(len(encoder.record(r)[0]) for r in written)
    chat = from_chitchat(known_words(written), int(tokens * CHITCHAT_SHARE), encoder)
    everything = [*written, *from_templates(), *chat]
    everything.sort(key=lambda r: filters.bucket(json.dumps(r, sort_keys=True), 2**40))
    split = {
        "train": [r for r in everything if not held_out(r)],
        "heldout": [r for r in everything if held_out(r)],
    }
    for side, members in split.items():
        records.write(args.out / f"{side}.jsonl.xz", members)
    sources = describe(split, encoder)
    first = {name: list(records.read(args.out / name)) for name in FIRST_STAGE if (args.out / name).exists()}
    versions = [v for v in range(teacher.TEMPLATES_VERSION + 1) if f"templates {v}" in drops]
    manifest = {
        "teacher": TEACHER,
        "documents_by_prompt_templates_version": {v: drops.pop(f"templates {v}") for v in versions},
        "sampling": {
            "temperature": teacher.TEMPERATURE,
            "top_k": teacher.TOP_K,
            "top_p": teacher.TOP_P,
        },
        "held_out_percent": HELD_OUT_PERCENT,
        "plain_story_percent": PLAIN_STORY_PERCENT,
        "teacher_documents": drops.pop("raw"),
        "teacher_documents_dropped": dict(sorted(drops.items())),
        "sources": sources,
        "first_stage": [
            {"file": name, **row}
            for name, rows in first.items()
            for row in describe({"train": rows}, encoder)
        ],
        "train_tokens": sum(row.get("train_tokens", 0) for row in sources),
        "heldout_tokens": sum(row.get("heldout_tokens", 0) for row in sources),
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    main()
