"""Show an answer as it comes, and what it cost, with nothing but Python's library.

fourfold serve
python examples/server/live.py http://127.0.0.1:8000 "Tell me a story."
"""

import json
import sys
import urllib.request

url, question = sys.argv[1:]
with urllib.request.urlopen(f"{url}/v1/models") as reply:
    model = json.load(reply)["data"][0]["id"]
body = {
    "model": model,
    "messages": [{"role": "user", "content": question}],
    "max_tokens": 200,
    "stream": True,
    "stream_options": {"include_usage": True},
}
request = urllib.request.Request(
    f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
)
with urllib.request.urlopen(request) as reply:
    for line in reply:
        if not line.startswith(b"data: {"):
            continue  # a comment that keeps the line alive, an empty line, or the end
        chunk = json.loads(line[6:])
        for choice in chunk["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
        used = chunk.get("usage")
print(f"\n{used['completion_tokens']} tokens, {used['prompt_cache_hit_tokens']} of the prompt cached")
