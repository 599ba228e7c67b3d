"""Trim the teacher's BPE to a small tokenizer that is closed under merges and speaks V4.

Kept: the 256 bytes, the teacher tokens that the corpus uses most (each with all tokens that its
merges pass through), and the special tokens of DeepSeek-V4 with their exact strings. The rest of
the merges is dropped, so every text is still encoded, without loss and without an unknown token,
and every kept token has one teacher id: logits of the teacher can be read in this vocabulary.

usage: python trim_vocab.py TEACHER.gguf --text a.jsonl b.jsonl --out DIR --ids teacher_ids.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import wordlists
from teacher_model import read_tokenizer
from tokenizers import AddedToken, Tokenizer, processors

SIZE = 8192
CONTEXT = 2048
TEACHER_WEIGHT = 5  # a token of the teacher's text, or a listed word, against one of other text
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
TEACHER_END = "<|im_end|>"

# The published tokenizer's own flags: only these are "special", that is, dropped when decoding
# with skip_special_tokens; role and markup tokens stay visible, as the stream parser needs them.
HEAD_TOKENS = (BOS, EOS, PAD)
TAIL_TOKENS = (
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>", "<｜tool▁sep｜>", "<think>", "</think>", "｜DSML｜", "<｜System｜>",
    "<｜begin▁sys｜>", "<｜end▁sys｜>", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>",
    "<｜authority｜>", "<｜domain｜>", "<｜task｜>", "<｜political｜>", "<｜entity｜>", "<｜title｜>",
    "<｜safety｜>", "<｜answer｜>", "<｜search｜>", "<｜search▁begin｜>", "<｜search▁end｜>",
    "<｜extracted_url｜>", "<｜read_url｜>",
)  # fmt: skip
TAIL_SPECIAL = (
    "<｜end_of_query｜>", "<｜/polygon｜>", "<｜polygon｜>", "<｜/point｜>", "<｜point｜>", "<｜/box｜>",
    "<｜box｜>", "<｜/ref｜>", "<｜ref｜>", "<｜image｜>",
)  # fmt: skip


def texts(paths: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """Texts and their weight: the teacher's answers count for most."""
    for path in paths:
        for line in path.open(encoding="utf-8"):
            record = json.loads(line)
            yield record["response"], TEACHER_WEIGHT if "templates" in record else 1
            yield record.get("ask") or record.get("prompt") or "", 1


def word_forms() -> Iterator[str]:
    """Every word of the word lists, at the start of a text, inside one, and capitalised."""
    names = [name for name in dir(wordlists) if name.isupper() and name != "TOPICS"]
    for word in sorted({word for name in names for word in getattr(wordlists, name)}):
        yield from (word, " " + word, " " + word.capitalize(), word.capitalize())
    for topic in wordlists.TOPICS:
        yield " " + topic


def count_tokens(tokenizer: Tokenizer, paths: Iterable[Path]) -> Counter[str]:
    """How often the teacher's tokenizer uses each token; every listed word counts a little."""
    counts: Counter[str] = Counter()
    for text, weight in texts(paths):
        for token in tokenizer.encode(text, add_special_tokens=False).tokens:
            counts[token] += weight
    for form in word_forms():
        tokens = tokenizer.encode(form, add_special_tokens=False).tokens
        whole = len(tokens) == 1 and form.startswith(" ")
        counts[tokens[0]] += TEACHER_WEIGHT if whole else 1
    return counts


def close_under_merges(
    ranked: Iterable[str], parents: dict[str, tuple[str, str]], kept: set[str], size: int
) -> set[str]:
    """Add tokens in order, each with its merge ancestors, until exactly `size` are kept."""
    for token in ranked:
        need, stack = {token} - kept, [token]
        while stack:
            for part in parents.get(stack.pop(), ()):
                if part not in kept and part not in need:
                    need.add(part)
                    stack.append(part)
        if len(kept) + len(need) <= size:
            kept |= need
        if len(kept) == size:
            return kept
    raise ValueError(f"only {len(kept)} tokens of {size}: give more text")


def trim(teacher: dict[str, Any], counts: Counter[str]) -> tuple[dict[str, Any], list[int]]:
    """The trimmed tokenizer.json and the teacher id of each of its ids (-1: none)."""
    vocab: dict[str, int] = teacher["model"]["vocab"]
    merges = [tuple(merge) for merge in teacher["model"]["merges"]]
    parents: dict[str, tuple[str, str]] = {}
    for left, right in merges:
        parents.setdefault(left + right, (left, right))
    bytes_only = {token for token in vocab if len(token) == 1 and token not in parents}
    if len(bytes_only) != 256:
        raise ValueError(f"the teacher has {len(bytes_only)} byte tokens, not 256")
    # After the counted tokens come the teacher's own most frequent ones: low ids, early merges.
    ranked = [t for t, _ in counts.most_common()] + sorted(vocab, key=lambda token: vocab[token])
    special = {entry["content"] for entry in teacher["added_tokens"]}
    budget = SIZE - len(HEAD_TOKENS) - len(TAIL_TOKENS) - len(TAIL_SPECIAL)
    kept = close_under_merges((t for t in ranked if t not in special), parents, bytes_only, budget)

    ordered = sorted(kept, key=lambda token: vocab[token])
    strings = [*HEAD_TOKENS, *ordered, *TAIL_TOKENS, *TAIL_SPECIAL]
    ids = {token: index for index, token in enumerate(strings)}
    model = dict(teacher["model"])
    model["vocab"] = ids
    model["merges"] = [[a, b] for a, b in merges if a in kept and b in kept and a + b in kept]
    teacher_ids = [vocab[token] if token in kept else -1 for token in strings]
    teacher_ids[ids[EOS]] = next(
        entry["id"] for entry in teacher["added_tokens"] if entry["content"] == TEACHER_END
    )
    return {**teacher, "model": model, "added_tokens": []}, teacher_ids


def finish(trimmed: dict[str, Any]) -> Tokenizer:
    """Add V4's special tokens, with V4's flags, to the trimmed BPE."""
    tokenizer = Tokenizer.from_str(json.dumps(trimmed))
    special = [*HEAD_TOKENS, *TAIL_SPECIAL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=True) for t in TAIL_TOKENS])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.get_vocab_size() != SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, not {SIZE}")
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json in the manner of the published one."""

    def token(content: str) -> dict[str, Any]:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {"__type": "AddedToken", "content": content, **flags}

    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS),
        "legacy": True,
        "model_max_length": CONTEXT,
        "pad_token": token(PAD),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher", type=Path, help="GGUF file of the teacher")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSON lines to count")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer files")
    parser.add_argument("--ids", type=Path, required=True, help="teacher_ids.json to write")
    args = parser.parse_args()
    teacher = read_tokenizer(args.teacher)
    counts = count_tokens(teacher, args.text)
    trimmed, teacher_ids = trim(json.loads(teacher.to_str()), counts)
    tokenizer = finish(trimmed)
    tokenizer.save(str(args.out / "tokenizer.json"))
    config = json.dumps(tokenizer_config(), ensure_ascii=False, indent=2)
    (args.out / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    args.ids.write_text(json.dumps({"teacher_ids": teacher_ids}) + "\n")
    covered = sum(n for t, n in counts.items() if tokenizer.token_to_id(t) is not None)
    share = covered / counts.total()
    print(f"{SIZE} entries; they cover {share:.2%} of {counts.total()} weighted teacher tokens")


if __name__ == "__main__":
    main()
