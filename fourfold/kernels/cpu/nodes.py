"""Memory nodes (NUMA): which there are, and pages and threads spread evenly over them.

A machine with several sockets, or a socket set to several nodes, reads at its full bandwidth only from all
nodes at once.  Weights are read by all threads, so their pages alternate between the nodes; helper threads
are dealt out to the nodes in turn and stay there.  On one node nothing of this happens.  No thread is bound
to a single processor: that gains nothing (docs/benchmarks.md), and none could leave one that others want.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TREE = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Node:
    """A node with memory; cpus: those of its processors that this process may use, perhaps none."""

    number: int
    cpus: tuple[int, ...]


@functools.cache
def here() -> tuple[Node, ...]:
    """The nodes of this machine, ascending; none where the system does not tell."""
    return read(_TREE, _usable())


def read(tree: Path, usable: frozenset[int]) -> tuple[Node, ...]:
    """The nodes that a tree such as /sys/devices/system/node describes; usable: the processors that count."""
    try:
        numbers = list(_listed(tree / "has_memory"))
        return tuple(
            Node(number, tuple(cpu for cpu in _listed(tree / f"node{number}/cpulist") if cpu in usable))
            for number in numbers
        )
    except (OSError, ValueError):  # not Linux, or a kernel without nodes
        return ()


def processors() -> list[list[int]]:
    """The processors of each node that has any; empty where there is one such node: nothing to choose."""
    groups = [list(node.cpus) for node in here() if node.cpus]
    return groups if len(groups) > 1 else []


def _listed(file: Path) -> Iterator[int]:
    """The numbers of a list such as 0-3,8."""
    for part in filter(None, file.read_text(encoding="ascii").strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _usable() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
