"""An engine in a process of its own: serves prompts, says what came out, and may be killed.

python -m tests.engine.served <model> <numerics> <cache_dir> <prompts as JSON> <times>
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from typing import Any
from unittest.mock import patch

import fourfold
from fourfold import EngineConfig, Request, Sampling
from fourfold.engine import work as module
from fourfold.engine.engine import Engine
from fourfold.engine.sampler import sample
from fourfold.model.transformer import Transformer

MOST = 10


def serve(
    model: Transformer, cache_dir: str | None, prompts: list[list[int]], first: int = 0, **values: Any
) -> list[dict[str, Any]]:
    """Ids, a hash of all logits, and cached tokens of each answer; all prompts at once, their seeds counted
    from `first`."""
    seen: defaultdict[int | None, Any] = defaultdict(hashlib.sha256)

    def watched(logits: Any, sampling: Sampling, position: int) -> int:
        seen[sampling.seed].update(logits.numpy().tobytes())
        return sample(logits, sampling, position)

    with patch.object(module, "sample", watched):
        config = EngineConfig(**{"max_running": 3, "step_tokens": 60, "cache_dir": cache_dir, **values})
        with Engine(model, config) as own:
            answers = [
                own.submit(Request(prompt=prompt, max_tokens=MOST, sampling=Sampling(seed=seed)))
                for seed, prompt in enumerate(prompts, first)
            ]
            for answer in answers:
                list(own.chunks(answer))
    return [
        {"ids": answer.ids, "logits": seen[seed].hexdigest(), "cached": answer.cached_tokens}
        for seed, answer in enumerate(answers, first)
    ]


if __name__ == "__main__":
    folder, numerics, cache_dir, prompts, times = sys.argv[1:]
    served = fourfold.load(folder, numerics=numerics)
    for _ in range(int(times)):
        print(json.dumps(serve(served, cache_dir, json.loads(prompts))), flush=True)
