"""The thin adapter to `deepseek-recipe`, the publisher's own prompt and stream library."""

from fourfold.protocol.chat import AnswerParser, Chat, Delta, Effort, Prompt, PromptFormat, prompt_format

__all__ = ["AnswerParser", "Chat", "Delta", "Effort", "Prompt", "PromptFormat", "prompt_format"]
