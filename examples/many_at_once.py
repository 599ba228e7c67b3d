"""Several texts of different lengths in one pass, each with its own cache.

python examples/many_at_once.py [CHECKPOINT]
"""

import sys

import torch

import fourfold

m = fourfold.load(sys.argv[1] if len(sys.argv) > 1 else fourfold.shipped_model())
assert m.tokenizer is not None
texts = ["The cat", "One day a girl went to the park and", "He said"]
rows = [[m.config.bos_token_id, *m.tokenizer.encode(text)] for text in texts]
caches = [m.new_cache() for _ in rows]
fresh = [torch.tensor(row) for row in rows]
for _ in range(12):
    logits = m.packed(fresh, caches)
    fresh = [row[-1:].argmax(-1) for row in logits]
    for row, token in zip(rows, fresh, strict=True):
        row.append(int(token))
for row in rows:
    print(m.tokenizer.decode(row[1:]))
