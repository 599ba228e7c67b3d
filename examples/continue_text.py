"""Continue a text, piece by piece.  python examples/continue_text.py [CHECKPOINT]"""

import sys

import fourfold

m = fourfold.load(sys.argv[1] if len(sys.argv) > 1 else fourfold.shipped_model())
answer = fourfold.generate(m, "Once upon a time", max_tokens=60, temperature=0.7, seed=1)
for piece in answer:
    print(piece, end="", flush=True)
print(f"\n{len(answer.ids)} tokens, ended by: {answer.finish_reason}, seed {answer.sampling.seed}")
