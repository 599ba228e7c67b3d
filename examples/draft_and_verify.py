"""Guess what comes next from what was said before, check all guesses in one pass, take back the wrong ones.

python examples/draft_and_verify.py [CHECKPOINT]
"""

import sys

import torch

import fourfold

m = fourfold.load(sys.argv[1] if len(sys.argv) > 1 else fourfold.shipped_model())
assert m.tokenizer is not None
prompt = "The cat sat on the mat. The dog sat on the mat. The cat"
ids = [m.config.bos_token_id, *m.tokenizer.encode(prompt)]
cache = m.new_cache()
ids.append(int(m(torch.tensor([ids]), cache=cache).logits[0, -1].argmax()))
passes = right = 0
for _ in range(12):
    # The draft: what followed the last occurrence of the newest token.
    before = [i for i, token in enumerate(ids[:-1]) if token == ids[-1]]
    draft = ids[before[-1] + 1 :][:4] if before else []
    choices = m(torch.tensor([[ids[-1], *draft]]), cache=cache).logits[0].argmax(-1).tolist()
    accepted = 0
    while accepted < len(draft) and draft[accepted] == choices[accepted]:
        accepted += 1
    cache.rollback(len(draft) - accepted)  # as if the wrong guesses had never been seen
    ids += choices[: accepted + 1]
    passes, right = passes + 1, right + accepted
print(m.tokenizer.decode(ids[1:]))
print(f"{passes + right} tokens in {passes} passes")
