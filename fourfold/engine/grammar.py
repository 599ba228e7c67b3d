"""From a constraint to the tokens that may come next: grammars of llguidance, compiled once each.

What takes long or grows is bounded: a constraint's size (`constraint.MOST_BYTES`), the size of a grammar and
the work of a step (llguidance's limits), how many compiled grammars are kept.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from torch import Tensor

from fourfold.engine.constraint import Constraint
from fourfold.engine.masks import Masks, Stuck, allowed
from fourfold.engine.schema import check_multiples
from fourfold.errors import RequestError
from fourfold.protocol.tool_grammar import MARK, SPACE, literal, tool_grammar
from fourfold.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 64
_THINK_END = "</think>"
_EXACT = 1024
_ROW = 50_000
"""States of the parser at once, as many as a step may make: an object of n optional properties has 4 n."""


class Grammars:
    """Compiles constraints for one tokenizer and model; any thread may ask.

    vocab_size: the model's, at least the tokenizer's; eos: the token that ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = eos
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, tuple[LLMatcher, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fourfold-masks")

    def start(self, constraint: Constraint) -> Masks:
        """The masks of a new answer.

        RequestError: llguidance cannot compile it, it is too large, or nothing satisfies it.
        """
        with self._lock:
            if constraint not in self._compiled:
                self._compiled[constraint] = self._compile(constraint)
            self._compiled.move_to_end(constraint)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            matcher, first = self._compiled[constraint]
            return Masks(matcher.deep_copy(), first, self._worker)

    def close(self) -> None:
        """Let the worker end."""
        self._worker.shutdown()

    def _compile(self, constraint: Constraint) -> tuple[LLMatcher, Tensor]:
        from llguidance import LLMatcher, LLParserLimits

        self._trie = self._trie or _trie(self._tokenizer, self._eos)
        text = LLMatcher.grammar_from_lark(self._lark(constraint))
        limits = LLParserLimits(verbose_errors=False, max_items_in_row=_ROW)
        matcher = LLMatcher(self._trie, text, log_level=0, limits=limits)
        try:
            if matcher.is_error():
                raise Stuck(matcher.get_error())
            return matcher, allowed(matcher, self._vocab_size)
        except Stuck as stuck:
            raise RequestError(
                f"the constraint ({constraint.kind}) cannot be compiled: {_reason(str(stuck))}; simplify it"
            ) from None

    def _lark(self, constraint: Constraint) -> str:
        from llguidance import regex_to_lark

        spec = json.loads(constraint.spec)
        if constraint.kind != "choice":
            check_multiples(spec)
        match constraint.kind:
            case "json":
                rules = "answer: %json " + json.dumps({**spec, "x-guidance": SPACE}) + "\n"
            case "regex":
                rules = f"answer: /{_one_line(regex_to_lark(_without_anchors(spec), 'd'))}/\n"
            case "choice":
                # A terminal: as many rules would be as many states of the parser.
                rules = f"answer: OPTION\nOPTION: {' | '.join(literal(option) for option in spec)}\n"
            case "tools" | "tools_opened":
                opened = constraint.kind == "tools_opened"
                rules = tool_grammar(spec, self._tokenizer.token_id(MARK), opened=opened)
        if not constraint.thinking:
            return "start: answer\n" + rules
        end = self._tokenizer.token_id(_THINK_END)
        free = f"/(.|\\n)*/ & ~/(.|\\n)*{literal(_THINK_END)[1:-1]}(.|\\n)*/"
        return f"start: REASONING <[{end}]> answer\nREASONING: {free}\n" + rules


def _reason(message: str) -> str:
    """What is wrong, without the excerpts of the grammar around it."""
    lines = message.split("\n")
    said = next((line for line in lines if line.startswith("error: ")), lines[0])
    said = re.sub(r"^at \d+\(\d+\): |^error: ", "", said).strip()
    return said if len(said) <= 200 else "…" + said[-200:]


def _without_anchors(pattern: str) -> str:
    """The whole answer is matched: a ^ in front and a $ at the end say nothing."""
    pattern = pattern.removeprefix("^")
    body = pattern.removesuffix("$")
    escaped = (len(body) - len(body.rstrip("\\"))) % 2 == 1
    return pattern if escaped else body


def _one_line(pattern: str) -> str:
    return pattern.replace("\n", "\\n").replace("\r", "\\r")


def _trie(tokenizer: Tokenizer, eos: int) -> LLTokenizer:
    """The vocabulary as llguidance walks it; special tokens are no text there."""
    from llguidance import LLTokenizer, TokenizerWrapper

    vocabulary = _Vocabulary(tokenizer, eos)
    trie = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=tokenizer.vocab_size)
    vocabulary.greedy = trie.greedy_tokenize
    return trie


class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        unused = set(tokenizer.unused_ids(tokenizer.vocab_size))
        # An id without bytes never is in a mask.
        self.tokens = [b"" if i in unused else tokenizer.bytes_of(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids.values())
        self.eos_token_id = eos
        self.greedy: Callable[[str], list[int]] = tokenizer.encode
        self._tokenizer = tokenizer

    def __call__(self, raw: bytes) -> list[int]:
        """How the tokenizer would write what the grammar leaves no choice about.

        It is asked before every token, and the first ones matter: the rest only has to be some tokens, soon.
        """
        text = raw.decode("utf-8")
        return [*self._tokenizer.encode(text[:_EXACT]), *self.greedy(text[_EXACT:])]
