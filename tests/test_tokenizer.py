"""Text and ids: exact both ways, whole or streamed; plain text never becomes a special token."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import RequestError, TokenizerError
from fourfold.tokenizer import Tokenizer, byte_alphabet, tokenizer

TEXTS = (
    "",
    "Hello, world",
    "naïve 你好 🎉👩‍👩‍👧",
    "  spaces\n\n\ttabs ",
    "<think>no</think> <｜User｜> ｜DSML｜",
    "\x00\x7f\u0301",
)


@pytest.fixture(scope="module")
def tok(tokenizer_file: Path) -> Tokenizer:
    return tokenizer(tokenizer_file)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [False, True])
def test_round_trip(tok, text, special):
    assert tok.decode(tok.encode(text, special=special)) == text


@given(text=st.text())
def test_round_trip_of_any_text(tok, text):
    assert tok.decode(tok.encode(text)) == text


@given(text=st.text())
def test_plain_text_never_becomes_a_special_token(tok, text):
    spelled = text.join(tok.special_ids)
    assert not set(tok.encode(spelled)) & set(tok.special_ids.values())


@given(text=st.text(), special=st.booleans())
def test_stream_equals_whole_and_shows_no_half_character(tok, text, special):
    stream, ids = tok.stream(), tok.encode(text, special=special)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


def test_special_spellings_become_tokens_on_request(tok):
    assert tok.encode("<｜User｜>a", special=True)[0] == tok.token_id("<｜User｜>")


def test_same_ids_as_the_library(tok, tokenizer_file):
    library = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert tok.encode(text, special=True) == ids
        assert tok.decode(ids) == library.decode(ids, skip_special_tokens=False)


def test_byte_alphabet_is_the_libraries():
    assert sorted(byte_alphabet()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_unfinished_character_is_reported_at_the_end(tok):
    stream = tok.stream()
    first_byte = tok.encode("é")[0]
    if tok.bytes_of(first_byte) == "é".encode():
        pytest.fail("the fixture merges é: choose a rarer character")
    assert stream.push(first_byte) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(tok.encode("a")[0]) == "a"


def test_unused_ids_are_the_padding(tok):
    assert tok.unused_ids(tok.vocab_size + 2) == [tok.vocab_size, tok.vocab_size + 1]
    assert tok.unused_ids(5) == []


def test_a_folder_or_the_file(tokenizer_file):
    assert tokenizer(tokenizer_file.parent).path == tokenizer_file


@pytest.mark.parametrize("token", [-1, 400, 10**9])
def test_ids_outside_are_named(tok, token):
    with pytest.raises(TokenizerError, match=f"token id {token} .* ids 0 to 399"):
        tok.decode([token])


def test_lone_surrogate_is_refused(tok):
    with pytest.raises(RequestError, match="character 1"):
        tok.encode("a\ud800")


def test_unknown_special_token_is_named(tok):
    with pytest.raises(TokenizerError, match="no special token '<x>'"):
        tok.token_id("<x>")


def test_missing_and_broken_files_are_named(tmp_path, tokenizer_file):
    with pytest.raises(TokenizerError, match="there is no"):
        tokenizer(tmp_path)
    broken = tmp_path / "tokenizer.json"
    for text, message in [
        ("{", "cannot be read"),
        ("[]", "no tokenizer"),
        ('{"model": {"vocab": {}}}', "byte-level"),
    ]:
        broken.write_text(text)
        with pytest.raises(TokenizerError, match=message):
            tokenizer(tmp_path)
    spec = json.loads(tokenizer_file.read_text())
    spec["model"]["vocab"]["日本"] = 400
    broken.write_text(json.dumps(spec))
    with pytest.raises(TokenizerError, match="alphabet"):
        tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (("added_tokens",), {"a": 1}, "added_tokens is {'a': 1}; allowed: a list"),
        (("added_tokens", 0), "<x>", "added_tokens has '<x>'; allowed: an object"),
        (("added_tokens", 0), {"id": 0}, "whose content is a text"),
        (("added_tokens", 0, "content"), "\ud800", "whose content is a text"),
        (("added_tokens", 0, "id"), None, "id of token .* is None; allowed: whole numbers from 0"),
        (("model", "vocab"), ["a"], "model.vocab is \\['a'\\]; allowed: an object"),
        (("model", "vocab", "a"), "7", "id of token 'a' is '7'"),
        (("model", "vocab", "a"), True, "id of token 'a' is True"),
        (("model", "vocab", "a"), -1, "id of token 'a' is -1"),
        (("model", "vocab", "a"), 10**12, "allowed: whole numbers from 0 to 4,194,303"),
        (("model", "merges"), 3, "no tokenizer that the tokenizers library reads"),
        (("decoder",), [], "allowed: byte-level BPE"),
    ],
)
def test_malformed_files_are_named(tmp_path, tokenizer_file, part, value, message):
    spec = json.loads(tokenizer_file.read_text())
    place: Any = spec
    for key in part[:-1]:
        place = place[key]
    place[part[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(TokenizerError, match=message):
        tokenizer(tmp_path)


def test_json_that_is_too_deep_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match="cannot be read"):
        tokenizer(tmp_path)


def places(value: Any, limit: int = 20) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value, long ones cut."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in inside[:limit]:
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item, limit)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)


@settings(deadline=None)
@given(data=st.data(), value=JSON)
def test_no_other_error_whatever_the_file_holds(tokenizer_file, tmp_path_factory, data, value):
    spec = json.loads(tokenizer_file.read_text())
    container, key = data.draw(st.sampled_from(list(places(spec))))
    container[key] = value
    path = tmp_path_factory.getbasetemp() / "malformed.json"
    path.write_text(json.dumps(spec))
    with contextlib.suppress(TokenizerError):
        made = tokenizer(path)
        made.encode("a <think>")
        made.encode("a <think>", special=True)
