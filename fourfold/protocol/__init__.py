"""Between protocols and the model: prompts by `deepseek-recipe`, the publisher's own library, and answers."""

from fourfold.protocol.chat import Chat, Effort
from fourfold.protocol.conversion import (
    Family,
    Prompt,
    PromptFormat,
    Turn,
    convert,
    prompt_format,
    thinks_unasked,
)
from fourfold.protocol.parser import AnswerParser, Part, Stage, TextDelta, joined
from fourfold.protocol.tool_calls import CallDelta
from fourfold.protocol.tool_grammar import MARK as TOOL_MARK

__all__ = [
    "TOOL_MARK",
    "AnswerParser",
    "CallDelta",
    "Chat",
    "Effort",
    "Family",
    "Part",
    "Prompt",
    "PromptFormat",
    "Stage",
    "TextDelta",
    "Turn",
    "convert",
    "joined",
    "prompt_format",
    "thinks_unasked",
]
