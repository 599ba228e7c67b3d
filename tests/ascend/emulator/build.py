"""Brings torch_npu and builds the emulated CANN for it, both into build/ascend; nothing where both are there.

`python -m tests.ascend.emulator.build` needs pip's index, a C++20 compiler (CXX, c++) and the torch that
torch_npu is made for.  Nothing is installed into the environment: with torch_npu in it, `import torch` would
fail wherever CANN is missing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "build" / "ascend"
VERSION = "2.13.0"
_TORCH = Path(torch.__file__).parent
_FLAGS = ["-std=c++20", "-O0", "-fPIC", "-fvisibility-inlines-hidden", "-Wall", "-Wno-unused-function"]
# torch_npu links against these too, and takes nothing from them.
_EMPTY = ("libhccl", "libacl_op_compiler", "libge_runner", "libgraph", "libacl_tdt_channel")


def wheel() -> Path:
    """The folder that torch_npu was unpacked into, for PYTHONPATH."""
    folder = BUILD / f"torch_npu-{VERSION}"
    if not (folder / "torch_npu" / "version.py").exists():
        if torch.__version__.partition("+")[0] != VERSION:
            raise SystemExit(f"torch is {torch.__version__}; torch_npu {VERSION} is made for torch {VERSION}")
        install = ["install", "--quiet", "--no-deps", "--target", str(folder), f"torch_npu=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return folder


def libraries() -> Path:
    """The folder of the built libraries, for LD_LIBRARY_PATH."""
    include = wheel() / "torch_npu" / "include"
    sources = sorted(HERE.glob("*/*.cpp"))
    folder = BUILD / f"lib-{_digest([*sources, *HERE.glob('*/*.h'), HERE / 'build.py'])}"
    if (folder / "libopapi.so").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    headers = ["-isystem", str(include), "-isystem", str(include / "third_party" / "acl" / "inc")]
    _compile_all(sources, folder, headers)
    _link("libascendcl", sorted(folder.glob("acl-*.o")), folder, [])
    for name in _EMPTY:
        _link(name, [], folder, ["-Wl,--no-as-needed", "-lascendcl"])
    _link("libopapi", sorted(folder.glob("opapi-*.o")), folder, ["-ltorch_cpu", "-lc10", "-lascendcl"])
    return folder


def _digest(files: Iterable[Path]) -> str:
    content = hashlib.sha256(torch.__version__.encode())
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()[:12]


def _compile_all(sources: list[Path], folder: Path, headers: list[str]) -> None:
    """An object a source.  The ATen headers, a third of the work each time, are compiled once."""
    torch_headers = ["-isystem", str(_TORCH / "include"), *headers]
    entry = folder / "entry.h"
    entry.write_bytes((HERE / "opapi" / "entry.h").read_bytes())
    hidden = "-fvisibility=hidden"
    _run([*_FLAGS, hidden, *torch_headers, "-x", "c++-header", str(entry), "-o", f"{entry}.gch"])

    def compile_one(source: Path) -> None:
        part = source.parent.name
        own = [hidden, *torch_headers, "-include", str(entry)] if part == "opapi" else headers
        _run([*_FLAGS, *own, "-c", str(source), "-o", str(folder / f"{part}-{source.stem}.o")])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compile_one, sources))


def _link(name: str, objects: list[Path], folder: Path, libraries: list[str]) -> None:
    paths = [f"-L{folder}", f"-L{_TORCH / 'lib'}"]
    target = folder / f"{name}.so"
    _run(["-shared", *map(str, objects), "-o", str(target), f"-Wl,-soname,{name}.so", *paths, *libraries])


def _run(arguments: list[str]) -> None:
    subprocess.run([os.environ.get("CXX", "c++"), *arguments], check=True)


if __name__ == "__main__":
    print(wheel())
    print(libraries())
