"""The device itself: torch_npu is brought here and nowhere else, and set up for exact results."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold.errors import KernelError
from fourfold.kernels.ascend.generation import Generation, generation_of
from fourfold.kernels.recording import Recording

_HELP = "docs/ascend.md says how to install torch_npu and CANN beside fourfold"


def bring_torch_npu() -> None:
    """Make torch know the device type `npu`; nothing where it already does.

    KernelError: torch_npu or CANN is missing, or there is no device.
    """
    if not hasattr(torch, "npu"):
        try:
            importlib.import_module("torch_npu")
        except ModuleNotFoundError as error:
            raise KernelError(
                f"device npu needs the package torch_npu ({error}); install the release for torch "
                f"{torch.__version__.partition('+')[0]}: {_HELP}"
            ) from error
        except (ImportError, RuntimeError) as error:
            raise KernelError(
                f"torch_npu cannot be imported ({str(error).splitlines()[0]}); CANN is missing, or its "
                f"set_env.sh was not run in this shell: {_HELP}"
            ) from error
    if _module().device_count() == 0:
        raise KernelError("torch_npu sees no NPU; npu-smi info says what the driver sees")


def bring_packages() -> None:
    """Import the operator packages that FOURFOLD_ASCEND_PACKAGES names; they register their operators.

    KernelError: one cannot be imported.
    """
    for name in filter(None, os.environ.get("FOURFOLD_ASCEND_PACKAGES", "").split(",")):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever another package's import may raise
            raise KernelError(
                f"FOURFOLD_ASCEND_PACKAGES names {name}, which cannot be imported "
                f"({type(error).__name__}: {error}); allowed: modules, with commas between them"
            ) from error


def current_generation() -> Generation | None:
    """That of the current device; None for one that we do not know."""
    return generation_of(_name())


def settle() -> None:
    """Float32 products in float32, and sums whose order does not depend on the batch, where torch_npu can.

    The second is CANN's level 3 of determinism; torch then counts as deterministic, too.
    """
    if hasattr(_module(), "matmul"):
        _module().matmul.allow_hf32 = False
    if not hasattr(_module(), "set_deterministic_level"):
        return
    with warnings.catch_warnings():  # it remarks, twice, that it changes torch's own setting
        warnings.simplefilter("ignore")
        try:
            _module().set_deterministic_level(3)
        except RuntimeError:  # an older CANN
            return
    # Else torch would fill every tensor before the weights are copied into it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def graphs_wanted() -> bool:
    """False where the user wants every operation to be launched by itself."""
    return os.environ.get("FOURFOLD_ASCEND_GRAPHS") != "0"


def record(run: Callable[[], tuple[Tensor, ...]], beside: Recording | None) -> Recording:
    """Capture `run` as an NPUGraph: a `fourfold.kernels.recording.Recorder`."""
    if not hasattr(_module(), "NPUGraph"):
        raise KernelError("this torch_npu has no NPUGraph")
    graph = _module().NPUGraph()
    memory = _module().graph_pool_handle() if beside is None else beside.memory
    # What other threads do with the device is no part of it.
    with _module().graph(graph, pool=memory, capture_error_mode="thread_local"):
        results = run()
    return Recording(results, graph.replay, memory)


def describe() -> dict[str, str]:
    """Versions and facts of the current device, for reports; what cannot be asked is left out."""
    facts = {"device": _name(), "generation": str(current_generation() or "unknown")}
    captured = (
        "captured as graphs" if hasattr(_module(), "NPUGraph") else "not captured: torch_npu has no NPUGraph"
    )
    facts["decode steps"] = captured if graphs_wanted() else "not captured: FOURFOLD_ASCEND_GRAPHS=0"
    try:
        facts["torch_npu"] = importlib.import_module("torch_npu").__version__
        utils = importlib.import_module("torch_npu.npu.utils")
    except ImportError:
        return facts
    for label, part in (("CANN", "CANN"), ("driver", "DRIVER")):
        try:
            facts[label] = str(utils.get_cann_version(part)) or "unknown"
        except RuntimeError as error:
            facts[label] = f"unknown ({str(error).splitlines()[0]})"
    return facts


def _module() -> Any:
    return torch.get_device_module("npu")


def _name() -> str:
    name = getattr(_module(), "get_device_name", None)
    return "npu" if name is None else str(name())
