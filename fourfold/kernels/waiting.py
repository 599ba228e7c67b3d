"""Devices that compute while the program goes on."""

from __future__ import annotations

import torch


def wait(device: torch.device) -> None:
    """Until all that was given to the device is computed, so that a clock says how long it took.

    Nothing to wait for on a CPU.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
