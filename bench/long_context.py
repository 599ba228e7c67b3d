"""What long contexts cost, and whether they are computed right.

    python -m bench.long_context decode [--most 1048576] [--out results.json] [--plot curve.png]
    python -m bench.long_context retrieval [--tokens 131072] [--out results.json]

decode: two layers of V4-Flash's real shapes, one CSA and one HCA (8 experts, 1,024 words, random weights).  A
prompt of a million tokens would take hours here and fill the cache with rows of the same kinds, so they are
written to the cache directly, the way the model writes them.  At each length: the memory that the process
gained against what `fourfold plan` computes, the time of one token and of a chunk of 64, and by how much they
grew for each byte more that a token reads.  Nothing may grow faster than these bytes do.

retrieval: a prompt of 131,072 tokens with a fact near its beginning and a question at its end, on the shipped
model with its positions raised (what it answers does not count: it was trained on 2,048).  The engine reads
it in steps of 512 beside another request; the plain cache in chunks of 4,096: the logits after the question
and each token of the answer must have the same bits.  With another fact they must not: what was said 128k
tokens ago is seen.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fourfold
from bench.agent_trace import lengthened
from bench.gemv import commit
from bench.speculation import text_ids
from fourfold import Engine, EngineConfig, Request, Sampling
from fourfold.engine import work
from fourfold.kernels import cpu
from fourfold.kernels.cpu.processor import processor
from fourfold.model.paged import PagedCache
from fourfold.model.paged_layout import Span
from fourfold.model.transformer import Transformer
from fourfold.plan.demand import Demand
from fourfold.weights.synth import synthesise

PIECE = 512
PLAIN = 4096
CHUNK = 64
REPEATS = 15
SLICE = {"vocab_size": 1024, "compress_ratios": [4, 128], "num_hash_layers": 0, "num_nextn_predict_layers": 0}


def filled(model: Transformer, end: int, blocks: int, drawn: Tensor) -> PagedCache:
    """A cache whose slot 0 has seen `end` tokens, as far as it can tell.

    Entries and index keys are random; windows and pending inputs, which are soon overwritten, are `drawn`.
    """
    config = model.config
    cache = model.new_paged_cache(slots=1, blocks=blocks, call_tokens=PIECE)
    # Blocks in another order than their numbers, as after many requests.
    cache.assign(0, [7 * i % blocks for i in range(blocks)])
    for past in range(0, end, PIECE):
        new = min(PIECE, end - past)
        cache.begin([Span(0, past, new)])
        for kind, ratio, memory in zip(config.layer_kinds, config.layer_ratios, cache.layers, strict=True):
            channels = (4 if kind == "csa" else 2) * config.head_dim
            rows = (past + new) // ratio - past // ratio
            window = drawn[:, :new, : config.head_dim]
            memory.window.extend(model.numerics.kv(window, config.qk_rope_head_dim))
            memory.tail.extend(drawn[:, :new, :channels])
            entries = torch.randn(1, rows, config.head_dim)
            memory.entries.extend(model.numerics.kv(entries, config.qk_rope_head_dim))
            if kind == "csa":
                memory.index_tail.extend(drawn[:, :new, : 4 * config.index_head_dim])
                memory.index_entries.extend(
                    model.numerics.index_key(torch.randn(1, rows, config.index_head_dim))
                )
        cache.commit()
    return cache


def resident() -> int:
    """Bytes of memory that this process holds, what it has freed given back."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def timed(model: Transformer, cache: PagedCache, past: int, new: int) -> float:
    """Seconds of `new` tokens after `past`, the median of several times."""
    ids, wanted = torch.arange(new) % 1000 + 2, torch.tensor([new - 1])
    samples = []
    for _ in range(REPEATS if new == 1 else 5):
        begun = time.perf_counter()
        model.paged(ids, [Span(0, past, new)], cache, wanted)
        samples.append(time.perf_counter() - begun)
    return statistics.median(samples)


def decode(folder: Path, most: int, smaller: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Lengths from 4,096 to `most`, each four times the one before, each in a cache of just its size.

    smaller: keys of config.json that make the slice another model, for a look that takes no time.
    """
    overrides = SLICE | {"max_position_embeddings": most} | dict(smaller or {})
    synthesise(folder, like="flash", layers=2, experts=8, overrides=overrides, progress=False)
    model = fourfold.load(folder, numerics="fast")
    demand, shape = Demand.of(model.config), model.cache_shape
    drawn = torch.randn(1, PIECE, 4 * model.config.head_dim)
    rows: list[dict[str, Any]] = []
    lengths = [4096 << 2 * i for i in range(16) if 4096 << 2 * i <= most]
    for length in (lengths[0], *lengths):  # twice: the first calls pay for code and buffers
        past, before = length - CHUNK, resident()
        cache = filled(model, past, length // shape.block_tokens, drawn)
        row = {
            "tokens": length,
            "planned_bytes": demand.kv_size(past),
            # The staging area of a call is no part of a sequence, and neither is the cache's own slot.
            "gained_bytes": resident() - before - PIECE * shape.staged_bytes - shape.slot_bytes,
            "read_bytes": demand.kv_read(past),
            "operations": demand.attention_operations(past),
            "token_seconds": timed(model, cache, past, 1),
            "chunk_seconds": timed(model, cache, past, CHUNK),
        }
        if len(rows) == 1 and rows[0]["tokens"] == length:
            rows.clear()
        if rows:
            more = row["read_bytes"] - rows[-1]["read_bytes"]
            row["nanoseconds_a_byte"] = 1e9 * (row["token_seconds"] - rows[-1]["token_seconds"]) / more
            row["chunk_nanoseconds_a_byte"] = 1e9 * (row["chunk_seconds"] - rows[-1]["chunk_seconds"]) / more
        rows.append(row)
        print(json.dumps(row), flush=True)
        del cache
    return {"chunk": CHUNK, "slot_bytes": shape.slot_bytes, "block_bytes": shape.block_bytes, "rows": rows}


def retrieval(model: Transformer, tokens: int) -> dict[str, Any]:
    """The prompt through the engine and through a plain cache."""
    assert model.tokenizer is not None
    encode = model.tokenizer.encode
    text = text_ids(model)
    text = (text * (tokens // len(text) + 1))[:tokens]
    question = encode("\nWhere did Lily hide the key? Lily hid the key in the")

    def prompt(place: str) -> list[int]:
        fact = encode(f" Lily hid the golden key in the {place}. ")
        body = text[: tokens - len(question) - len(fact) - 1]
        return [0, *body[:1000], *fact, *body[1000:], *question]

    ids, other = prompt("garden"), prompt("kitchen")
    begun = time.perf_counter()
    engine_logits, answer = _by_engine(model, ids)
    engine_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    plain = _plainly(model, ids, answer)
    plain_seconds = time.perf_counter() - begun
    changed = _plainly(model, other, answer[:1])[0]
    return {
        "tokens": len(ids),
        "answer": model.tokenizer.decode(answer),
        "same_bits": all(torch.equal(a, b) for a, b in zip(engine_logits, plain, strict=True)),
        "same_tokens": [int(row.argmax()) for row in plain[: len(answer)]] == answer,
        "fact_is_seen": not torch.equal(changed, plain[0]),
        "engine_seconds": engine_seconds,
        "plain_seconds": plain_seconds,
    }


def _by_engine(model: Transformer, ids: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """Every logit that the engine sees after the prompt, and the greedy answer."""
    seen: list[Tensor] = []
    sample = vars(work)["sample"]

    def watched(logits: Tensor, sampling: Sampling, position: int) -> int:
        if sampling.seed == 1:
            seen.append(logits.clone())
        return sample(logits, sampling, position)

    blocks = -(-(len(ids) + 1000) // model.cache_shape.block_tokens)
    config = EngineConfig(max_running=2, snapshots=2, memory="512MiB")
    assert blocks * model.cache_shape.block_bytes < 1 << 29
    vars(work)["sample"] = watched
    try:
        with Engine(model, config) as own:
            beside = own.submit(Request(prompt=ids[2000:2300], max_tokens=200, sampling=Sampling(seed=2)))
            greedy = Sampling(temperature=0.0, seed=1)
            answer = own.submit(Request(prompt=ids, max_tokens=16, sampling=greedy, ignore_eos=True))
            for _ in own.chunks(answer):
                pass
            own.cancel(beside, wait=True)
    finally:
        vars(work)["sample"] = sample
    return seen, answer.ids


@torch.no_grad()
def _plainly(model: Transformer, ids: Sequence[int], answer: Sequence[int]) -> list[Tensor]:
    """Logits after the prompt and after each token of the answer but the last, by a cache of one sequence."""
    cache = model.new_cache()
    for start in range(0, len(ids), PLAIN):
        last = model(torch.tensor([ids[start : start + PLAIN]]), cache, logits="last").logits[0, -1]
    rows = [last]
    for token in answer[:-1]:
        rows.append(model(torch.tensor([[token]]), cache, logits="last").logits[0, -1])
    return rows


def plot(document: dict[str, Any], file: Path) -> None:
    """Seconds a token and memory over the length, with what bytes alone predict."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = document["rows"]
    lengths = [row["tokens"] for row in rows]
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    first, last = rows[0], rows[-1]
    for axes, key, title in (
        (left, "token_seconds", "one token"),
        (left, "chunk_seconds", f"{document['chunk']} tokens"),
    ):
        (line,) = axes.plot(lengths, [1e3 * row[key] for row in rows], "o-", label=f"{title}, measured")
        rate = (last[key] - first[key]) / (last["read_bytes"] - first["read_bytes"])
        expected = [1e3 * (first[key] + rate * (row["read_bytes"] - first["read_bytes"])) for row in rows]
        axes.plot(lengths, expected, "--", color=line.get_color(), label="as the bytes it reads")
    left.set(xscale="log", yscale="log", xlabel="tokens before", ylabel="milliseconds")
    right.plot(
        lengths, [row["planned_bytes"] / 1e6 for row in rows], "--", color="#c44e52", label="fourfold plan"
    )
    right.plot(
        lengths, [row["gained_bytes"] / 1e6 for row in rows], "o", color="#4c72b0", label="the process gained"
    )
    right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="MB of cache")
    for axes in (left, right):
        axes.set_xticks(lengths, [f"{n // 1024}k" if n < 1 << 20 else f"{n >> 20}M" for n in lengths])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"a CSA and an HCA layer of V4-Flash, {document['processor']}, one thread", fontsize=10)
    figure.savefig(file, dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["decode", "retrieval"])
    parser.add_argument("--model", type=Path, default=fourfold.shipped_model(), help="of retrieval")
    parser.add_argument("--tokens", type=int, default=131_072, help="of retrieval's prompt")
    parser.add_argument("--most", type=int, default=1 << 20, help="decode's last length")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cpu.use_threads(1)
    if options.part == "decode":
        with tempfile.TemporaryDirectory() as folder:
            result = decode(Path(folder) / "slice", options.most)
    else:
        with lengthened(options.model, options.tokens + 1000) as path:
            result = retrieval(fourfold.load(path, numerics="fast"), options.tokens)
    document = {
        "question": f"long context, {options.part}",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "isa": cpu.describe()["isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "command": "python -m bench.long_context " + " ".join(sys.argv[1:]),
        "note": options.note,
        **result,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None and options.part == "decode":
        plot(document, options.plot)
    print(json.dumps({key: value for key, value in document.items() if key != "rows"}))


if __name__ == "__main__":
    main()
