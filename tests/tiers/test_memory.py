"""Sizes as users write them, and the RAM that is free."""

from __future__ import annotations

import pytest

from fourfold.errors import RequestError
from fourfold.tiers.memory import free_ram, parse_ram, written

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("1.5 MiB", 1_572_864), ("64KiB", 65536), ("4096", 4096), ("7B", 7), (5, 5)],
)
def test_sizes(text, size):
    assert parse_ram(text) == size


@pytest.mark.parametrize("text", ["24GB", "24gib", "-1", "0", "", "GiB", "1e9", 0, -5, True, 2.5])
def test_what_is_no_size(text):
    with pytest.raises(RequestError, match=r"ram is .*; allowed: a number of bytes above 0, or one with KiB"):
        parse_ram(text)


@pytest.mark.parametrize(
    ("size", "text"), [(7, "7 B"), (1536, "1.5 KiB"), (GIB, "1.0 GiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_for_people_are_sizes(size, text):
    assert written(size) == text
    assert parse_ram(text) == size


@pytest.fixture
def machine(tmp_path):
    """A root with 8 GiB available and no control groups; write(path, text) adds files."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:   {8 << 20} kB\n")
    return tmp_path, write


def test_without_control_groups_it_is_what_the_kernel_says(machine):
    assert free_ram(machine[0]) == 8 * GIB


def test_a_group_above_limits_too(machine):
    root, write = machine
    write("proc/self/cgroup", "0::/user/job\n")
    write("sys/fs/cgroup/user/job/memory.max", "max\n")
    write("sys/fs/cgroup/user/job/memory.current", "5\n")
    write("sys/fs/cgroup/user/memory.max", f"{4 * GIB}\n")
    write("sys/fs/cgroup/user/memory.current", f"{3 * GIB}\n")
    write("sys/fs/cgroup/user/memory.stat", f"anon 1\ninactive_file {GIB}\n")
    assert free_ram(root) == 2 * GIB  # page cache that can go is free


def test_in_a_container_the_top_group_is_the_limit(machine):
    root, write = machine
    write("proc/self/cgroup", "0::/docker/not-visible-here\n")
    write("sys/fs/cgroup/memory.max", f"{GIB}\n")
    write("sys/fs/cgroup/memory.current", f"{2 * GIB}\n")
    assert free_ram(root) == 0


def test_version_1_groups(machine):
    root, write = machine
    write("proc/self/cgroup", "4:cpu:/a\n3:hugetlb,memory:/a\n")
    write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{3 * GIB}\n")
    write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", f"{GIB}\n")
    assert free_ram(root) == 2 * GIB


def test_where_the_system_does_not_say(tmp_path):
    assert free_ram(tmp_path) is None
