"""The loop over tokens: what it feeds, what it yields, and everything that can end it."""

from __future__ import annotations

import pytest
import torch

from fourfold.engine.engine import Engine
from fourfold.engine.generate import generate
from fourfold.engine.session import Session
from fourfold.errors import RequestError

GREEDY = {"temperature": 0.0}


def says(stub, text: str, prompt: str = "a", end: bool = True) -> None:
    """Make the stub answer `prompt` with `text`."""
    start = 1 + len(stub.tokenizer.encode(prompt))
    ids = stub.tokenizer.encode(text) + ([1] if end else [])
    stub.script = {start + i: token for i, token in enumerate(ids)}


def test_yields_the_text_and_stops_at_the_end_token(stub):
    says(stub, "hello, wörld 🎉!")
    answer = generate(stub, "a", **GREEDY)
    assert "".join(answer) == "hello, wörld 🎉!"
    assert answer.finish_reason == "stop"
    assert answer.ids == stub.tokenizer.encode("hello, wörld 🎉!")


def test_bos_is_put_in_front_of_text_once_and_ids_are_taken_as_given(stub):
    assert generate(stub, "a").prompt_ids == [0, *stub.tokenizer.encode("a")]
    assert generate(stub, "").prompt_ids == [0]
    assert generate(stub, [0, 20]).prompt_ids == [0, 20]
    assert generate(stub, torch.tensor([[20, 21]])).prompt_ids == [20, 21]


def test_special_tokens_spelled_in_a_text_stay_text(stub):
    assert 1 not in generate(stub, "a<｜end▁of▁sentence｜>").prompt_ids


def test_prompt_is_prefilled_in_chunks_and_the_last_token_is_not_fed(stub):
    prompt = [20 + i % 300 for i in range(600)]
    answer = generate(stub, prompt, max_tokens=3, **GREEDY)
    list(answer)
    assert stub.calls == [512, 88, 1, 1]
    assert answer.finish_reason == "length"
    assert len(answer.ids) == 3


def test_same_seed_same_text_and_it_continues_itself(stub):
    whole = generate(stub, "a", max_tokens=20, seed=5)
    list(whole)
    first = generate(stub, "a", max_tokens=8, seed=5)
    list(first)
    rest = generate(stub, first.prompt_ids + first.ids, max_tokens=12, seed=5)
    list(rest)
    assert whole.ids == first.ids + rest.ids
    other = generate(stub, "a", max_tokens=20, seed=6)
    list(other)
    assert other.ids != whole.ids


def test_without_a_seed_one_is_drawn_and_told(stub):
    answer = generate(stub, "a", max_tokens=20)
    text = "".join(answer)
    assert text == "".join(generate(stub, "a", max_tokens=20, seed=answer.sampling.seed))


@pytest.mark.parametrize("stop", ["wor", ["zzz", "ld", "wor"], ["o, w"]])
def test_stop_strings_end_the_text_and_are_not_part_of_it(stub, stop):
    says(stub, "hello, world")
    answer = generate(stub, "a", stop=stop, **GREEDY)
    assert "".join(answer) == "hello, world"[: "hello, world".index(stop if stop == "wor" else stop[-1])]
    assert answer.finish_reason == "stop"


def test_no_piece_holds_half_a_character(stub):
    says(stub, "🎉é你")
    pieces = list(generate(stub, "a", **GREEDY))
    assert pieces == ["🎉", "é", "你"]


def test_a_character_cut_by_max_tokens_is_reported_not_dropped(stub):
    says(stub, "x🎉")
    answer = generate(stub, "a", max_tokens=len(stub.tokenizer.encode("x🎉")) - 1, **GREEDY)
    assert "".join(answer) == "x\ufffd"


def test_ctrl_c_leaves_what_was_said(stub, monkeypatch):
    says(stub, "hello")
    answer = generate(stub, "a", **GREEDY)
    said = next(answer)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_next_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    assert said + answer.rest() == stub.tokenizer.decode(answer.ids)
    assert answer.finish_reason is None
    assert list(answer) == []


def test_the_context_ends_the_answer(stub):
    stub.config.max_position_embeddings = 12
    answer = generate(stub, list(range(20, 30)), max_tokens=50, **GREEDY)
    list(answer)
    assert len(answer.ids) == 3
    assert answer.finish_reason == "length"
    assert sum(stub.calls) == 12


def test_padding_of_the_vocabulary_is_never_chosen(stub):
    stub.config.vocab_size = 500
    stub.script = dict.fromkeys(range(100), 450)
    answer = generate(stub, "a", max_tokens=5, **GREEDY)
    list(answer)
    assert max(answer.ids) < 400


def test_timing_counts_tokens(stub):
    says(stub, "hello")
    answer = generate(stub, "a", **GREEDY)
    list(answer)
    assert answer.timing.prefill_tokens == 2
    assert answer.timing.decode_tokens == len(
        answer.ids
    )  # the first comes from the prefill, the end from the last
    assert answer.timing.prefill_rate > 0
    assert answer.timing.decode_rate > 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([400], "token id 400 is not in the vocabulary; allowed: 0 to 399"),
        ([-1], "token id -1"),
        ([1.5], "whole numbers"),
        (torch.zeros(2, 3, dtype=torch.int64), r"\[2, 3\]"),
        (torch.zeros(3), "float32"),
        (list(range(20, 40)) * 60, "1,200 tokens; this model has positions for 1,000"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(stub, prompt, message):
    with pytest.raises(RequestError, match=message):
        generate(stub, prompt)
    assert stub.calls == []


@pytest.mark.parametrize("max_tokens", [0, -1, 1.5, True, "3"])
def test_bad_max_tokens(stub, max_tokens):
    with pytest.raises(RequestError, match=r"max_tokens is .* allowed"):
        generate(stub, "a", max_tokens=max_tokens)


def test_no_tokenizer_is_named(stub):
    tok, stub.tokenizer = stub.tokenizer, None
    with pytest.raises(RequestError, match="pass tokenizer="):
        generate(stub, "a")
    assert generate(stub, "a", tokenizer=tok).prompt_ids


def test_session_feeds_only_what_is_new(stub):
    session = Session(stub)
    first = session.generate(list(range(20, 40)), max_tokens=5, **GREEDY)
    list(first)
    longer = first.prompt_ids + first.ids + [30, 31]
    stub.calls.clear()
    second = session.generate(longer, max_tokens=1, **GREEDY)
    list(second)
    assert stub.calls == [3]  # the answer's last token was never fed
    assert second.ids == generate_ids(stub, longer)


def test_session_goes_on_where_it_can(stub):
    """The same prompt again, another last message, another conversation, and none at all."""
    session = Session(stub)
    user = stub.tokenizer.token_id("<｜User｜>")
    first = [*range(20, 60), user, *range(60, 120)]
    list(session.generate(first, max_tokens=1, **GREEDY))
    for prompt, fed in [(first, 1), ([*first[:41], 7, 8], 2), ([*first[:30], 9], 31), ([50], 1)]:
        stub.calls.clear()
        answer = session.generate(prompt, max_tokens=1, **GREEDY)
        list(answer)
        assert sum(stub.calls) == fed
        assert answer.ids == generate_ids(stub, prompt)
    session.reset()
    stub.calls.clear()
    list(session.generate(first, max_tokens=1, **GREEDY))
    assert sum(stub.calls) == len(first)


def generate_ids(stub, prompt: list[int]) -> list[int]:
    answer = generate(stub, prompt, max_tokens=1, **GREEDY)
    list(answer)
    return answer.ids
