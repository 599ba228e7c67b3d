"""Memory nodes: a tree as Linux shows it, pages that alternate between them, helpers that stay on one."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourfold.kernels import cpu
from fourfold.kernels.cpu import nodes
from fourfold.kernels.cpu.nodes import Node

native = pytest.mark.skipif(not cpu.available(), reason="the extension is not built")
linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux binds memory and threads")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two sockets of four processors, and memory without processors as node 2; node 3 has none at all."""
    (tmp_path / "has_memory").write_text("0-2\n", encoding="ascii")
    for number, cpus in enumerate(("0-1,4-5", "2-3,6-7", "", "8")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{cpus}\n", encoding="ascii")
    return tmp_path


def test_the_tree_of_two_sockets(tree, monkeypatch):
    found = nodes.read(tree, frozenset(range(8)))
    assert found == (Node(0, (0, 1, 4, 5)), Node(1, (2, 3, 6, 7)), Node(2, ()))
    monkeypatch.setattr(nodes, "here", lambda: found)
    assert nodes.processors() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_only_processors_that_we_may_use_count(tree, monkeypatch):
    found = nodes.read(tree, frozenset({2, 7}))
    assert [node.cpus for node in found] == [(), (2, 7), ()]
    monkeypatch.setattr(nodes, "here", lambda: found)
    assert nodes.processors() == []


def test_a_system_that_does_not_tell(tmp_path):
    assert nodes.read(tmp_path / "nothing", frozenset({0})) == ()
    (tmp_path / "has_memory").write_text("none of yours", encoding="ascii")
    assert nodes.read(tmp_path, frozenset({0})) == ()


def test_this_machine():
    assert all(set(node.cpus) <= set(range(4096)) for node in nodes.here())


@native
@linux
def test_pages_alternate_where_the_system_allows(monkeypatch):
    memory = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    asked = []

    def refuse(*request: object) -> bool:
        asked.append(request)
        return False

    monkeypatch.setattr(nodes, "here", lambda: (Node(0, (0,)),))
    assert not cpu.interleave(address, len(memory))  # one node: nothing is asked for
    monkeypatch.setattr(nodes, "here", lambda: (Node(0, (0,)), Node(1, (1,))))
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "native", type("Refusing", (), {"interleave": staticmethod(refuse)}))
        assert not cpu.interleave(address, len(memory))
    assert asked == [(address, len(memory), [0, 1])]
    assert cpu.native is not None
    assert not cpu.native.interleave(address + 1, 4096, [0])  # not at a page: the kernel says no
    assert not cpu.native.interleave(address, 4096, [-1])
    torch.frombuffer(memory, dtype=torch.uint8).fill_(1)  # the memory is as good as before


@native
@linux
def test_a_helper_stays_on_its_processors():
    """In a process of its own: helpers of this one have started already."""
    script = (
        "import os, time, torch\n"
        "from fourfold.kernels import cpu\n"
        "one = min(os.sched_getaffinity(0))\n"
        "cpu.native.place_helpers([[one], [one]])\n"
        "cpu.use_threads(2)\n"
        "x = torch.randn(512, 2048)\n"
        "until, least = time.monotonic() + 20, 9\n"
        "while least > 1 and time.monotonic() < until:\n"
        "    cpu.native.rms_norm(x, None, 1e-6, torch.empty_like(x))\n"
        "    threads = [int(name) for name in os.listdir('/proc/self/task')]\n"
        "    least = min(len(os.sched_getaffinity(thread)) for thread in threads)\n"
        "print(least, len(os.sched_getaffinity(0)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    least, own = map(int, done.stdout.split())
    assert (least, own) == (1, len(os.sched_getaffinity(0)))
