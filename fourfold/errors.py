"""The whole exception tree: everything a user can cause is a FourfoldError.

A message says what is wrong, the value, what is allowed and what to do about it.  Our own mistakes
are assertions instead.
"""

from __future__ import annotations


class FourfoldError(Exception):
    """Base of every error that Fourfold raises on purpose."""


class ConfigError(FourfoldError):
    """A config.json that is missing something, contradicts itself or asks for what we do not compute."""


class CheckpointError(FourfoldError):
    """Weights that are truncated, missing, of the wrong shape or type, or cannot be converted."""


class KernelError(FourfoldError):
    """An operation that no kernel of this device can run, or a setting of the kernels that is not allowed."""


class RequestError(FourfoldError):
    """Arguments that a caller passed and that cannot be served: token ids, lengths, sampling options."""


class CacheError(FourfoldError):
    """A KV cache used beyond what it holds: too long, rolled back too far, of another model."""


class TokenizerError(FourfoldError):
    """A tokenizer that is missing, unreadable or does not fit the model."""


class DownloadError(FourfoldError):
    """A model that could not be found in, or brought from, the model hub."""


class TrainError(FourfoldError):
    """A training run that cannot start, continue or resume."""
