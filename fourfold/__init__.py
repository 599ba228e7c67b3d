"""Fourfold: DeepSeek-V4, exactly, on any chip."""

from fourfold.config import ModelConfig
from fourfold.engine.generate import generate
from fourfold.errors import (
    CacheError,
    CheckpointError,
    ConfigError,
    DownloadError,
    FourfoldError,
    KernelError,
    RequestError,
    TokenizerError,
    TrainError,
)
from fourfold.loading import load, shipped_model
from fourfold.model.cache import Cache
from fourfold.model.transformer import Output, Transformer
from fourfold.tokenizer import tokenizer

__version__ = "0.1.0"

__all__ = [
    "Cache",
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "FourfoldError",
    "KernelError",
    "ModelConfig",
    "Output",
    "RequestError",
    "TokenizerError",
    "TrainError",
    "Transformer",
    "__version__",
    "generate",
    "load",
    "shipped_model",
    "tokenizer",
]
