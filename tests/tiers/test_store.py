"""Fewer slots than experts: bit for bit the answers of a model that holds them all, and faults survived."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import threading
from contextlib import nullcontext

import pytest
import torch

import fourfold
from fourfold import kernels
from fourfold.errors import CheckpointError
from fourfold.model.paged_layout import Span
from fourfold.tiers.copy import copied
from tests.tiers.conftest import table_of

NUMERICS = ("exact", "deployed", "fast")
EXPERTS = 40  # of tiny_folder: 4 layers and an MTP block of 8


@pytest.fixture(scope="module", autouse=True, params=["reference", "installed"])
def kernels_in_use(request):
    """Everything here holds for the plain reference and for what this machine runs by itself."""
    with kernels.replaced("cpu", {}) if request.param == "reference" else nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 400, (1, 90), generator=torch.Generator().manual_seed(1))


def answer(model, ids):
    """All that a model computes: a chunked prefill, single tokens, sequences in one pass, MTP guesses."""
    out = []
    with torch.no_grad():
        cache = model.new_cache()
        for begin, end in ((0, 40), (40, 41), (41, 80)):
            out.append(model(ids[:, begin:end], cache).logits)
        for i in range(80, 85):
            out.append(model(ids[:, i : i + 1], cache).logits)
        pages = model.new_paged_cache(slots=2, blocks=2, call_tokens=8)
        for slot in (0, 1):
            pages.assign(slot, [slot])
        out.append(model.paged(ids[0, :8], [Span(0, 0, 3), Span(1, 0, 5)], pages, torch.arange(8)))
        whole = model(ids, mtp=True)
        out += [whole.logits, whole.mtp_logits]
    return out


@pytest.fixture(scope="module")
def wanted(kernels_in_use, tiny_folder, ids):
    """By numerics: what the resident model answers."""
    return {n: answer(fourfold.load(tiny_folder, numerics=n), ids) for n in NUMERICS}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("share", [10, 25, 50, 75, 100])
@pytest.mark.parametrize("numerics", NUMERICS)
def test_bits_equal_the_resident_models(tiered, tiny_folder, ids, wanted, share, numerics):
    model = tiered(tiny_folder, EXPERTS * share // 100, numerics)
    assert same(answer(model, ids), wanted[numerics])
    stats = model.tiers.stats()
    assert stats.prefetched > 0 and (stats.hits > 0 or share == 10)
    assert stats.slots == EXPERTS * share // 100 and stats.experts == EXPERTS
    if share == 100:
        # Nothing is evicted, and only wrong guesses that were given up halfway are read again.
        most = EXPERTS + stats.prefetch_wasted
        assert stats.bytes_read <= most * table_of(tiny_folder).expert_bytes


def test_bits_equal_from_the_copy(tiered, tiny_folder, ids, wanted, tmp_path):
    model = tiered(tiny_folder, 10, table=copied(table_of(tiny_folder), tmp_path))
    assert same(answer(model, ids), wanted["exact"])


def test_bits_equal_while_reads_come_in_any_order(tiered, tiny_folder, ids, wanted, monkeypatch):
    """Passes end where an expert is late; here every third one is."""
    real, count, lock = os.preadv, [0], threading.Lock()

    def slow(*args):
        with lock:
            count[0] += 1
            late = count[0] % 3 == 0
        if late:
            threading.Event().wait(0.002)
        return real(*args)

    monkeypatch.setattr(os, "preadv", slow)
    model = tiered(tiny_folder, 12)
    assert same(answer(model, ids), wanted["exact"])
    assert model.tiers.stats().stall_seconds > 0


def test_two_threads_share_a_model(tiered, tiny_folder, ids, wanted):
    model, results = tiered(tiny_folder, 12), {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: answer(model, ids)})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(results[0], wanted["exact"]) and same(results[1], wanted["exact"])


def test_known_experts_are_read_before_their_layer_runs(tiered, tiny_folder, ids):
    """Hash layers alone: after a first layer that waits, nothing is a miss."""
    model = tiered(tiny_folder, EXPERTS)
    seen = []
    for block in model.layers[:2]:
        assert block.ffn.gate.hashed
        block.ffn.register_forward_pre_hook(lambda *_: seen.append(model.tiers.stats()))
    with torch.no_grad():
        model(ids[:, :30])
    assert model.tiers.blocks[1].ffn.gate.tid2eid[ids[0, :30]].unique().numel() == 8
    here = model.tiers.cache.slot[8:16]
    assert (here >= 0).all()


def test_stats_subtract_and_become_json(tiered, tiny_folder, ids):
    model = tiered(tiny_folder, 20)
    with torch.no_grad():
        model(ids)
        before = model.tiers.stats()
        model(ids)
    spent = model.tiers.stats() - before
    assert spent.slots == 20 and 0 < spent.hits + spent.prefetched + spent.misses <= 32
    assert set(spent.to_dict()) >= {"hits", "misses", "bytes_read", "stall_seconds", "prefetched"}


def test_the_stacks_are_counted_once(tiered, tiny_folder):
    model = tiered(tiny_folder, 4)
    stacks = {p.data_ptr() for n, p in model.named_parameters() if ".ffn.experts." in n}
    named = [n for n, _ in model.named_parameters() if ".ffn.experts." in n]
    assert len(stacks) == len(named) == 6
    assert not any(p.is_meta for p in model.parameters())


@pytest.fixture
def broken(tiered, tiny_folder, tmp_path):
    """A model whose checkpoint may be damaged, its file and that file's content and state."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (shard,) = folder.glob("*.safetensors")
    return tiered(folder, 6), shard, shard.read_bytes(), shard.stat()


def test_a_truncated_checkpoint_fails_the_request_and_no_more(broken, ids, wanted):
    model, shard, content, status = broken
    with torch.no_grad():
        cache = model.new_cache()
        first = [model(ids[:, 0:40], cache).logits]
        with shard.open("r+b") as stream:
            stream.truncate(len(content) // 2)
        with pytest.raises(CheckpointError, match="changed while it was in use"):
            model(ids[:, 40:41], cache)
        assert cache.length == 40
        shard.write_bytes(content)
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        first.append(model(ids[:, 40:41], cache).logits)
    assert same(first, wanted["exact"][:2])


def test_a_checkpoint_that_is_written_to_fails_the_request_and_no_more(broken, ids, wanted):
    model, shard, content, status = broken
    with torch.no_grad():
        with shard.open("r+b") as stream:
            stream.write(b"\xff" * 8)
        os.utime(shard, ns=(1, 1))
        with pytest.raises(CheckpointError, match="bytes when it was opened, written to since"):
            model(ids[:, :40])
        shard.write_bytes(content)
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert torch.equal(model(ids[:, :40]).logits, wanted["exact"][0])


def test_a_checkpoint_that_is_replaced_or_removed_is_read_on(broken, ids, wanted):
    model, shard, content, _ = broken
    shard.with_suffix(".new").write_bytes(content[::-1])
    shard.with_suffix(".new").rename(shard)
    with torch.no_grad():
        assert torch.equal(model(ids[:, :40]).logits, wanted["exact"][0])
        shard.unlink()
        assert torch.equal(model(ids[:, :40]).logits, wanted["exact"][0])


def test_a_prefill_reads_each_expert_once_a_chunk(tiered, tiny_folder, ids):
    """Fewer slots than a chunk's experts, more than one layer's: nothing is read twice on its way."""
    model = tiered(tiny_folder, 12)
    with torch.no_grad():
        model(ids[:, :64])
    stats = model.tiers.stats()
    asked = stats.hits + stats.prefetched + stats.misses
    assert asked <= 32 and stats.bytes_read <= asked * table_of(tiny_folder).expert_bytes


def test_input_errors_fail_the_requests_they_concern(broken, ids, wanted, monkeypatch):
    model, *_ = broken
    real, count, lock = os.preadv, [0], threading.Lock()

    def flaky(*args):
        with lock:
            count[0] += 1
            bad = count[0] % 7 == 0
        if bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(os, "preadv", flaky)
        failed = 0
        for _ in range(6):
            try:
                assert torch.equal(model(ids[:, :40]).logits, wanted["exact"][0])
            except CheckpointError as error:
                failed += 1
                assert "cannot be read (Input/output error)" in str(error)  # noqa: PT017
        assert failed
    assert same(answer(model, ids), wanted["exact"])


def test_threads_end_and_files_close_with_the_model(tiny_folder):
    model = fourfold.load(tiny_folder, ram="1700KiB")
    assert model.tiers is not None
    threads = [t for t in threading.enumerate() if t.name.startswith("fourfold-read")]
    assert threads
    del model
    gc.collect()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_a_closed_model_says_so(tiered, tiny_folder, ids):
    model = tiered(tiny_folder, 6)
    model.tiers.close()
    with pytest.raises(CheckpointError, match="load the model again"):
        model(ids)
