"""Rules of the source tree: imports point one way, public names are frozen, chips stay in their folders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fourfold

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fourfold"

# Layer -> the layers that it may import, besides itself.  Lower layers know nothing of higher ones.
BASE = {"errors", "tokenizer"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "tokenizer": {"errors"},
    "config": BASE,
    "kernels": BASE | {"config"},
    "weights": BASE | {"config", "kernels"},
    "plan": BASE | {"config", "kernels", "weights"},
    "model": BASE | {"config", "kernels"},
    "protocol": BASE,
    "tiers": BASE | {"config", "kernels", "model", "weights"},
    "loading": BASE | {"config", "kernels", "model", "tiers", "weights"},
    "calibration": BASE | {"config", "kernels", "loading", "model", "weights"},
    "engine": BASE | {"config", "kernels", "loading", "model", "protocol", "tiers"},
}
LOWER = {*MAY_IMPORT}
TOP = {"bench", "cli", "conformance", "distil", "evaluation", "server", "train", "worker"}

PUBLIC = {
    "Cache",
    "CacheError",
    "CheckpointError",
    "Chunk",
    "ConfigError",
    "Constraint",
    "DownloadError",
    "Engine",
    "EngineConfig",
    "FourfoldError",
    "KernelError",
    "ModelConfig",
    "Output",
    "Request",
    "RequestError",
    "Sampling",
    "TokenLogprob",
    "TokenizerError",
    "TrainError",
    "Transformer",
    "__version__",
    "generate",
    "load",
    "shipped_model",
    "tokenizer",
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside a function, by its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; write the full name"
            assert node.module is not None
            yield from (f"{node.module}.{name.name}" for name in node.names)


def layer(name: str) -> str:
    """'fourfold.kernels.cpu.ops' -> 'kernels'; config_json belongs to config, a name of the package to it."""
    part = name.split(".")[1]
    return "config" if part.startswith("config") else part


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sources():
        own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own in ("__init__", "__main__"):
            continue
        allowed = MAY_IMPORT.get(own, LOWER | TOP | PUBLIC) | {own}
        for name in imports(path):
            if name.startswith("fourfold.") and layer(name) not in allowed:
                wrong.append(
                    f"{path.relative_to(ROOT)} imports {name}; allowed: {', '.join(sorted(allowed))}"
                )
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_layer() -> None:
    found = {layer(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in sources()}
    assert found - {"__init__", "__main__"} <= LOWER | TOP


@pytest.mark.parametrize("chip", ["triton", "torch_npu"])
def test_a_chips_library_is_imported_in_its_folder_only(chip: str) -> None:
    homes = {"triton": PACKAGE / "kernels" / "triton", "torch_npu": PACKAGE / "kernels" / "ascend"}
    for path in sources():
        if not path.is_relative_to(homes[chip]):
            assert not any(name.split(".")[0] == chip for name in imports(path)), path


def test_public_names_are_frozen() -> None:
    assert set(fourfold.__all__) == PUBLIC
    assert all(hasattr(fourfold, name) for name in PUBLIC)


def test_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert fourfold.__version__ == project["version"]


def test_nothing_unsafe_or_unfinished_in_the_sources() -> None:
    unsafe = re.compile(
        r"\bimport pickle\b|\beval\(|\bexec\(|shell=True|weights_only=False|NotImplementedError"
    )
    unfinished = re.compile(r"#\s*(TODO|FIXME|XXX|HACK)\b")
    for path in sources():
        text = re.sub(r"\.eval\(\)", "", path.read_text(encoding="utf-8"))
        assert not unsafe.search(text), path
        assert not unfinished.search(text), path
