"""Text to token ids and back, for the byte-level BPE of the V4 family.

`tokenizers` does the encoding. Two things are ours: plain text never turns into special tokens (a user who
types `<｜User｜>` gets the characters), and decoding goes id -> bytes -> text, so that a stream never shows
half a UTF-8 character and never drops one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
_LONG = 1 << 14
MOST_IDS = 1 << 22
"""Ids are below this, 32 times V4's vocabulary: a table of all of them is made."""


def tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, or of a `tokenizer.json` file itself.

    Raises TokenizerError when the file is missing, is no tokenizer, or is not byte-level.
    """
    return Tokenizer(path)


class Tokenizer:
    """Encodes text to ids and decodes ids to text, exactly.

    Args:
        path: a folder that holds `tokenizer.json`, or that file.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / FILE_NAME if path.is_dir() else path
        spec = _read(self.path)
        self.special_ids: dict[str, int] = _added_tokens(self.path, spec["added_tokens"])
        vocabulary = _vocabulary(self.path, spec["model"]["vocab"])
        self._bytes = _byte_table(self.path, vocabulary, self.special_ids)
        # Without added tokens the same pipeline reads all text as plain text: injection is impossible.
        self._plain = _build(self.path, spec | {"added_tokens": [], "post_processor": None})
        self._spec = spec
        # Built on first use: half of the loading time of a large vocabulary.
        self._full: tokenizers.Tokenizer | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id. Ids between may be unused; a model's may be padded beyond it."""
        return len(self._bytes)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`, nothing added.

        `special=False` reads spellings of special tokens as ordinary characters; `special=True` reads them as
        the tokens: only for text that no user wrote. Raises RequestError when `text` cannot be UTF-8 (lone
        surrogates).
        """
        engine = self._plain
        if special:
            self._full = self._full or _build(self.path, self._spec | {"post_processor": None})
            engine = self._full
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text is not valid Unicode at character {error.start}: {text[error.start]!r}"
            ) from None
        if len(text) < _LONG:
            ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        else:
            # The plural lets other threads run meanwhile; a megabyte takes tenths of seconds.
            ids = engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens spelled out. Bytes that are no UTF-8 become U+FFFD.

        Raises TokenizerError for an id outside the vocabulary.
        """
        stream = self.stream()
        return "".join(stream.push(token) for token in ids) + stream.finish()

    def token_id(self, special: str) -> int:
        """Id of the special token spelled `special`. Raises TokenizerError when there is none."""
        if special not in self.special_ids:
            raise TokenizerError(
                f"{self.path} has no special token {special!r}; use the tokenizer.json of this checkpoint"
            )
        return self.special_ids[special]

    def bytes_of(self, token: int) -> bytes:
        """The bytes one id stands for. Raises TokenizerError for an id outside the vocabulary."""
        raw = self._bytes[token] if 0 <= token < len(self._bytes) else None
        if raw is None:
            raise TokenizerError(
                f"token id {token} is not in {self.path}, which has ids 0 to {len(self._bytes) - 1}"
            )
        return raw

    def unused_ids(self, vocab_size: int) -> list[int]:
        """Ids below `vocab_size` (a model's) that stand for nothing here; a sampler must not choose them."""
        holes = [i for i, raw in enumerate(self._bytes[:vocab_size]) if raw is None]
        return holes + list(range(len(self._bytes), vocab_size))

    def stream(self) -> StreamDecoder:
        """A fresh decoder for ids that arrive one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes ids as they come: holds back the bytes of an unfinished character, and loses none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that are complete after `token`; may be empty."""
        return self._utf8.decode(self._tokenizer.bytes_of(token))

    def finish(self) -> str:
        """What is left: U+FFFD when the ids ended inside a character. The decoder is then as new."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _read(path: Path) -> dict[str, Any]:
    """The parsed tokenizer.json, checked for the parts that we rely on."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"there is no {path}; a checkpoint folder needs its {FILE_NAME}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict) or "vocab" not in spec["model"]:
        raise TokenizerError(f"{path} is no tokenizer: it has no model.vocab")
    kind, decoder = spec["model"].get("type"), spec.get("decoder")
    decoder = decoder.get("type") if isinstance(decoder, dict) else decoder
    if kind not in (None, "BPE") or decoder != "ByteLevel":
        raise TokenizerError(f"{path}: model {kind!r}, decoder {decoder!r}; allowed: byte-level BPE")
    if spec.get("added_tokens") is None:
        spec["added_tokens"] = []
    return spec


def _vocabulary(path: Path, vocab: Any) -> dict[str, int]:
    """model.vocab, checked: text -> id."""
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{path}: model.vocab is {_shown(vocab)}; allowed: an object of token and id")
    for token, index in vocab.items():
        _check_id(path, token, index)
    return vocab


def _added_tokens(path: Path, tokens: Any) -> dict[str, int]:
    """added_tokens, checked: text -> id."""
    if not isinstance(tokens, list):
        raise TokenizerError(f"{path}: added_tokens is {_shown(tokens)}; allowed: a list of objects")
    added: dict[str, int] = {}
    for token in tokens:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or not _is_unicode(content):
            raise TokenizerError(
                f"{path}: added_tokens has {_shown(token)}; allowed: an object whose content is a text"
            )
        _check_id(path, content, token.get("id"))
        added[content] = token["id"]
    return added


def _check_id(path: Path, token: str, index: Any) -> None:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MOST_IDS:
        raise TokenizerError(
            f"{path}: the id of token {_shown(token)} is {_shown(index)}; "
            f"allowed: whole numbers from 0 to {MOST_IDS - 1:,}"
        )


def _is_unicode(text: str) -> bool:
    """Without half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _shown(value: Any) -> str:
    """A value in an error message, cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _build(path: Path, spec: dict[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library raises bare Exception, and a panic of its Rust is not even that.
        raise TokenizerError(f"{path} is no tokenizer that the tokenizers library reads: {error}") from None


def _byte_table(path: Path, vocab: dict[str, int], added: dict[str, int]) -> list[bytes | None]:
    """bytes of each id; None where an id is unused."""
    alphabet = {char: byte for byte, char in enumerate(byte_alphabet())}
    table: list[bytes | None] = [None] * (1 + max([*vocab.values(), *added.values()], default=-1))
    for token, index in vocab.items():
        try:
            table[index] = bytes(alphabet[char] for char in token)
        except KeyError:
            if token not in added:
                raise TokenizerError(
                    f"{path}: token {_shown(token)} (id {index}) is not in the byte-level alphabet"
                ) from None
    for token, index in added.items():
        table[index] = token.encode("utf-8")
    return table


def byte_alphabet() -> Sequence[str]:
    """The 256 characters that byte-level BPE writes bytes with.

    Printable Latin-1 is itself, the rest follows from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
