"""generate and chat: what goes where, seeds, formats, interruption."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable

import pytest

from fourfold.cli import answer, console
from fourfold.cli import chat as chat_module
from fourfold.cli.answer import messages_of
from fourfold.cli.chat import Conversation, repl
from fourfold.cli.groups import Drawing, Loading
from fourfold.cli.model import Opened, open_model
from fourfold.engine.answer import Timing
from fourfold.engine.sampler import Sampling
from fourfold.engine.session import Session
from fourfold.protocol import Chat


@pytest.fixture(scope="module")
def opened(tiny_folder):
    return open_model(str(tiny_folder), Loading(numerics="exact", threads=1))


def test_answer_on_stdout_the_rest_on_stderr(run, tiny_folder):
    ran = run("generate", "once upon", "-m", tiny_folder, "-n", 8, "--seed", 1)
    assert ran.code == 0
    again = run("generate", "once upon", "-m", tiny_folder, "-n", 8, "--seed", 1, "--json")
    document = json.loads(again.out)
    assert ran.out.rstrip("\n") == document["text"].rstrip("\n")
    assert document["tokens"] <= 8
    assert document["seed"] == 1
    assert document["finish_reason"] in ("stop", "length")
    for line in ran.err.splitlines():
        assert line.startswith("fourfold: ")
    assert "tiny, 4 layers" in ran.err
    assert "tok/s" in ran.err


def test_greedy_is_the_same_without_a_seed(run, tiny_folder):
    words = ("generate", "a", "-m", tiny_folder, "-n", 6, "--temperature", 0)
    assert run(*words).out == run(*words).out


def test_a_second_run_finds_its_prompt_in_the_cache_folder(run, tiny_folder, tmp_path):
    text = "once upon a time there was a cat " * 5
    words = ("generate", text, "-m", tiny_folder, "-n", 6, "--seed", 1, "--cache-dir", tmp_path / "cache")
    first = json.loads(run(*words, "--json").out)
    again = json.loads(run(*words, "--json", "--cache-size", "1GiB").out)
    assert (first["cached_tokens"], again["cached_tokens"]) == (0, first["prompt_tokens"] - 1)
    assert again["text"] == first["text"]
    assert f"{again['cached_tokens']} of the prompt cached" in run(*words).err


@pytest.mark.parametrize("size", ["many", "1KiB"])
def test_a_cache_size_of_no_use_is_named(run, tiny_folder, tmp_path, size):
    ran = run("generate", "a", "-m", tiny_folder, "--cache-dir", tmp_path, "--cache-size", size)
    assert ran.code == (2 if size == "many" else 1)
    assert "cache_size is" in ran.err


def piped(raw: bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(raw), encoding=encoding, errors="surrogateescape")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_prompt_from_stdin_is_utf8_whatever_the_locale(run, tiny_folder, monkeypatch, encoding):
    words = ("-m", tiny_folder, "-n", 4, "--temperature", 0)
    monkeypatch.setattr(sys, "stdin", piped("ein Märchen".encode(), encoding))
    assert run("generate", "-", *words).out == run("generate", "ein Märchen", *words).out


@pytest.mark.parametrize("words", [("generate", "-", "-m"), ("chat",)])
def test_stdin_that_is_no_utf8_is_named(run, tiny_folder, monkeypatch, words):
    monkeypatch.setattr(sys, "stdin", piped(b"caf\xe9\n"))
    ran = run(*words, tiny_folder)
    assert (ran.code, ran.out) == (1, "")
    assert "error: stdin is not UTF-8 text (invalid" in ran.err


def test_chat_format_asks_with_the_markers(run, tiny_folder):
    raw, chat = (
        json.loads(run("generate", "hi", "-m", tiny_folder, "-n", 2, "--json", *flags).out)
        for flags in ((), ("--chat",))
    )
    assert chat["prompt_tokens"] == raw["prompt_tokens"] + 3  # user, assistant, end of thinking


def test_thinking_goes_to_stderr(run, tiny_folder):
    document = json.loads(
        run("generate", "hi", "-m", tiny_folder, "-n", 5, "--seed", 1, "--json", "--chat", "--think").out
    )
    ran = run("generate", "hi", "-m", tiny_folder, "-n", 5, "--seed", 1, "--chat", "--effort", "high")
    assert document["reasoning"]
    assert document["reasoning"] in ran.err
    assert document["text"] in ran.out


@pytest.mark.parametrize(
    ("name", "text"),
    [("tokenizer.json", "{"), ("generation_config.json", "{"), ("generation_config.json", '{"top_p": 7}')],
)
def test_small_files_are_read_before_the_weights(run, tiny_folder, tmp_path, monkeypatch, name, text):
    monkeypatch.setattr("fourfold.loading.read_items", lambda *_: pytest.fail("the weights were read"))
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    (folder / name).write_text(text)
    for words in (("generate", "x", "-m", folder), ("chat", folder)):
        ran = run(*words)
        assert ran.code == 1
        assert f"{folder / name}" in ran.err


def test_a_model_without_tokenizer_is_named(run, tiny_folder, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_folder, folder)
    (folder / "tokenizer.json").unlink()
    for words in (("generate", "x", "-m", folder), ("chat", folder)):
        ran = run(*words)
        assert ran.code == 1
        assert "has no tokenizer.json" in ran.err


def test_prompt_that_does_not_fit_is_refused_with_numbers(run, tiny_folder):
    ran = run("generate", "x " * 600, "-m", tiny_folder)
    assert ran.code == 1
    assert "positions for 512" in ran.err


def test_an_answer_of_a_schema_or_an_expression(run, tiny_folder, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array", "items": {"enum": [1, "b"]}, "minItems": 2, "maxItems": 2}')
    ran = run("generate", "hi", "-m", tiny_folder, "--json-schema", file, "--seed", 1)
    assert ran.code == 0
    assert len(json.loads(ran.out)) == 2
    ran = run("generate", "hi", "-m", tiny_folder, "--regex", "[ab]{9}", "--repetition-penalty", 1.2, "-n", 3)
    assert set(ran.out.strip()) <= {"a", "b"}
    assert "the answer ended early: it is not whole" in ran.err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--regex", "("), 1, "unclosed group"),
        (("--json-schema", "absent.json"), 1, "absent.json cannot be read as a JSON schema"),
        (("--json-schema", "x", "--regex", "y"), 2, "exclude each other"),
        (("--repetition-penalty", 0), 2, "repetition_penalty is 0.0; allowed: a number above 0"),
    ],
)
def test_what_an_answer_cannot_look_like_is_named(run, tiny_folder, flags, code, message):
    ran = run("generate", "hi", "-m", tiny_folder, *flags)
    assert ran.code == code
    assert message in " ".join(ran.err.split()).replace(" │ │ ", " ")


def test_sampling_of_the_checkpoint_unless_the_user_chose(tiny_folder, tmp_path, capfd):
    folder = tmp_path / "advised"
    shutil.copytree(tiny_folder, folder)
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.7, "top_p": 0.9, "do_sample": true, "eos_token_id": [1, 7], "num_beams": 4}'
    )
    opened = open_model(str(folder), Loading(numerics="exact"))
    assert opened.sampler(Drawing(), 3) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 3,
        "stop_tokens": (1, 7),
    }
    assert opened.sampler(Drawing(temperature=0.0), None)["temperature"] == 0.0
    assert capfd.readouterr().err.count("of generation_config.json, num_beams are not heeded") == 1


class Interrupted:
    """A generation that Ctrl-C ends after two pieces."""

    prompt_ids = (1, 2)
    cached_tokens = 0
    ids = (3, 4)
    timing = Timing(prefill_tokens=2, prefill_seconds=0.001, decode_tokens=31, decode_seconds=0.75)

    def __iter__(self):
        yield "one "
        yield "two"
        raise KeyboardInterrupt

    def rest(self) -> str:
        return " th"


def test_ctrl_c_keeps_what_was_said(capfd):
    spoken = answer.speak(Interrupted(), None)
    assert spoken == answer.Spoken(text="one two th", reasoning="", interrupted=True)
    assert capfd.readouterr().out == "one two th"


def test_generate_after_ctrl_c_is_130_and_complete(run, tiny_folder, monkeypatch):
    monkeypatch.setattr("fourfold.cli.generate.run", lambda *_, **__: Interrupted())
    ran = run("generate", "x", "-m", tiny_folder)
    assert ran.code == 130
    assert ran.out == "one two th\n"
    assert "2 tokens, prefill 2,000 tok/s, decode 41.3 tok/s" in ran.err


def talk(opened: Opened, lines: list[str | type[BaseException]]) -> Conversation:
    begin = Chat(messages=messages_of(None, ""))
    conversation = Conversation(opened, Session(opened.model), begin, {"max_tokens": 4, "temperature": 0.0})
    assert repl(conversation, reader(lines)) == 0
    return conversation


def reader(lines: list[str | type[BaseException]]) -> Callable[[], str]:
    left = iter(lines)

    def read() -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_chat_remembers_the_turns(opened, capfd):
    conversation = talk(opened, ["hello", "more"])
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2
    assert capfd.readouterr().out.count("\n") >= 2


def test_chat_commands(opened, capfd):
    conversation = talk(
        opened, ["hello", "/reset", "/help", "/bogus", "", KeyboardInterrupt, "/quit", "never"]
    )
    assert conversation.turns == []
    err = capfd.readouterr().err
    for text in ("forgotten", "/quit", "no command /bogus", "Ctrl-D or /quit leaves"):
        assert text in err


def test_a_path_is_a_message_not_a_command(opened, capfd):
    assert talk(opened, ["/usr/bin is a folder"]).turns[0]["content"] == "/usr/bin is a folder"
    capfd.readouterr()


def test_a_turn_that_does_not_fit_leaves_the_conversation(opened, capfd):
    conversation = talk(opened, ["hello", "x " * 600, "again"])
    assert len(conversation.turns) == 4
    assert "positions for 512" in capfd.readouterr().err


def test_interrupted_turn_keeps_the_partial_answer(opened, capfd, monkeypatch):
    real = answer.speak

    def stopped(generation, request):
        spoken = real(generation, request)
        return answer.Spoken(spoken.text[:1], "", interrupted=True)

    monkeypatch.setattr(chat_module, "speak", stopped)
    conversation = talk(opened, ["hello"])
    assert conversation.turns[1]["role"] == "assistant"
    assert "stopped, " in capfd.readouterr().err


def test_chat_over_a_pipe(run, tiny_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/reset\nhello\n"))
    ran = run("chat", tiny_folder, "-n", 5, "--temperature", 0)
    assert ran.code == 0
    half = len(ran.out) // 2
    assert ran.out[:half] == ran.out[half:]


def test_a_failed_turn_of_a_pipe_is_1_and_the_others_are_answered(run, tiny_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n" + "x " * 600 + "\nhello\n"))
    ran = run("chat", tiny_folder, "-n", 5, "--temperature", 0)
    assert ran.code == 1
    assert ran.err.count("prefill") == 2
    assert "positions for 512" in ran.err


def test_ctrl_c_ends_a_pipe_with_130(opened, capfd, monkeypatch):
    begin = Chat(messages=messages_of(None, ""))
    waiting = Conversation(opened, Session(opened.model), begin, {"max_tokens": 4})
    assert repl(waiting, reader(["hello", KeyboardInterrupt, "never"]), terminal=False) == 130
    assert len(waiting.turns) == 2
    monkeypatch.setattr(chat_module, "speak", lambda *_: answer.Spoken("wor", "", interrupted=True))
    speaking = Conversation(opened, Session(opened.model), begin, {"max_tokens": 4})
    assert repl(speaking, reader(["hello", "never"]), terminal=False) == 130
    assert [turn["content"] for turn in speaking.turns] == ["hello", "wor"]
    capfd.readouterr()


@pytest.mark.parametrize(
    ("value", "text"), [(2310.4, "2,310"), (41.32, "41.3"), (0.523, "0.52"), (99.96, "100.0"), (0, "0.00")]
)
def test_numbers(value, text):
    assert console.number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (1536, "1.5 KiB"), (157e9, "146.2 GiB"), (0, "0 B"), (2**50, "1,024.0 TiB")],
)
def test_sizes(count, text):
    assert console.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(284.3e9, "284B"), (15.7e6, "15.7M"), (1.6e12, "1.6T"), (999, "999")]
)
def test_amounts(count, text):
    assert console.amount(count) == text


def test_sampling_defaults_are_the_models_own_distribution():
    assert Sampling() == Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)


def test_experts_beyond_ram_come_from_disk_and_stats_say_so(run, tiny_folder, tmp_path):
    words = ("generate", "once", "-m", tiny_folder, "-n", 4, "--temperature", 0, "--stats")
    ran = run(*words, "--ram", "1700KiB", "--expert-copy", tmp_path, "--json")
    counted = json.loads(ran.out)["tiers"]
    assert counted["misses"] + counted["prefetched"] + counted["hits"] > 0 and counted["bytes_read"] > 0
    assert "fourfold: RAM holds" in ran.err and "copying the experts to" in ran.err
    assert " from RAM, " in ran.err and " s stalled" in ran.err
    resident = run(*words, "--json")
    assert json.loads(resident.out)["tiers"] is None and "experts: all in RAM" in resident.err


def test_chat_says_stats_after_each_answer(run, tiny_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", piped(b"hello\n"))
    ran = run("chat", tiny_folder, "-n", 2, "--ram", "1700KiB", "--stats")
    assert ran.code == 0 and " read ahead (" in ran.err


@pytest.mark.parametrize(
    ("size", "said"), [("24GB", "ram is '24GB'; allowed: a number of bytes"), ("5KiB", "KiB and more: ")]
)
def test_ram_is_checked(run, tiny_folder, size, said):
    ran = run("generate", "once", "-m", tiny_folder, "--ram", size)
    assert ran.code in (1, 2) and said in ran.err
