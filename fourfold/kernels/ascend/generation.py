"""What the generations of Ascend chips can do, as far as it decides which operators run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation, told from the beginning of the device's name.

    fp8, mxfp4, int4: types that its matrix units multiply, besides bf16, fp16 and int8.  nz: whether weights
    gain from the blocked layout NZ.  aclnn_only: an operator without an aclnn entry point does not run.
    graph: captured graphs (NPUGraph).
    """

    name: str
    device: str
    fp8: bool
    mxfp4: bool
    int4: bool
    nz: bool
    aclnn_only: bool
    graph: bool

    def __str__(self) -> str:
        types = [label for label, known in (("FP8", self.fp8), ("MXFP4", self.mxfp4)) if not known]
        return self.name + (f", without {' and '.join(types)}" if types else "")


# Names and aclnn: torch_npu 2.13.0 (NpuVariables.h; it refuses aclop operators on the 950).  Types and
# layout: the operators' documentation in Ascend/op-plugin and hicann/cann-recipes-infer, August 2026.
GENERATIONS = (
    Generation(
        name="A2", device="Ascend910B",
        fp8=False, mxfp4=False, int4=True, nz=True, aclnn_only=False, graph=True,
    ),
    Generation(
        name="A3", device="Ascend910_93",
        fp8=False, mxfp4=False, int4=True, nz=True, aclnn_only=False, graph=True,
    ),
    Generation(
        name="A5", device="Ascend950",
        fp8=True, mxfp4=True, int4=True, nz=False, aclnn_only=True, graph=True,
    ),
)  # fmt: skip


def generation_of(device_name: str) -> Generation | None:
    """The generation of a device, by what `torch.npu.get_device_name` says; None for all others."""
    return next((g for g in GENERATIONS if device_name.startswith(g.device)), None)
