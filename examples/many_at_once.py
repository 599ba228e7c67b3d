"""Several texts at once on one engine, and a second round that finds their beginnings computed.

python examples/many_at_once.py [CHECKPOINT]
"""

import asyncio
import sys

import fourfold
from fourfold import Request, Sampling


async def tell(engine: fourfold.Engine, text: str, seed: int) -> str:
    request = Request(prompt=text, max_tokens=24, sampling=Sampling(temperature=0.7, seed=seed))
    return "".join([chunk.text async for chunk in engine.generate(request)])


async def main() -> None:
    m = fourfold.load(sys.argv[1] if len(sys.argv) > 1 else fourfold.shipped_model())
    texts = ["The cat", "One day a girl went to the park and", "He said"]
    with fourfold.Engine(m) as engine:
        for seed in (1, 2):
            for text, more in zip(
                texts, await asyncio.gather(*(tell(engine, t, seed) for t in texts)), strict=True
            ):
                print(text + more)
        counters = engine.stats().counters
    print(f"{counters.computed_tokens} tokens in {counters.steps} steps")


asyncio.run(main())
