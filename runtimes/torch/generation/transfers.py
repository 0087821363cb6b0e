"""Tensors on their way to the device and back, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Send a tensor of the host; from pinned memory, as only that never waits for the GPU."""
    if device.type == "cuda" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Arriving:
    """Copies of ``tensors`` on their way to the host, which begin when what computes them is done."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Begin to copy."""
        self._arrived: torch.cuda.Event | None = None
        if device.type != "cuda":
            self._copies = [tensor.to("cpu") for tensor in tensors]
            return
        self._copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(device))

    def wait(self) -> list[torch.Tensor]:
        """Return the copies once they are there; what was begun on the device since is not waited for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
