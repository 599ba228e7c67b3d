"""Let a model behind a server call a function of this program, until it answers.

fourfold serve MODEL
python examples/server/tool_loop.py http://127.0.0.1:8000 "What is 6 times 7?"
"""

import json
import sys

import openai

TOOL = {
    "name": "multiply",
    "description": "The product of two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
    "strict": True,
}

url, question = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": question}]
while True:
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=[{"type": "function", "function": TOOL}]
    ).choices[0]
    messages.append(answer.message.model_dump(exclude_none=True))
    if answer.finish_reason != "tool_calls":
        break
    for call in answer.message.tool_calls:
        values = json.loads(call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(values["a"] * values["b"])})
print(answer.message.content)
