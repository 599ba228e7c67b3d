"""Fourfold: DeepSeek-V4, exactly, on any chip."""

import os

# Read once, when torch loads its OpenMP: workers that spin between operations starve the native kernels'
# threads and everything else on the machine (two busy cores: 20 times slower).  Who sets it knows better.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from fourfold.config import ModelConfig
from fourfold.engine.answer import Chunk
from fourfold.engine.config import EngineConfig
from fourfold.engine.constraint import Constraint
from fourfold.engine.engine import Engine
from fourfold.engine.generate import generate
from fourfold.engine.logprobs import TokenLogprob
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
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
    "Chunk",
    "ConfigError",
    "Constraint",
    "DownloadError",
    "Engine",
    "EngineConfig",
    "FourfoldError",
    "KernelError",
    "ModelConfig",
    "Output",
    "Request",
    "RequestError",
    "Sampling",
    "TokenLogprob",
    "TokenizerError",
    "TrainError",
    "Transformer",
    "__version__",
    "generate",
    "load",
    "shipped_model",
    "tokenizer",
]
