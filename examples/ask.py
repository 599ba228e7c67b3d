"""Ask a question in the chat format and split reasoning from answer.  python examples/ask.py [CHECKPOINT]"""

import sys

import fourfold
from fourfold.protocol import Chat, TextDelta

m = fourfold.load(sys.argv[1] if len(sys.argv) > 1 else fourfold.shipped_model())
assert m.tokenizer is not None
chat = Chat(
    messages=[
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "What do cats eat?"},
    ],
    thinking=False,
)
parser = chat.parser()
answer = fourfold.generate(m, chat.prompt().encode(m.tokenizer), max_tokens=40, temperature=0.7, seed=1)
parts = [part for piece in answer for part in parser.push(piece)] + parser.finish()
texts = [part for part in parts if isinstance(part, TextDelta)]
print("reasoning:", "".join(part.text for part in texts if part.reasoning))
print("answer:   ", "".join(part.text for part in texts if not part.reasoning))
