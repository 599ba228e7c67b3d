"""Kernels that other packages bring: entry points of the group `fourfold.kernels`, named by device type."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from fourfold.errors import KernelError

GROUP = "fourfold.kernels"


def bring(device: str) -> EntryPoint | None:
    """Import the module that an installed package offers for `device`; None if no package does.

    The module registers its kernels when it is imported.  KernelError: the import fails, or several packages
    offer kernels for this device type.
    """
    found = list(entry_points(group=GROUP, name=device))
    if len(found) > 1:
        raise KernelError(
            f"several packages offer kernels for {device}: {', '.join(map(origin, found))}; "
            "allowed: one, uninstall the others"
        )
    for point in found:
        try:
            point.load()
        except Exception as error:  # whatever another package's import may raise
            raise KernelError(
                f"the kernels for {device} cannot be imported from {origin(point)} "
                f"({type(error).__name__}: {error}); repair or uninstall that package"
            ) from error
    return found[0] if found else None


def origin(point: EntryPoint) -> str:
    """module (package version), for messages."""
    return point.value if point.dist is None else f"{point.value} ({point.dist.name} {point.dist.version})"
