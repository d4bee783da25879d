"""Counts this node's accelerators and says what they are."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: What a node without accelerators computes on.
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Devices:
    """The accelerators of one node; several products count as the first."""

    count: int
    kind: str


def look() -> Devices:
    """What NVIDIA's driver shows; a CPU node where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return _told(Devices(0, CPU), "none", "pynvml not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _told(Devices(0, CPU), "nvml", str(error))
    try:
        count = int(pynvml.nvmlDeviceGetCount())
        kind = _product(pynvml) if count else CPU
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return _told(Devices(count, kind), "nvml", "")


def _product(pynvml: Any) -> str:
    name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    return name.decode() if isinstance(name, bytes) else str(name)


def _told(devices: Devices, source: str, reason: str) -> Devices:
    log.info("devices_counted", num_devices=devices.count, source=source, reason=reason)
    return devices
